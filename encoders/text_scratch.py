"""The scratch text tower: open_clip's TextTransformer, causal, pooled at EOS, with our own forward over its modules.

open_clip's forward takes only sequences padded to the full context length. Ours computes no pad: a causal tower pooled
at EOS never looks at what follows, so the features are the same (`tests/encoders/test_text_scratch.py` holds them
together).
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from open_clip.transformer import QuickGELU, TextTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .attention import Attend, by_length, in_rows, varlen
from .errors import EncoderError
from .packing import PackedCaptions, PackedRows, row_length
from .text_tower import TextTower, TextTowerConfig

Attention = Literal["auto", "lengths", "rows", "flex", "varlen"]


@dataclass(frozen=True, kw_only=True)
class ScratchConfig(TextTowerConfig):
    """The shape of a scratch text tower; see `to_open_clip` for the names that open_clip gives its parts."""

    vocab_size: int
    width: int
    heads: int
    layers: int
    pad_id: int
    eos_id: int
    quick_gelu: bool

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise EncoderError(f"--width {self.width} is not a multiple of --heads {self.heads}")

    def to_open_clip(self) -> dict[str, Any]:
        """open_clip's `text_cfg`. `hf_tokenizer_name` only has to be non-empty: a local folder is its own tokenizer."""
        fields = asdict(self)
        del fields["embed_dim"], fields["quick_gelu"]
        return fields | {"pool_type": "eos", "proj_type": "linear", "hf_tokenizer_name": "clipglot"}

    def describe(self) -> str:
        """The tower in a few words, for the model card."""
        return f"causal transformer, {self.layers} layers, width {self.width}, {self.heads} heads, pooled at EOS"


class ScratchTower(TextTower):
    """The student. B captions, S tokens or slots, W width, D features.

    Its parameters are named as in open_clip's CustomTextCLIP (`text.…`).

    Attributes:
        attention: by length, in rows with a mask or by flex_attention, or by FlashAttention's varlen. "auto" goes by
            length, on CUDA in rows: with a mask, or with flex_attention where the rows are compiled.
        dropout: share of the values that training sets to zero, of token embeddings and of what each block adds. It
            draws from torch's global generators: who forwards twice for one gradient seeds them alike.
        drop_embeddings: whether dropout is of token embeddings, too.
        grad_checkpointing: as of every tower; the last block, which runs on EOS alone, is left out.
    """

    config: ScratchConfig
    attention: Attention = "auto"
    dropout: float = 0.0
    drop_embeddings: bool = True
    _compiled_rows: Callable[..., Tensor] | None = None

    def __init__(self, config: ScratchConfig) -> None:
        super().__init__()
        self.config = config
        self.text = TextTransformer(
            context_length=config.context_length,
            vocab_size=config.vocab_size,
            width=config.width,
            heads=config.heads,
            layers=config.layers,
            output_dim=config.embed_dim,
            pad_id=config.pad_id,
            eos_id=config.eos_id,
            pool_type="eos",
            act_layer=QuickGELU if config.quick_gelu else nn.GELU,
        )

    def pack(self, ids: NDArray[Any], lengths: NDArray[np.int64]) -> PackedCaptions | PackedRows:
        """Captions as `forward` takes them, on the host; arguments and errors as of `PackedCaptions.of`."""
        config, on_cuda = self.config, self.text.positional_embedding.is_cuda
        if self.attention in ("rows", "flex") or (self.attention == "auto" and on_cuda):
            return PackedRows.of(
                ids,
                lengths,
                config.eos_id,
                pad_id=config.pad_id,
                row_length=row_length(config.context_length),
                few_shapes=self._compiled_rows is not None,
            )
        return PackedCaptions.of(ids, lengths, config.eos_id)

    def compile_rows(self, backend: str | Callable[..., Any] = "inductor", mode: str | None = None) -> None:
        """Compile the training forward over rows, and pack for it from now on.

        Each new number of rows or captions compiles once more, with gradient and without.

        Args:
            backend: as of `torch.compile`.
            mode: as of `torch.compile`.
        """
        self.allow_shapes()
        self._compiled_rows = torch.compile(self._rows, dynamic=False, fullgraph=True, backend=backend, mode=mode)

    def forward(self, packed: PackedCaptions | PackedRows) -> Tensor:
        """Raw features `[B, D]` of packed captions on this tower's device, in the order given."""
        if isinstance(packed, PackedRows):
            rows = self._compiled_rows if self._compiled_rows and self.training else self._rows
            return rows(packed.ids, packed.positions, packed.caption, packed.last)
        attend = (varlen if self.attention == "varlen" else by_length)(packed, self.config.heads)
        return self._features(packed.ids, packed.positions, packed.last, attend)[packed.restore]

    def _rows(self, ids: Tensor, positions: Tensor, caption: Tensor, last: Tensor) -> Tensor:
        # Without a compiler flex_attention holds all scores: the mask is better there.
        flex = self.attention == "flex" or (self.attention == "auto" and ids.is_cuda and torch.compiler.is_compiling())
        attend = in_rows(caption, self.config.heads, flex=flex)
        return self._features(ids.flatten(), positions.flatten(), last, attend)

    def _features(self, ids: Tensor, positions: Tensor, last: Tensor, attend: Attend) -> Tensor:
        text = self.text
        # Not by indexing: on the CPU its gradient is added up by several threads in no fixed order.
        x = text.token_embedding(ids) + F.embedding(positions, text.positional_embedding)  # [S, W]
        dropout = self.dropout if self.training else 0.0
        x = _dropped(x, dropout if self.drop_embeddings else 0.0)
        *blocks, last_block = text.transformer.resblocks
        for block in blocks:
            if self.grad_checkpointing and torch.is_grad_enabled():
                x = checkpoint(_block, block, x, attend, dropout, use_reentrant=False)
            else:
                x = _block(block, x, attend, dropout)
        # Only EOS is pooled, so the last block has to answer for it alone.
        x = _block(last_block, x, attend, dropout, last)  # [B, W]
        features: Tensor = text.ln_final(x) @ text.text_projection
        return features


def _block(block: Any, x: Tensor, attend: Attend, dropout: float, last: Tensor | None = None) -> Tensor:
    """A residual block over tokens `[S, W]`, or over the last token of each caption `[B, W]`."""
    attn = block.attn
    qkv = F.linear(block.ln_1(x), attn.in_proj_weight, attn.in_proj_bias)
    q, k, v = qkv.chunk(3, dim=-1)
    attended = attend(q, k, v, last)
    added = F.linear(attended, attn.out_proj.weight, attn.out_proj.bias)
    x = (x if last is None else x[last]) + _dropped(added, dropout)
    return x + _dropped(block.mlp(block.ln_2(x)), dropout)


def _dropped(x: Tensor, dropout: float) -> Tensor:
    """Zero a share of the values and scale up the others (Srivastava et al. 2014, JMLR 15, section 4)."""
    return F.dropout(x, dropout) if dropout else x
