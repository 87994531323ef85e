"""The settings of the long commands: one frozen dataclass each, the single definition for library, file and flags.

Kept apart from the code that they configure so that `clipglot train --help` answers without importing torch
(docs/decisions/002). `__post_init__` validates and never changes a value.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from .errors import DistillError

Device = Annotated[str, "cpu, cuda, cuda:1, …; auto takes a GPU where there is one"]


def num_usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise DistillError(message)


@dataclass(frozen=True, kw_only=True)
class CacheSettings:
    """`clipglot cache`: embed every picture of a manifest once."""

    source: Annotated[Path, "manifest of pictures and captions: .jsonl, .csv or .tsv"]
    output: Annotated[Path, "where the cache goes, e.g. train.zarr"]
    model: Annotated[str, "image tower: an open_clip model, local-dir:PATH, hf-hub:ORG/NAME or timm/NAME"]
    pretrained: Annotated[str | None, "its weights: a tag of the model, or a file"] = None
    image_root: Annotated[Path | None, "folder that picture paths are relative to (default: the manifest's)"] = None
    image_field: Annotated[str, "column with the picture's path"] = "image"
    text_field: Annotated[tuple[str, ...], "column with its caption or captions; may be given more than once"] = (
        "text",
    )
    limit: Annotated[int | None, "take only the first pictures"] = None
    batch_size: Annotated[int, "pictures in one forward of the tower"] = 64
    workers: Annotated[int | None, "processes that decode pictures (default: the number of cores)"] = None
    chunk_rows: Annotated[int | None, "rows of a stored chunk (default: about 16 MB, less in small caches)"] = None
    max_pixels: Annotated[int, "larger pictures cost their row"] = 100_000_000
    precision: Annotated[Literal["fp32", "bf16", "fp16"], "what the tower computes in"] = "fp32"
    device: Device = "auto"

    def __post_init__(self) -> None:
        for name in ("limit", "batch_size", "workers", "chunk_rows", "max_pixels"):
            value = getattr(self, name)
            _require(value is None or value >= 1, f"--{name.replace('_', '-')} {value}: must be at least 1")
        _require(
            self.chunk_rows is None or self.chunk_rows % self.batch_size == 0,
            f"--chunk-rows {self.chunk_rows} must be a multiple of --batch-size {self.batch_size}",
        )

    @property
    def resolved_image_root(self) -> Path:
        """The folder that picture paths are relative to."""
        return self.image_root or self.source.parent

    @property
    def resolved_workers(self) -> int:
        """The number of decoding processes."""
        return self.workers or num_usable_cores()


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """`clipglot train`: teach a text tower to match the cached pictures."""

    cache: Annotated[Path, "cache to train from"]
    output: Annotated[Path, "folder of the run"]
    val: Annotated[Path | None, "cache of held-out pictures: recall is measured on it after every epoch"] = None
    tokenizer: Annotated[Path | None, "tokenizer folder (default: a BPE is trained on the cache's captions)"] = None
    vocab_size: Annotated[int, "tokens of that BPE"] = 16_384
    context_length: Annotated[int, "most tokens of a caption, BOS and EOS included"] = 77
    width: Annotated[int, "width of the text tower"] = 512
    layers: Annotated[int, "layers of the text tower"] = 6
    heads: Annotated[int, "attention heads of the text tower"] = 8
    epochs: Annotated[int, "times that every picture is shown"] = 30
    batch_size: Annotated[int, "pictures (and captions) of a step"] = 512
    lr: Annotated[float, "peak learning rate"] = 1e-3
    warmup: Annotated[float, "share of the steps in which the learning rate rises"] = 0.05
    weight_decay: Annotated[float, "AdamW's, on matrices alone"] = 0.1
    beta2: Annotated[float, "AdamW's second moment"] = 0.98
    grad_clip: Annotated[float, "most norm of the gradient; 0 switches clipping off"] = 1.0
    temperature: Annotated[float, "initial temperature of the softmax; it is learned"] = 0.07
    max_logit_scale: Annotated[float, "upper bound of 1 / temperature"] = 100.0
    precision: Annotated[Literal["auto", "fp32", "bf16"], "autocast; auto is bf16 on a GPU and fp32 elsewhere"] = "auto"
    device: Device = "auto"
    seed: Annotated[int, "fixes initial weights, batches and choice of captions"] = 0
    log_every: Annotated[int, "steps between lines of metrics.jsonl"] = 10
    checkpoint_every: Annotated[int, "steps between checkpoints; five minutes after the last one is due too"] = 500

    def __post_init__(self) -> None:
        for name in ("vocab_size", "width", "layers", "heads", "epochs", "log_every", "checkpoint_every"):
            value = getattr(self, name)
            _require(value >= 1, f"--{name.replace('_', '-')} {value}: must be at least 1")
        _require(self.batch_size >= 2, f"--batch-size {self.batch_size}: a contrastive loss needs at least 2")
        _require(self.context_length >= 3, f"--context-length {self.context_length}: BOS, EOS and text need 3")
        _require(self.width % self.heads == 0, f"--width {self.width} is not a multiple of --heads {self.heads}")
        _require(self.lr > 0, f"--lr {self.lr}: must be positive")
        _require(0 <= self.warmup <= 1, f"--warmup {self.warmup}: is a share of the steps, 0 to 1")
        _require(self.weight_decay >= 0, f"--weight-decay {self.weight_decay}: must not be negative")
        _require(0 < self.beta2 < 1, f"--beta2 {self.beta2}: must lie between 0 and 1")
        _require(self.grad_clip >= 0, f"--grad-clip {self.grad_clip}: must not be negative")
        _require(
            1 <= 1 / max(self.temperature, 1e-9) <= self.max_logit_scale,
            f"--temperature {self.temperature}: 1 / temperature must lie between 1 and {self.max_logit_scale:g}",
        )
        _require(0 <= self.seed < 2**63, f"--seed {self.seed}: must lie between 0 and 2^63")


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """`clipglot export`: merge the frozen image tower and the trained text tower into one CLIP."""

    run: Annotated[Path, "folder of a finished run"]
    output: Annotated[Path, "folder of the merged CLIP; must not exist"]
    model: Annotated[str | None, "where the image tower is now, if it moved since caching"] = None
    pretrained: Annotated[str | None, "where its weights are now, if they moved since caching"] = None
