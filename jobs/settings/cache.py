"""Settings of `clipglot cache`."""

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from ...cache.format import Augmentation, Decoding, SourceInfo
from ...cache.location import Url, is_hdf5
from ...cache.write.shard import Shard
from ...distill.cpu import num_usable_cores
from ...distill.settings import Device, require, require_at_least_one
from .cluster import NumLocal, Scheduler, require_cluster
from .image_tower_name import require_tower_folder
from .text_fields import require_readable_captions

RENAMED = {"worker": "shard", "workers": "num_workers"}
"""Old names of settings and their new ones; flags and TOML files may still use the old ones."""


@dataclass(frozen=True, kw_only=True)
class CacheSettings:
    """`clipglot cache`: embed every image of a source once."""

    source: Annotated[Path | Url, "images and captions: .jsonl, .csv, .tsv, tars, or another kind (docs/sources.md)"]
    output: Annotated[Path | Url, "cache to write: train.zarr, or s3://bucket/train.zarr"]
    model: Annotated[str, "image tower: an open_clip model, local-dir:PATH, hf-hub:ORG/NAME or timm/NAME"]
    pretrained: Annotated[str | None, "pretrained weights: a tag of that model, or a file"] = None
    image_root: Annotated[
        Path | Url | None, "folder or URL that image paths are relative to (default: the source's)"
    ] = None
    image_field: Annotated[str | None, "column with the image or its path (default: image)"] = None
    text_field: Annotated[
        tuple[str, ...], "column with the caption or captions; repeat for several (default: text)"
    ] = ()
    language: Annotated[
        tuple[str, ...], "language of the captions, a BCP 47 tag such as zh; once for all, or once per --text-field"
    ] = ()
    language_field: Annotated[str | None, "column with the language tag of a row's captions, or of each caption"] = None
    encoding: Annotated[str, "text encoding of the source, e.g. gb18030 or utf-16"] = "utf-8"
    where: Annotated[str | None, "use only records that satisfy this, e.g. \"similarity > 0.3 and lang == 'zh'\""] = (
        None
    )
    split: Annotated[
        str | None, "use only this split, e.g. train; of a table, the rows with this value in the column split"
    ] = None
    teacher_field: Annotated[
        tuple[str, ...],
        "column with translations of the captions into a language that the CLIP reads; repeat for several",
    ] = ()
    images: Annotated[
        bool, "embed images; with --no-images, translations (--teacher-field) are embedded in their place"
    ] = True
    append: Annotated[bool, "add images to a complete cache: embed only those that it lacks"] = False
    retry: Annotated[bool, "retry the failed images of a complete cache; their whole chunks are embedded again"] = False
    limit: Annotated[int | None, "use only the first N images"] = None
    batch_size: Annotated[int, "images per forward pass"] = 64
    num_workers: Annotated[
        int | None, "processes that decode images (default: one per core, two per core for images at a URL)"
    ] = None
    chunk_rows: Annotated[
        int | None, "rows per stored chunk, a multiple of --batch-size (default: about 16 MB, less in small caches)"
    ] = None
    max_pixels: Annotated[int, "reject images with more pixels than this"] = 100_000_000
    decoding: Annotated[
        Decoding,
        "exact, or scaled: decode large JPEGs at reduced size, at least twice what the tower needs, in half the time",
    ] = "exact"
    views: Annotated[
        int,
        "views to store of each image: the plain one, then augmented ones; run again with a larger number to add some",
    ] = 1
    augment_scale: Annotated[
        float, "smallest share of the image's area in an augmented view (random resized crop); 1 does not crop"
    ] = 0.5
    augment_flip: Annotated[
        float,
        "probability of mirroring an augmented view; captions that mention left, right or lettering no longer fit it",
    ] = 0.0
    augment_jitter: Annotated[
        float, "largest change of brightness, contrast and saturation in an augmented view, 0 to 1"
    ] = 0.0
    augment_grayscale: Annotated[
        float, "probability of making an augmented view grey; captions that mention colours no longer fit it"
    ] = 0.0
    augment_seed: Annotated[int, "seed of the augmentations"] = 0
    precision: Annotated[Literal["fp32", "bf16", "fp16"], "precision the tower computes in"] = "fp32"
    device: Device = "auto"
    shard: Annotated[
        str | None, "embed only this share of the chunks, I/N with I from 0 (default: from torchrun, or all of them)"
    ] = None
    scheduler: Scheduler = None
    num_local: NumLocal = None

    def __post_init__(self) -> None:
        require_tower_folder(self.model)
        require(
            self.shard is None or _parse_shard(self.shard) is not None,
            f"--shard {self.shard}: expected I/N with I from 0 to N - 1, e.g. 0/4",
        )
        require_at_least_one(self, "limit", "batch_size", "num_workers", "chunk_rows", "max_pixels", "views")
        require_cluster(self)
        _launcher_rank()
        require(
            self.scheduler is None or self.own_shard.is_whole,
            "--scheduler divides the work itself: leave out --shard, and do not start it by torchrun",
        )
        zarr = f"{self.output}".rpartition(".")[0] + ".zarr"
        require(
            isinstance(self.output, Url) or not is_hdf5(self.output),
            f"-o {self.output}: a pass killed while it writes HDF5 could lose its work: pass -o {zarr}, then "
            f"`clipglot convert {zarr} {self.output}`",
        )
        require(
            self.chunk_rows is None or self.chunk_rows % self.batch_size == 0,
            f"--chunk-rows {self.chunk_rows} must be a multiple of --batch-size {self.batch_size}",
        )
        require(not self.retry or self.own_shard.is_whole, "--retry is for one process alone: leave out --shard")
        require(not (self.retry and self.append), "--retry and --append exclude each other: run one after the other")
        require(
            not (self.append and self.teacher_field),
            "--append and --teacher-field exclude each other: cache all sources at once",
        )
        require_readable_captions(self)
        require(
            self.images or (bool(self.teacher_field) and self.views == 1),
            "--no-images needs the translations of a --teacher-field, and has no --views",
        )
        require(0 < self.augment_scale <= 1, f"--augment-scale {self.augment_scale}: must be above 0 and at most 1")
        for name in ("flip", "jitter", "grayscale"):
            value = getattr(self, f"augment_{name}")
            require(0 <= value <= 1, f"--augment-{name} {value}: must lie between 0 and 1")
        require(0 <= self.augment_seed < 2**63, f"--augment-seed {self.augment_seed}: must lie between 0 and 2^63")
        require(
            self.views > 1 or self.augmentation == Augmentation(),
            "--augment-… are for the views beyond the plain one: pass --views 2 or more",
        )
        require(
            self.views == 1 or replace(self.augmentation, seed=0) != Augmentation(scale=1),
            f"--views {self.views} would all be the same: lower --augment-scale, or raise --augment-flip, -jitter, …",
        )

    @property
    def augmentation(self) -> Augmentation:
        """The augmentation of the views beyond the plain one."""
        return Augmentation(
            scale=self.augment_scale,
            flip=self.augment_flip,
            jitter=self.augment_jitter,
            grayscale=self.augment_grayscale,
            seed=self.augment_seed,
        )

    @property
    def source_info(self) -> SourceInfo:
        """Description of the source; the kind of source fills in what is not given."""
        return SourceInfo(
            path=str(self.source.absolute()),  # valid in every working directory
            sha256="",
            image_root=str(self.image_root.absolute()) if self.image_root else "",
            image_field=self.image_field or "",
            text_fields=list(self.text_field),
            limit=self.limit,
            teacher_fields=list(self.teacher_field),
            images=self.images,
            where=self.where,
            split=self.split,
            languages=list(self.language),
            language_field=self.language_field,
            encoding=self.encoding,
        )

    @property
    def decoders_per_core(self) -> int:
        """Decoding processes per core: those that read over a network wait half of the time."""
        return 2 if isinstance(self.image_root or self.source, Url) else 1

    @property
    def resolved_num_workers(self) -> int:
        """The number of decoding processes. The processes that `torchrun` started on one machine share its cores."""
        local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        return self.num_workers or max(1, num_usable_cores() * self.decoders_per_core // local_processes)

    @property
    def launched_shards(self) -> list[Shard]:
        """The shards of all processes that `torchrun` started with this one; each job of an array may start some."""
        index, num = (_parse_shard(self.shard) if self.shard else None) or (0, 1)
        _, world = _launcher_rank()
        return [Shard(index * world + rank, num * world) for rank in range(world)]

    @property
    def own_shard(self) -> Shard:
        """The chunks that this process embeds."""
        return self.launched_shards[_launcher_rank()[0]]


def _parse_shard(shard: str) -> tuple[int, int] | None:
    """`I/N` as two numbers, None if it is something else."""
    match = re.fullmatch(r"(\d+)/(\d+)", shard)
    return (int(match[1]), int(match[2])) if match and int(match[1]) < int(match[2]) else None


def _launcher_rank() -> tuple[int, int]:
    """Rank and world size of this process, as `torchrun` started it; (0, 1) if it did not.

    Raises:
        DistillError: RANK and WORLD_SIZE in the environment cannot be of a launcher.
    """
    rank, world = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    if world == "1":
        return 0, 1  # other programs set RANK, too
    require(
        rank.isdecimal() and world.isdecimal() and int(rank) < int(world),
        f"RANK={rank} and WORLD_SIZE={world} in the environment, expected RANK below WORLD_SIZE: unset both, or start "
        "this by torchrun",
    )
    return int(rank), int(world)
