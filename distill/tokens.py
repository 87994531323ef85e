"""Captions as token ids, ragged: tokenized once, before the first step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..encoders.tokenizer import CaptionTokenizer

CAPTIONS_AT_A_TIME = 4096


@dataclass(frozen=True, slots=True)
class TokenTable:
    """Ids of M captions: caption i is `ids[offsets[i]:offsets[i + 1]]`."""

    ids: NDArray[np.int32]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def take(self, captions: NDArray[np.int64]) -> list[list[int]]:
        """The ids of some captions, unpadded."""
        return [self.ids[self.offsets[i] : self.offsets[i + 1]].tolist() for i in captions]


def tokenize(
    tokenizer: CaptionTokenizer,
    captions: Sequence[str],
    context_length: int,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> TokenTable:
    """Tokenize captions, block by block; each has at most `context_length` ids."""
    blocks: list[NDArray[np.int32]] = []
    lengths: list[int] = []
    for start in range(0, len(captions), CAPTIONS_AT_A_TIME):
        encoded = tokenizer.encode(captions[start : start + CAPTIONS_AT_A_TIME], context_length)
        lengths += map(len, encoded)
        blocks.append(np.fromiter((i for ids in encoded for i in ids), np.int32))
        on_progress(start + len(encoded), len(captions))
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    return TokenTable(np.concatenate(blocks or [np.zeros(0, np.int32)]), offsets)
