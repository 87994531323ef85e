"""Causal attention within each caption of a packed batch: by length, as FlashAttention sequences, or in rows.

Each function takes the layout of a batch, which all layers share, and returns the attention function of a layer. B
captions, S tokens or slots, W width, H heads, R rows of L slots.
"""

# Annotations of functions that are made while torch compiles are evaluated there, and Dynamo of torch 2.9 knows no
# `Tensor | None`.
from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from .errors import EncoderError
from .packing import BLOCK, PackedCaptions

Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""Queries, keys, values `[S, W]` to outputs `[S, W]`; given end positions `[B]` of captions, to `[B, W]` of these."""


def by_length(packed: PackedCaptions, heads: int) -> Attend:
    """Attention by rectangles of equal-length captions: least computation, but shapes differ from batch to batch."""

    def attend(q: Tensor, k: Tensor, v: Tensor, last: Tensor | None) -> Tensor:
        width = q.shape[-1]
        queries = torch.split(q, packed.token_sizes) if last is None else torch.split(q[last], packed.caption_sizes)
        keys, values = torch.split(k, packed.token_sizes), torch.split(v, packed.token_sizes)
        outputs = []
        for (length, count), *qkv in zip(packed.lengths, queries, keys, values, strict=True):
            q_, k_, v_ = (t.view(count, -1, heads, width // heads).transpose(1, 2) for t in qkv)  # [count, H, L, W/H]
            # The last token of a caption attends to all of it, so it needs no mask.
            attended = F.scaled_dot_product_attention(q_, k_, v_, is_causal=last is None and length > 1)
            outputs.append(attended.transpose(1, 2).reshape(-1, width))
        return torch.cat(outputs)

    return attend


def varlen(packed: PackedCaptions, heads: int) -> Attend:
    """Variable-length FlashAttention with one sequence per caption: CUDA, bf16 or fp16.

    Raises:
        EncoderError: this torch has no `varlen_attn`.
    """
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError as error:
        raise EncoderError(f"torch {torch.__version__} has no varlen_attn: use 2.10 or newer") from error
    # torch 2.10 has is_causal; later versions replace it by window_size.
    windowed = "window_size" in inspect.signature(varlen_attn).parameters
    causal: dict[str, Any] = {"window_size": (-1, 0)} if windowed else {"is_causal": True}
    ends = F.pad(packed.last + 1, (1, 0)).int()  # [B + 1]
    one_each = torch.arange(len(ends), dtype=torch.int32, device=ends.device)
    longest = packed.lengths[-1][0]

    def attend(q: Tensor, k: Tensor, v: Tensor, last: Tensor | None) -> Tensor:
        k_, v_ = (t.view(len(t), heads, -1) for t in (k, v))  # [S, H, W/H]
        if last is None:
            attended = varlen_attn(q.view(len(q), heads, -1), k_, v_, ends, ends, longest, longest, **causal)
        else:
            attended = varlen_attn(q[last].view(len(last), heads, -1), k_, v_, one_each, ends, 1, longest)
        assert isinstance(attended, Tensor), "no auxiliary output was requested"
        return attended.flatten(1)

    return attend


def in_rows(caption: Tensor, heads: int, *, flex: bool) -> Attend:
    """Attention over rows of packed captions; a token attends only within its own caption.

    Args:
        caption: `[R, L]`, as in `PackedRows`. Unused slots attend to each other, so that no softmax is empty.
        heads: H.
        flex: use flex_attention, which should be compiled, instead of a boolean mask.
    """
    mask = _block_mask(caption) if flex else _mask(caption)

    def attend(q: Tensor, k: Tensor, v: Tensor, last: Tensor | None) -> Tensor:
        q_, k_, v_ = (t.view(*caption.shape, heads, -1).transpose(1, 2) for t in (q, k, v))  # [R, H, L, W/H]
        if isinstance(mask, BlockMask):
            attended = flex_attention(q_, k_, v_, block_mask=mask)
            assert isinstance(attended, Tensor), "no auxiliary output was requested"
        else:
            attended = F.scaled_dot_product_attention(q_, k_, v_, attn_mask=mask)
        outputs = attended.transpose(1, 2).reshape(q.shape)
        return outputs if last is None else outputs[last]

    return attend


def _mask(caption: Tensor) -> Tensor:
    """Boolean mask `[R, 1, L, L]`, true where a query attends to a key."""
    same = caption[:, None, :, None] == caption[:, None, None, :]
    return same.tril()


def _block_mask(caption: Tensor) -> BlockMask:
    """The same mask for flex_attention; it lists all blocks of a row on and below the diagonal."""
    num_rows, length = caption.shape
    blocks = torch.arange(length // BLOCK, dtype=torch.int32, device=caption.device)

    def attends(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (caption[row, query] == caption[row, key]) & (query >= key)

    return BlockMask.from_kv_blocks(
        (blocks + 1).repeat(num_rows, 1, 1),
        blocks.repeat(num_rows, 1, len(blocks), 1),
        BLOCK_SIZE=BLOCK,
        mask_mod=attends,
        seq_lengths=(length, length),
    )
