"""Captions as token ids, ragged: tokenized once, before the first step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..cache.files import whole_directory
from ..cache.store import Cache
from ..encoders.tokenizer import CaptionTokenizer, train_bpe
from .errors import DistillError

CAPTIONS_AT_A_TIME = 4096


@dataclass(frozen=True, slots=True)
class TokenTable:
    """Ids of M captions: caption i is `ids[offsets[i]:offsets[i + 1]]`."""

    ids: NDArray[np.int32]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def take(self, captions: NDArray[np.int64]) -> list[NDArray[np.int32]]:
        """The ids of some captions, unpadded."""
        return [self.ids[self.offsets[i] : self.offsets[i + 1]] for i in captions]


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


def write_tokenizer(cache: Path, folder: Path, vocab_size: int) -> dict[str, Any]:
    """`clipglot tokenizer`: train a BPE on a cache's captions and write it; returns what `--json` prints.

    Raises:
        CacheError, EncoderError: no cache, or too small a vocabulary.
        DistillError: the folder exists.
    """
    if folder.exists():
        raise DistillError(f"{folder} exists: choose another -o")
    captions = Cache(cache).captions()
    tokenizer = train_bpe(captions, vocab_size)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with whole_directory(folder) as partial:
        tokenizer.save(partial)
    lengths = np.diff(tokenize(tokenizer, captions, 10**6).offsets)
    return {
        "tokenizer": str(folder),
        "vocab_size": tokenizer.vocab_size,
        "num_captions": len(captions),
        "tokens_per_caption": float(lengths.mean()) if len(lengths) else 0.0,
        "longest": int(lengths.max(initial=0)),
    }
