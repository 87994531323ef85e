"""Language models of transformers without padding: forwards over captions packed ahead, by modules we do not own.

BERT and its kin add a mask of `[R, 1, L, L]` to their scores and take positions, so they run over rows of captions as
they are. Any other model runs once for each distinct length. B captions, S slots or tokens, W width, R rows of L slots.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .packing import PackedCaptions, PackedRows, row_length

Pooler = Literal["mean", "cls", "eos"]
# Where positions begin at 0, and where they begin after the pad's id (fairseq's rule, kept by RoBERTa).
FROM_ZERO, AFTER_PAD = {"bert"}, {"roberta", "xlm-roberta"}


def supports_rows(config: Any) -> bool:
    """Whether a model of this transformers config takes rows: its family, and attention that takes such a mask."""
    return config.model_type in FROM_ZERO | AFTER_PAD and config._attn_implementation in ("sdpa", "eager")


def num_positions(config: Any) -> int | None:
    """Most tokens that a model of this config takes; None in families without a limit."""
    longest = getattr(config, "max_position_embeddings", None) or 0  # or -1
    if config.model_type in AFTER_PAD:
        longest -= (config.pad_token_id or 0) + 1
    return longest if longest > 0 else None


def pack_tokens(
    config: Any, ids: NDArray[Any], lengths: NDArray[np.int64], *, few_shapes: bool = False
) -> PackedRows | PackedCaptions:
    """Captions whole, as `hidden_states` takes them, on the host.

    Args:
        config: of the model.
        ids: as of `PackedCaptions.of`.
        lengths: as there.
        few_shapes: as of `PackedRows.of`.
    """
    if not supports_rows(config):
        return PackedCaptions.of(ids, lengths, None)
    length = row_length(int(lengths.max()))
    pad_id = config.pad_token_id or 0  # nothing attends to it
    return PackedRows.of(ids, lengths, None, pad_id=pad_id, row_length=length, few_shapes=few_shapes)


def blocks_of(model: Any) -> nn.ModuleList:
    """Blocks of a model, from the input up."""
    number = model.config.num_hidden_layers
    stacks = (module for module in model.modules() if isinstance(module, nn.ModuleList))
    return next(stack for stack in stacks if len(stack) == number)


@contextmanager
def recorded(blocks: nn.ModuleList, layers: Sequence[int]) -> Iterator[dict[int, list[Tensor]]]:
    """Outputs of some blocks in the forwards of the code inside, by the number of the layer, a tensor a forward.

    By hooks: the forwards of transformers give hidden states in other forms from family to family, and their encoders
    alone give none.

    Args:
        blocks: of the model.
        layers: numbers of layers, from 1.
    """
    outputs: dict[int, list[Tensor]] = {number: [] for number in layers}

    def keep(number: int) -> Any:
        return lambda _module, _args, output: outputs[number].append(output[0] if type(output) is tuple else output)

    hooks = [blocks[number - 1].register_forward_hook(keep(number)) for number in layers]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def hidden_states_of(
    model: Any, packed: PackedRows | PackedCaptions, blocks: nn.ModuleList, layers: Sequence[int]
) -> list[Tensor]:
    """Hidden states `[S, W]` of several layers by one forward; those of the last layer are what `hidden_states` gives.

    Args:
        model: as of `hidden_states`.
        packed: as there.
        blocks: of the model.
        layers: numbers of layers, from 1; empty stands for the last.
    """
    with recorded(blocks, [number for number in layers if number < len(blocks)]) as outputs:
        last = hidden_states(model, packed)
    return [
        torch.cat([each.flatten(0, 1) for each in outputs[number]]) if number < len(blocks) else last
        for number in layers or [len(blocks)]
    ]


def hidden_states(model: nn.Module, packed: PackedRows | PackedCaptions) -> Tensor:
    """Hidden states `[S, W]` of the last layer, of rows one after the other or in packed order.

    Args:
        model: an encoder or decoder of transformers, such as BertModel, XLMRobertaModel or GPT2Model.
        packed: what `pack_tokens` made for its config, on its device.
    """
    return _over_rows(model, packed) if isinstance(packed, PackedRows) else _by_length(model, packed)


def pool(hidden: Tensor, packed: PackedRows | PackedCaptions, pooler: Pooler) -> Tensor:
    """One vector a caption, `[B, W]`, in the order given.

    Args:
        hidden: what `hidden_states` gave, `[S, W]`.
        packed: of the same captions.
        pooler: the mean over all of a caption's tokens, its first or its last.
    """
    length = packed.positions.flatten()[packed.last] + 1
    if pooler == "eos":
        pooled = hidden[packed.last]
    elif pooler == "cls":
        pooled = hidden[packed.last + 1 - length]
    else:
        if isinstance(packed, PackedRows):
            caption = torch.where(packed.caption < 0, len(length), packed.caption).flatten().long()
        else:
            caption = torch.arange(len(length), device=hidden.device)
            caption = caption.repeat_interleave(length, output_size=len(hidden))
        sums = hidden.new_zeros(len(length) + 1, hidden.shape[1]).index_add(0, caption, hidden)
        pooled = sums[:-1] / length[:, None]
    return pooled if isinstance(packed, PackedRows) else pooled[packed.restore]


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
