"""A pretrained language model as a text tower: a transformers model, a pooler and a head, over captions unpadded.

Laid out as open_clip's HFTextEncoder (`text.transformer.…`, `text.proj.…`), so that open_clip loads the exports of the
families that it knows. B captions, W width of the model, D features.
"""

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoModel

from .errors import EncoderError
from .loading.language_models import (
    config_has_dropout,
    first_line,
    plain_values,
    read_pretrained,
    set_dropout,
    without_pooler,
)
from .loading.untrusted import LM_CONFIG, read_config, to_config
from .lora import add_lora, merge_lora
from .packing import PackedCaptions, PackedRows, row_length
from .text_lm_forward import Pooler, hidden_states, num_positions, pack_tokens, pool
from .text_tower import Regressions, TextTower, TextTowerConfig, TowerSpec, context_within
from .tokenizer import TextTokenizer
from .tokenizer_lm import LMTokenizer

Head = Literal["linear", "mlp"]
# Families and poolers that open_clip's HFTextEncoder builds from a config (open_clip 3.3.0, hf_configs.py).
OPEN_CLIP_FAMILIES = ("bert", "roberta", "xlm-roberta", "mt5", "m2m_100")
OPEN_CLIP_POOLERS = {"mean": "mean_pooler", "cls": "cls_last_hidden_state_pooler"}


@dataclass(frozen=True, kw_only=True)
class LMConfig(TextTowerConfig):
    """Configuration of a tower around a language model.

    Attributes:
        name: hub repository that the model came from, or the last part of its folder's path.
        model: its transformers config, as plain values.
        pooler: how the tokens of a caption become one vector.
        head: what brings that vector to D features; without bias, as open_clip's heads are.
    """

    name: str
    model: dict[str, Any]
    pooler: Pooler
    head: Head

    @property
    def family(self) -> str:
        """Model type of transformers."""
        return str(self.model["model_type"])

    @property
    def loads_in_open_clip(self) -> bool:
        """Whether open_clip can build this tower."""
        return self.family in OPEN_CLIP_FAMILIES and self.pooler in OPEN_CLIP_POOLERS

    def to_open_clip(self) -> dict[str, Any]:
        """The `text_cfg` of open_clip; `hf_model_name` is where its loader asks transformers for the model's config."""
        return {
            "hf_model_name": self.name,
            "hf_model_pretrained": False,  # the weights come with the rest
            "hf_tokenizer_name": self.name,
            "hf_proj_type": self.head,
            "hf_pooler_type": OPEN_CLIP_POOLERS.get(self.pooler, self.pooler),
            "context_length": self.context_length,
        }

    @classmethod
    def from_export(cls, model_cfg: Mapping[str, Any], folder: Path) -> "LMConfig | None":
        """Configuration of the language model of an export; None if its text tower is of another kind.

        Args:
            model_cfg: of its open_clip_config.json.
            folder: of the export, which holds the config.json of transformers.

        Raises:
            EncoderError: that file is missing or damaged.
        """
        text_cfg = model_cfg["text_cfg"]
        if "hf_model_name" not in text_cfg:
            return None
        model = read_config(folder)
        poolers: dict[str, Any] = {theirs: ours for ours, theirs in OPEN_CLIP_POOLERS.items()}
        return cls(
            embed_dim=model_cfg["embed_dim"],
            name=text_cfg["hf_model_name"],
            model=model,
            pooler=poolers.get(text_cfg["hf_pooler_type"], text_cfg["hf_pooler_type"]),
            head=text_cfg["hf_proj_type"],
            context_length=text_cfg["context_length"],
        )

    def to_transformers(self) -> Any:
        """The transformers config."""
        return to_config(self.model, f"the language model {self.name}")

    def describe(self) -> str:
        """One line for the model card."""
        config = self.to_transformers()
        shape = f"{config.num_hidden_layers} layers, width {config.hidden_size}"
        return f"{self.family} language model `{self.name}`, {shape}, {self.pooler} pooling, {self.head} head"

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
        return f"""open_clip has no text tower of this kind ({self.family}, {self.pooler} pooling). clipglot loads it:

{code}"""


@dataclass(frozen=True, kw_only=True)
class LMOptions:
    """Settings of `clipglot train` for language models alone.

    Attributes:
        pooler: as of `LMConfig`.
        head: as of `LMConfig`.
        train_layers: number of last blocks that are trained; None trains all, 0 the head alone.
        freeze_embeddings: whether the word embeddings are not trained.
        lora_rank: of low-rank changes that are trained in place of the matrices; 0 trains the matrices.
        lora_alpha: scale of these changes times the rank; None is twice the rank.
        lora_targets: names of the linear layers that are changed; empty means all.
        lm_lr: peak learning rate of the model's own parameters.
        layer_decay: factor on that rate for each layer further from the head.
    """

    pooler: Pooler = "mean"
    head: Head = "linear"
    train_layers: int | None = None
    freeze_embeddings: bool = False
    lora_rank: int = 0
    lora_alpha: float | None = None
    lora_targets: tuple[str, ...] = ()
    lm_lr: float = 1e-4
    layer_decay: float = 1.0


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
        width, dim = model.config.hidden_size, config.embed_dim
        proj: nn.Module = nn.Linear(width, dim, bias=False)
        if config.head == "mlp":
            hidden = (width + dim) // 2
            proj = nn.Sequential(nn.Linear(width, hidden, bias=False), nn.GELU(), nn.Linear(hidden, dim, bias=False))
        self.text = nn.ModuleDict({"transformer": model, "proj": proj})
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
            EncoderError: as `from_pretrained`; or tokenizer, frozen layers or LoRA do not fit the model.
        """
        tower = cls.from_pretrained(
            spec.text,
            spec.embed_dim,
            pooler=options.pooler,
            head=options.head,
            context_length=spec.context_length,
            may_shorten=spec.may_shorten,
            dropout=spec.dropout,
        )
        return tower._prepared(spec, options, tokenizer)

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        embed_dim: int,
        *,
        pooler: Pooler = "mean",
        head: Head = "linear",
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
            context_length: most tokens of a caption.
            may_shorten: as of `TowerSpec`.
            dropout: of the model; None leaves that of its config.

        Raises:
            EncoderError: no model there, one that lacks weights or takes fewer tokens, or one that does not embed text.
        """
        model = read_pretrained(name, dropout)
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
        for name in ("pooler", "head"):
            own, other = getattr(config, name), getattr(options, name)
            if other not in (own, getattr(LMOptions, name)):
                raise EncoderError(
                    f"--{name} {other}: the run {spec.text} learned with {own}, which stays: drop --{name}, or begin "
                    "with the language model itself"
                )
        if spec.warm_start and config.head != "linear":
            raise EncoderError(f"--warm-start ridge fits a linear head, {spec.text} has another: drop --warm-start")
        model = config.to_transformers()
        context_length = context_within(
            num_positions(model), spec.context_length, spec.text, may_shorten=spec.may_shorten
        )
        set_dropout(model, spec.dropout)
        tower = LMTower(replace(config, context_length=context_length, model=plain_values(model)))
        tower.load_state_dict(self.state_dict())
        return tower._prepared(spec, options, tokenizer)

    def _prepared(self, spec: TowerSpec, options: LMOptions, tokenizer: TextTokenizer) -> "LMTower":
        """The tower, its parts frozen and adapted as asked."""
        self.require_tokenizer(tokenizer, spec.text)
        if options.lora_rank:
            alpha = 2.0 * options.lora_rank if options.lora_alpha is None else options.lora_alpha
            self.add_lora(rank=options.lora_rank, alpha=alpha, targets=options.lora_targets, dropout=0.0)
        else:
            self.freeze(train_layers=options.train_layers, word_embeddings=options.freeze_embeddings)
        return self

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
        other_than_pad = (self.transformer.config.pad_token_id or 0) + 1
        self.encode([[other_than_pad % self.num_rows] * number])

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
        number = self.transformer.config.num_hidden_layers
        stacks = (m for m in self.transformer.modules() if isinstance(m, nn.ModuleList))
        return next(stack for stack in stacks if len(stack) == number)

    def pack(self, ids: NDArray[Any], lengths: NDArray[np.int64]) -> PackedCaptions | PackedRows:
        """Captions as `forward` takes them, on the host; arguments as of `PackedCaptions.of`."""
        return pack_tokens(self.transformer.config, ids, lengths, few_shapes=self._few_shapes)

    def compile_rows(self, backend: str | Callable[..., Any] = "inductor", mode: str | None = None) -> None:
        """Compile the training forward over rows; a model that takes no rows stays as it is."""
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

    def forward(self, packed: PackedCaptions | PackedRows) -> Tensor:
        """Raw features `[B, D]` of packed captions on this tower's device, in the order given."""
        if self._compiled and self.training and isinstance(packed, PackedRows):
            return self._compiled(packed)
        return self._features(packed)

    def pooled(self, packed: PackedCaptions | PackedRows) -> Tensor:
        """What the head is given, `[B, W]`."""
        return pool(hidden_states(self.transformer, packed), packed, self.config.pooler)

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
    def has_dropout(self) -> bool:
        """Whether training gives a caption other features each time."""
        return self._is_trained and config_has_dropout(self.transformer.config)

    @property
    def _is_trained(self) -> bool:
        """Whether anything of the model is trained, or its head alone."""
        return any(parameter.requires_grad for parameter in self.transformer.parameters())

    def warm_start(self, tokenizer: TextTokenizer, regressions: Regressions) -> None:
        """Fit the linear head, and scale it to the size of a random one, for which learning rates are meant."""
        proj = self.text["proj"]
        assert isinstance(proj, nn.Linear), "other heads are refused"
        weights = regressions.linear_head(self.pooled)
        with torch.no_grad():
            proj.weight.copy_(weights * (proj.weight.square().mean() / weights.square().mean()).sqrt())

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

    def plain(self) -> "LMTower":
        """The tower with what was learned by LoRA added to the matrices; itself if there is none."""
        if not any("lora_" in name for name, _ in self.named_parameters()):
            return self
        tower = copy.copy(self)
        tower._modules = dict(self._modules)
        tower.text = copy.deepcopy(self.text)
        merge_lora(tower.transformer)
        return tower

    def train(self, mode: bool = True) -> "LMTower":
        """Set the mode, as of every module; a model that is not trained has no dropout in either."""
        super().train(mode)
        if not self._is_trained:
            self.transformer.eval()
        return self


def _build(config: Any) -> Any:
    """A model with random weights; of an encoder-decoder, the encoder."""
    if config.is_encoder_decoder:
        return AutoModel.from_config(config).get_encoder()
    return without_pooler(partial(AutoModel.from_config, config))
