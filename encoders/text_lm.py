"""A pretrained language model as a text tower: a transformers model, a pooler and a head, over captions unpadded.

Laid out as open_clip's HFTextEncoder (`text.transformer.…`, `text.proj.…`), so that open_clip loads the exports of the
families that it knows. B captions, W width of the pooled layers together, D features.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Self, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoModel

from .errors import EncoderError
from .loading.clips import hash_tensors
from .loading.language_models import (
    DROPOUTS,
    config_has_dropout,
    first_line,
    plain_values,
    read_pretrained,
    set_dropout,
    without_pooler,
)
from .loading.untrusted import LM_CONFIG, read_config, to_config
from .lora import LoRAOptions, add_lora, merge_lora
from .packing import PackedCaptions, PackedRows, PooledCaptions, row_length
from .text_heads import DEEP_DROPOUT, OPEN_CLIP_HEADS, Head, ResidualHead, make_head
from .text_lm_forward import Pooler, blocks_of, hidden_states_of, num_positions, pack_tokens, pool
from .text_tower import Regressions, TextTower, TextTowerConfig, TowerSpec, context_within
from .tokenizer import TextTokenizer
from .tokenizer_lm import LMTokenizer

# Families and poolers that open_clip's HFTextEncoder builds from a config (open_clip 3.3.0, hf_configs.py).
OPEN_CLIP_FAMILIES = ("bert", "roberta", "xlm-roberta", "mt5", "m2m_100")
OPEN_CLIP_POOLERS = {"mean": "mean_pooler", "cls": "cls_last_hidden_state_pooler"}
# What an export says of poolers and heads that open_clip does not have, in the fields that it does have.
_POOLER = re.compile(r"(mean|cls|eos)(?:\((\d{1,4}(?:,\d{1,4})*)\))?")
_RESIDUAL = "residual-"
# Values of a config that change no feature: dropout apart, these say how a model is stored or trained.
_NO_FEATURE = {*DROPOUTS, "dtype", "torch_dtype", "transformers_version", "architectures", "use_cache"}


@dataclass(frozen=True, kw_only=True)
class LMConfig(TextTowerConfig):
    """Configuration of a tower around a language model.

    Attributes:
        name: hub repository that the model came from, or the last part of its folder's path.
        model: its transformers config, as plain values.
        pooler: how the tokens of a caption become one vector.
        head: what brings that vector to D features (`text_heads.py`).
        layers: whose pooled states are put side by side, from 1; empty stands for the last one.
        residual: whether the head corrects a linear one.
        head_dropout: of heads other than open_clip's.
    """

    name: str
    model: dict[str, Any]
    pooler: Pooler
    head: Head
    layers: list[int] = field(default_factory=list)
    residual: bool = False
    head_dropout: float = 0.0

    @property
    def family(self) -> str:
        """Model type of transformers."""
        return str(self.model["model_type"])

    @property
    def loads_in_open_clip(self) -> bool:
        """Whether open_clip can build this tower."""
        return self.family in OPEN_CLIP_FAMILIES and self.pooler in OPEN_CLIP_POOLERS and self._has_plain_head

    @property
    def _has_plain_head(self) -> bool:
        """Whether open_clip has a head of this kind."""
        return not self.layers and not self.residual and self.head in OPEN_CLIP_HEADS

    @property
    def pooled_layers(self) -> str:
        """The pooler and its layers, in a few words."""
        if not self.layers:
            return f"{self.pooler} pooling"
        return f"{self.pooler} pooling of layers {', '.join(map(str, self.layers))}"

    @property
    def head_form(self) -> str:
        """The head, in a few words."""
        return f"linear + {self.head}" if self.residual else self.head

    def to_open_clip(self) -> dict[str, Any]:
        """The `text_cfg` of open_clip; `hf_model_name` is where its loader asks transformers for the model's config."""
        return {
            "hf_model_name": self.name,
            "hf_model_pretrained": False,  # the weights come with the rest
            "hf_tokenizer_name": self.name,
            "hf_proj_type": f"{_RESIDUAL}{self.head}" if self.residual else self.head,
            "hf_pooler_type": self._pooler_type,
            "context_length": self.context_length,
        }

    @property
    def _pooler_type(self) -> str:
        if self.layers:
            return f"{self.pooler}({','.join(map(str, self.layers))})"
        return OPEN_CLIP_POOLERS.get(self.pooler, self.pooler)

    @classmethod
    def from_export(cls, model_cfg: Mapping[str, Any], folder: Path) -> "LMConfig | None":
        """Configuration of the language model of an export; None if its text tower is of another kind.

        Args:
            model_cfg: of its open_clip_config.json.
            folder: of the export, which holds the config.json of transformers.

        Raises:
            EncoderError: that file is missing or damaged; or the config names a pooler or head that there is not.
        """
        text_cfg = model_cfg["text_cfg"]
        if "hf_model_name" not in text_cfg:
            return None
        model = read_config(folder)
        poolers: dict[str, Any] = {theirs: ours for ours, theirs in OPEN_CLIP_POOLERS.items()}
        pooled, projected = str(text_cfg["hf_pooler_type"]), str(text_cfg["hf_proj_type"])
        own = _POOLER.fullmatch(poolers.get(pooled, pooled))
        head: Any = projected.removeprefix(_RESIDUAL)
        if own is None or head not in get_args(Head):
            what = f"hf_pooler_type {pooled!r} and hf_proj_type {projected!r}"
            raise EncoderError(f"{folder}: clipglot has no text tower of {what}: export the run again")
        pooler: Any = own[1]
        return cls(
            embed_dim=model_cfg["embed_dim"],
            name=text_cfg["hf_model_name"],
            model=model,
            pooler=pooler,
            head=head,
            layers=[int(number) for number in (own[2] or "").split(",") if number],
            residual=projected.startswith(_RESIDUAL),
            context_length=text_cfg["context_length"],
        )

    def to_transformers(self) -> Any:
        """The transformers config."""
        return to_config(self.model, f"the language model {self.name}")

    def describe(self) -> str:
        """One line for the model card."""
        config = self.to_transformers()
        shape = f"{config.num_hidden_layers} layers, width {config.hidden_size}"
        return f"{self.family} language model `{self.name}`, {shape}, {self.pooled_layers}, {self.head_form} head"

    def extra_files(self) -> dict[str, str]:
        """The config.json of transformers, where its loaders look for it."""
        return {LM_CONFIG: json.dumps(self.model, indent=2, ensure_ascii=False) + "\n"}

    def loading_code(self, folder: str) -> str:
        """Python that loads an export from `folder`."""
        if not self.loads_in_open_clip:
            return super().loading_code(folder)
        return f"""import open_clip

name = "local-dir:{folder}"
text_cfg = open_clip.get_model_config(name)["text_cfg"] | {{"hf_model_name": "{folder}"}}
model, _, preprocess = open_clip.create_model_and_transforms(name, text_cfg=text_cfg)
model.eval()  # language models have dropout
tokenizer = open_clip.get_tokenizer(name)"""

    def loading_guide(self, folder: str) -> str:
        """Markdown for the model card: the loading code, and what is special about it."""
        code = super().loading_guide(folder)
        if self.loads_in_open_clip:
            return f"""open_clip asks transformers for the language model's configuration by name. Name this folder,
whose `config.json` holds it, and nothing is fetched:

{code}

`clipglot predict {folder} …` and `clipglot.encoders.merged_clip.load_merged` do so by themselves."""
        kind = f"{self.family}, {self.pooled_layers}, {self.head_form} head"
        return f"""open_clip has no text tower of this kind ({kind}). clipglot loads it:

{code}"""


@dataclass(frozen=True, kw_only=True)
class LMOptions(LoRAOptions):
    """Settings of `clipglot train` for language models alone.

    Attributes:
        pooler: as of `LMConfig`.
        head: as of `LMConfig`.
        text_layers: `layers` of `LMConfig`, separated by commas.
        train_layers: number of last blocks that are trained; None trains all, 0 the head alone.
        freeze_embeddings: whether the word embeddings are not trained.
        lm_lr: peak learning rate of the model's own parameters.
        layer_decay: factor on that rate for each layer further from the head.
    """

    pooler: Pooler = "mean"
    head: Head = "linear"
    text_layers: str = ""
    train_layers: int | None = None
    freeze_embeddings: bool = False
    lm_lr: float = 1e-4
    layer_decay: float = 1.0

    @property
    def layers(self) -> list[int]:
        """Numbers of the layers."""
        return [int(number) for number in self.text_layers.split(",") if number]


class LMTower(TextTower):
    """A language model as a text tower.

    Attributes:
        text: `transformer`, the model, and `proj`, the head.
    """

    kind = "lm"
    noun = "a language model"
    config_type = LMConfig
    options_type = LMOptions
    tokenizer_type = LMTokenizer
    has_own_tokenizer = True
    config: LMConfig

    def __init__(self, config: LMConfig, transformer: nn.Module | None = None) -> None:
        """Build the tower around a model, or around a new one with random weights."""
        super().__init__(config)
        model: Any = transformer if transformer is not None else _build(config.to_transformers())
        if not set(config.layers) <= set(range(1, model.config.num_hidden_layers + 1)) or (
            config.layers != sorted(set(config.layers))
        ):
            raise ValueError(f"layers {config.layers} of {model.config.num_hidden_layers}")
        self.text = nn.ModuleDict({"transformer": model, "proj": _make_head(config, model.config.hidden_size)})
        if getattr(model.config, "use_cache", False):  # of keys and values, for a next token that nobody asks for
            model.config.use_cache = False
        self._few_shapes = False
        self._grad_checkpointing = False
        self._compiled: Callable[..., Tensor] | None = None

    @classmethod
    def from_open_clip(cls, clip: Any, model_cfg: Mapping[str, Any], export: Path | None) -> "LMTower | None":
        """The text tower of an export that open_clip has loaded; None of another kind, and of CLIPs of others.

        Args:
            clip: the model; its language model is shared.
            model_cfg: of its open_clip_config.json.
            export: folder of an export of ours.
        """
        config = None if export is None else LMConfig.from_export(model_cfg, export)
        if config is None:
            return None
        tower = cls(config, clip.text.transformer)
        tower.text["proj"].load_state_dict(clip.text.proj.state_dict())
        return tower

    @classmethod
    def create(cls, spec: TowerSpec, options: LMOptions, tokenizer: TextTokenizer) -> "LMTower":
        """The tower around a pretrained model, with a new head.

        Args:
            spec: what the run asks for; `text` is a folder or hub repository.
            options: of language models.
            tokenizer: of the model.

        Raises:
            EncoderError: as `from_pretrained`; or tokenizer, pooler, frozen layers or LoRA do not fit the model.
        """
        tower = cls.from_pretrained(
            spec.text,
            spec.embed_dim,
            pooler=options.pooler,
            head=options.head,
            layers=options.layers,
            residual=spec.warm_start and options.head != "linear",
            context_length=spec.context_length,
            may_shorten=spec.may_shorten,
            dropout=spec.dropout,
        )
        if options.pooler == "cls" and tower._sees_one_token():
            raise EncoderError(
                f"--pooler cls: a token of {spec.text} sees only those before it, so the first one is the same, "
                "whatever follows: pass --pooler eos or mean"
            )
        if spec.kept_words:
            tower.prune_words(spec.kept_words)
        return tower._prepared(spec, options, tokenizer)

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        embed_dim: int,
        *,
        pooler: Pooler = "mean",
        head: Head = "linear",
        layers: Sequence[int] = (),
        residual: bool = False,
        context_length: int = 77,
        may_shorten: bool = False,
        dropout: float | None = None,
    ) -> "LMTower":
        """The tower around the pretrained model of a folder or a hub repository, with a new head.

        Args:
            name: folder or repository, with safetensors: nothing is unpickled, and none of its code is run.
            embed_dim: D.
            pooler: as of `LMConfig`.
            head: as of `LMConfig`.
            layers: as of `LMConfig`.
            residual: as of `LMConfig`.
            context_length: most tokens of a caption.
            may_shorten: as of `TowerSpec`.
            dropout: of the model and the head; None leaves that of its config, and gives the head its own.

        Raises:
            EncoderError: no model there, one that lacks weights or takes fewer tokens, or one that does not embed text.
        """
        model = read_pretrained(name, dropout)
        num_layers = model.config.num_hidden_layers
        if wrong := [number for number in layers if not 1 <= number <= num_layers]:
            raise EncoderError(f"--text-layers {wrong[0]}: {name} has layers 1 to {num_layers}")
        context_length = context_within(num_positions(model.config), context_length, name, may_shorten=may_shorten)
        public_name = Path(name).name if Path(name).is_dir() else name  # exports do not tell where a folder lay
        try:
            config = LMConfig(
                embed_dim=embed_dim,
                context_length=context_length,
                name=public_name,
                model=plain_values(model.config),
                pooler=pooler,
                head=head,
                layers=list(layers),
                residual=residual,
                head_dropout=_head_dropout(head, dropout),
            )
            tower = cls(config, model)
            tower._embed_longest()
        except Exception as error:  # a model of images or sound, or one that shares its blocks: what fails differs
            raise EncoderError(
                f"--text {name}: a model of type {model.config.model_type} that does not embed {context_length} tokens "
                f"({type(error).__name__}: {first_line(error)}): pass a language model whose "
                "layers have weights of their own"
            ) from error
        return tower

    def continued(
        self, spec: TowerSpec, options: LMOptions, old_tokenizer: TextTokenizer, tokenizer: TextTokenizer
    ) -> "LMTower":
        """The tower with another context length and dropout; pooler, head and tokenizer stay.

        Args:
            spec: what the new run asks for.
            options: of language models.
            old_tokenizer: that this tower was trained with.
            tokenizer: of the new run, the same.

        Raises:
            EncoderError: something is asked for that does not fit what was trained.
        """
        config = self.config
        if config.embed_dim != spec.embed_dim:
            raise EncoderError(
                f"--text {spec.text} gives {config.embed_dim} features, {spec.image_model} has {spec.embed_dim}: "
                "begin with the language model itself"
            )
        learned = {"pooler": config.pooler, "head": config.head, "text_layers": ",".join(map(str, config.layers))}
        for name, own in learned.items():
            other, flag = getattr(options, name), f"--{name.replace('_', '-')}"
            if other not in (own, getattr(LMOptions, name)):
                raise EncoderError(
                    f"{flag} {other}: the run {spec.text} learned with {own or 'the last layer'}, which stays: drop "
                    f"{flag}, or begin with the language model itself"
                )
        if spec.warm_start and config.head != "linear" and not config.residual:
            raise EncoderError(
                f"--warm-start ridge fits a linear head, {spec.text} has none: drop --warm-start, or begin with the "
                "language model itself"
            )
        model = config.to_transformers()
        context_length = context_within(
            num_positions(model), spec.context_length, spec.text, may_shorten=spec.may_shorten
        )
        set_dropout(model, spec.dropout)
        head_dropout = config.head_dropout if spec.dropout is None else _head_dropout(config.head, spec.dropout)
        shape: dict[str, Any] = {"context_length": context_length, "model": plain_values(model)}
        tower = LMTower(replace(config, **shape, head_dropout=head_dropout))
        tower.load_state_dict(self.state_dict())
        return tower._prepared(spec, options, tokenizer)

    def _prepared(self, spec: TowerSpec, options: LMOptions, tokenizer: TextTokenizer) -> "LMTower":
        """The tower, its parts frozen and adapted as asked."""
        self.require_tokenizer(tokenizer, spec.text)
        if options.lora_rank:
            alpha, targets = options.resolved_alpha, options.lora_targets
            self.add_lora(rank=options.lora_rank, alpha=alpha, targets=targets, dropout=0.0)
        else:
            self.freeze(train_layers=options.train_layers, word_embeddings=options.freeze_embeddings)
        return self

    @torch.no_grad()
    def prune_words(self, rows: Sequence[int]) -> None:
        """Keep some of the word embeddings, and renumber what the config says of tokens.

        Args:
            rows: of the kept tokens, in the order of their new ids.

        Raises:
            EncoderError: the model has no such row; or padding would get another id, which counts positions in
                some families.
        """
        words, config = self.transformer.get_input_embeddings(), self.transformer.config
        if max(rows) >= self.num_rows:
            raise EncoderError(
                f"--prune-vocab: {self.config.name} has no word embedding for all tokens of its tokenizer"
            )
        new = {row: number for number, row in enumerate(rows)}
        if config.pad_token_id is not None and new.get(config.pad_token_id) != config.pad_token_id:
            raise EncoderError(
                f"--prune-vocab: the padding of {self.config.name} has id {config.pad_token_id}, after tokens that "
                "would go: drop --prune-vocab"
            )
        words.weight = nn.Parameter(words.weight[list(rows)].clone(), requires_grad=words.weight.requires_grad)
        words.num_embeddings = config.vocab_size = len(rows)
        for name, id_ in config.to_dict().items():
            if name.endswith("_token_id") and isinstance(id_, int) and id_ in new:
                setattr(config, name, new[id_])
        self.config = replace(self.config, model=plain_values(config))

    def require_tokenizer(self, tokenizer: TextTokenizer, name: str) -> None:
        """Refuse a tokenizer whose ids have no word embedding, or whose padding open_clip would not see.

        Args:
            tokenizer: of the run.
            name: of the model, for the message.

        Raises:
            EncoderError: says which, and what to change.
        """
        if tokenizer.vocab_size > self.num_rows:
            raise EncoderError(
                f"--text {name}: its tokenizer knows {tokenizer.vocab_size:,} tokens, its word embeddings have "
                f"{self.num_rows:,} rows: pass a model whose embeddings were resized to its tokenizer"
            )
        if self.config.loads_in_open_clip and tokenizer.pad_id != self.transformer.config.pad_token_id:
            raise EncoderError(
                f"--text {name}: its tokenizer pads with {tokenizer.pad_id}, its config.json has pad_token_id "
                f"{self.transformer.config.pad_token_id}, so open_clip would not see padding: make the files agree"
            )

    def _embed_longest(self) -> None:
        """Embed the longest caption that there can be, or raise whatever comes of it."""
        self.depths()
        with torch.inference_mode():
            self.eval()._embed_tokens(self.config.context_length)
        self.train()

    def _embed_tokens(self, number: int) -> None:
        """Embed a caption of so many tokens, none of them padding."""
        self.encode([[self._no_padding(1)] * number])

    def _no_padding(self, number: int) -> int:
        """Id of a token that is not padding, another one for each number from 1."""
        return ((self.transformer.config.pad_token_id or 0) + number) % self.num_rows

    @torch.inference_mode()
    def _sees_one_token(self) -> bool:
        """Whether features are the same, whatever follows the first token: of a causal model that pools it."""
        first, second, third = (self._no_padding(number) for number in range(1, 4))
        features = self.eval().encode([[first, second], [first, third]])
        self.train()
        return torch.allclose(features[0], features[1], rtol=1e-5, atol=1e-7)

    @property
    def transformer(self) -> Any:
        """The language model."""
        return self.text["transformer"]

    @property
    def num_rows(self) -> int:
        """Tokens that it has word embeddings for."""
        return int(self.transformer.get_input_embeddings().num_embeddings)

    @property
    def grad_checkpointing(self) -> bool:
        """Hold less memory; what is inside the blocks is computed again in backward.

        Raises:
            EncoderError: on setting it, of a family that transformers has no such form of.
        """
        return self._grad_checkpointing

    @grad_checkpointing.setter
    def grad_checkpointing(self, on: bool) -> None:
        """Begin or end with it."""
        if on and not self.transformer.supports_gradient_checkpointing:
            raise EncoderError(
                f"--grad-checkpointing: {self.config.family} has none in transformers: drop it, or pass --micro-batch"
            )
        if on != self._grad_checkpointing:
            # transformers 5 gave both methods another name
            new, old = ("activation_checkpointing_", "gradient_checkpointing_")
            action, arguments = ("enable", [{"use_reentrant": False}]) if on else ("disable", [])
            switch = getattr(self.transformer, new + action, None) or getattr(self.transformer, old + action)
            switch(*arguments)
        self._grad_checkpointing = on

    @property
    def layers(self) -> nn.ModuleList:
        """Its blocks, from the input up."""
        return blocks_of(self.transformer)

    def pack(self, ids: NDArray[Any], lengths: NDArray[np.int64]) -> PackedCaptions | PackedRows:
        """Captions as `forward` takes them, on the host; arguments as of `PackedCaptions.of`."""
        return pack_tokens(self.transformer.config, ids, lengths, few_shapes=self._few_shapes)

    def compile_rows(self, backend: str | Callable[..., Any] = "inductor", mode: str | None = None) -> None:
        """Compile the training forward over rows; not of a model that takes no rows, nor with several layers."""
        if self.config.layers:
            return
        self.allow_shapes()
        self._few_shapes = True
        self._compiled = torch.compile(self._features, dynamic=False, backend=backend, mode=mode)

    def encode(self, captions: Sequence[Sequence[int] | NDArray[Any]]) -> Tensor:
        """As of every tower, but captions of one length that would leave most of a row unused go as they are.

        So does a single caption, which fills a tenth of a row.
        """
        lengths = {len(caption) for caption in captions}
        num_tokens = sum(map(len, captions))
        if len(lengths) != 1 or 2 * num_tokens > row_length(max(lengths)) or self._few_shapes:
            return super().encode(captions)
        ids = np.concatenate([np.asarray(caption, np.int64) for caption in captions])
        packed = PackedCaptions.of(ids, np.full(len(captions), max(lengths)), None)
        features: Tensor = self(packed.to(self.device))
        return features

    def forward(self, packed: PackedCaptions | PackedRows | PooledCaptions) -> Tensor:
        """Raw features `[B, D]` of packed captions on this tower's device, in the order given."""
        if isinstance(packed, PooledCaptions):
            features: Tensor = self.text["proj"](packed.pooled)
            return features
        if self._compiled and self.training and isinstance(packed, PackedRows):
            return self._compiled(packed)
        return self._features(packed)

    def pooled(self, packed: PackedCaptions | PackedRows) -> Tensor:
        """What the head is given, `[B, W]`."""
        states = hidden_states_of(self.transformer, packed, self.layers, self.config.layers)
        return torch.cat([pool(each, packed, self.config.pooler) for each in states], dim=1)

    def _features(self, packed: PackedCaptions | PackedRows) -> Tensor:
        features: Tensor = self.text["proj"](self.pooled(packed))
        return features

    def depths(self) -> tuple[dict[str, int], int]:
        """Depth of each parameter of the model, by name, and the largest.

        Blocks have 1 to L, what follows them, such as a last norm, L + 1. Everything else is input of the blocks, with
        depth 0: embeddings, and tables of relative positions, wherever the model keeps them.
        """
        top = len(self.layers) + 1
        depth_of = {id(p): top for module in self._after_blocks() for p in module.parameters(recurse=False)}
        depth_of |= {id(p): depth for depth, block in enumerate(self.layers, 1) for p in block.parameters()}
        named = ((name, p) for name, p in self.named_parameters() if name.startswith("text.transformer."))
        return {name: depth_of.get(id(parameter), 0) for name, parameter in named}, top

    @torch.no_grad()
    def _after_blocks(self) -> list[nn.Module]:
        """Modules of the model that a forward calls after its last block."""
        called: list[nn.Module] = []
        inside = {module for block in self.layers for module in block.modules()}
        outside = [module for module in self.transformer.modules() if module not in inside]
        hooks = [module.register_forward_pre_hook(lambda module, _: called.append(module)) for module in outside]
        hooks.append(self.layers[-1].register_forward_hook(lambda *_: called.clear()))
        was_training = self.training
        try:
            self.eval()._embed_tokens(1)
        finally:
            self.train(was_training)
            for hook in hooks:
                hook.remove()
        return called

    def learning_rate_factors(self, *, pretrained: float, layer_decay: float) -> dict[str, float]:
        """Factor on the learning rate of each trained parameter, by name; 1 for the head and for LoRA.

        Layer-wise decay of Clark et al. 2020, arXiv:2003.10555, appendix A.

        Args:
            pretrained: for the model's own parameters.
            layer_decay: a further factor on these, for each layer between them and the head.
        """
        factors = super().learning_rate_factors(pretrained=pretrained, layer_decay=layer_decay)
        depths, top = self.depths()
        for name in factors.keys() & depths.keys():
            if "lora_" not in name:
                factors[name] = pretrained * layer_decay ** (top - depths[name])
        return factors

    @property
    def trains_language_model(self) -> bool:
        """Whether anything of the model but low-rank changes is trained."""
        return any(p.requires_grad and "lora_" not in name for name, p in self.transformer.named_parameters())

    @property
    def has_dropout(self) -> bool:
        """Whether training gives a caption other features each time."""
        return self.config.head_dropout > 0 or (self._is_trained and config_has_dropout(self.transformer.config))

    @property
    def _is_trained(self) -> bool:
        """Whether anything of the model is trained, or its head alone."""
        return any(parameter.requires_grad for parameter in self.transformer.parameters())

    def warm_start(self, tokenizer: TextTokenizer, regressions: Regressions) -> None:
        """Fit the linear head, and scale it to the size of a random one, for which learning rates are meant.

        A head that corrects a linear one begins with a correction of zero.
        """
        head = self.text["proj"]
        linear = head
        if isinstance(head, ResidualHead):
            head.reset()
            linear = head.linear
        assert isinstance(linear, nn.Linear), "other heads are refused"
        weights = regressions.linear_head(self.pooled)
        with torch.no_grad():
            size = linear.weight.square().mean().to(weights.device)
            linear.weight.copy_(weights * (size / weights.square().mean()).sqrt())

    def head_alone(self) -> "LMHead | None":
        """The head as a tower that learns from the features of a frozen model; None if the model is not frozen."""
        return None if self._is_trained else LMHead(self)

    @property
    def pooled_width(self) -> int:
        """W."""
        return int(self.transformer.config.hidden_size) * max(1, len(self.config.layers))

    def freeze(self, *, train_layers: int | None, word_embeddings: bool) -> None:
        """Keep parts of the model as they are.

        Args:
            train_layers: how many of the last blocks are trained, and what follows them; None trains all, 0 none.
            word_embeddings: whether the word embeddings stay as they are.

        Raises:
            EncoderError: more layers than there are.
        """
        if train_layers is not None:
            if train_layers > len(self.layers):
                raise EncoderError(f"--train-layers {train_layers}: {self.config.name} has {len(self.layers)} layers")
            depths, top = self.depths()
            first = top + 1 if train_layers == 0 else top - train_layers
            for name, parameter in self.named_parameters():
                if name in depths and depths[name] < first:
                    parameter.requires_grad_(False)
        if word_embeddings:
            self.transformer.get_input_embeddings().requires_grad_(False)

    def add_lora(self, *, rank: int, alpha: float, targets: tuple[str, ...], dropout: float) -> None:
        """Freeze the model and learn low-rank changes of its blocks' matrices; see `lora.add_lora`."""
        add_lora(self.transformer, self.layers, rank=rank, alpha=alpha, targets=targets, dropout=dropout)

    def _merge_lora(self) -> None:
        """As of every tower that has it."""
        merge_lora(self.transformer)

    def train(self, mode: bool = True) -> "LMTower":
        """Set the mode, as of every module; a model that is not trained has no dropout in either."""
        super().train(mode)
        if not self._is_trained:
            self.transformer.eval()
        return self


class LMHead(LMTower):
    """The head of a frozen language model, learning from its features, which are computed once.

    The model is no part of it: not of its parameters, its checkpoints or an average of its weights.

    Attributes:
        frozen_sha256: digest of the model's tensors.
    """

    frozen_sha256: str

    def __init__(self, whole: LMTower) -> None:
        """Take the head of a tower; both share its parameters."""
        super(LMTower, self).__init__(whole.config)
        self._unshared = _Unshared(whole)
        self.text = nn.ModuleDict({"proj": whole.text["proj"]})
        self.frozen_sha256 = hash_tensors(whole.transformer.state_dict())
        self._few_shapes = False
        self._grad_checkpointing = False
        self._compiled = None

    @property
    def whole(self) -> LMTower:
        """The tower that is saved and exported."""
        return self._unshared.tower

    @property
    def transformer(self) -> Any:
        """The language model."""
        return self.whole.transformer

    @property
    def feature_identity(self) -> dict[str, Any]:
        """All that decides the features of a caption's ids: the model, its tensors, layers and pooler."""
        config = self.config
        return {
            "model": {name: value for name, value in config.model.items() if name not in _NO_FEATURE},
            "weights_sha256": self.frozen_sha256,
            "pooler": config.pooler,
            "layers": config.layers,
        }

    def learning_rate_factors(self, *, pretrained: float, layer_decay: float) -> dict[str, float]:
        """1 for each parameter; the model, which may be on another device than the head, is not asked."""
        return {name: 1.0 for name, _ in self.named_parameters()}

    def compile_rows(self, backend: str | Callable[..., Any] = "inductor", mode: str | None = None) -> None:
        """Leave it as it is: a few matrix products gain nothing."""


@dataclass(frozen=True)
class _Unshared:
    """A tower that a module refers to and does not own: copies of the module refer to the same one."""

    tower: LMTower

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


def _head_dropout(head: Head, dropout: float | None) -> float:
    """Dropout of a head, given that of the run."""
    if head in OPEN_CLIP_HEADS:
        return 0.0
    return dropout if dropout is not None else DEEP_DROPOUT if head == "deep" else 0.0


def _make_head(config: LMConfig, width: int) -> nn.Module:
    """The head of a tower with random weights, given the width of its model."""
    return make_head(
        config.head,
        width * max(1, len(config.layers)),
        config.embed_dim,
        dropout=config.head_dropout,
        residual=config.residual,
    )


def _build(config: Any) -> Any:
    """A model with random weights; of an encoder-decoder, the encoder."""
    if config.is_encoder_decoder:
        return AutoModel.from_config(config).get_encoder()
    return without_pooler(partial(AutoModel.from_config, config))
