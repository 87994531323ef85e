"""Rows: captions packed whole into rows of one fixed length, for CUDA, where a static shape pays.

Next-fit in the order given fills .90 to .97 of the slots, and the number of rows hardly changes from batch to batch.
For a compiled forward it is rounded up to a multiple of a sixteenth of the next power of two and of 8, so that it sees
one or two shapes in a run and at most an eighth of the rows, or seven, are unused: 250 to 270 rows become 256 or 288.
R rows of L slots, B captions, T tokens.
"""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .packing import Ints, Packed, spans_to_eos

BLOCK = 128  # the tile of attention on a GPU; L is a multiple of it


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedRows(Packed):
    """Captions in rows.

    Attributes:
        ids: `[R, L] int64`; the pad's where a slot is unused.
        positions: `[R, L] int64`, of each token in its caption; 0 where unused.
        caption: `[R, L] int32`, which caption a token belongs to; -1 where unused.
        last: `[B] int64`, the slot in the flattened rows where each caption ends, in the order given.
        num_tokens: T, after cutting.
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
        """Pack captions; arguments and errors as of `PackedCaptions.of`.

        Args:
            ids: as there.
            lengths: as there; none above `row_length`.
            eos_id: as there.
            pad_id: what unused slots hold.
            row_length: L.
            few_shapes: add unused rows, for a compiled forward.

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


def row_length(context_length: int) -> int:
    """The shortest L that takes the longest caption: 128 up to 128 tokens, 256 up to 256."""
    return -(-context_length // BLOCK) * BLOCK


def round_up_rows(num_rows: int) -> int:
    """The number of rows to compute, of few.

    >>> [round_up_rows(n) for n in (1, 9, 100, 250, 256, 257)]
    [8, 16, 104, 256, 256, 288]
    """
    quantum = max(8, (1 << (num_rows - 1).bit_length()) // 16)
    return -(-num_rows // quantum) * quantum


def next_fit(lengths: Ints, row_length: int) -> tuple[Ints, Ints]:
    """Put captions into rows in order; one that no longer fits opens the next row.

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
