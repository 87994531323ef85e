"""Packing: a batch of captions as one sequence of tokens without padding, in the two forms that attention takes.

All of a tower but its attention works on single tokens, so no pad is computed. Attention must keep captions apart:

- `PackedCaptions`: sorted by length. Captions of equal length form a rectangle, so attention takes one call for each
  length and needs no mask.
- `PackedRows`: whole captions in rows of one fixed length, for CUDA, where a static shape pays. Next-fit in the order
  given fills .90 to .97 of the slots, and the number of rows hardly changes from batch to batch. For a compiled
  forward it is rounded up to a multiple of 8 and of a sixteenth of the next power of two: a run has one or two shapes,
  and at most an eighth of the rows, or seven, are unused. 250 to 270 rows become 256 or 288.

Packing is host work on numpy arrays, which a loader thread does ahead of the step. B captions, T tokens, R rows of L
slots.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .errors import EncoderError

Ints = NDArray[np.int64]
BLOCK = 128  # the tile of attention on a GPU; L is a multiple of it


@dataclass(frozen=True, kw_only=True, slots=True)
class Packed:
    """Base of the packed forms: tensors on the host that move to the device together."""

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """A copy on a device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """A copy in page-locked memory, from which `to(device, non_blocking=True)` does not wait."""
        return self._each(Tensor.pin_memory)

    def _each(self, move: Callable[[Tensor], Tensor]) -> Self:
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: move(value) for name, value in values.items() if isinstance(value, Tensor)})


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedCaptions(Packed):
    """Captions one after the other, the shortest first.

    Attributes:
        ids: `[T] int64`.
        positions: `[T] int64`, of each token in its caption.
        last: `[B] int64`, index of each caption's last token, in packed order.
        restore: `[B] int64`, index that takes packed order back to the order given.
        lengths: the distinct lengths, ascending, and the number of captions of each.
    """

    ids: Tensor
    positions: Tensor
    last: Tensor
    restore: Tensor
    lengths: list[tuple[int, int]]

    @classmethod
    def of(cls, ids: NDArray[Any], lengths: Ints, eos_id: int | None) -> Self:
        """Pack captions. Each is cut after its first EOS, where it is pooled.

        Args:
            ids: `[T]` of any integer type, the captions concatenated.
            lengths: `[B]`, tokens of each caption.
            eos_id: token that ends a caption; None keeps captions as they are.

        Raises:
            EncoderError: a caption without EOS.

        >>> packed = PackedCaptions.of(np.array([1, 7, 8, 2, 1, 2, 1, 9, 9, 2]), np.array([4, 2, 4]), 2)
        >>> packed.ids.tolist(), packed.lengths
        ([1, 2, 1, 7, 8, 2, 1, 9, 9, 2], [(2, 1), (4, 2)])
        """
        starts, lengths = spans_to_eos(ids, lengths, eos_id)
        order = np.argsort(lengths, kind="stable")
        lengths = lengths[order]
        ends = np.cumsum(lengths)
        distinct, counts = np.unique(lengths, return_counts=True)
        arrays = {
            "ids": ids[concatenated_ranges(starts[order], lengths)].astype(np.int64),
            "positions": concatenated_ranges(0, lengths),
            "last": ends - 1,
            "restore": np.argsort(order),
        }
        return cls(
            **{name: torch.from_numpy(array) for name, array in arrays.items()},
            lengths=list(zip(distinct.tolist(), counts.tolist(), strict=True)),
        )

    @property
    def num_tokens(self) -> int:
        """T, after the cut."""
        return len(self.ids)

    @property
    def num_captions(self) -> int:
        """B."""
        return len(self.last)

    @property
    def token_sizes(self) -> list[int]:
        """Tokens of all captions of each length, for `Tensor.split`."""
        return [length * count for length, count in self.lengths]

    @property
    def caption_sizes(self) -> list[int]:
        """Captions of each length, for `Tensor.split`."""
        return [count for _, count in self.lengths]


@dataclass(frozen=True, kw_only=True, slots=True)
class PooledCaptions(Packed):
    """Captions as the features that a frozen model gives them, computed before.

    Attributes:
        pooled: `[B, W] float32`, in the order given.
    """

    pooled: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedRows(Packed):
    """Captions in rows of one length.

    Attributes:
        ids: `[R, L] int64`; the pad's in unused slots.
        positions: `[R, L] int64`, of each token in its caption; 0 in unused slots.
        caption: `[R, L] int32`, index of the caption that a token belongs to; -1 in unused slots.
        last: `[B] int64`, slot of each caption's last token in the flattened rows, in the order given.
        num_tokens: T, after the cut.
    """

    ids: Tensor
    positions: Tensor
    caption: Tensor
    last: Tensor
    num_tokens: int

    @classmethod
    def of(
        cls,
        ids: NDArray[Any],
        lengths: Ints,
        eos_id: int | None,
        *,
        pad_id: int,
        row_length: int = BLOCK,
        few_shapes: bool = False,
    ) -> Self:
        """Pack captions; errors as of `PackedCaptions.of`.

        Args:
            ids: as of `PackedCaptions.of`.
            lengths: likewise; at most `row_length`.
            eos_id: likewise.
            pad_id: content of unused slots.
            row_length: L.
            few_shapes: add unused rows, so that a compiled forward sees few shapes.

        >>> rows = PackedRows.of(np.array([1, 7, 2, 1, 2, 1, 9, 2]), np.array([3, 2, 3]), 2, pad_id=0, row_length=5)
        >>> rows.ids.tolist(), rows.caption.tolist(), rows.last.tolist()
        ([[1, 7, 2, 1, 2], [1, 9, 2, 0, 0]], [[0, 0, 0, 1, 1], [2, 2, 2, -1, -1]], [2, 4, 7])
        """
        given, lengths = spans_to_eos(ids, lengths, eos_id)
        starts, row = next_fit(lengths, row_length)  # slots
        num_rows = int(row[-1]) + 1
        if few_shapes:
            num_rows = round_up_rows(num_rows)
        caption = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)  # [T]
        positions = np.arange(len(caption)) - (np.cumsum(lengths) - lengths)[caption]
        slots = starts[caption] + positions

        def spread(values: NDArray[Any], unused: int, dtype: type[np.signedinteger[Any]]) -> Tensor:
            array = np.full(num_rows * row_length, unused, dtype)
            array[slots] = values
            return torch.from_numpy(array).view(num_rows, row_length)

        return cls(
            ids=spread(ids[given[caption] + positions], pad_id, np.int64),
            positions=spread(positions, 0, np.int64),
            caption=spread(caption, -1, np.int32),
            last=torch.from_numpy(starts + lengths - 1),
            num_tokens=len(caption),
        )

    @property
    def num_captions(self) -> int:
        """B."""
        return len(self.last)


def concatenated_ranges(starts: Ints | int, lengths: Ints) -> Ints:
    """Concatenated ranges: from each start, as many consecutive numbers as its length.

    >>> concatenated_ranges(np.array([5, 0]), np.array([2, 3])).tolist()
    [5, 6, 0, 1, 2]
    """
    before = np.cumsum(lengths) - lengths
    result: Ints = np.arange(lengths.sum()) + np.repeat(starts - before, lengths)
    return result


def spans_to_eos(ids: NDArray[Any], lengths: Ints, eos_id: int | None) -> tuple[Ints, Ints]:
    """Start of each caption in `ids`, and its tokens up to its first EOS (all, if `eos_id` is None): `[B]` and `[B]`.

    As in open_clip, the first EOS pools, also where a caption spells the token out.

    Raises:
        EncoderError: a caption without EOS.
    """
    ends = np.cumsum(lengths)
    starts = ends - lengths
    if eos_id is None:
        return starts, lengths
    eos = np.append(np.flatnonzero(ids == eos_id), len(ids))
    first = eos[np.searchsorted(eos, starts)]
    if (first >= ends).any():
        raise EncoderError(
            f"caption {int(np.argmax(first >= ends))} of {len(lengths)} has no end-of-text token ({eos_id}): "
            "end every caption with it, also one that was cut"
        )
    return starts, first + 1 - starts


def row_length(context_length: int) -> int:
    """The smallest L that holds the longest caption: 128 up to 128 tokens, 256 up to 256."""
    return -(-context_length // BLOCK) * BLOCK


def round_up_rows(num_rows: int) -> int:
    """Number of rows rounded up to one of few, for a compiled forward.

    >>> [round_up_rows(n) for n in (1, 9, 100, 250, 256, 257)]
    [8, 16, 104, 256, 256, 288]
    """
    quantum = max(8, (1 << (num_rows - 1).bit_length()) // 16)
    return -(-num_rows // quantum) * quantum


def next_fit(lengths: Ints, row_length: int) -> tuple[Ints, Ints]:
    """Next-fit bin packing: captions fill rows in order, and one that does not fit opens the next row.

    Returns:
        The first slot of each caption in the flattened rows `[B]`, and its row `[B]`.

    >>> next_fit(np.array([3, 2, 3]), 5)
    (array([0, 3, 5]), array([0, 0, 1]))
    """
    assert lengths.max() <= row_length, "captions are cut to the context length"
    ends = np.cumsum(lengths)
    starts = ends - lengths
    # The first caption that does not fit into a row that begins with this one.
    beyond = np.searchsorted(ends, starts + row_length, side="right")
    first = [0]
    while (following := int(beyond[first[-1]])) < len(lengths):
        first.append(following)
    row = np.repeat(np.arange(len(first)), np.diff([*first, len(lengths)]))
    return starts + (np.arange(len(first)) * row_length - starts[first])[row], row
