"""What is asked of a pass, and whether a cache that is there agrees with it: the same tower, source and settings."""

from dataclasses import dataclass, replace
from typing import Any

from ..cache.format import CacheInfo, EncoderInfo, SourceInfo
from ..cache.location import to_location
from ..cache.read.cache import Cache
from ..cache.sources.kinds import KINDS
from ..cache.sources.source import Source
from ..cache.write.plan import is_planned
from ..cache.write.views import has_further_views, num_begun
from ..distill.errors import DistillError
from ..distill.provenance import require_same_encoder
from .settings.cache import CacheSettings

Difference = tuple[str, Any, Any]
"""A setting, what it was and what it is now."""


@dataclass(frozen=True)
class CacheJob:
    """What is to be cached, by which towers.

    Attributes:
        settings: as given.
        source: opened, with its sha256.
        encoder: the image tower.
        teacher_sha256: of the text tower that teaches, if one does.
    """

    settings: CacheSettings
    source: Source
    encoder: EncoderInfo
    teacher_sha256: str | None

    @property
    def kinds(self) -> dict[str, type[Source]]:
        """The kinds of source that are known: one's own, too."""
        return {**KINDS, self.source.kind: type(self.source)}

    def sources_of(self, info: CacheInfo) -> list[SourceInfo]:
        """The sources of a cache, of which the one that is named lies where this process finds it."""
        return [
            known
            if _source_differences(known, self.source.info)
            else replace(self.source.info, first_row=known.first_row)
            for known in info.sources
        ]


def number_of(info: CacheInfo, source: SourceInfo) -> int | None:
    """Which of the appended sources it is, None if it is none of them."""
    return next((i for i, known in enumerate(info.appended) if not _source_differences(known, source)), None)


def require_appendable(job: CacheJob) -> None:
    """Refuse a cache to which this source cannot be appended with these settings.

    Raises:
        DistillError: no cache, of another tower or batch, with other views, taught by texts, or not complete.
    """
    settings, output = job.settings, job.settings.output
    if not is_planned(output):
        raise DistillError(f"{output}: no cache to append to: leave out --append to make one")
    info = Cache(output).info
    if not info.is_laid_out:
        return  # it is being done, and was found to be possible
    require_same_encoder(info.encoder, job.encoder, f"the tower given for {output}")
    if info.source.teacher_fields:
        raise DistillError(f"{output} was taught by texts: a source cannot be added to it: cache all at once")
    if settings.views not in (1, info.num_views) or num_begun(Cache(output)) > info.num_views:
        raise DistillError(
            f"{output} has {info.num_views} views: --append adds images alone; "
            "finish or add --views in a command without it"
        )
    _refuse(settings, _pass_differences(Cache(output), settings))
    if info.state != "sealed" and number_of(info, job.source.info) is None:
        raise DistillError(f"{output} is not complete: run its last command again before more is appended")


def require_same(existing: Cache, job: CacheJob) -> None:
    """Refuse to go on with a cache of another tower, source or batch.

    Raises:
        DistillError: it is another; the message says in what.
    """
    require_same_encoder(existing.info.encoder, job.encoder, f"the tower given for {job.settings.output}")
    _require_same_plan(existing, job.source.info, job.settings)


def require_same_teacher(cache: Cache, found: str) -> None:
    """Refuse another text tower than the one that teaches.

    Raises:
        DistillError: it is another.
    """
    taught_by = cache.info.teacher_sha256
    if taught_by and taught_by != found:
        raise DistillError(
            f"{cache.path} was taught by a text tower of sha256 {taught_by[:12]}…, "
            f"the one given has {found[:12]}…: give the same --model and --pretrained, or choose another -o"
        )


def _require_same_plan(existing: Cache, source: SourceInfo, settings: CacheSettings) -> None:
    """Refuse to go on with another manifest, other columns or other batches than the cache was planned with.

    The image root may differ: images move, and their keys are relative to it. Views may be more: they are added, with
    the augmentation of those that are there.
    """
    planned = existing.info
    of_source = _source_differences(planned.source, source)
    if of_source and number_of(planned, source) is not None:
        raise DistillError(f"{settings.source} was appended to {settings.output}: pass --append to go on with it")
    before, now = (to_location(info.path) for info in (planned.source, source))
    if "sha256" in [name for name, *_ in of_source] and before.name != now.name:
        raise DistillError(
            f"{settings.output} was planned from {before}, whose content is not that of {now}: once it is complete, "
            "--append adds the images of a further source; or choose another -o"
        )
    differences = of_source + _pass_differences(existing, settings)
    if planned.state != "sealed" and settings.views < planned.num_views and not settings.retry:
        differences.append(("views", planned.num_views, settings.views))
    _refuse(settings, differences)
    if settings.views > planned.num_views and any(existing.first_pending(i) for i in range(existing.num_chunks)):
        raise DistillError(
            f"{settings.output} has appended images that are not embedded in its {planned.num_views} views: "
            "run this command without --views first"
        )


def _source_differences(planned: SourceInfo, source: SourceInfo) -> list[Difference]:
    names = ["kind", "image_field", "text_fields", "teacher_fields", "images", "limit", "where", "split", "languages"]
    names += ["language_field", "sha256"]  # last: of Parquet and Arrow it covers the columns that the others ask for
    both = [(name, getattr(planned, name), getattr(source, name)) for name in names]
    return [(name, before, now) for name, before, now in both if before != now]


def _pass_differences(existing: Cache, settings: CacheSettings) -> list[Difference]:
    planned = existing.info
    differences: list[Difference] = [
        ("batch_size", planned.batch_size, settings.batch_size),
        ("max_pixels", planned.max_pixels, settings.max_pixels),
        ("decoding", planned.decoding, settings.decoding),
        ("precision", planned.encoder.precision, settings.precision),
    ]
    if settings.views > 1 and planned.augmentation and (planned.num_views > 1 or has_further_views(existing)):
        differences.append(("augmentation", str(planned.augmentation), str(settings.augmentation)))
    if settings.chunk_rows is not None:
        differences.append(("chunk_rows", planned.chunk_rows, settings.chunk_rows))
    return [(name, before, now) for name, before, now in differences if before != now]


def _refuse(settings: CacheSettings, differences: list[Difference]) -> None:
    for name, before, now in differences:
        if name == "sha256":
            raise DistillError(
                f"{settings.source} has changed since {settings.output} was planned (its sha256 was {before[:12]}…, "
                f"now {now[:12]}…): give the same one to resume, or --append what is new once the cache is complete"
            )
        raise DistillError(
            f"{settings.output} was planned with other settings: {name} was {before!r}, now {now!r}; "
            "give the same ones to resume, or choose another -o"
        )
