"""Packing: a batch of captions as one run of tokens, the shortest caption first, without a pad between them.

Everything but attention works on single tokens and so on the run as it is. Attention needs captions apart: those of
equal length lie side by side and form a rectangle, so there is one attention call a length, and none of it is masked.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedCaptions:
    """B captions of T tokens in all, by length.

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
    def of(cls, captions: Sequence[Sequence[int]], eos_id: int, device: torch.device) -> Self:
        """Pack captions; each is cut after its first EOS, which is where it is pooled.

        >>> packed = PackedCaptions.of([[1, 7, 8, 2], [1, 2], [1, 9, 9, 2]], 2, torch.device("cpu"))
        >>> packed.ids.tolist(), packed.lengths
        ([1, 2, 1, 7, 8, 2, 1, 9, 9, 2], [(2, 1), (4, 2)])
        """
        given = np.fromiter(map(len, captions), np.int64, len(captions))
        starts = np.cumsum(given) - given
        flat = np.concatenate([np.asarray(caption, np.int64) for caption in captions])
        within = np.arange(len(flat)) - np.repeat(starts, given)
        # As upstream, the first EOS pools, also when a caption spells the token out.
        first_eos = np.minimum.reduceat(np.where(flat == eos_id, within, len(flat)), starts)
        assert (first_eos < given).all(), "every caption ends with EOS"
        lengths = first_eos + 1
        order = np.argsort(lengths, kind="stable")
        sorted_lengths = lengths[order]
        ends = np.cumsum(sorted_lengths)
        positions = np.arange(ends[-1]) - np.repeat(ends - sorted_lengths, sorted_lengths)
        distinct, counts = np.unique(sorted_lengths, return_counts=True)
        arrays = {
            "ids": flat[np.repeat(starts[order], sorted_lengths) + positions],
            "positions": positions,
            "last": ends - 1,
            "restore": np.argsort(order),
        }
        return cls(
            **{name: torch.from_numpy(array).to(device) for name, array in arrays.items()},
            lengths=list(zip(distinct.tolist(), counts.tolist(), strict=True)),
        )

    @property
    def token_sizes(self) -> list[int]:
        """Tokens of all captions of each length, for `Tensor.split`."""
        return [length * count for length, count in self.lengths]

    @property
    def caption_sizes(self) -> list[int]:
        """Captions of each length, for `Tensor.split`."""
        return [count for _, count in self.lengths]
