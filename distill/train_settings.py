"""The settings of `clipglot train`; see `settings` for how such classes are made."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from ..cache.location import Location
from .settings import Device, require, require_at_least_one


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """`clipglot train`: teach a text tower to match the cached pictures."""

    cache: Annotated[Location, "cache to train from: a local path, or a URL such as s3://bucket/train.zarr"]
    output: Annotated[Path, "folder of the run"]
    val: Annotated[Location | None, "cache of held-out pictures: recall is measured on it after every epoch"] = None
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
        "where they are read: on the device, from mapped chunk files, or whole chunks in shuffled order (for URLs and "
        "what exceeds memory); auto takes the nearest that holds them",
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
        require_at_least_one(self, *names, "micro_batch", "workers")
        require(self.batch_size >= 2, f"--batch-size {self.batch_size}: a contrastive loss needs at least 2")
        require(self.context_length >= 3, f"--context-length {self.context_length}: BOS, EOS and text need 3")
        require(self.width % self.heads == 0, f"--width {self.width} is not a multiple of --heads {self.heads}")
        require(0 < self.lr < math.inf, f"--lr {self.lr}: must be positive and finite")
        require(0 <= self.warmup <= 1, f"--warmup {self.warmup}: is a share of the steps, 0 to 1")
        require(self.weight_decay >= 0, f"--weight-decay {self.weight_decay}: must not be negative")
        require(0 < self.beta2 < 1, f"--beta2 {self.beta2}: must lie between 0 and 1")
        require(self.grad_clip >= 0, f"--grad-clip {self.grad_clip}: must not be negative")
        require(0 <= self.cooldown <= 1, f"--cooldown {self.cooldown}: is a share of the steps, 0 to 1")
        require(
            self.schedule != "wsd" or self.warmup + self.cooldown <= 1 + 1e-9,
            f"--warmup {self.warmup} and --cooldown {self.cooldown}: are shares of the same steps, at most 1 together",
        )
        require(
            (self.micro_batch or 0) <= self.batch_size,
            f"--micro-batch {self.micro_batch}: is a part of --batch-size {self.batch_size}",
        )
        require(0 <= self.ema < 1, f"--ema {self.ema}: is a decay below 1, e.g. 0.999")
        require(self.buffer_gb > 0, f"--buffer-gb {self.buffer_gb}: must be positive")
        require(self.profile >= 0, f"--profile {self.profile}: is a number of steps")
        require(
            self.negatives == "all" or str(self.negatives).isdecimal(),
            f"--negatives {self.negatives}: is a number, or all",
        )
        require(self.loss == "infonce" or not self.num_negatives, "--negatives belong to the softmax of --loss infonce")
        require(
            1 <= 1 / max(self.resolved_temperature, 1e-9) <= self.max_logit_scale,
            f"--temperature {self.temperature}: 1 / temperature must lie between 1 and {self.max_logit_scale:g}",
        )
        require(0 <= self.seed < 2**63, f"--seed {self.seed}: must lie between 0 and 2^63")

    @property
    def resolved_temperature(self) -> float:
        """The initial temperature: CLIP's or SigLIP's where none is given."""
        default = 0.1 if self.loss == "siglip" else 0.07
        return default if self.temperature is None else self.temperature

    @property
    def num_negatives(self) -> float:
        """Cached pictures beyond the batch; infinity stands for all."""
        return math.inf if self.negatives == "all" else int(self.negatives)
