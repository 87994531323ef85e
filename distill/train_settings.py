"""Settings of `clipglot train`: one flat dataclass, composed of the parts that single functions need.

Flags, TOML keys and run.json are the fields of `TrainSettings`. A function of training takes only the part that it
reads, e.g. a learning rate schedule takes `ScheduleSettings`, so it can be tested without a cache and an output folder.
"""

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

from ..cache.format import OWN_CAPTIONS
from ..cache.location import Location
from .settings import Device, require, require_at_least_one

# Sections of `--help`; their order is also that of the settings in run.json.
SECTIONS = {
    "Data": "cache output val captions val_captions language language_temperature views tokenizer vocab_size "
    "context_length workers",
    "Text tower": "text width layers heads pooler head dropout token_dropout grad_checkpointing lora_rank lora_alpha "
    "lora_targets",
    "Language model": "text_layers text_prompt prune_vocab vocab_text text_features train_layers freeze_embeddings "
    "lm_lr layer_decay",
    "Optimization": "warm_start epochs batch_size micro_batch captions_per_picture equal_captions lr schedule warmup "
    "cooldown weight_decay beta2 grad_clip ema patience seed",
    "Loss": "loss label_smoothing similarity alignment uniformity simcse teacher_weight teacher_temperature negatives "
    "temperature max_logit_scale",
    "Hardware": "device precision tf32 compile embeddings buffer_gb",
    "Logging": "log_every log_to profile checkpoint_every",
}
SCRATCH_ALONE = ("width", "layers", "heads")
SMALLEST_SHARE = 1e-6  # of the largest weight of a language, that one above 0 may have
LM_ALONE = (
    "pooler",
    "head",
    "text_layers",
    "text_prompt",
    "prune_vocab",
    "text_features",
    "train_layers",
    "freeze_embeddings",
    "lm_lr",
    "layer_decay",
)


@dataclass(frozen=True, kw_only=True)
class EmbeddingSettings:
    """Where image embeddings are read from, and which stored views are used."""

    views: Annotated[
        str | int,
        "stored views to draw from, one per image and epoch: a number (1: the plain view only), or all",
    ] = "all"
    embeddings: Annotated[
        Literal["auto", "device", "mapped", "chunks"],
        "where embeddings are read from: device memory, memory-mapped chunk files, or whole chunks in shuffled order "
        "(for URLs, and for caches larger than memory); auto is device if they fit, otherwise mapped",
    ] = "auto"
    buffer_gb: Annotated[float, "size of the buffer of --embeddings chunks in host memory, in GB"] = 4.0

    def __post_init__(self) -> None:
        require(
            self.views == "all" or (str(self.views).isdecimal() and int(self.views) >= 1),
            f"--views {self.views}: must be a number from 1 on, or all",
        )
        require(self.buffer_gb > 0, f"--buffer-gb {self.buffer_gb}: must be positive")


@dataclass(frozen=True, kw_only=True)
class LanguageSettings:
    """Captions that a run is trained and measured on, and how often those of each language."""

    captions: Annotated[
        tuple[str, ...],
        "captions to train on: a set of the cache (`clipglot captions`), or source for those that it was made with; "
        "repeat for several (default: source)",
    ] = ()
    val_captions: Annotated[
        tuple[str, ...], "captions of --val to measure on (default: those of --captions that it has)"
    ] = ()
    language: Annotated[
        tuple[str, ...],
        "language to train on and how often, e.g. ru=1 or en=0.3, relative to the others of an image; repeat for "
        "several, others are left out (default: all captions alike)",
    ] = ()
    language_temperature: Annotated[
        float | None,
        "weights of all languages by number of captions: n to the power of this, from 0 (all equal) to 1",
    ] = None

    def __post_init__(self) -> None:
        for name, chosen in (("captions", self.captions), ("val-captions", self.val_captions)):
            require(len(set(chosen)) == len(chosen), f"--{name} {' '.join(chosen)}: names a set twice")
        weights = self.language_weights
        require(len(weights) == len(self.language), f"--language {' '.join(self.language)}: names a language twice")
        for name, weight in weights.items():
            require(
                bool(name) and 0 <= weight < math.inf,
                f"--language {name}: expected a language and a weight of 0 or more, e.g. ru=1",
            )
        most = max(weights.values(), default=1.0)
        require(most > 0, "--language: all weights are 0, so nothing would be trained")
        least = min((weight for weight in weights.values() if weight), default=most)
        require(
            least >= SMALLEST_SHARE * most,
            f"--language: weight {least:g} beside {most:g} would never be drawn: pass 0 to leave the language out",
        )
        temperature = self.language_temperature
        require(
            temperature is None or 0 <= temperature <= 1,
            f"--language-temperature {temperature}: must lie between 0 and 1",
        )
        require(
            temperature is None or not self.language,
            "--language and --language-temperature exclude each other: pass one",
        )

    @property
    def language_weights(self) -> dict[str, float]:
        """Weight of each language of `--language`; one without a number weighs 1, NaN stands for no number."""
        weights = {}
        for text in self.language:
            name, _, number = text.partition("=")
            try:
                weights[name.strip()] = float(number) if "=" in text else 1.0
            except ValueError:
                weights[name.strip()] = math.nan
        return weights

    @property
    def has_further_captions(self) -> bool:
        """Whether others than the cache's own captions are trained on."""
        return self.captions not in ((), (OWN_CAPTIONS,))


@dataclass(frozen=True, kw_only=True)
class BatchSettings:
    """Size and content of a batch."""

    epochs: Annotated[
        int,
        "passes over the images; an incomplete batch at the end of an epoch is left out",
    ] = 30
    batch_size: Annotated[int, "images per step"] = 512
    micro_batch: Annotated[
        int | None, "captions embedded at a time, to save memory; the gradient is that of the whole batch"
    ] = None
    captions_per_picture: Annotated[int, "maximum number of captions of an image in a step, all of them positives"] = 1
    equal_captions: Annotated[
        Literal["ignore", "positive"],
        "other images in the batch with the same caption: ignore masks these pairs, positive makes them positives",
    ] = "ignore"
    negatives: Annotated[
        str | int, "additional negatives of every caption, from cached images beyond the batch: a number, or all"
    ] = "0"
    token_dropout: Annotated[float, "probability that a token of a caption is left out of a step"] = 0.0
    seed: Annotated[int, "seed of initial weights, batches, choice of captions and dropout"] = 0

    def __post_init__(self) -> None:
        require_at_least_one(self, "epochs", "captions_per_picture", "micro_batch")
        require(self.batch_size >= 2, f"--batch-size {self.batch_size}: a contrastive loss needs at least 2")
        require(
            (self.micro_batch or 0) <= self.batch_size,
            f"--micro-batch {self.micro_batch}: must be at most --batch-size {self.batch_size}",
        )
        require(
            self.negatives == "all" or str(self.negatives).isdecimal(),
            f"--negatives {self.negatives}: must be a number, or all",
        )
        _require_fraction(self, "token_dropout")
        require(0 <= self.seed < 2**63, f"--seed {self.seed}: must lie between 0 and 2^63")

    @property
    def num_negatives(self) -> float:
        """Negatives beyond the batch; infinity stands for all cached images."""
        return math.inf if self.negatives == "all" else int(self.negatives)


@dataclass(frozen=True, kw_only=True)
class ScheduleSettings:
    """Learning rate schedule."""

    lr: Annotated[float, "peak learning rate of a scratch tower, of heads and of LoRA"] = 1e-3
    schedule: Annotated[
        Literal["cosine", "constant", "wsd"],
        "learning rate schedule after warm-up; wsd is constant, then falls in the cooldown",
    ] = "cosine"
    warmup: Annotated[float, "fraction of the steps in which the learning rate rises"] = 0.05
    cooldown: Annotated[float, "fraction of the steps, at the end, in which the learning rate of wsd falls"] = 0.2

    def __post_init__(self) -> None:
        require(0 < self.lr < math.inf, f"--lr {self.lr}: must be positive and finite")
        require(0 <= self.warmup <= 1, f"--warmup {self.warmup}: must be a fraction of the steps, 0 to 1")
        require(0 <= self.cooldown <= 1, f"--cooldown {self.cooldown}: must be a fraction of the steps, 0 to 1")
        require(
            self.schedule != "wsd" or self.warmup + self.cooldown <= 1 + 1e-9,
            f"--warmup {self.warmup} and --cooldown {self.cooldown}: must add up to at most 1",
        )


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """Loss and auxiliary terms."""

    loss: Annotated[
        Literal["infonce", "siglip", "similarity", "cosine", "mse"],
        "contrastive with softmax (infonce, as CLIP) or sigmoid (siglip); soft targets from similarities of images; or "
        "regression to the image embedding (cosine, mse)",
    ] = "infonce"
    label_smoothing: Annotated[
        float, "label smoothing of infonce: fraction of each target that is spread evenly over all candidates"
    ] = 0.0
    similarity: Annotated[float, "weight of the similarity loss as a term added to another loss"] = 0.0
    alignment: Annotated[float, "weight of the alignment term: squared distance between caption and image"] = 0.0
    uniformity: Annotated[float, "weight of the uniformity term, which spreads captions over the sphere"] = 0.0
    simcse: Annotated[
        float, "weight of the SimCSE term, contrastive between two passes of each caption with different --dropout"
    ] = 0.0
    teacher_weight: Annotated[
        float,
        "weight, 0 to 1, of the loss to the text teacher (`clipglot cache --teacher-field`); the rest is the main loss",
    ] = 0.0
    teacher_temperature: Annotated[float, "temperature of the soft targets from the similarities of images"] = 0.05
    temperature: Annotated[
        float | None,
        "initial temperature; softmax and sigmoid learn it (default: 0.07; 0.1 for siglip, 0.01 for cosine and mse)",
    ] = None
    max_logit_scale: Annotated[float, "upper bound of 1 / temperature"] = 100.0

    def __post_init__(self) -> None:
        _require_fraction(self, "label_smoothing")
        require(self.loss == "infonce" or not self.label_smoothing, "--label-smoothing belongs to --loss infonce")
        for name in ("similarity", "alignment", "uniformity", "simcse"):
            weight = getattr(self, name)
            require(0 <= weight < math.inf, f"--{name} {weight}: must be a weight of 0 or more")
        require(
            not (self.similarity and self.loss == "similarity"),
            "--similarity is an auxiliary term of other losses: drop it",
        )
        require(0 <= self.teacher_weight <= 1, f"--teacher-weight {self.teacher_weight}: must be a weight from 0 to 1")
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
        """Initial temperature; its default is that of CLIP or SigLIP, or CLIP's final one if none is learned."""
        if self.teacher_weight == 1 and self.temperature is None:
            return 0.01
        default = {"siglip": 0.1, "cosine": 0.01, "mse": 0.01}.get(self.loss, 0.07)
        return default if self.temperature is None else self.temperature

    @property
    def num_passes(self) -> int:
        """Number of forward passes per caption in a step."""
        return 2 if self.simcse else 1


@dataclass(frozen=True, kw_only=True)
class LearningSettings(BatchSettings, ScheduleSettings, LossSettings):
    """Batches, schedule and loss, with checks that hold for every tower and cache."""

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
            "--teacher-weight 1 leaves no weight for --similarity, --alignment, --uniformity, --simcse or --negatives: "
            "drop them, or lower it",
        )


@dataclass(frozen=True, kw_only=True)
class TrainSettings(LearningSettings, EmbeddingSettings, LanguageSettings):
    """`clipglot train`: train a text tower on cached image embeddings."""

    cache: Annotated[Location, "cache to train from: a local path, or a URL such as s3://bucket/train.zarr"]
    output: Annotated[Path, "run folder"]
    val: Annotated[Location | None, "cache of held-out images, on which recall is measured after every epoch"] = None
    tokenizer: Annotated[Path | None, "tokenizer folder (default: a BPE is trained on the cache's captions)"] = None
    vocab_size: Annotated[int, "maximum vocabulary size of that BPE"] = 16_384
    context_length: Annotated[
        int,
        "maximum number of tokens of a caption, BOS and EOS included; by default at most the positions of the tower",
    ] = 77
    workers: Annotated[int | None, "tokenizing processes (default: the number of cores)"] = None
    text: Annotated[
        str,
        "text tower: scratch; clip for that of the CLIP that made the cache; the folder of an earlier run; or the "
        "folder or hub repository of a language model that transformers loads",
    ] = "scratch"
    width: Annotated[int, "width of a scratch tower"] = 512
    layers: Annotated[int, "layers of a scratch tower"] = 6
    heads: Annotated[int, "attention heads of a scratch tower"] = 8
    pooler: Annotated[
        Literal["mean", "cls", "eos"],
        "pooling of a language model's last hidden states: their mean, the first, or the last",
    ] = "mean"
    head: Annotated[
        Literal["linear", "mlp", "glu", "deep"],
        "projection of a language model's pooled state to the image embeddings: linear, MLP, gated MLP, or MLP of "
        "three hidden layers with dropout; with --warm-start ridge others than linear correct the fitted one",
    ] = "linear"
    dropout: Annotated[
        float | None, "dropout probability (default: 0, or the language model's own; 0.2 in --head deep)"
    ] = None
    grad_checkpointing: Annotated[bool, "gradient checkpointing: saves memory by computing activations twice"] = False
    lora_rank: Annotated[
        int,
        "rank of LoRA on the matrices of a language model, or of the attention of the CLIP's text tower or an earlier "
        "run's, which is then frozen but for new tokens; 0 trains the matrices themselves",
    ] = 0
    lora_alpha: Annotated[float | None, "scale of LoRA's updates, times the rank (default: twice the rank)"] = None
    lora_targets: Annotated[
        tuple[str, ...],
        "linear layers with LoRA, e.g. query; of a CLIP q, k, v or out; repeat for several (default: all)",
    ] = ()
    text_layers: Annotated[
        str, "layers of a language model whose pooled states are put side by side, e.g. 6,9,12 (default: the last)"
    ] = ""
    text_prompt: Annotated[
        str, "text before each caption, as the language model expects it, e.g. 'query: '; the tokenizer keeps it"
    ] = ""
    prune_vocab: Annotated[
        bool, "keep only the tokens of a language model that captions and --vocab-text use, and single characters"
    ] = False
    vocab_text: Annotated[
        tuple[Path, ...], "text file whose tokens --prune-vocab keeps, e.g. of queries to come; repeat for several"
    ] = ()
    text_features: Annotated[
        Literal["auto", "live"],
        "auto computes the features of captions once, before training, if a frozen language model gives the same ones "
        "in each step; live runs the model in each step",
    ] = "auto"
    train_layers: Annotated[
        int | None, "number of last layers of a language model to train; 0 trains only the head (default: all)"
    ] = None
    freeze_embeddings: Annotated[bool, "freeze the word embeddings of a language model"] = False
    lm_lr: Annotated[float, "peak learning rate of a language model's own parameters"] = 1e-4
    layer_decay: Annotated[float, "factor on --lm-lr per layer of distance from the head"] = 1.0
    warm_start: Annotated[
        Literal["none", "ridge"],
        "ridge fits a scratch tower as a bag of tokens, or the linear head of a language model, by ridge regression "
        "before the first step",
    ] = "none"
    weight_decay: Annotated[float, "weight decay of AdamW, applied to matrices only"] = 0.1
    beta2: Annotated[float, "beta2 of AdamW, the decay of the second moment"] = 0.98
    grad_clip: Annotated[float, "maximum gradient norm; 0 switches clipping off"] = 1.0
    ema: Annotated[float, "decay of the moving average of the weights, which is validated and exported; 0 is off"] = 0.0
    patience: Annotated[
        int | None,
        "validations in a row without a better mean of R@1, R@5 and R@10 after which the run stops (default: none)",
    ] = None
    device: Device = "auto"
    precision: Annotated[
        Literal["auto", "fp32", "bf16", "fp16"], "autocast precision; auto is bf16 on a GPU and fp32 elsewhere"
    ] = "auto"
    tf32: Annotated[bool, "allow TF32 in float32 matrix products on a GPU, also in the loss"] = True
    compile: Annotated[Literal["auto", "on", "off"], "torch.compile for tower and loss; auto is on for a GPU"] = "auto"
    log_every: Annotated[int, "steps between lines of metrics.jsonl"] = 10
    log_to: Annotated[
        tuple[Literal["tensorboard", "wandb"], ...], "tracker that gets the metrics, too; repeat for both"
    ] = ()
    profile: Annotated[
        int, "steps to record with the torch profiler, after the first ten; writes profile/trace.json"
    ] = 0
    checkpoint_every: Annotated[
        int, "maximum number of steps between checkpoints; at the latest one is saved after five minutes"
    ] = 10_000

    def __post_init__(self) -> None:
        LearningSettings.__post_init__(self)
        EmbeddingSettings.__post_init__(self)
        LanguageSettings.__post_init__(self)
        names = ("vocab_size", "width", "layers", "heads", "log_every", "checkpoint_every", "workers", "patience")
        require_at_least_one(self, *names)
        require(not self.val_captions or self.val is not None, "--val-captions are of --val: pass it, too")
        require(
            not (self.teacher_weight and self.has_further_captions),
            "--teacher-weight: translations belong to the captions that the cache was made with: drop --captions",
        )
        require(self.patience is None or self.val is not None, f"--patience {self.patience}: pass --val, too")
        require(self.context_length >= 3, f"--context-length {self.context_length}: BOS, EOS and text need 3")
        require(self.width % self.heads == 0, f"--width {self.width} is not a multiple of --heads {self.heads}")
        _require_fraction(self, "dropout")
        self._require_text_tower()
        require(self.weight_decay >= 0, f"--weight-decay {self.weight_decay}: must not be negative")
        require(0 < self.beta2 < 1, f"--beta2 {self.beta2}: must lie between 0 and 1")
        require(self.grad_clip >= 0, f"--grad-clip {self.grad_clip}: must not be negative")
        require(0 <= self.ema < 1, f"--ema {self.ema}: must be a decay below 1, e.g. 0.999")
        require(self.profile >= 0, f"--profile {self.profile}: must be a number of steps")
        require(
            not self.simcse or self.text != "scratch" or bool(self.dropout) or self.token_dropout > 0,
            f"--simcse {self.simcse}: both passes of a caption would be equal: pass --dropout, too, e.g. 0.1",
        )

    def _require_text_tower(self) -> None:
        if self.text in ("scratch", "clip"):
            given = self.given(*LM_ALONE)
            require(not given, f"--{given} belongs to a language model: pass its --text, too")
        require(
            self.text != "scratch" or not self.lora_rank,
            f"--lora-rank {self.lora_rank}: a scratch tower begins with random weights, which LoRA would freeze: drop "
            "it, or pass --text clip or a language model",
        )
        given = self.given(*SCRATCH_ALONE)
        require(
            self.text == "scratch" or not given,
            f"--{given} belongs to a scratch tower, but the shape of {self.text} is fixed: drop it",
        )
        numbers = self.text_layers.split(",") if self.text_layers else []
        require(
            all(number.isdecimal() for number in numbers) and sorted({int(n) for n in numbers}) == [*map(int, numbers)],
            f"--text-layers {self.text_layers}: must be ascending numbers of layers, e.g. 6,9,12",
        )
        prompt = self.text_prompt
        require(
            not prompt or (bool(prompt.strip(" ▁\t\n")) and _is_unicode(prompt)),
            f"--text-prompt {prompt!r}: must be text in UTF-8, e.g. 'query: '",
        )
        require(self.prune_vocab or not self.vocab_text, "--vocab-text goes with --prune-vocab: pass it, too")
        layers = self.train_layers
        require(layers is None or layers >= 0, f"--train-layers {layers}: must be a number of layers")
        require(self.lora_rank >= 0, f"--lora-rank {self.lora_rank}: must not be negative")
        require(
            self.lora_rank > 0 or (self.lora_alpha is None and not self.lora_targets),
            "--lora-alpha and --lora-targets describe LoRA: pass --lora-rank, too",
        )
        require(
            self.lora_alpha is None or 0 < self.lora_alpha < math.inf,
            f"--lora-alpha {self.lora_alpha}: must be positive and finite",
        )
        require(
            self.lora_rank == 0 or (self.train_layers is None and not self.freeze_embeddings),
            "--lora-rank freezes the whole language model: drop --train-layers and --freeze-embeddings",
        )
        require(
            self.warm_start == "none" or self.text != "clip",
            f"--warm-start {self.warm_start} fits a scratch tower or the head of a language model: drop it, or "
            f"--text {self.text}",
        )
        require(0 < self.lm_lr < math.inf, f"--lm-lr {self.lm_lr}: must be positive and finite")
        require(0 < self.layer_decay <= 1, f"--layer-decay {self.layer_decay}: must be a factor above 0 and at most 1")

    def given(self, *names: str) -> str:
        """Flag, without dashes, of the first of these settings that is not at its default, or an empty string."""
        changed = (f.name for f in fields(self) if f.name in names and getattr(self, f.name) != f.default)
        return next(changed, "").replace("_", "-")

    @property
    def freezes_lm(self) -> bool:
        """Whether all of a language model but its head is frozen."""
        return self.train_layers == 0 and self.text not in ("scratch", "clip")

    @property
    def live_because(self) -> str:
        """Setting for which a frozen language model runs in every step; empty if its features are computed once."""
        if not self.freezes_lm:
            return ""
        if self.token_dropout:
            return f"--token-dropout {self.token_dropout:g}"
        return "--text-features live" if self.text_features == "live" else ""


def _is_unicode(text: str) -> bool:
    """Whether a text has no surrogates, which stand for bytes that are not UTF-8."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _require_fraction(settings: object, name: str) -> None:
    fraction = getattr(settings, name)
    require(
        fraction is None or 0 <= fraction < 1, f"--{name.replace('_', '-')} {fraction}: must be at least 0 and below 1"
    )
