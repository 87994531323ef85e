"""Ragged arrays of UTF-8 texts in memory.

Every decoding process of a source imports this module, so it loads no zarr and, until texts are taken, no pyarrow.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class RaggedBytes:
    """N UTF-8 texts in memory, as two arrays: text i is `raw[offsets[i]:offsets[i + 1]]`.

    Attributes:
        raw: `[total] uint8`.
        offsets: `[N + 1] int64`; `offsets[0]` is 0.
    """

    raw: NDArray[np.uint8]
    offsets: NDArray[np.int64]

    @classmethod
    def of(cls, texts: Sequence[bytes]) -> "RaggedBytes":
        """Pack encoded texts into two arrays.

        >>> RaggedBytes.of([b"ab", b"", b"c"]).offsets
        array([0, 2, 2, 3])
        """
        offsets = np.zeros(len(texts) + 1, np.int64)
        np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)), out=offsets[1:])
        return cls(np.frombuffer(b"".join(texts), np.uint8), offsets)

    @classmethod
    def joined(cls, parts: Sequence["RaggedBytes"]) -> "RaggedBytes":
        """Concatenate several.

        >>> RaggedBytes.joined([RaggedBytes.of([b"ab"]), RaggedBytes.of([b"", b"c"])]).split()
        [b'ab', b'', b'c']
        """
        lengths = [np.diff(part.offsets) for part in parts]
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate(lengths), dtype=np.int64)])
        return cls(np.concatenate([part.raw for part in parts]), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def take(self, rows: NDArray[np.int64]) -> "RaggedBytes":
        """Select texts by row, in the given order.

        >>> RaggedBytes.of([b"ab", b"", b"c"]).take(np.array([2, 0])).split()
        [b'c', b'ab']
        """
        _, offsets, raw = self.to_arrow().take(rows).buffers()
        raw = np.frombuffer(raw, np.uint8) if raw and raw.size else np.zeros(0, np.uint8)
        return RaggedBytes(raw, np.frombuffer(offsets, np.int64)[: len(rows) + 1])

    def to_arrow(self) -> Any:
        """The texts as an Arrow array of binary values, which shares their memory."""
        import pyarrow as pa  # here, so that decoding processes of most sources load none

        buffers = [None, pa.py_buffer(self.offsets), pa.py_buffer(self.raw)]
        return pa.Array.from_buffers(pa.large_binary(), len(self), buffers)

    def split(self) -> list[bytes]:
        """The texts as a list of bytes."""
        raw = self.raw.tobytes()
        return [raw[start:stop] for start, stop in pairwise(self.offsets.tolist())]
