"""A pretrained language model as a text tower: a transformers model, a pooler and a head, over captions unpadded.

Laid out as open_clip's HFTextEncoder (`text.transformer.…`, `text.proj.…`), so that for the families that open_clip
knows the exported weights load there. B captions, W width of the model, D features.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from .errors import EncoderError
from .lora import add_lora, merge_lora
from .packing import PackedCaptions, PackedRows
from .text_lm_forward import Pooler, hidden_states, pack_tokens, pool
from .text_tower import TextTower, TextTowerConfig

Head = Literal["linear", "mlp"]
# Families and poolers that open_clip's HFTextEncoder builds from a config (open_clip 3.3.0, hf_configs.py).
OPEN_CLIP_FAMILIES = ("bert", "roberta", "xlm-roberta", "mt5", "m2m_100")
OPEN_CLIP_POOLERS = {"mean": "mean_pooler", "cls": "cls_last_hidden_state_pooler"}


@dataclass(frozen=True, kw_only=True)
class LMConfig(TextTowerConfig):
    """The shape of a tower around a language model.

    Attributes:
        name: the hub repository that the model came from, or the last part of its folder.
        model: its transformers config, as plain values.
        pooler: how a caption's tokens become one vector.
        head: what brings that to D features; without bias, as open_clip's heads are.
    """

    name: str
    model: dict[str, Any]
    pooler: Pooler
    head: Head

    @property
    def family(self) -> str:
        """The model type of transformers."""
        return str(self.model["model_type"])

    @property
    def loads_in_open_clip(self) -> bool:
        """Whether open_clip can build this tower."""
        return self.family in OPEN_CLIP_FAMILIES and self.pooler in OPEN_CLIP_POOLERS

    def to_open_clip(self) -> dict[str, Any]:
        """open_clip's `text_cfg`; `hf_model_name` is where its loader asks transformers for the model's config."""
        return {
            "hf_model_name": self.name,
            "hf_model_pretrained": False,  # the weights come with the rest
            "hf_tokenizer_name": self.name,
            "hf_proj_type": self.head,
            "hf_pooler_type": OPEN_CLIP_POOLERS.get(self.pooler, self.pooler),
            "context_length": self.context_length,
        }

    def to_transformers(self) -> Any:
        """The model's config."""
        return AutoConfig.for_model(**self.model)

    def describe(self) -> str:
        """The tower in a few words, for the model card."""
        config = self.to_transformers()
        shape = f"{config.num_hidden_layers} layers, width {config.hidden_size}"
        return f"{self.family} language model `{self.name}`, {shape}, {self.pooler} pooling, {self.head} head"


class LMTower(TextTower):
    """A language model as a student.

    Attributes:
        text: `transformer`, the model, and `proj`, the head.
    """

    config: LMConfig
    _forward: Callable[[PackedCaptions | PackedRows], Tensor]

    def __init__(self, config: LMConfig, transformer: nn.Module | None = None) -> None:
        """Build the tower, around a model that is there or around a new one of the same shape."""
        super().__init__()
        self.config = config
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
        """How deep each of the model's parameters lies, by name: embeddings 0, blocks 1 to L, what follows L + 1."""
        inside = {id(p): depth for depth, block in enumerate(self.layers, 1) for p in block.parameters()}
        depths, depth = {}, 0
        for name, parameter in self.named_parameters():
            if name.startswith("text.transformer."):
                own = inside.get(id(parameter))
                depth = own if own is not None else (depth if depth == 0 else len(self.layers) + 1)
                depths[name] = depth
        return depths, len(self.layers) + 1

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
        """As of every module, but a model of which nothing is trained has no dropout."""
        super().train(mode)
        if not any(p.requires_grad for p in self.transformer.parameters()):
            self.transformer.eval()
        return self


def without_pooler(build: Callable[..., Any]) -> Any:
    """What `build` makes, without a layer after the last hidden state where the family has one."""
    try:
        return build(add_pooling_layer=False)
    except TypeError:  # a family that has none
        return build()


def _build(config: Any) -> Any:
    """A model with random weights; of an encoder-decoder, the encoder."""
    if config.is_encoder_decoder:
        return AutoModel.from_config(config).get_encoder()
    return without_pooler(partial(AutoModel.from_config, config))
