"""Packing: a batch of captions as one run of tokens, the shortest caption first, without a pad between them.

Everything but attention works on single tokens and so on the run as it is. Attention needs captions apart: those of
equal length lie side by side and form a rectangle, so there is one attention call a length, and none of it is masked.
Packing is host work on numpy arrays, which a feeding thread can do ahead of the step. B captions, T tokens.
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Packed:
    """What every form has: host tensors that move to the device together."""

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """The same on a device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """The same in page-locked memory, from which `to(device, non_blocking=True)` does not wait."""
        return self._each(Tensor.pin_memory)

    def _each(self, move: Callable[[Tensor], Tensor]) -> Self:
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: move(value) for name, value in values.items() if isinstance(value, Tensor)})


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedCaptions(Packed):
    """Captions by length.

    Attributes:
        ids: `[T] int64`.
        positions: `[T] int64`, of each token in its caption.
        last: `[B] int64`, where in the run each caption ends, in packed order.
        restore: `[B] int64`, takes packed order back to the order given.
        lengths: the distinct lengths, ascending, with the number of captions of each.
    """

    ids: Tensor
    positions: Tensor
    last: Tensor
    restore: Tensor
    lengths: list[tuple[int, int]]

    @classmethod
    def of(cls, ids: NDArray[Any], lengths: Ints, eos_id: int | None) -> Self:
        """Pack captions; each is cut after its first EOS, which is where it is pooled.

        Args:
            ids: `[T]` of any integer type, all captions joined.
            lengths: `[B]`, tokens of each.
            eos_id: the token that ends a caption; None keeps captions as they are.

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
            "ids": ids[runs(starts[order], lengths)].astype(np.int64),
            "positions": runs(0, lengths),
            "last": ends - 1,
            "restore": np.argsort(order),
        }
        return cls(
            **{name: torch.from_numpy(array) for name, array in arrays.items()},
            lengths=list(zip(distinct.tolist(), counts.tolist(), strict=True)),
        )

    @property
    def num_tokens(self) -> int:
        """T, after cutting."""
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


def runs(starts: Ints | int, lengths: Ints) -> Ints:
    """The numbers of runs, one run after the other: from each start, as many as its length says.

    >>> runs(np.array([5, 0]), np.array([2, 3])).tolist()
    [5, 6, 0, 1, 2]
    """
    before = np.cumsum(lengths) - lengths
    result: Ints = np.arange(lengths.sum()) + np.repeat(starts - before, lengths)
    return result


def spans_to_eos(ids: NDArray[Any], lengths: Ints, eos_id: int | None) -> tuple[Ints, Ints]:
    """Where each caption starts in `ids`, and its tokens up to its first EOS, or all of them: `[B]` and `[B]`.

    As upstream, the first EOS pools, also when a caption spells the token out.

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
