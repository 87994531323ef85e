"""Codings of rows in an index: 8 bits a feature (int8), or one bit a feature (RaBitQ).

A coding says how a row is stored and how a query is compared with it; faiss compares. N rows of D features in L lists.
"""

import struct
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from .codes import LARGEST, Floats, coded, steps_of
from .errors import SearchError

Encoder = Callable[[Floats, NDArray[np.int64]], NDArray[np.uint8]]
CODE_OFFSET = 128  # faiss stores a whole number from -128 to 127 as a byte from 0 to 255
MAX_FEATURE = 2.0  # of a unit vector, with room
QUERY_BITS = 4  # of a query's feature that is compared with one bit: 8 find as many and take a fifth longer
INNER_PRODUCT, _QT_8BIT_DIRECT_SIGNED = 0, 8  # of faiss, as it stores them
_FACTORS = 8  # bytes: two factors of a row, float32


class Coding(ABC):
    """How an index stores a row.

    Attributes:
        kind: name in the index file.
        four_letters: by which faiss knows the file.
    """

    kind: ClassVar[str]
    four_letters: ClassVar[bytes]

    @classmethod
    @abstractmethod
    def learned(cls, sample: Floats, seed: int) -> Self:
        """Coding for rows like those given, `[n, D]`."""

    @classmethod
    @abstractmethod
    def stored(cls, content: bytes, dim: int) -> Self:
        """Coding from the `stored_bytes` of a file.

        Raises:
            ValueError: no such numbers.
        """

    @staticmethod
    @abstractmethod
    def stored_bytes(dim: int) -> int:
        """Bytes of `content()`."""

    @staticmethod
    @abstractmethod
    def code_bytes(dim: int) -> int:
        """Bytes of a row."""

    @staticmethod
    @abstractmethod
    def faiss_fields(dim: int) -> bytes:
        """What faiss stores between its centroids and its lists."""

    @abstractmethod
    def content(self) -> bytes:
        """The coding, as the file has it."""

    @abstractmethod
    def centroids(self, centroids: Floats) -> Floats:
        """Centroids `[L, D]` in the space of the codes."""

    @abstractmethod
    def encoder(self, faiss: Any, centroids: Floats) -> Encoder:
        """A function from rows `[n, D]` and their lists `[n]` to codes `[n, code_bytes] uint8`.

        Args:
            faiss: the module.
            centroids: `[L, D]`, as given to `centroids`.
        """

    @abstractmethod
    def queries(self, queries: Floats) -> Floats:
        """Queries `[Q, D]` in the space of the codes; a factor or an addend that all rows share changes no order."""

    @abstractmethod
    def parameters(self, faiss: Any, num_probes: int, selector: Any) -> Any:
        """Parameters of a search by faiss."""


class Int8Coding(Coding):
    """Whole numbers of 8 bits, in steps from the mean: nearly exact."""

    kind = "ivf-int8"
    four_letters = b"IwSq"

    def __init__(self, mean: Floats, steps: Floats) -> None:
        """Take what was learned.

        Args:
            mean: `[D]`, of the rows.
            steps: `[D]`, of the codes.
        """
        self.mean, self.steps = mean, steps

    @classmethod
    def learned(cls, sample: Floats, seed: int) -> Self:
        """As `Coding.learned`."""
        return cls(*steps_of(sample))

    @classmethod
    def stored(cls, content: bytes, dim: int) -> Self:
        """As `Coding.stored`."""
        floats = np.frombuffer(content, "<f4").astype(np.float32)
        mean, steps = floats[:dim], floats[dim:]
        if not (np.abs(mean) <= MAX_FEATURE).all() or not ((steps > 0) & (steps <= MAX_FEATURE)).all():
            raise ValueError("its mean or steps are not those of unit vectors")
        return cls(mean, steps)

    @staticmethod
    def stored_bytes(dim: int) -> int:
        """As `Coding.stored_bytes`."""
        return 8 * dim

    @staticmethod
    def code_bytes(dim: int) -> int:
        """As `Coding.code_bytes`."""
        return dim

    @staticmethod
    def faiss_fields(dim: int) -> bytes:
        """As `Coding.faiss_fields`."""
        return struct.pack("<iifQQQQ?", _QT_8BIT_DIRECT_SIGNED, 0, 0.0, dim, dim, 0, dim, False)

    def content(self) -> bytes:
        """As `Coding.content`."""
        return self.mean.astype("<f4").tobytes() + self.steps.astype("<f4").tobytes()

    def centroids(self, centroids: Floats) -> Floats:
        """As `Coding.centroids`."""
        return (centroids - self.mean) / self.steps

    def encoder(self, faiss: Any, centroids: Floats) -> Encoder:
        """As `Coding.encoder`."""

        def encode(emb: Floats, lists: NDArray[np.int64]) -> NDArray[np.uint8]:
            codes = coded(emb, self.mean, self.steps).astype(np.int8)
            return codes.view(np.uint8) + np.uint8(CODE_OFFSET)  # wraps, as is meant

        return encode

    def queries(self, queries: Floats) -> Floats:
        """As `Coding.queries`."""
        folded = queries * self.steps
        scale = np.maximum(np.abs(folded).max(axis=1, keepdims=True) / LARGEST, np.finfo(np.float32).tiny)
        result: Floats = np.rint(folded / scale)
        return result

    def parameters(self, faiss: Any, num_probes: int, selector: Any) -> Any:
        """As `Coding.parameters`."""
        return faiss.IVFSearchParameters(nprobe=num_probes, sel=selector)


class RabitqCoding(Coding):
    """One bit a feature and two factors a row (RaBitQ, arXiv 2405.12497), of the turned difference from its centroid.

    A sixth of the bytes of int8; more rows must be scored again. Features are turned at random, because RaBitQ
    supposes that none is larger than the others.
    """

    kind = "ivf-rabitq"
    four_letters = b"Iwrq"

    def __init__(self, rotation: Floats) -> None:
        """Take what was drawn.

        Args:
            rotation: `[D, D]`, orthogonal.
        """
        self.rotation = rotation

    @classmethod
    def learned(cls, sample: Floats, seed: int) -> Self:
        """As `Coding.learned`."""
        drawn = np.random.default_rng(seed).standard_normal((sample.shape[1], sample.shape[1]))
        return cls(np.linalg.qr(drawn)[0].astype(np.float32))

    @classmethod
    def stored(cls, content: bytes, dim: int) -> Self:
        """As `Coding.stored`."""
        rotation = np.frombuffer(content, "<f4").astype(np.float32).reshape(dim, dim)
        if not (np.abs(rotation) <= MAX_FEATURE).all():
            raise ValueError("its rotation is none")
        return cls(rotation)

    @staticmethod
    def stored_bytes(dim: int) -> int:
        """As `Coding.stored_bytes`."""
        return 4 * dim * dim

    @staticmethod
    def code_bytes(dim: int) -> int:
        """As `Coding.code_bytes`."""
        return -(-dim // 8) + _FACTORS

    @staticmethod
    def faiss_fields(dim: int) -> bytes:
        """As `Coding.faiss_fields`."""
        size = RabitqCoding.code_bytes(dim)
        return struct.pack("<QQiQ?B", dim, size, INNER_PRODUCT, size, True, QUERY_BITS)

    def content(self) -> bytes:
        """As `Coding.content`."""
        return self.rotation.astype("<f4").tobytes()

    def centroids(self, centroids: Floats) -> Floats:
        """As `Coding.centroids`."""
        return np.ascontiguousarray(centroids @ self.rotation)

    def encoder(self, faiss: Any, centroids: Floats) -> Encoder:
        """As `Coding.encoder`."""
        dim = centroids.shape[1]
        quantizer = faiss.IndexFlatIP(dim)
        quantizer.add(self.centroids(centroids))
        index = faiss.IndexIVFRaBitQ(quantizer, dim, len(centroids), faiss.METRIC_INNER_PRODUCT)

        def encode(emb: Floats, lists: NDArray[np.int64]) -> NDArray[np.uint8]:
            turned = np.ascontiguousarray(emb @ self.rotation)
            codes = np.empty((len(emb), index.code_size), np.uint8)
            pointers = map(faiss.swig_ptr, (turned, np.ascontiguousarray(lists), codes))
            index.encode_vectors(len(emb), *pointers)
            return codes

        return encode

    def queries(self, queries: Floats) -> Floats:
        """As `Coding.queries`."""
        return np.ascontiguousarray(queries @ self.rotation)

    def parameters(self, faiss: Any, num_probes: int, selector: Any) -> Any:
        """As `Coding.parameters`."""
        return faiss.IVFRaBitQSearchParameters(nprobe=num_probes, sel=selector, qb=QUERY_BITS, centered=False)


CODINGS: dict[str, type[Coding]] = {coding.kind: coding for coding in (Int8Coding, RabitqCoding)}


def coding_of(kind: str) -> type[Coding]:
    """The coding of an index file's kind.

    Raises:
        SearchError: none is known by that name.
    """
    if kind not in CODINGS:
        raise SearchError(f"no kind of index is called {kind!r}: there are {', '.join(CODINGS)}")
    return CODINGS[kind]
