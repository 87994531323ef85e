"""Captions of a cache's further sets, read with the methods of `Cache`, so that its readers need not know of them.

A set has the layout of the cache's own captions in a group of its own. m captions of a set, M of all chosen sets.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import CacheError, DamagedCacheError, Fault
from ..format import LANGUAGE, OWN_CAPTIONS, CacheInfo, CaptionSetInfo
from ..storage.ragged_bytes import RaggedBytes
from .arrays import CheckedArrays
from .cache import Cache

TOKENS_OF_SET = re.compile("[0-9a-f]{8}")  # name of the folder for tokens of a set: the digits of its group


class CaptionSet:
    """The captions of one set, ascending by image."""

    def __init__(self, arrays: CheckedArrays, info: CaptionSetInfo) -> None:
        self._arrays, self.info = arrays, info
        _, _, self._image, self._language = info.array_names
        self._text = f"{info.path}/text"

    def __len__(self) -> int:
        return self.info.num_captions

    def captions(self, start: int = 0, stop: int | None = None) -> list[str]:
        """Captions `start` to `stop`."""
        texts = self._arrays.read_ragged(self._text, start, stop).split()
        try:
            return [text.decode() for text in texts]
        except UnicodeDecodeError as error:
            raise self._damaged(f"{self._text}/bytes: not UTF-8") from error

    def caption_image(self) -> NDArray[np.int64]:
        """The row of each caption's image, `[m] int64`, ascending."""
        rows: NDArray[np.int64] = self._arrays.read(self._image)
        if rows[0] < 0 or rows[-1] >= self._arrays.info.num_images or (rows[1:] < rows[:-1]).any():
            raise self._damaged(f"{self._image}: not ascending rows of {self._arrays.info.num_images:,} images")
        return rows

    def language_codes(self, start: int = 0, stop: int | None = None) -> NDArray[np.uint16]:
        """Language tags of captions `start` to `stop`, as indices into the set's `languages`."""
        codes: NDArray[np.uint16] = self._arrays.read(self._language, (slice(start, stop),))
        if codes.max(initial=0) >= len(self.info.languages):
            raise self._damaged(f"{self._language}: code {codes.max()}, {len(self.info.languages)} languages are named")
        return codes

    def count_languages(self) -> dict[str, int]:
        """The number of captions of each language tag, "" among them, most frequent first."""
        counts = np.bincount(self.language_codes(), minlength=len(self.info.languages)).tolist()
        return {tag: n for n, tag in sorted(zip(counts, self.info.languages, strict=True), reverse=True) if n}

    def read_texts(self, start: int, stop: int) -> RaggedBytes:
        """Captions `start` to `stop` as arrays."""
        return self._arrays.read_ragged(self._text, start, stop)

    def _damaged(self, problem: str) -> DamagedCacheError:
        remedy = self._arrays.remedy([(self._image, (0,))])
        return DamagedCacheError(Fault(f"{self._arrays.path}: {problem}", remedy))


class ChosenCaptions(Cache):
    """A cache with the captions of some sets in place of its own: by image, and of an image its own first, then by set.

    Every caption has a language here: one without a tag has the name of its set, so that weights by language reach it.
    """

    def __init__(self, own: Cache, names: Sequence[str]) -> None:
        """Choose captions; prefer `with_captions`.

        Args:
            own: the cache with its own captions.
            names: of sets, or `source`.

        Raises:
            CacheError: there is no such set.
        """
        self._own, self.arrays = own, own.arrays
        self._names = tuple(sorted(names, key=lambda name: (name != OWN_CAPTIONS, name)))
        arrays = self.arrays
        known = {info.name: info for info in arrays.caption_sets()}
        for name in names:
            if name not in known and name != OWN_CAPTIONS:
                listed = ", ".join((OWN_CAPTIONS, *known))
                raise CacheError(
                    f"{arrays.path} has no captions {name!r}: it has {listed}; `clipglot captions {arrays.path} "
                    f"FILE --name {name}` adds some"
                )
        self._parts = [own if name == OWN_CAPTIONS else CaptionSet(arrays, known[name]) for name in self._names]
        self._sets = [known[name] for name in self._names if name != OWN_CAPTIONS]
        # For each part, the language here of each of its codes.
        tags = [
            [tag or name for tag in part.info.languages] or [name]
            for name, part in zip(self._names, self._parts, strict=True)
        ]
        self._tags = list(dict.fromkeys(tag for part in tags for tag in part))
        code = {tag: i for i, tag in enumerate(self._tags)}
        self._code_of = [np.array([code[tag] for tag in part], np.uint16) for part in tags]

    @property
    def caption_names(self) -> tuple[str, ...]:
        """Names of the sets."""
        return self._names

    @property
    def chosen_sets(self) -> list[CaptionSetInfo]:
        """The sets but the cache's own captions."""
        return self._sets

    @property
    def has_languages(self) -> bool:
        """True: see the class."""
        return True

    @cached_property
    def _info(self) -> CacheInfo:
        own = self.arrays.info
        num = sum(part.info.num_captions for part in self._parts)
        return replace(own, num_captions=num, languages=self._tags)

    @property
    def info(self) -> CacheInfo:
        """The metadata of the cache, with the number of these captions and their languages."""
        return self._info

    @property
    def tokens_folder(self) -> Path | None:
        """A folder of the set's own, below that of the cache's own captions; of one set alone, see `parts`."""
        assert len(self._names) == 1, "tokens are stored set by set"
        folder = super().tokens_folder
        return folder and folder / token_folder(self._sets[0])

    @property
    def parts(self) -> list[Cache]:
        """The cache with the captions of each set alone."""
        return [with_captions(self._own, [name]) for name in self._names]

    def origin(self) -> "CaptionOrigin":
        """Where each caption comes from, as a number of `parts`."""
        places = self._merged[1]
        part, place = np.empty(self.info.num_captions, np.uint16), np.empty(self.info.num_captions, np.int64)
        for number, own in enumerate(places):
            part[own], place[own] = number, np.arange(len(own))
        return CaptionOrigin(part, place)

    @cached_property
    def _merged(self) -> tuple[NDArray[np.int64], list[NDArray[np.int64]]]:
        """Image of each caption `[M]`, and for each part the places of its captions among all, ascending."""
        images = [part.caption_image() for part in self._parts]
        joined = np.concatenate(images)
        order = np.argsort(joined, kind="stable")
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        return joined[order], np.split(place, np.cumsum([len(rows) for rows in images])[:-1])

    def caption_image(self) -> NDArray[np.int64]:
        """The row of each caption's image, `[M] int64`, ascending."""
        return self._merged[0]

    def captions(self, start: int = 0, stop: int | None = None) -> list[str]:
        """Captions `start` to `stop`, in the order of `caption_image`."""
        start, stop, _ = slice(start, stop).indices(self.info.num_captions)
        result = np.full(max(0, stop - start), "", object)
        for part, (places, first, end) in zip(self._parts, self._ranges(start, stop), strict=True):
            if end > first:
                result[places[first:end] - start] = part.captions(first, end)
        return list(result)

    def language_codes(self, start: int = 0, stop: int | None = None) -> NDArray[np.uint16]:
        """Languages of captions `start` to `stop`, as indices into `info.languages`."""
        start, stop, _ = slice(start, stop).indices(self.info.num_captions)
        result = np.zeros(max(0, stop - start), np.uint16)
        parts = zip(self._parts, self._code_of, self._ranges(start, stop), strict=True)
        for part, code_of, (places, first, end) in parts:
            is_tagged = isinstance(part, CaptionSet) or self.arrays.has(LANGUAGE)
            codes = part.language_codes(first, end) if is_tagged else np.zeros(end - first, np.uint16)
            result[places[first:end] - start] = code_of[codes]
        return result

    def languages(self, start: int = 0, stop: int | None = None) -> list[str] | None:
        """Languages of captions `start` to `stop`."""
        return [self._tags[code] for code in self.language_codes(start, stop).tolist()]

    def count_languages(self) -> dict[str, int]:
        """The number of captions of each language, most frequent first."""
        counts = np.bincount(self.language_codes(), minlength=len(self._tags)).tolist()
        return {tag: num for num, tag in sorted(zip(counts, self._tags, strict=True), reverse=True) if num}

    def translations(self) -> list[str]:
        """None: translations for a text teacher belong to the cache's own captions."""
        return []

    def _ranges(self, start: int, stop: int) -> list[tuple[NDArray[np.int64], int, int]]:
        """For each part its places, and which of its captions lie from `start` to `stop`: neighbours, as it ascends."""
        return [(places, *np.searchsorted(places, [start, stop]).tolist()) for places in self._merged[1]]


def with_captions(cache: Cache, names: Sequence[str]) -> Cache:
    """The images of a cache with the captions of some sets, all together.

    Args:
        cache: with its own captions.
        names: of caption sets (`clipglot captions`), and `source` for the captions that the cache was made with. No
            names stand for `source` alone.

    Raises:
        CacheError: the cache has no such set; the message names those that it has.
    """
    chosen = tuple(dict.fromkeys(names)) or (OWN_CAPTIONS,)
    return cache if chosen == (OWN_CAPTIONS,) else ChosenCaptions(cache, chosen)


@dataclass(frozen=True, slots=True)
class CaptionOrigin:
    """Where each of M captions of several sets comes from.

    Attributes:
        part: `[M]`, number of its set among those chosen.
        place: `[M]`, its number in the set.
    """

    part: NDArray[np.uint16]
    place: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.part)

    def split(self, captions: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
        """For each set that some captions come from: its number, their positions among the captions, their places.

        >>> origin = CaptionOrigin(np.array([0, 1, 0], np.uint16), np.array([0, 0, 1]))
        >>> [(part, at.tolist(), place.tolist()) for part, at, place in origin.split(np.array([2, 1, 0]))]
        [(0, [0, 2], [1, 0]), (1, [1], [0])]
        """
        parts = self.part[captions]
        for part in np.unique(parts).tolist():
            at = np.flatnonzero(parts == part)
            yield part, at, self.place[captions[at]]


def token_folder(info: CaptionSetInfo) -> str:
    """Name of the folder for the tokens of a set, in that of the cache's own: another content has another."""
    return info.group.rpartition("-")[2]


def captions_sha256(
    texts: Iterable[RaggedBytes], images: NDArray[np.int64], codes: NDArray[np.uint16], languages: Sequence[str]
) -> str:
    """Digest of the content of a set, wherever it lies: lengths and bytes of its captions, images, languages.

    Args:
        texts: captions in order, in blocks of any size.
        images: `[m]`.
        codes: `[m]`, of the languages.
        languages: that the codes stand for.
    """
    lengths, raw = hashlib.sha256(), hashlib.sha256()
    for block in texts:
        lengths.update(np.diff(block.offsets).astype("<i8").tobytes())
        raw.update(block.raw.tobytes())
    whole = hashlib.sha256(lengths.digest() + raw.digest())
    whole.update(hashlib.sha256(images.astype("<i8").tobytes()).digest())
    whole.update(hashlib.sha256(codes.astype("<u2").tobytes()).digest())
    whole.update(json.dumps(list(languages)).encode())
    return whole.hexdigest()
