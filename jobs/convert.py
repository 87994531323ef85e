"""`clipglot convert`: copy a sealed cache to another kind of store, or its embeddings to a file."""

from dataclasses import dataclass

from ..cache.progress import OnProgress, Progress, ignore_progress
from ..cache.read.cache import Cache
from ..cache.write.convert import Converted, convert
from ..cache.write.embedding_files import EmbeddingFiles, write_embedding_files
from .settings.convert import EMBEDDINGS, ConvertSettings


@dataclass(frozen=True, kw_only=True)
class ConvertResult:
    """A copied cache.

    Attributes:
        num_images: of the cache.
        copied: arrays, chunks and bytes that were copied; None where only embeddings were written.
        embeddings: what was written of the embeddings alone; None where the cache was copied.
    """

    num_images: int
    copied: Converted | None = None
    embeddings: EmbeddingFiles | None = None


def convert_cache(settings: ConvertSettings, on_progress: OnProgress = ignore_progress) -> ConvertResult:
    """Copy a sealed cache to a Zarr folder or an HDF5 file, or its embeddings to a file, checking every checksum.

    Args:
        settings: the cache and its copy.
        on_progress: called with the chunks of stage `convert`.

    Raises:
        CacheError: no sealed cache, damage, something at the output, or no room for it.
    """
    cache = Cache(settings.cache)

    def show(done: int, total: int) -> None:
        on_progress(Progress("convert", done, total))

    if settings.out.suffix.lower() in EMBEDDINGS:
        return ConvertResult(num_images=len(cache), embeddings=write_embedding_files(cache, settings.out, show))
    return ConvertResult(num_images=len(cache), copied=convert(cache, settings.out, show))
