"""Towers as ONNX graphs: padded captions or normalized pixels in, raw features out.

B captions or images, S slots of the longest caption, W width, H heads, D features.
"""

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..encoders.image_tower import ImageTower
from ..encoders.text_lm import LMTower
from ..encoders.text_lm_forward import blocks_of, recorded
from ..encoders.text_scratch import ScratchTower
from ..encoders.text_tower import TextTower
from ..inference.onnx_layout import FEATURES
from .errors import ExportError

MOST_IN_ONE_FILE = 1.8e9  # bytes of weights; a protobuf message holds at most 2 GB


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A tower to be written as an ONNX graph.

    Attributes:
        module: takes the inputs by position.
        inputs: an example of each, by name.
        axes: of each input that may have any size, by position: its name and the largest size.
        table: `[V, W]`, embeddings of tokens; None of image towers.
    """

    module: nn.Module
    inputs: dict[str, Tensor]
    axes: dict[int, tuple[str, int | None]]
    table: Tensor | None = None


class _Scratch(nn.Module):
    """A scratch tower over padded captions: causal, so that no token sees the padding, pooled at the first EOS."""

    mask: Tensor

    def __init__(self, tower: ScratchTower) -> None:
        super().__init__()
        self.text, self.heads, self.eos_id = tower.text, tower.config.heads, tower.config.eos_id
        longest = tower.config.context_length
        self.register_buffer("mask", torch.full((longest, longest), -torch.inf).triu(1))

    def forward(self, text: Tensor) -> Tensor:
        length = text.shape[1]
        x = self.text.token_embedding(text) + self.text.positional_embedding[:length]  # [B, S, W]
        for block in self.text.transformer.resblocks:
            x = x + self._attend(block.attn, block.ln_1(x))
            x = x + block.mlp(block.ln_2(x))
        end = (text == self.eos_id).int().argmax(-1)
        features: Tensor = self.text.ln_final(_at(x, end)) @ self.text.text_projection
        return features

    def _attend(self, attn: Any, x: Tensor) -> Tensor:
        """Attention with the layer's weights, `[B, S, W]`."""
        qkv = F.linear(x, attn.in_proj_weight, attn.in_proj_bias).chunk(3, dim=-1)
        q, k, v = (part.view(*part.shape[:2], self.heads, -1).transpose(1, 2) for part in qkv)  # [B, H, S, W/H]
        mask = self.mask[: x.shape[1], : x.shape[1]]
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        outputs: Tensor = attn.out_proj(attended.transpose(1, 2).flatten(2))
        return outputs


class _LanguageModel(nn.Module):
    """A language model over padded captions, its pooler and its head."""

    def __init__(self, tower: LMTower) -> None:
        super().__init__()
        self.transformer, self.proj = copy.deepcopy(tower.transformer), tower.text["proj"]
        self.pooler, self.layers = tower.config.pooler, tower.config.layers
        # One plain form of attention and mask in every family.
        self.transformer.set_attn_implementation("eager")

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        blocks = blocks_of(self.transformer)
        with recorded(blocks, [number for number in self.layers if number < len(blocks)]) as outputs:
            last = self.transformer(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state  # [B, S, W]
        states = [outputs[number][0] if number < len(blocks) else last for number in self.layers or [len(blocks)]]
        features: Tensor = self.proj(torch.cat([self._pool(hidden, attention_mask) for hidden in states], dim=1))
        return features

    def _pool(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        if self.pooler == "cls":
            return hidden[:, 0]
        if self.pooler == "eos":
            return _at(hidden, attention_mask.sum(-1) - 1)
        weights = attention_mask.to(hidden.dtype)[..., None]
        return (hidden * weights).sum(1) / weights.sum(1)


class _Image(nn.Module):
    """An image tower over normalized pixels."""

    def __init__(self, tower: ImageTower) -> None:
        super().__init__()
        self.visual = tower.visual

    def forward(self, image: Tensor) -> Tensor:
        features = self.visual(image)
        pooled: Tensor = features[0] if isinstance(features, tuple) else features
        return pooled


def _at(x: Tensor, positions: Tensor) -> Tensor:
    """Values `[B, W]` of `[B, S, W]` at one position a row."""
    return x.gather(1, positions.long()[:, None, None].expand(-1, 1, x.shape[-1]))[:, 0]


def text_graph(tower: TextTower) -> Graph:
    """The graph of a text tower: of `text`, or of `input_ids` and `attention_mask`, `[B, S] int32`.

    Raises:
        ExportError: a kind that has no such graph.
    """
    length = min(7, tower.config.context_length)
    ids = torch.ones(3, length, dtype=torch.int32)
    axes = {0: ("batch", None), 1: ("tokens", tower.config.context_length)}
    if isinstance(tower, ScratchTower):
        ids[:, -1] = tower.config.eos_id
        return Graph(module=_Scratch(tower), inputs={"text": ids}, axes=axes, table=tower.text.token_embedding.weight)
    if isinstance(tower, LMTower):
        mask = torch.ones_like(ids)
        mask[1:, -1] = 0
        table = tower.transformer.get_input_embeddings().weight
        return Graph(
            module=_LanguageModel(tower), inputs={"input_ids": ids, "attention_mask": mask}, axes=axes, table=table
        )
    raise ExportError(f"onnx: {tower.noun} has no graph there: pass --format open_clip")


def image_graph(tower: ImageTower, height: int, width: int) -> Graph:
    """The graph of an image tower: of `image`, `[B, 3, height, width] float32`, normalized."""
    return Graph(module=_Image(tower), inputs={"image": torch.zeros(2, 3, height, width)}, axes={0: ("batch", None)})


def write_graph(graph: Graph, file: Path) -> None:
    """Write a graph; weights that one file cannot hold go into a second one beside it.

    Raises:
        ExportError: torch has no such graph of the tower.
    """
    size = sum(tensor.nbytes for tensor in graph.module.state_dict().values())
    # torch 2.9 refuses sizes from 1, though its graph takes them, which each export is checked for.
    dims = {axis: torch.export.Dim(name, min=2, max=most) for axis, (name, most) in graph.axes.items()}
    try:
        with _quiet(), torch.no_grad():
            torch.onnx.export(
                graph.module.eval(),
                tuple(graph.inputs.values()),
                str(file),
                input_names=list(graph.inputs),
                output_names=[FEATURES],
                dynamic_shapes=tuple(dims for _ in graph.inputs),
                dynamo=True,
                external_data=size > MOST_IN_ONE_FILE,
                verbose=False,
            )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ExportError(f"onnx: torch {torch.__version__} makes no graph of this tower ({reason})") from error


@contextmanager
def _quiet(loggers: Sequence[str] = ("torch.onnx", "onnxscript", "onnx_ir")) -> Iterator[None]:
    """Drop what the exporter says of itself: warnings of its own deprecations, progress, and what it folds."""
    levels = {name: logging.getLogger(name).level for name in loggers}
    for name in loggers:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
