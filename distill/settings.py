"""The settings of the long commands: one frozen dataclass each, the single definition for library, file and flags.

Kept apart from the code that they configure so that `clipglot train --help` answers without importing torch
(docs/decisions/002). `__post_init__` validates and never changes a value.
"""

import math
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


def _require_at_least_one(settings: object, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        _require(value is None or value >= 1, f"--{name.replace('_', '-')} {value}: must be at least 1")


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
        _require_at_least_one(self, "limit", "batch_size", "workers", "chunk_rows", "max_pixels")
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
    schedule: Annotated[
        Literal["cosine", "constant", "wsd"], "the rate after warm-up: wsd is constant with a cooldown"
    ] = "cosine"
    warmup: Annotated[float, "share of the steps in which the learning rate rises"] = 0.05
    cooldown: Annotated[float, "share of the steps in which wsd falls, at the end"] = 0.2
    weight_decay: Annotated[float, "AdamW's, on matrices alone"] = 0.1
    beta2: Annotated[float, "AdamW's second moment"] = 0.98
    grad_clip: Annotated[float, "most norm of the gradient; 0 switches clipping off"] = 1.0
    loss: Annotated[Literal["infonce", "siglip"], "contrastive loss: softmax (CLIP) or sigmoid (SigLIP)"] = "infonce"
    negatives: Annotated[
        str | int, "cached pictures beyond the batch that every caption is held against: a number, or all"
    ] = "0"
    temperature: Annotated[
        float | None, "initial temperature of the loss; it is learned (default: 0.07, and 0.1 for siglip)"
    ] = None
    max_logit_scale: Annotated[float, "upper bound of 1 / temperature"] = 100.0
    ema: Annotated[float, "decay of an average of the weights, which is validated and exported; 0 keeps none"] = 0.0
    micro_batch: Annotated[int | None, "captions of one forward; the gradient stays that of the batch"] = None
    grad_checkpointing: Annotated[bool, "compute activations twice instead of keeping them"] = False
    embeddings: Annotated[
        Literal["auto", "device", "mapped", "chunks"],
        "where they are read: on the device, from mapped chunk files, or whole chunks in shuffled order (for stores "
        "where single rows are far); auto takes the nearest that holds them",
    ] = "auto"
    buffer_gb: Annotated[float, "host memory for the buffer of --embeddings chunks, in GB"] = 4.0
    precision: Annotated[
        Literal["auto", "fp32", "bf16", "fp16"], "autocast; auto is bf16 on a GPU and fp32 elsewhere"
    ] = "auto"
    tf32: Annotated[bool, "multiply float32 matrices as TF32 on a GPU, the loss's among them"] = True
    compile: Annotated[Literal["auto", "on", "off"], "torch.compile tower and loss; auto does so on a GPU"] = "auto"
    device: Device = "auto"
    workers: Annotated[int | None, "processes that tokenize (default: the number of cores)"] = None
    seed: Annotated[int, "fixes initial weights, batches and choice of captions"] = 0
    log_every: Annotated[int, "steps between lines of metrics.jsonl"] = 10
    log_to: Annotated[tuple[Literal["tensorboard", "wandb"], ...], "where metrics go, too; may be given twice"] = ()
    profile: Annotated[int, "steps to profile with torch's profiler, after the first ten; the trace is in profile/"] = 0
    checkpoint_every: Annotated[int, "steps between checkpoints; five minutes after the last one is due too"] = 10_000

    def __post_init__(self) -> None:
        names = ("vocab_size", "width", "layers", "heads", "epochs", "log_every", "checkpoint_every")
        _require_at_least_one(self, *names, "micro_batch", "workers")
        _require(self.batch_size >= 2, f"--batch-size {self.batch_size}: a contrastive loss needs at least 2")
        _require(self.context_length >= 3, f"--context-length {self.context_length}: BOS, EOS and text need 3")
        _require(self.width % self.heads == 0, f"--width {self.width} is not a multiple of --heads {self.heads}")
        _require(0 < self.lr < math.inf, f"--lr {self.lr}: must be positive and finite")
        _require(0 <= self.warmup <= 1, f"--warmup {self.warmup}: is a share of the steps, 0 to 1")
        _require(self.weight_decay >= 0, f"--weight-decay {self.weight_decay}: must not be negative")
        _require(0 < self.beta2 < 1, f"--beta2 {self.beta2}: must lie between 0 and 1")
        _require(self.grad_clip >= 0, f"--grad-clip {self.grad_clip}: must not be negative")
        _require(0 <= self.cooldown <= 1, f"--cooldown {self.cooldown}: is a share of the steps, 0 to 1")
        _require(0 <= self.ema < 1, f"--ema {self.ema}: is a decay below 1, e.g. 0.999")
        _require(self.buffer_gb > 0, f"--buffer-gb {self.buffer_gb}: must be positive")
        _require(self.profile >= 0, f"--profile {self.profile}: is a number of steps")
        _require(
            self.negatives == "all" or str(self.negatives).isdecimal(),
            f"--negatives {self.negatives}: is a number, or all",
        )
        _require(
            self.loss == "infonce" or not self.num_negatives, "--negatives belong to the softmax of --loss infonce"
        )
        _require(
            1 <= 1 / max(self.resolved_temperature, 1e-9) <= self.max_logit_scale,
            f"--temperature {self.temperature}: 1 / temperature must lie between 1 and {self.max_logit_scale:g}",
        )
        _require(0 <= self.seed < 2**63, f"--seed {self.seed}: must lie between 0 and 2^63")

    @property
    def resolved_temperature(self) -> float:
        """The initial temperature: CLIP's or SigLIP's where none is given."""
        default = 0.1 if self.loss == "siglip" else 0.07
        return default if self.temperature is None else self.temperature

    @property
    def num_negatives(self) -> float:
        """Cached pictures beyond the batch; infinity stands for all."""
        return math.inf if self.negatives == "all" else int(self.negatives)


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """`clipglot export`: merge the frozen image tower and the trained text tower into one CLIP."""

    run: Annotated[Path, "folder of a finished run"]
    output: Annotated[Path, "folder of the merged CLIP; must not exist"]
    model: Annotated[str | None, "where the image tower is now, if it moved since caching"] = None
    pretrained: Annotated[str | None, "where its weights are now, if they moved since caching"] = None


@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """`clipglot bench`: what this machine reaches. The tower is that of ViT-B/32 by default."""

    cache: Annotated[Path | None, "cache to read and to take captions from (default: a synthetic one)"] = None
    vocab_size: Annotated[int, "tokens that the text tower knows"] = 49_408
    context_length: Annotated[int, "most tokens of a caption, BOS and EOS included"] = 77
    width: Annotated[int, "width of the text tower"] = 512
    layers: Annotated[int, "layers of the text tower"] = 12
    heads: Annotated[int, "attention heads of the text tower"] = 8
    batch_size: Annotated[int | None, "captions of a step (default: 64, and 4,096 on a GPU)"] = None
    steps: Annotated[int | None, "steps to measure after warm-up (default: 11, and 110 on a GPU)"] = None
    precision: Annotated[
        Literal["auto", "fp32", "bf16", "fp16"], "autocast; auto is bf16 on a GPU and fp32 elsewhere"
    ] = "auto"
    compile: Annotated[Literal["auto", "on", "off"], "torch.compile tower and loss; auto does so on a GPU"] = "auto"
    device: Device = "auto"

    def __post_init__(self) -> None:
        _require_at_least_one(self, "steps")
        self.training(2 if self.batch_size is None else self.batch_size)

    def training(self, batch_size: int) -> TrainSettings:
        """The training run whose steps are measured; it hardly moves the weights.

        Raises:
            DistillError: a value that training refuses.
        """
        return TrainSettings(
            cache=self.cache or Path(),
            output=Path(),
            vocab_size=self.vocab_size,
            context_length=self.context_length,
            width=self.width,
            layers=self.layers,
            heads=self.heads,
            batch_size=batch_size,
            lr=1e-6,
            schedule="constant",
            warmup=0,
            precision=self.precision,
            compile=self.compile,
            device=self.device,
        )
