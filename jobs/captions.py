"""`clipglot captions`: further sets of captions for the images of a cache, matched by key; no image is read."""

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from ..cache.errors import CacheError
from ..cache.format import CaptionSetInfo
from ..cache.location import Url
from ..cache.progress import OnProgress, Progress, ignore_progress
from ..cache.read.cache import Cache
from ..cache.read.caption_sets import CaptionSet
from ..cache.sources.coco import CocoSource
from ..cache.sources.kinds import open_source
from ..cache.sources.parquet import ArrowSource, ParquetSource
from ..cache.sources.source import Source
from ..cache.sources.table import TableSource
from ..cache.storage.atomic import lock_folder
from ..cache.write.caption_sets import AddedCaptions, add_set, drop_set
from .settings.captions import CaptionsSettings

TABLES = (TableSource, CocoSource, ParquetSource, ArrowSource)


@dataclass(frozen=True, kw_only=True)
class CaptionsResult:
    """What a command did to the sets of a cache.

    Attributes:
        action: what it did.
        info: of the set, as it is or was.
        languages: captions of each language, "" for none; empty where the set is gone.
        added: what the table gave it; None where it is gone.
        notes: of how the table was read.
    """

    action: Literal["added", "replaced", "extended", "dropped"]
    info: CaptionSetInfo
    languages: dict[str, int]
    added: AddedCaptions | None
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        added = self.added
        return {
            "action": self.action,
            **set_to_json(self.info, self.languages),
            "num_rows": added.num_rows if added else 0,
            "num_unmatched": added.num_unmatched if added else 0,
            "unmatched": added.unmatched if added else [],
            "num_pictures": added.num_images if added else 0,
        }


def set_to_json(info: CaptionSetInfo, languages: dict[str, int]) -> dict[str, Any]:
    """A caption set for `--json`."""
    return {
        "name": info.name,
        "num_captions": info.num_captions,
        "languages": languages,
        "dropped_captions": info.dropped_captions,
        "sources": [asdict(source) for source in info.sources],
        "sha256": info.sha256,
    }


def add_captions(settings: CaptionsSettings, on_progress: OnProgress = ignore_progress) -> CaptionsResult:
    """Give a sealed cache a set of captions, add to one, replace or delete it. A kill leaves the set as it was.

    Args:
        settings: cache, table and name.
        on_progress: called with the keys of the cache (stage "keys") and the records of the table ("captions").

    Raises:
        CacheError: no cache, one that is not complete or is written by another command; a set of that name, or none; a
            table that cannot be read, or of whose keys the cache has none.
    """
    if isinstance(settings.cache, Url):
        raise CacheError(
            f"{settings.cache}: a store has no locks, and two commands could undo each other: run this on a copy of "
            "the cache on a local disk, and upload that"
        )
    Cache(settings.cache, read_only=False).require_sealed()  # before a lock creates a folder
    source = None if settings.drop else _open_table(settings)
    with lock_folder(settings.cache):
        cache = Cache(settings.cache, read_only=False).require_sealed()
        name = settings.set_name
        if source is None:
            return CaptionsResult(action="dropped", info=drop_set(cache, name), languages={}, added=None, notes=[])
        existed = any(info.name == name for info in cache.arrays.caption_sets())
        added = add_set(
            cache,
            name,
            source.batches(),
            replace(source.info, image_root=""),  # where no image is read from
            replaces=settings.replace,
            extends=settings.add,
            require_same_images=lambda: _require_own_table(cache, source),
            on_keys=lambda done: on_progress(Progress("keys", done, len(cache))),
            on_rows=lambda done: on_progress(Progress("captions", done)),
        )
        return CaptionsResult(
            action="added" if not existed else "extended" if settings.add else "replaced",
            info=added.info,
            languages=CaptionSet(cache.arrays, added.info).count_languages(),
            added=added,
            notes=source.notes,
        )


def _require_own_table(cache: Cache, table: Source) -> None:
    """Refuse a table with images inside that is not one of those that the cache was made of.

    Raises:
        CacheError: says how captions of another table are matched.
    """
    for own in cache.info.sources:
        if own.kind == table.info.kind and open_source(replace(own, path=table.info.path)).sha256() == own.sha256:
            return
    raise CacheError(
        f"{table.info.path} has images inside, and {cache.path} was not made of it, so row numbers would match images "
        "with captions of others: pass the file or folder that the cache was made of, or write the cache's keys "
        "(`clipglot inspect`) in a column and name it with --image-field"
    )


def _open_table(settings: CaptionsSettings) -> Source:
    """The table, with its digest.

    Raises:
        CacheError: nothing there, or no table.
    """
    source = open_source(settings.source_info)
    if not isinstance(source, TABLES):
        raise CacheError(
            f"{settings.file} is no table of captions: pass a CSV, TSV, JSON lines, JSON, COCO, Parquet or Arrow file "
            "with a column of the images' keys"
        )
    source.info = replace(source.info, sha256=source.sha256())
    return source
