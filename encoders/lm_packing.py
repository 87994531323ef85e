"""Language models of transformers without padding: forwards over captions packed ahead, by modules we do not own.

BERT and its kin add a mask of `[R, 1, L, L]` to their scores and take positions, so they run over rows of captions as
they are. Any other encoder runs once for each distinct length. B captions, T tokens, W width, R rows of L slots.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .packing import PackedCaptions
from .rows import PackedRows, row_length

# Where positions begin at 0, and where they begin after the pad's id (fairseq's rule, kept by RoBERTa).
FROM_ZERO, AFTER_PAD = {"bert"}, {"roberta", "xlm-roberta"}


def supports_rows(config: Any) -> bool:
    """Whether a model of this transformers config takes rows: its family, and attention that takes such a mask."""
    return config.model_type in FROM_ZERO | AFTER_PAD and config._attn_implementation in ("sdpa", "eager")


def pack_tokens(config: Any, ids: NDArray[Any], lengths: NDArray[np.int64]) -> PackedRows | PackedCaptions:
    """Captions whole, as `embed_tokens` takes them, on the host; arguments as of `PackedCaptions.of`."""
    if not supports_rows(config):
        return PackedCaptions.of(ids, lengths, None)
    length = row_length(int(lengths.max()))
    return PackedRows.of(ids, lengths, None, pad_id=config.pad_token_id, row_length=length)


def embed_tokens(model: nn.Module, packed: PackedRows | PackedCaptions) -> tuple[Tensor, Tensor]:
    """Hidden states of every token, for a pooler to choose from.

    Args:
        model: an encoder of transformers, such as BertModel, XLMRobertaModel or MT5EncoderModel.
        packed: what `pack_tokens` made for its config, on its device.

    Returns:
        Hidden states of all captions joined in the order given `[T, W]`, and the tokens of each `[B] int64`.
    """
    if isinstance(packed, PackedRows):
        hidden, last = _over_rows(model, packed), packed.last
    else:
        hidden, last = _by_length(model, packed), packed.last[packed.restore]
    lengths = packed.positions.flatten()[last] + 1
    moved_by = last + 1 - lengths.cumsum(0)
    token = torch.arange(packed.num_tokens, device=last.device)
    return hidden[token + moved_by.repeat_interleave(lengths, output_size=packed.num_tokens)], lengths


def _over_rows(model: Any, packed: PackedRows) -> Tensor:
    """`[R × L, W]`. By embeddings and encoder, since the models' own forwards of transformers 4 refuse such a mask."""
    offset = model.config.pad_token_id + 1 if model.config.model_type in AFTER_PAD else 0
    x = model.embeddings(
        input_ids=packed.ids, position_ids=packed.positions + offset, token_type_ids=torch.zeros_like(packed.ids)
    )
    same = packed.caption[:, None, :, None] == packed.caption[:, None, None, :]
    mask = torch.zeros(same.shape, dtype=x.dtype, device=x.device).masked_fill(~same, torch.finfo(x.dtype).min)
    hidden: Tensor = model.encoder(x, attention_mask=mask).last_hidden_state
    return hidden.flatten(0, 1)


def _by_length(model: nn.Module, packed: PackedCaptions) -> Tensor:
    """`[T, W]`, in packed order."""
    rectangles = zip(packed.lengths, torch.split(packed.ids, packed.token_sizes), strict=True)
    return torch.cat([model(input_ids=ids.view(n, -1)).last_hidden_state.flatten(0, 1) for (_, n), ids in rectangles])
