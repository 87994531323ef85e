"""The scratch text tower: open_clip's TextTransformer, causal, pooled at EOS, with our own forward over its modules.

open_clip's forward takes only sequences padded to the full context length. Ours computes no pad: a causal tower pooled
at EOS never looks at what follows, so the features are the same (`tests/test_text_tower.py` holds them together).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from open_clip.transformer import QuickGELU, TextTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .errors import EncoderError
from .packing import PackedCaptions


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """The shape of a scratch text tower; see `to_open_clip` for the names that open_clip gives its parts."""

    embed_dim: int
    vocab_size: int
    context_length: int
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


class TextTower(nn.Module):
    """The student. B captions, L tokens, W width, D features.

    Its parameters are named as in open_clip's CustomTextCLIP (`text.…`).

    Attributes:
        grad_checkpointing: keep no activations inside a block but the last; backward computes them again.
    """

    grad_checkpointing = False

    def __init__(self, config: TextConfig) -> None:
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

    def encode(self, captions: Sequence[Sequence[int] | NDArray[Any]]) -> Tensor:
        """Raw features `[B, D]` of token ids, ragged and unpadded, in the order given: pack, move, forward.

        Raises:
            EncoderError: a caption without EOS.
        """
        lengths = np.fromiter(map(len, captions), np.int64, len(captions))
        ids = np.concatenate([np.asarray(caption, np.int64) for caption in captions])
        features: Tensor = self(self.pack(ids, lengths).to(self.text.positional_embedding.device))
        return features

    def pack(self, ids: NDArray[Any], lengths: NDArray[np.int64]) -> PackedCaptions:
        """Captions as `forward` takes them, on the host; see `PackedCaptions.of`."""
        return PackedCaptions.of(ids, lengths, self.config.eos_id)

    def forward(self, packed: PackedCaptions) -> Tensor:
        """Raw features `[B, D]` of packed captions on this tower's device, in the order given."""
        text = self.text
        x = text.token_embedding(packed.ids) + text.positional_embedding[packed.positions]  # [T, W]
        *blocks, last_block = text.transformer.resblocks
        for block in blocks:
            if self.grad_checkpointing and torch.is_grad_enabled():
                x = checkpoint(self._block, block, x, packed, use_reentrant=False)
            else:
                x = self._block(block, x, packed)
        # Only EOS is pooled, so the last block has to answer for it alone.
        x = x[packed.last] + self._attend(last_block.attn, last_block.ln_1(x), packed, only_last=True)  # [B, W]
        x = x + last_block.mlp(last_block.ln_2(x))
        features: Tensor = text.ln_final(x) @ text.text_projection
        return features[packed.restore]

    def _block(self, block: Any, x: Tensor, packed: PackedCaptions) -> Tensor:
        x = x + self._attend(block.attn, block.ln_1(x), packed)
        mlp: Tensor = block.mlp(block.ln_2(x))
        return x + mlp

    def _attend(
        self, attn: nn.MultiheadAttention, x: Tensor, packed: PackedCaptions, *, only_last: bool = False
    ) -> Tensor:
        """Causal attention within each caption: `[T, W]` to `[T, W]`, or to `[B, W]` for each caption's last token."""
        heads, width = self.config.heads, self.config.width
        to_q, to_kv = torch.split(attn.in_proj_weight, [width, 2 * width])
        bias_q, bias_kv = torch.split(attn.in_proj_bias, [width, 2 * width])
        q = F.linear(x[packed.last] if only_last else x, to_q, bias_q)
        k, v = F.linear(x, to_kv, bias_kv).chunk(2, dim=-1)
        queries = torch.split(q, packed.caption_sizes if only_last else packed.token_sizes)
        keys, values = torch.split(k, packed.token_sizes), torch.split(v, packed.token_sizes)
        outputs = []
        for (length, count), *qkv in zip(packed.lengths, queries, keys, values, strict=True):
            q_, k_, v_ = (t.view(count, -1, heads, width // heads).transpose(1, 2) for t in qkv)  # [count, H, L, W/H]
            # A caption's last token sees all of it: no mask is needed there.
            attended = F.scaled_dot_product_attention(q_, k_, v_, is_causal=not only_last and length > 1)
            outputs.append(attended.transpose(1, 2).reshape(-1, width))
        return F.linear(torch.cat(outputs), attn.out_proj.weight, attn.out_proj.bias)
