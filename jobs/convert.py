"""`clipglot convert`: copy a sealed cache to another kind of store."""

from dataclasses import dataclass

from ..cache.progress import OnProgress, Progress, ignore_progress
from ..cache.read.cache import Cache
from ..cache.write.convert import Converted, convert
from .settings.convert import ConvertSettings


@dataclass(frozen=True, kw_only=True)
class ConvertResult:
    """A copied cache.

    Attributes:
        num_images: of the cache.
        copied: arrays, chunks and bytes that were copied.
    """

    num_images: int
    copied: Converted


def convert_cache(settings: ConvertSettings, on_progress: OnProgress = ignore_progress) -> ConvertResult:
    """Copy a sealed cache to a Zarr folder or an HDF5 file, checking every checksum.

    Args:
        settings: the cache and its copy.
        on_progress: called with the chunks of stage `convert`.

    Raises:
        CacheError: no sealed cache, damage, something at the output, or no room for it.
    """
    cache = Cache(settings.cache)
    copied = convert(cache, settings.out, lambda done, total: on_progress(Progress("convert", done, total)))
    return ConvertResult(num_images=len(cache), copied=copied)
