"""Descriptions of a cache: the facts that `clipglot inspect` lists, and reasons that `clipglot cache` names, too."""

from ..cache.format import CacheInfo
from ..cache.write.append import KNOWN
from ..jobs.inspect import CacheContents, InspectReport


def cache_facts(report: InspectReport) -> dict[str, str]:
    """Names and values of a cache's facts, in the order in which they are listed."""
    contents = report.contents
    cache, info, encoder = contents.cache, contents.cache.info, contents.cache.info.encoder
    dropped = "".join(f", {num:,} dropped ({reason})" for reason, num in info.dropped_captions.items())
    sets = {
        f"caption set {each.name}": f"{each.num_captions:,} captions ({told_languages(languages)}) from "
        + "; ".join(f"{source.path} (sha256 {source.sha256[:12]}…)" for source in each.sources)
        for each, languages in contents.caption_sets
    }
    facts = {
        "state": info.state if info.state == "sealed" else f"{info.state}: not complete, run it again to resume",
        "images": f"{info.num_images:,}",
        "captions": f"{info.num_captions:,}{dropped}",
        "without captions": f"{report.num_uncaptioned:,} images",
        "languages": told_languages(contents.num_by_language),
        **sets,
        "embeddings": f"{info.num_views} × {info.num_images:,} × {encoder.dim} float16, {cache.num_chunks:,} "
        f"chunk{'s'[: cache.num_chunks != 1]} of {info.chunk_rows:,} rows",
        "views": _views(contents),
        "exact duplicates": "" if info.num_duplicates is None else f"{info.num_duplicates:,}",
        "image tower": f"{encoder.model} / {encoder.pretrained}" if encoder.pretrained else encoder.model,
        "its sha256": encoder.weights_sha256,
        "preprocessing": ", ".join(f"{name} {value}" for name, value in encoder.preprocess.items()),
        "precision": encoder.precision,
        "decoding": info.decoding,
        "teacher": _teacher(contents),
    }
    facts = {name: value for name, value in facts.items() if value}
    by_flag = [flag for flag in info.left_out if flag.startswith("-")]
    left_out = {f"left out by {flag}": f"{info.left_out[flag]:,} rows{because(info, flag)}" for flag in by_flag}
    passed_over = [f"{num:,} {what}" for what, num in info.left_out.items() if what not in by_flag]
    left_out |= {"passed over": ", ".join(passed_over)} if passed_over else {}
    made_with = ", ".join(f"{name} {version}" for name, version in info.libraries.items())
    return facts | _sources(info) | left_out | {"made with": made_with}


def told_languages(num_by_language: dict[str, int]) -> str:
    """Captions of each language in words."""
    return ", ".join(f"{tag or 'untold'} {num:,}" for tag, num in num_by_language.items())


def left_out_line(info: CacheInfo, reason: str, num: int) -> str:
    """What a source left out, as a line: rows by a flag, or files by what they are."""
    if reason.startswith("-"):
        return f"{num:,} rows were left out by {reason}{because(info, reason)}"
    return f"{num:,} {reason} were passed over"


def because(info: CacheInfo, flag: str) -> str:
    """The reason why a flag left records out, in brackets after their number."""
    if flag == KNOWN:
        return " (the cache has their images already; their captions were not added: `clipglot captions` adds captions)"
    asked = {(source.where if flag == "--where" else source.split) for source in info.sources} - {None}
    return f" (asked for: {'; '.join(sorted(map(str, asked)))})"


def _sources(info: CacheInfo) -> dict[str, str]:
    """Each source, in the order of its rows, and how it was read; the facts of a further one carry its number."""
    facts = {}
    for number, source in enumerate(info.sources, 1):
        suffix = f" {number}" if number > 1 else ""
        begins = f", from row {source.first_row:,}" if suffix else ""
        facts[f"source{suffix}"] = f"{source.path} ({source.kind}, sha256 {source.sha256[:12]}…){begins}"
        facts[f"image root{suffix}"] = source.image_root or "-"
        facts[f"text fields{suffix}"] = ", ".join(source.text_fields) or "-"
        if source.limit is not None:
            facts[f"limit{suffix}"] = f"{source.limit:,} images"
    return facts


def _views(contents: CacheContents) -> str:
    """The views of each image, empty where there is only the plain one."""
    info, num_begun = contents.cache.info, contents.num_views_begun
    if num_begun == 1:
        return ""
    text = f"{info.num_views}: the plain one, then augmented: {info.augmentation}"
    if info.state == "sealed" and contents.num_repeated_views:
        text += f"; {contents.num_repeated_views:,} repeat the plain one, their images could not be read again"
    if num_begun > info.num_views:
        text += f"; {num_begun} are begun, run it again to add them"
    return text


def _teacher(contents: CacheContents) -> str:
    """How many captions have a teacher's embedding, and from which columns; empty without a teacher."""
    info = contents.cache.info
    if not info.source.has_teacher:
        return ""
    fields = ", ".join(info.source.teacher_fields)
    return f"{contents.num_taught:,} of {info.num_captions:,} captions, from {fields}"
