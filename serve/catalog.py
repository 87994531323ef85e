"""Images of several caches as one list, with their captions, filters and nearest neighbours.

An image's row here counts over all caches, in the order given.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..cache.format import KEY, LANGUAGE, TEXT, Status
from ..cache.location import Location, Url
from ..cache.read.cache import Cache
from ..cache.read.identity import embedding_identity
from ..search.errors import SearchError
from ..search.filters import CAPTIONS_AT_A_TIME, folded
from ..search.rows import Rows

FILTERS_KEPT = 32
NUM_EXAMPLES, EXAMPLE_CHARACTERS = 6, 40


class Index(Protocol):
    """Nearest neighbours among the images of a cache, exact or not.

    Attributes:
        rows: embeddings of the cache.
    """

    rows: Rows

    def search(
        self, queries: NDArray[np.float32], k: int, allowed: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """As of `search.exact.ExactIndex`."""


@dataclass(frozen=True)
class Filter:
    """Which images a search chooses from.

    Attributes:
        text: that a caption holds, as of `search.filters.caption_mask`; "" for any.
        language: tag of that caption; None for any.
        cache: number of the cache; None for all.
    """

    text: str = ""
    language: str | None = None
    cache: int | None = None


class ServedCache:
    """A cache with its keys and captions in memory. N images, M captions.

    Attributes:
        cache: the reader.
        name: shown for it.
        first_row: of its images in the catalog.
        num_captions: M.
        languages: tags of its captions and their numbers; "" without a tag.
        stamp: text that is another one when the cache at this path is.
    """

    def __init__(self, cache: Cache, name: str, index: Index, first_row: int) -> None:
        """Read keys, captions and status.

        Raises:
            CacheError: not complete, or damaged.
            SearchError: it has no images.
        """
        if not cache.require_sealed().info.source.images:
            raise SearchError(f"{cache.path} has no images, but translations (--no-images): pass a cache of images")
        self.cache, self.name, self.first_row, self._index = cache, name, first_row, index
        self._state = state_of(cache.path)
        self.embedded = cache.status() == Status.EMBEDDED
        self._keys = _texts(cache, KEY)
        # The keys, too: imported embeddings can be given other images.
        keys = sha256(b"".join(map(memoryview, self._keys.buffers()[1:]))).hexdigest()
        self.stamp = f"{cache.path.absolute()} {embedding_identity(cache)} {keys}"
        self._captions = _texts(cache, TEXT)
        self._folded: pa.ChunkedArray | None = None
        self._caption_image = cache.caption_image()
        self._language_codes = cache.language_codes() if cache.arrays.has(LANGUAGE) else None
        self.num_captions = len(self._captions)
        self.languages = cache.count_languages() or ({"": self.num_captions} if self.num_captions else {})
        self._masks: OrderedDict[tuple[str, str | None], NDArray[np.bool_]] = OrderedDict()

    def __len__(self) -> int:
        return len(self.cache)

    def require_unchanged(self, since: tuple[int, ...] | None = None) -> None:
        """Raise if the cache was replaced: its rows would be other images.

        Args:
            since: what `state_of` gave before the cache was opened; by default as of when its captions were read.

        Raises:
            SearchError: says so.
        """
        if state_of(self.cache.path) != (since or self._state):
            raise SearchError(f"{self.cache.path} has changed since the server was started: start it again")

    def emb(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Embeddings of some rows of the cache, `[n, D] float32`."""
        result: NDArray[np.float32] = self._index.rows.take(rows).astype(np.float32)
        return result

    def key(self, row: int) -> str:
        """Key of an image."""
        return str(self._keys[row].as_py())

    def captions(self, row: int) -> list[dict[str, str]]:
        """Captions of an image, each with its language, "" without one."""
        first, end = np.searchsorted(self._caption_image, [row, row + 1]).tolist()
        texts = self._captions[first:end].to_pylist()
        if self._language_codes is None:
            return [{"text": text, "language": ""} for text in texts]
        tags, codes = self.cache.info.languages, self._language_codes[first:end].tolist()
        return [{"text": text, "language": tags[code]} for text, code in zip(texts, codes, strict=True)]

    def examples(self) -> list[str]:
        """Short captions to begin with, from all over the cache."""
        places = np.linspace(0, self.num_captions - 1, min(self.num_captions, 50 * NUM_EXAMPLES)).astype(int)
        found = dict.fromkeys(str(self._captions[i].as_py()) for i in places.tolist())
        short = [text for text in found if 2 < len(text) <= EXAMPLE_CHARACTERS]
        return short[:: max(1, len(short) // NUM_EXAMPLES)][:NUM_EXAMPLES]

    def search(
        self, queries: NDArray[np.float32], k: int, text: str, language: str | None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Cosines and rows of the images nearest to each query, as of `search.exact.ExactIndex.search`."""
        return self._index.search(queries, k, self.mask(text, language))

    def mask(self, text: str, language: str | None) -> NDArray[np.bool_] | None:
        """`[N] bool`: images with a caption that holds a text and is of a language; None where all are."""
        if not text and language is None:
            return None
        if (known := self._masks.get((text, language))) is not None:
            return known
        chosen = np.ones(self.num_captions, bool) if language is None else self._is_in(language)
        if text:
            chosen = chosen & np.asarray(pc.match_substring(self._folded_captions(), folded(text)))
        mask = np.zeros(len(self), bool)
        mask[self._caption_image[chosen]] = True
        self._masks[(text, language)] = mask
        while len(self._masks) > FILTERS_KEPT:
            self._masks.popitem(last=False)
        return mask

    def _folded_captions(self) -> pa.ChunkedArray:
        """Captions as filters compare them, made for the first filter: a second for a million captions."""
        if self._folded is None:
            starts = range(0, self.num_captions, CAPTIONS_AT_A_TIME)
            blocks = (self._captions[start : start + CAPTIONS_AT_A_TIME].to_pylist() for start in starts)
            self._folded = pa.chunked_array(
                [pa.array(map(folded, block), pa.string()) for block in blocks], pa.string()
            )
        return self._folded

    def _is_in(self, language: str) -> NDArray[np.bool_]:
        """Captions with a tag, in any case, `[M] bool`; "" for those without one."""
        if self._language_codes is None:
            return np.full(self.num_captions, language == "")
        tags = self.cache.info.languages
        codes = [code for code, tag in enumerate(tags) if tag.casefold() == language.casefold()]
        return np.isin(self._language_codes, codes)

    def num_searched(self, text: str, language: str | None) -> int:
        """Number of embedded images that a search with these filters chooses from."""
        mask = self.mask(text, language)
        return int((self.embedded if mask is None else self.embedded & mask).sum())


class Catalog:
    """The images of all caches that a server searches.

    Attributes:
        caches: in the order of their rows.
    """

    def __init__(self, caches: Sequence[tuple[Cache, Index]]) -> None:
        """Read all but embeddings.

        Args:
            caches: with the index of each.

        Raises:
            CacheError: one that is not complete, or damaged.
        """
        self.caches: list[ServedCache] = []
        names = short_names([str(cache.path) for cache, _ in caches])
        first = 0
        for (cache, index), name in zip(caches, names, strict=True):
            self.caches.append(ServedCache(cache, name, index, first))
            first += len(cache)
        self._num_images = first

    def __len__(self) -> int:
        return self._num_images

    def require_unchanged(self) -> None:
        """As of `ServedCache.require_unchanged`."""
        for cache in self.caches:
            cache.require_unchanged()

    def place(self, row: int) -> tuple[int, int]:
        """Number of a row's cache, and the row there.

        Raises:
            IndexError: no such row.
        """
        if not 0 <= row < len(self):
            raise IndexError(f"no image {row}: rows are 0 to {len(self) - 1}")
        number = max(i for i, cache in enumerate(self.caches) if cache.first_row <= row)
        return number, row - self.caches[number].first_row

    def emb(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Embeddings of some images, `[n, D] float32`."""
        places = [self.place(row) for row in rows.tolist()]
        result = np.empty((len(rows), self.caches[0].cache.info.encoder.dim), np.float32)
        for number, cache in enumerate(self.caches):
            own = [i for i, (of, _) in enumerate(places) if of == number]
            result[own] = cache.emb(np.array([places[i][1] for i in own], np.int64))
        return result

    def num_searched(self, chosen: Filter) -> int:
        """Number of images that a search chooses from."""
        return sum(cache.num_searched(chosen.text, chosen.language) for cache in self._of(chosen))

    def search(
        self, queries: NDArray[np.float32], k: int, chosen: Filter
    ) -> list[tuple[NDArray[np.float32], NDArray[np.int64]]]:
        """Cosines and rows of the k images nearest to each of Q queries, best first, of equal ones the lower row first.

        Args:
            queries: `[Q, D] float32`, unit norm.
            k: images to find.
            chosen: which images to choose from.
        """
        found = []
        for cache in self._of(chosen):
            scores, rows = cache.search(queries, k, chosen.text, chosen.language)
            found.append((scores, rows + cache.first_row))
        scores, rows = (np.concatenate(parts, axis=1) for parts in zip(*found, strict=True))
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return [(scores[i][best[i]], rows[i][best[i]]) for i in range(len(queries))]

    def _of(self, chosen: Filter) -> list[ServedCache]:
        return self.caches if chosen.cache is None else [self.caches[chosen.cache]]


def _texts(cache: Cache, name: str) -> pa.Array:
    """Texts of a ragged array as one Arrow array.

    Raises:
        CacheError: damaged.
    """
    try:
        return cache.arrays.read_ragged(name).to_arrow().cast(pa.large_string())
    except pa.ArrowInvalid as error:
        raise SearchError(f"{cache.path}: {name} is no UTF-8: clipglot verify {cache.path} tells what to do") from error


def state_of(path: Location) -> tuple[int, ...] | None:
    """What changes when a cache is written or replaced; None at a URL."""
    if isinstance(path, Url):
        return None
    try:
        state = (path / "zarr.json" if path.is_dir() else path).stat()
    except OSError:
        return ()
    return (state.st_ino, state.st_dev, state.st_size, state.st_mtime_ns)


def short_names(paths: Sequence[str]) -> list[str]:
    """Last parts of paths; the whole path where these are equal."""
    short = [path.rstrip("/").rpartition("/")[2] for path in paths]
    return [name if short.count(name) == 1 else path for name, path in zip(short, paths, strict=True)]
