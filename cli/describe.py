"""What `clipglot cache` and `inspect` say of a cache's contents: facts for the table, and all of it for `--json`."""

from dataclasses import asdict
from typing import Any

from ..cache.format import CacheInfo
from ..cache.read.cache import Cache
from ..cache.write.append import KNOWN
from ..cache.write.text_targets import TextTargetStatus
from ..cache.write.views import count_repeats, num_begun


def sources(info: CacheInfo) -> dict[str, str]:
    """Each source, in the order of its rows, and how it was read; the facts of a further one carry its number."""
    shown = {}
    for number, source in enumerate(info.sources, 1):
        mark = f" {number}" if number > 1 else ""
        begins = f", from row {source.first_row:,}" if mark else ""
        shown[f"source{mark}"] = f"{source.path} ({source.kind}, sha256 {source.sha256[:12]}…){begins}"
        shown[f"image root{mark}"] = source.image_root or "-"
        shown[f"text fields{mark}"] = ", ".join(source.text_fields) or "-"
        if source.limit is not None:
            shown[f"limit{mark}"] = f"{source.limit:,} images"
    return shown


def views(cache: Cache) -> dict[str, str]:
    """What there is to say of views, where there are further ones."""
    info, begun = cache.info, num_begun(cache)
    if begun == 1:
        return {}
    shown = f"{info.num_views}: the plain one, then augmented: {info.augmentation}"
    if info.state == "sealed" and (repeats := count_repeats(cache)):
        shown += f"; {repeats:,} repeat the plain one, their images could not be read again"
    if begun > info.num_views:
        shown += f"; {begun} are begun, run it again to add them"
    return {"views": shown}


def languages(cache: Cache) -> dict[str, str]:
    """How many captions there are in each language, where the source tells."""
    counts = cache.count_languages()
    shown = ", ".join(f"{tag or 'untold'} {count:,}" for tag, count in counts.items())
    return {"languages": shown} if counts else {}


def left_out(info: CacheInfo) -> dict[str, str]:
    """How many records were not taken, and why."""
    return {f"left out by {flag}": f"{count:,} rows{because(info, flag)}" for flag, count in info.left_out.items()}


def because(info: CacheInfo, flag: str) -> str:
    """Why records were left out by a flag."""
    if flag == KNOWN:
        return " (the cache has their images already; their captions were not added)"
    asked = {(source.where if flag == "--where" else source.split) for source in info.sources} - {None}
    return f" (asked for: {'; '.join(sorted(map(str, asked)))})"


def teacher(cache: Cache) -> str:
    """How many captions have a teacher's embedding, and from which columns."""
    has = int((cache.teacher_status() == TextTargetStatus.EMBEDDED).sum()) if cache.info.state == "sealed" else 0
    return f"{has:,} of {cache.info.num_captions:,} captions, from {', '.join(cache.info.source.teacher_fields)}"


def contents(cache: Cache) -> dict[str, Any]:
    """All of it, for `--json`."""
    info = cache.info
    return {
        "path": str(cache.path),
        "state": info.state,
        "num_pictures": info.num_pictures,
        "num_captions": info.num_captions,
        "dropped_captions": info.dropped_captions,
        "left_out": info.left_out,
        "languages": cache.count_languages(),
        "num_views": info.num_views,
        "num_duplicates": info.num_duplicates,
        "augmentation": asdict(info.augmentation) if info.augmentation else None,
        "dim": info.encoder.dim,
        "chunk_rows": info.chunk_rows,
        "decoding": info.decoding,
        "status": {status.label: count for status, count in cache.count_status().items()},
        "encoder": asdict(info.encoder),
        "source": asdict(info.source),
        "appended": [asdict(source) for source in info.appended],
        "libraries": info.libraries,
        "teacher_sha256": info.teacher_sha256,
    }
