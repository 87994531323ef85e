"""The job of `clipglot cache`, its towers, and checks that an existing cache has the same ones and settings."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from ..cache.format import CacheInfo, EncoderInfo, SourceInfo
from ..cache.location import to_location
from ..cache.read.cache import Cache
from ..cache.sources.kinds import SOURCES
from ..cache.sources.source import Source
from ..cache.write.views import has_further_views, num_begun
from ..distill.errors import DistillError
from ..distill.provenance import require_same_encoder
from ..encoders.image_tower import ImageTower, load_image_tower
from ..encoders.text_teacher import TextTeacher, load_with_teacher
from .output_cache import OutputCache
from .settings.cache import CacheSettings

Difference = tuple[str, Any, Any]
"""A setting, its value in the cache and its value now."""

# The sha256 is last: of Parquet and Arrow it covers the columns that the other settings name.
_SOURCE_FIELDS = (
    "kind",
    "image_field",
    "text_fields",
    "teacher_fields",
    "images",
    "limit",
    "where",
    "split",
    "languages",
    "language_field",
    "encoding",
    "sha256",
)


@dataclass(frozen=True, kw_only=True)
class CacheJob:
    """What is to be cached, by which towers, and where.

    Attributes:
        settings: of the pass.
        source: opened, with its sha256.
        encoder: the image tower.
        teacher_sha256: of the text tower whose embeddings are text targets, if there is one.
        output: the cache.
    """

    settings: CacheSettings
    source: Source
    encoder: EncoderInfo
    teacher_sha256: str | None
    output: OutputCache

    @property
    def kinds(self) -> dict[str, type[Source]]:
        """The kinds of source that are known, the job's own source included."""
        return {**SOURCES, self.source.kind: type(self.source)}

    def sources_of(self, info: CacheInfo) -> list[SourceInfo]:
        """The sources of a cache; that of this job has the paths by which this process finds it."""
        return [
            known
            if _source_differences(known, self.source.info)
            else replace(self.source.info, first_row=known.first_row)
            for known in info.sources
        ]


def load_towers(settings: CacheSettings, device: str | torch.device) -> tuple[ImageTower, TextTeacher | None]:
    """Load the image tower, and the text tower if there are text targets.

    Without images only the identity of the image tower is needed, so it stays off the device.
    """
    model, pretrained = settings.model, settings.pretrained
    if not settings.teacher_field:
        return load_image_tower(model, pretrained, device=device, precision=settings.precision), None
    tower, teacher = load_with_teacher(model, pretrained, device=device, precision=settings.precision)
    return tower.placed(device) if settings.images else tower, teacher


def appended_index(info: CacheInfo, source: SourceInfo) -> int | None:
    """The index of a source among those appended to a cache; None if it was not appended."""
    return next((i for i, known in enumerate(info.appended) if not _source_differences(known, source)), None)


def require_appendable(job: CacheJob) -> None:
    """Refuse a cache to which this source cannot be appended with these settings.

    Raises:
        DistillError: there is no cache; or it has another tower, batch size, other views or text targets, or is not
            complete.
    """
    settings, path, cache = job.settings, job.output.location, job.output.cache
    if cache is None:
        raise DistillError(f"{path}: no cache to append to: leave out --append to make one")
    info = cache.info
    if not info.is_laid_out:
        return  # a source is being appended, after these checks
    require_same_encoder(info.encoder, job.encoder, f"the tower given for {path}")
    if info.source.teacher_fields:
        raise DistillError(f"{path} has text targets: a source cannot be appended to it: cache all sources at once")
    if settings.views not in (1, info.num_views) or num_begun(cache) > info.num_views:
        raise DistillError(
            f"{path} has {info.num_views} views: --append adds images only: add or finish --views in a command without "
            "--append"
        )
    _refuse(settings, _pass_differences(cache, settings))
    if info.state != "sealed" and appended_index(info, job.source.info) is None:
        raise DistillError(f"{path} is not complete: run its last command again before you append to it")


def require_same_plan(job: CacheJob) -> None:
    """Refuse to go on with a cache of another tower, source or batch size than it was planned with.

    The image root may differ: images move, and their keys are relative to it. There may be more views: they are added,
    with the augmentation of the existing ones.

    Raises:
        DistillError: something differs; the message names it.
    """
    settings, source, cache = job.settings, job.source.info, job.output.require()
    planned = cache.info
    require_same_encoder(planned.encoder, job.encoder, f"the tower given for {settings.output}")
    differences = _source_differences(planned.source, source)
    if differences and appended_index(planned, source) is not None:
        raise DistillError(f"{settings.source} was appended to {settings.output}: pass --append to go on with it")
    before, now = (to_location(info.path) for info in (planned.source, source))
    if "sha256" in [name for name, *_ in differences] and before.name != now.name:
        raise DistillError(
            f"{settings.output} was planned from {before}, whose content differs from {now}: once it is complete, "
            "--append adds the images of another source; or choose another -o"
        )
    differences += _pass_differences(cache, settings)
    if planned.state != "sealed" and settings.views < planned.num_views and not settings.retry:
        differences.append(("views", planned.num_views, settings.views))
    _refuse(settings, differences)
    if settings.views > planned.num_views and any(cache.first_pending(chunk) for chunk in range(cache.num_chunks)):
        raise DistillError(
            f"{settings.output} has appended images that are not embedded in its {planned.num_views} views: "
            "run this command without --views first"
        )


def require_same_text_targets(job: CacheJob) -> None:
    """Refuse another text tower than the one that embeds the cache's text targets.

    Raises:
        DistillError: it is another.
    """
    expected, found = job.output.require().info.teacher_sha256, job.teacher_sha256
    if expected and found and expected != found:
        raise DistillError(
            f"the text targets of {job.output.location} come from a text tower of sha256 {expected[:12]}…, the one "
            f"given has {found[:12]}…: give the same --model and --pretrained, or choose another -o"
        )


def _source_differences(planned: SourceInfo, source: SourceInfo) -> list[Difference]:
    both = [(name, getattr(planned, name), getattr(source, name)) for name in _SOURCE_FIELDS]
    return [(name, before, now) for name, before, now in both if before != now]


def _pass_differences(cache: Cache, settings: CacheSettings) -> list[Difference]:
    planned = cache.info
    both: list[Difference] = [
        ("batch_size", planned.batch_size, settings.batch_size),
        ("max_pixels", planned.max_pixels, settings.max_pixels),
        ("decoding", planned.decoding, settings.decoding),
        ("precision", planned.encoder.precision, settings.precision),
    ]
    if settings.views > 1 and planned.augmentation and (planned.num_views > 1 or has_further_views(cache)):
        both.append(("augmentation", str(planned.augmentation), str(settings.augmentation)))
    if settings.chunk_rows is not None:
        both.append(("chunk_rows", planned.chunk_rows, settings.chunk_rows))
    return [(name, before, now) for name, before, now in both if before != now]


def _refuse(settings: CacheSettings, differences: list[Difference]) -> None:
    """Raise a DistillError that names the first difference, if there is one."""
    for name, before, now in differences[:1]:
        if name == "sha256":
            raise DistillError(
                f"{settings.source} has changed since {settings.output} was planned (its sha256 was {before[:12]}…, "
                f"now {now[:12]}…): give the same one to resume, or --append what is new once the cache is complete"
            )
        raise DistillError(
            f"{settings.output} was planned with other settings: {name} was {before!r}, now {now!r}; "
            "give the same ones to resume, or choose another -o"
        )
