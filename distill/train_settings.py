"""The settings of `clipglot train`; see `settings` for how such classes are made."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from .settings import Device, require, require_at_least_one


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
    dropout: Annotated[float, "share of the tower's values that are zeroed in training, 0 to 1"] = 0.0
    token_dropout: Annotated[float, "share of a caption's tokens that are left out each time it is shown"] = 0.0
    epochs: Annotated[int, "times that every picture is shown"] = 30
    views: Annotated[
        str | int,
        "stored views of a picture, one of which is drawn for each epoch: a number (1 is the plain one), or all",
    ] = "all"
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
    loss: Annotated[
        Literal["infonce", "siglip", "similarity", "cosine", "mse"],
        "softmax (CLIP) or sigmoid (SigLIP) over the batch; the picture's similarities to the batch as soft targets; "
        "or regression on the picture's embedding, by direction or with the length",
    ] = "infonce"
    similarity: Annotated[float, "weight of the similarities as soft targets beside another loss"] = 0.0
    alignment: Annotated[float, "weight of the squared distance to the picture beside the loss"] = 0.0
    uniformity: Annotated[float, "weight of a term that spreads the captions of a batch over the sphere"] = 0.0
    simcse: Annotated[
        float, "weight of a term in which captions, embedded twice with other --dropout, find themselves"
    ] = 0.0
    teacher_weight: Annotated[
        float, "share of the loss, 0 to 1, that draws captions to the text teacher of `clipglot cache --teacher-field`"
    ] = 0.0
    teacher_temperature: Annotated[float, "of the softmax over the picture's similarities, where these are used"] = 0.05
    negatives: Annotated[
        str | int, "cached pictures beyond the batch that every caption is held against: a number, or all"
    ] = "0"
    temperature: Annotated[
        float | None,
        "initial temperature; softmax and sigmoid learn it (default: 0.07; 0.1 for siglip, 0.01 for cosine and mse)",
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
        require_at_least_one(self, *names, "micro_batch", "workers")
        require(self.batch_size >= 2, f"--batch-size {self.batch_size}: a contrastive loss needs at least 2")
        require(self.context_length >= 3, f"--context-length {self.context_length}: BOS, EOS and text need 3")
        require(self.width % self.heads == 0, f"--width {self.width} is not a multiple of --heads {self.heads}")
        for name in ("dropout", "token_dropout"):
            share = getattr(self, name)
            require(0 <= share < 1, f"--{name.replace('_', '-')} {share}: is a share, 0 or more and below 1")
        require(0 < self.lr < math.inf, f"--lr {self.lr}: must be positive and finite")
        require(0 <= self.warmup <= 1, f"--warmup {self.warmup}: is a share of the steps, 0 to 1")
        require(self.weight_decay >= 0, f"--weight-decay {self.weight_decay}: must not be negative")
        require(0 < self.beta2 < 1, f"--beta2 {self.beta2}: must lie between 0 and 1")
        require(self.grad_clip >= 0, f"--grad-clip {self.grad_clip}: must not be negative")
        require(0 <= self.cooldown <= 1, f"--cooldown {self.cooldown}: is a share of the steps, 0 to 1")
        require(0 <= self.ema < 1, f"--ema {self.ema}: is a decay below 1, e.g. 0.999")
        require(self.buffer_gb > 0, f"--buffer-gb {self.buffer_gb}: must be positive")
        require(self.profile >= 0, f"--profile {self.profile}: is a number of steps")
        require(
            self.negatives == "all" or str(self.negatives).isdecimal(),
            f"--negatives {self.negatives}: is a number, or all",
        )
        require(
            self.views == "all" or (str(self.views).isdecimal() and int(self.views) >= 1),
            f"--views {self.views}: is a number from 1 on, or all",
        )
        require(self.loss == "infonce" or not self.num_negatives, "--negatives belong to the softmax of --loss infonce")
        for name in ("similarity", "alignment", "uniformity", "simcse"):
            weight = getattr(self, name)
            require(0 <= weight < math.inf, f"--{name} {weight}: is a weight, 0 or more")
        require(
            not (self.similarity and self.loss == "similarity"), "--similarity is a term beside another --loss: drop it"
        )
        require(
            not self.simcse or self.dropout > 0 or self.token_dropout > 0,
            f"--simcse {self.simcse}: both views of a caption would be the same: pass --dropout too, e.g. 0.1",
        )
        require(
            0 <= self.teacher_weight <= 1, f"--teacher-weight {self.teacher_weight}: is a share of the loss, 0 to 1"
        )
        require(
            0 < self.teacher_temperature < math.inf,
            f"--teacher-temperature {self.teacher_temperature}: must be positive",
        )
        require(
            1 <= 1 / max(self.resolved_temperature, 1e-9) <= self.max_logit_scale,
            f"--temperature {self.resolved_temperature}: 1 / temperature must lie from 1 to {self.max_logit_scale:g}",
        )
        require(0 <= self.seed < 2**63, f"--seed {self.seed}: must lie between 0 and 2^63")

    @property
    def resolved_temperature(self) -> float:
        """The initial temperature: CLIP's or SigLIP's where none is given, and where none is learned CLIP's last."""
        if self.teacher_weight == 1 and self.temperature is None:
            return 0.01
        default = {"siglip": 0.1, "cosine": 0.01, "mse": 0.01}.get(self.loss, 0.07)
        return default if self.temperature is None else self.temperature

    @property
    def num_views(self) -> int:
        """Times that each caption of a step is embedded."""
        return 2 if self.simcse else 1

    @property
    def num_negatives(self) -> float:
        """Cached pictures beyond the batch; infinity stands for all."""
        return math.inf if self.negatives == "all" else int(self.negatives)
