"""Settings of `clipglot train`: one flat dataclass, put together from the parts that single functions need.

Flags, TOML keys and run.json see `TrainSettings` alone. A function of training takes the part that it reads, e.g. a
learning rate schedule `ScheduleSettings`, so that it is tested and used without a cache and an output folder.
"""

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

from ..cache.location import Location
from .settings import Device, require, require_at_least_one

# Sections of `--help`, in this order; run.json lists the settings in it, too.
SECTIONS = {
    "What to learn from": "cache output val views tokenizer vocab_size context_length workers",
    "Text tower": "text width layers heads pooler head dropout token_dropout grad_checkpointing",
    "Language model": "train_layers freeze_embeddings lora_rank lora_alpha lora_targets lm_lr layer_decay",
    "Course": "warm_start epochs batch_size micro_batch captions_per_picture equal_captions lr schedule warmup "
    "cooldown weight_decay beta2 grad_clip ema seed",
    "Loss": "loss label_smoothing similarity alignment uniformity simcse teacher_weight teacher_temperature negatives "
    "temperature max_logit_scale",
    "Machine": "device precision tf32 compile embeddings buffer_gb",
    "Watching": "log_every log_to profile checkpoint_every",
}
SCRATCH_ALONE = ("width", "layers", "heads")
LM_ALONE = ("pooler", "head", "train_layers", "freeze_embeddings", "lora_rank", "lm_lr", "layer_decay")


@dataclass(frozen=True, kw_only=True)
class EmbeddingSettings:
    """Where image embeddings are read, and which of the stored views."""

    views: Annotated[
        str | int,
        "stored views of an image, one of which is drawn in each epoch: a number (1: the plain view alone), or all",
    ] = "all"
    embeddings: Annotated[
        Literal["auto", "device", "mapped", "chunks"],
        "where embeddings are read: on the device, from mapped chunk files, or whole chunks in shuffled order (for "
        "URLs and what exceeds memory); auto takes the nearest place that holds them",
    ] = "auto"
    buffer_gb: Annotated[float, "host memory for the buffer of --embeddings chunks, in GB"] = 4.0

    def __post_init__(self) -> None:
        require(
            self.views == "all" or (str(self.views).isdecimal() and int(self.views) >= 1),
            f"--views {self.views}: must be a number from 1 on, or all",
        )
        require(self.buffer_gb > 0, f"--buffer-gb {self.buffer_gb}: must be positive")


@dataclass(frozen=True, kw_only=True)
class BatchSettings:
    """What a batch holds."""

    epochs: Annotated[
        int,
        "passes over the images; images at the end of an epoch that do not fill a batch are left out of that epoch",
    ] = 30
    batch_size: Annotated[int, "images of a step"] = 512
    micro_batch: Annotated[int | None, "captions of one forward; the gradient stays that of the batch"] = None
    captions_per_picture: Annotated[int, "most captions of each image in a step, drawn to it together"] = 1
    equal_captions: Annotated[
        Literal["ignore", "positive"],
        "other images of a step that have the same caption: no pair (ignore), or a positive pair",
    ] = "ignore"
    negatives: Annotated[
        str | int, "cached images beyond the batch that are negatives of every caption: a number, or all"
    ] = "0"
    token_dropout: Annotated[float, "share of a caption's tokens that are left out each time it is shown"] = 0.0
    seed: Annotated[int, "fixes initial weights, batches and choice of captions"] = 0

    def __post_init__(self) -> None:
        require_at_least_one(self, "epochs", "captions_per_picture", "micro_batch")
        require(self.batch_size >= 2, f"--batch-size {self.batch_size}: a contrastive loss needs at least 2")
        require(
            (self.micro_batch or 0) <= self.batch_size,
            f"--micro-batch {self.micro_batch}: is a part of --batch-size {self.batch_size}",
        )
        require(
            self.negatives == "all" or str(self.negatives).isdecimal(),
            f"--negatives {self.negatives}: must be a number, or all",
        )
        _require_share(self, "token_dropout")
        require(0 <= self.seed < 2**63, f"--seed {self.seed}: must lie between 0 and 2^63")

    @property
    def num_negatives(self) -> float:
        """Negatives beyond the batch; infinity stands for all cached images."""
        return math.inf if self.negatives == "all" else int(self.negatives)


@dataclass(frozen=True, kw_only=True)
class ScheduleSettings:
    """Learning rate schedule."""

    lr: Annotated[float, "peak learning rate: of a scratch tower, of heads, of LoRA"] = 1e-3
    schedule: Annotated[
        Literal["cosine", "constant", "wsd"], "learning rate after warm-up: wsd is constant with a cooldown"
    ] = "cosine"
    warmup: Annotated[float, "share of the steps in which the learning rate rises"] = 0.05
    cooldown: Annotated[float, "share of the steps, at the end, in which wsd falls"] = 0.2

    def __post_init__(self) -> None:
        require(0 < self.lr < math.inf, f"--lr {self.lr}: must be positive and finite")
        require(0 <= self.warmup <= 1, f"--warmup {self.warmup}: is a share of the steps, 0 to 1")
        require(0 <= self.cooldown <= 1, f"--cooldown {self.cooldown}: is a share of the steps, 0 to 1")
        require(
            self.schedule != "wsd" or self.warmup + self.cooldown <= 1 + 1e-9,
            f"--warmup {self.warmup} and --cooldown {self.cooldown}: are shares of the same steps, at most 1 together",
        )


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """The loss and the terms beside it."""

    loss: Annotated[
        Literal["infonce", "siglip", "similarity", "cosine", "mse"],
        "softmax (CLIP) or sigmoid (SigLIP) over the batch; the image's similarities to the batch as soft targets; "
        "or regression on the image's embedding, by direction or with the length",
    ] = "infonce"
    label_smoothing: Annotated[
        float, "share of each target of infonce that is spread evenly over all candidates of its softmax"
    ] = 0.0
    similarity: Annotated[float, "weight of the similarities as soft targets beside another loss"] = 0.0
    alignment: Annotated[float, "weight of the squared distance to the image beside the loss"] = 0.0
    uniformity: Annotated[float, "weight of a term that spreads the captions of a batch over the sphere"] = 0.0
    simcse: Annotated[
        float, "weight of a term in which captions, embedded twice with other --dropout, find themselves"
    ] = 0.0
    teacher_weight: Annotated[
        float, "share of the loss, 0 to 1, that draws captions to the text teacher of `clipglot cache --teacher-field`"
    ] = 0.0
    teacher_temperature: Annotated[float, "of the softmax over the image's similarities, where these are used"] = 0.05
    temperature: Annotated[
        float | None,
        "initial temperature; softmax and sigmoid learn it (default: 0.07; 0.1 for siglip, 0.01 for cosine and mse)",
    ] = None
    max_logit_scale: Annotated[float, "upper bound of 1 / temperature"] = 100.0

    def __post_init__(self) -> None:
        _require_share(self, "label_smoothing")
        require(self.loss == "infonce" or not self.label_smoothing, "--label-smoothing belongs to --loss infonce")
        for name in ("similarity", "alignment", "uniformity", "simcse"):
            weight = getattr(self, name)
            require(0 <= weight < math.inf, f"--{name} {weight}: is a weight, 0 or more")
        require(
            not (self.similarity and self.loss == "similarity"), "--similarity is a term beside another --loss: drop it"
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

    @property
    def resolved_temperature(self) -> float:
        """Initial temperature: by default CLIP's or SigLIP's; where none is learned, the one CLIP ends with."""
        if self.teacher_weight == 1 and self.temperature is None:
            return 0.01
        default = {"siglip": 0.1, "cosine": 0.01, "mse": 0.01}.get(self.loss, 0.07)
        return default if self.temperature is None else self.temperature

    @property
    def num_passes(self) -> int:
        """Times that each caption of a step is embedded."""
        return 2 if self.simcse else 1


@dataclass(frozen=True, kw_only=True)
class LearningSettings(BatchSettings, ScheduleSettings, LossSettings):
    """What is learned in each step, and how fast; holds whatever the tower and the data."""

    def __post_init__(self) -> None:
        BatchSettings.__post_init__(self)
        ScheduleSettings.__post_init__(self)
        LossSettings.__post_init__(self)
        require(self.loss == "infonce" or not self.num_negatives, "--negatives belong to the softmax of --loss infonce")
        require(
            self.captions_per_picture == 1 or not (self.simcse or self.uniformity),
            "--simcse and --uniformity compare captions with each other: drop --captions-per-picture",
        )
        require(
            self.equal_captions == "ignore" or self.loss in ("infonce", "siglip"),
            f"--equal-captions {self.equal_captions}: --loss {self.loss} has no positive and negative pairs: drop it",
        )
        require(
            self.teacher_weight < 1
            or not (self.similarity or self.alignment or self.uniformity or self.simcse or self.num_negatives),
            "--teacher-weight 1 leaves no share to --similarity, --alignment, --uniformity, --simcse or --negatives: "
            "drop them, or pass a smaller one",
        )


@dataclass(frozen=True, kw_only=True)
class TrainSettings(LearningSettings, EmbeddingSettings):
    """`clipglot train`: teach a text tower to match the cached images."""

    cache: Annotated[Location, "cache to train from: a local path, or a URL such as s3://bucket/train.zarr"]
    output: Annotated[Path, "folder of the run"]
    val: Annotated[Location | None, "cache of held-out images: recall is measured on it after every epoch"] = None
    tokenizer: Annotated[Path | None, "tokenizer folder (default: a BPE is trained on the cache's captions)"] = None
    vocab_size: Annotated[int, "tokens of that BPE"] = 16_384
    context_length: Annotated[int, "most tokens of a caption, BOS and EOS included"] = 77
    workers: Annotated[int | None, "processes that tokenize (default: the number of cores)"] = None
    text: Annotated[
        str,
        "text tower: scratch; clip, the one of the CLIP that made the cache; the folder of an earlier run; or folder "
        "or hub repository of a language model that transformers loads",
    ] = "scratch"
    width: Annotated[int, "width of a scratch tower"] = 512
    layers: Annotated[int, "layers of a scratch tower"] = 6
    heads: Annotated[int, "attention heads of a scratch tower"] = 8
    pooler: Annotated[
        Literal["mean", "cls", "eos"], "how a language model's tokens are pooled: their mean, the first, or the last"
    ] = "mean"
    head: Annotated[
        Literal["linear", "mlp"], "projection from a language model's width to that of the image embeddings"
    ] = "linear"
    dropout: Annotated[
        float | None, "share of the tower's values that training zeroes (default: none, or the language model's own)"
    ] = None
    grad_checkpointing: Annotated[bool, "compute activations twice instead of keeping them"] = False
    train_layers: Annotated[
        int | None, "last layers of a language model that are trained; 0 trains the head alone (default: all)"
    ] = None
    freeze_embeddings: Annotated[bool, "keep a language model's word embeddings as they are"] = False
    lora_rank: Annotated[int, "train low-rank changes of a language model's matrices (LoRA); 0 trains them whole"] = 0
    lora_alpha: Annotated[float | None, "LoRA's changes are scaled by alpha / rank (default: twice the rank)"] = None
    lora_targets: Annotated[
        tuple[str, ...], "linear layers that LoRA changes, e.g. query; may be given more than once (default: all)"
    ] = ()
    lm_lr: Annotated[float, "peak learning rate of a language model's own parameters"] = 1e-4
    layer_decay: Annotated[float, "factor on that rate for every layer further from the head"] = 1.0
    warm_start: Annotated[
        Literal["none", "ridge"],
        "ridge fits a scratch tower as a bag of tokens, or a language model's linear head, in closed form before the "
        "first step, so that epoch zero retrieves",
    ] = "none"
    weight_decay: Annotated[float, "AdamW's, on matrices alone"] = 0.1
    beta2: Annotated[float, "AdamW's second moment"] = 0.98
    grad_clip: Annotated[float, "upper bound of the gradient's norm; 0 switches clipping off"] = 1.0
    ema: Annotated[float, "decay of an average of the weights, which is validated and exported; 0 keeps none"] = 0.0
    device: Device = "auto"
    precision: Annotated[
        Literal["auto", "fp32", "bf16", "fp16"], "autocast; auto is bf16 on a GPU and fp32 elsewhere"
    ] = "auto"
    tf32: Annotated[bool, "multiply float32 matrices as TF32 on a GPU, the loss's among them"] = True
    compile: Annotated[Literal["auto", "on", "off"], "torch.compile tower and loss; auto does so on a GPU"] = "auto"
    log_every: Annotated[int, "steps between lines of metrics.jsonl"] = 10
    log_to: Annotated[tuple[Literal["tensorboard", "wandb"], ...], "where metrics go, too; may be given twice"] = ()
    profile: Annotated[int, "steps to profile with torch's profiler, after the first ten; the trace is in profile/"] = 0
    checkpoint_every: Annotated[int, "steps between checkpoints; five minutes after the last one is due too"] = 10_000

    def __post_init__(self) -> None:
        LearningSettings.__post_init__(self)
        EmbeddingSettings.__post_init__(self)
        names = ("vocab_size", "width", "layers", "heads", "log_every", "checkpoint_every", "workers")
        require_at_least_one(self, *names)
        require(self.context_length >= 3, f"--context-length {self.context_length}: BOS, EOS and text need 3")
        require(self.width % self.heads == 0, f"--width {self.width} is not a multiple of --heads {self.heads}")
        _require_share(self, "dropout")
        self._require_text_tower()
        require(self.weight_decay >= 0, f"--weight-decay {self.weight_decay}: must not be negative")
        require(0 < self.beta2 < 1, f"--beta2 {self.beta2}: must lie between 0 and 1")
        require(self.grad_clip >= 0, f"--grad-clip {self.grad_clip}: must not be negative")
        require(0 <= self.ema < 1, f"--ema {self.ema}: is a decay below 1, e.g. 0.999")
        require(self.profile >= 0, f"--profile {self.profile}: must be a number of steps")
        require(
            not self.simcse or self.text != "scratch" or bool(self.dropout) or self.token_dropout > 0,
            f"--simcse {self.simcse}: both passes of a caption would be the same: pass --dropout too, e.g. 0.1",
        )

    def _require_text_tower(self) -> None:
        if self.text in ("scratch", "clip"):
            given = self.given(*LM_ALONE)
            require(not given, f"--{given} belongs to a language model: pass its --text, too")
        given = self.given(*SCRATCH_ALONE)
        require(
            self.text == "scratch" or not given,
            f"--{given} belongs to a scratch tower: {self.text} has a shape of its own: drop it",
        )
        layers = self.train_layers
        require(layers is None or layers >= 0, f"--train-layers {layers}: must be a number of layers")
        require(self.lora_rank >= 0, f"--lora-rank {self.lora_rank}: must not be negative")
        require(
            self.lora_rank > 0 or (self.lora_alpha is None and not self.lora_targets),
            "--lora-alpha and --lora-targets describe LoRA: pass --lora-rank, too",
        )
        require(
            self.lora_rank == 0 or 0 < self.resolved_lora_alpha < math.inf,
            f"--lora-alpha {self.lora_alpha}: must be positive and finite",
        )
        require(
            self.lora_rank == 0 or (self.train_layers is None and not self.freeze_embeddings),
            "--lora-rank keeps the language model itself as it is: drop --train-layers and --freeze-embeddings",
        )
        require(
            self.warm_start == "none" or (self.text != "clip" and self.head == "linear"),
            f"--warm-start {self.warm_start} fits a scratch tower or the linear head of a language model: drop it, or "
            f"--text {self.text} --head {self.head}",
        )
        require(0 < self.lm_lr < math.inf, f"--lm-lr {self.lm_lr}: must be positive and finite")
        require(0 < self.layer_decay <= 1, f"--layer-decay {self.layer_decay}: is a factor above 0, at most 1")

    def given(self, *names: str) -> str:
        """The flag, without dashes, of the first of these settings that differs from its default, or nothing."""
        changed = (f.name for f in fields(self) if f.name in names and getattr(self, f.name) != f.default)
        return next(changed, "").replace("_", "-")

    @property
    def resolved_lora_alpha(self) -> float:
        """Scale of LoRA's changes times its rank."""
        return 2.0 * self.lora_rank if self.lora_alpha is None else self.lora_alpha


def _require_share(settings: object, name: str) -> None:
    share = getattr(settings, name)
    require(
        share is None or 0 <= share < 1, f"--{name.replace('_', '-')} {share}: must be a share, 0 or more and below 1"
    )
