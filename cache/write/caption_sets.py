"""Caption sets: further captions for the images of a sealed cache, matched by key. No image is read.

A set is written to a group that nothing names yet; one write of the root's attributes then makes it the set of its
name. A group that no attribute names is what a killed command left, and is deleted by the next one.
"""

import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import CacheError
from ..format import CAPTION_SETS, KEY, TOKENS, CaptionSetInfo, SourceInfo
from ..read.cache import Cache
from ..read.caption_sets import TOKENS_OF_SET, CaptionSet, captions_sha256, token_folder
from ..sources.source import RowBatch
from ..storage.digests import DigestIndex, digests_of
from ..storage.encoding import open_array
from ..storage.local import ZARR_JSON
from ..storage.ragged import RaggedReader, RaggedWriter, StreamedArray
from ..storage.ragged_bytes import RaggedBytes
from .row_writer import reorder, reorder_texts, rewrite

COPIED_ROWS = 2**16  # keys or captions of the cache that are in memory at once
MOST_LANGUAGES = 2**16 - 1  # of a set, whose codes are uint16
NUM_NAMED = 5  # keys without an image, for messages


@dataclass(frozen=True, kw_only=True)
class AddedCaptions:
    """What a table gave a set.

    Attributes:
        info: of the set.
        num_rows: records of the table.
        num_unmatched: of them, those whose key no image of the cache has.
        unmatched: the first of these keys.
        num_images: images with a caption of the set.
    """

    info: CaptionSetInfo
    num_rows: int
    num_unmatched: int
    unmatched: list[str]
    num_images: int


class SetWriter:
    """Writer of the captions of a new set, in any order of images."""

    def __init__(self, cache: Cache, name: str) -> None:
        """Create its group, which nothing names yet.

        Args:
            cache: open for writing.
            name: of the set.
        """
        self._name = name
        self.group = f"{name}-{secrets.token_hex(4)}"
        self._root = cache.arrays.root.require_group(CAPTION_SETS).create_group(self.group)
        self._texts = RaggedWriter(self._root, "text")
        self._images = StreamedArray(self._root, "image", "int64")
        self._languages = StreamedArray(self._root, "language", "uint16")
        self._codes: dict[str, int] = {}
        self._num = 0

    def append(self, texts: RaggedBytes, images: NDArray[np.int64], languages: Sequence[str] | None) -> None:
        """Add captions.

        Args:
            texts: `[m]`.
            images: `[m]`, the row of each caption's image.
            languages: `[m]`, tags; None for captions without.
        """
        tags = [""] * len(texts) if languages is None else languages
        codes = [self._codes.setdefault(tag, len(self._codes)) for tag in tags]
        if len(self._codes) > MOST_LANGUAGES:
            raise CacheError(f"caption set {self._name}: more than {MOST_LANGUAGES:,} language tags")
        self._texts.append(texts)
        self._images.append(images)
        self._languages.append(np.array(codes, np.uint16))
        self._num += len(texts)

    def close(
        self, sources: Sequence[SourceInfo], *, num_unmatched: int = 0, dropped: Counter[str] | None = None
    ) -> tuple[CaptionSetInfo, NDArray[np.int64]]:
        """Complete the arrays, sorted by image, captions of an image in the order in which they came.

        Returns:
            The set, and its images `[m]`.
        """
        for writer in (self._texts, self._images, self._languages):
            writer.close()
        images = np.asarray(open_array(self._root, "image")[:])
        if (np.diff(images) < 0).any():
            order = np.argsort(images, kind="stable")
            images = images[order]
            rewrite(self._root, "image", images)
            reorder_texts(self._root, "text", order)
            reorder(self._root, "language", order)
        codes = np.asarray(open_array(self._root, "language")[:])
        languages = list(self._codes)
        info = CaptionSetInfo(
            name=self._name,
            group=self.group,
            sources=list(sources),
            num_captions=self._num,
            languages=languages,
            sha256=captions_sha256(RaggedReader(self._root, "text").blocks(), images, codes, languages),
            num_unmatched=num_unmatched,
            dropped_captions=dict(dropped or {}),
        )
        return info, images


def add_set(
    cache: Cache,
    name: str,
    batches: Iterable[RowBatch],
    source: SourceInfo,
    *,
    replaces: bool = False,
    extends: bool = False,
    require_same_images: Callable[[], None] = lambda: None,
    on_keys: Callable[[int], None] = lambda done: None,
    on_rows: Callable[[int], None] = lambda done: None,
) -> AddedCaptions:
    """Give a sealed cache a set of captions.

    Args:
        cache: sealed, open for writing, by this process alone.
        name: of the set.
        batches: rows of a table; of their keys those that the cache has count.
        source: description of the table.
        replaces: whether a set of that name is replaced.
        extends: whether a set of that name gets these captions besides its own.
        require_same_images: called once if keys are row numbers of a table with images inside; raises unless it is one
            that the cache was made of, since any such table has rows of these numbers.
        on_keys: called with the keys of the cache that were read.
        on_rows: called with the records of the table that were read.

    Raises:
        CacheError: a set of that name, or none; no record has the key of an image; or the table cannot be read.
    """
    delete_leftovers(cache)
    sets = cache.arrays.caption_sets()
    old = next((info for info in sets if info.name == name), None)
    _require_allowed(cache, name, old, source, replaces=replaces, extends=extends)
    known = DigestIndex(np.concatenate([digests_of(keys) for keys in _keys(cache, on_keys)]))
    writer = SetWriter(cache, name)
    try:
        if extends and old:
            _copy(cache, old, writer)
        num_rows, num_unmatched, unmatched = 0, 0, list[str]()
        num_captions, dropped = 0, Counter[str]()
        by_row = False
        for batch in batches:
            if batch.locators is not None and not by_row:
                by_row = True
                require_same_images()
            rows = known.rows_of(digests_of(batch.keys))
            is_known = rows >= 0
            if not is_known.all():
                lost = np.flatnonzero(~is_known)
                num_unmatched += len(lost)
                named = batch.keys.take(lost[: NUM_NAMED - len(unmatched)]) if len(unmatched) < NUM_NAMED else None
                unmatched += [key.decode(errors="replace") for key in named.split()] if named else []
            matched = batch if is_known.all() else batch.take(is_known)
            rows = rows[is_known]
            writer.append(matched.captions, rows[matched.image_index], matched.languages)
            num_captions += len(matched.captions)
            dropped += Counter({reason: len(places) for reason, places in matched.dropped.items()})
            num_rows += len(batch)
            on_rows(num_rows)
        if not num_captions:
            raise CacheError(_no_captions(cache, source, num_rows, num_unmatched, unmatched, dropped))
        info, images = writer.close(
            [*(old.sources if extends and old else []), source],
            num_unmatched=num_unmatched + (old.num_unmatched if extends and old else 0),
            dropped=dropped + Counter(old.dropped_captions if extends and old else {}),
        )
    except BaseException:
        cache.arrays.store.delete_below(f"{CAPTION_SETS}/{writer.group}")
        raise
    place = next((i for i, each in enumerate(sets) if each.name == name), len(sets))
    cache.arrays.write_caption_sets([*sets[:place], info, *sets[place + 1 :]])  # from here on it is the set
    delete_leftovers(cache)
    return AddedCaptions(
        info=info,
        num_rows=num_rows,
        num_unmatched=num_unmatched,
        unmatched=unmatched,
        num_images=len(np.unique(images)),
    )


def drop_set(cache: Cache, name: str) -> CaptionSetInfo:
    """Delete a set of captions; returns what it was.

    Raises:
        CacheError: there is none of that name.
    """
    sets = cache.arrays.caption_sets()
    dropped = next((info for info in sets if info.name == name), None)
    if dropped is None:
        raise CacheError(f"{cache.path} has no caption set {name!r}: {_listed(sets)}")
    cache.arrays.write_caption_sets([info for info in sets if info is not dropped])
    delete_leftovers(cache)
    return dropped


def merge_sets(caches: Sequence[Cache], merged: Cache) -> None:
    """Give a cache merged of several their caption sets: those of one name are one set.

    Args:
        caches: whose rows it has, in order.
        merged: sealed, open for writing.
    """
    by_cache = [{info.name: info for info in cache.arrays.caption_sets()} for cache in caches]
    names, sets = dict.fromkeys(name for known in by_cache for name in known), list[CaptionSetInfo]()
    for name in names:
        writer, before = SetWriter(merged, name), 0
        parts = [known[name] for known in by_cache if name in known]
        for cache, known in zip(caches, by_cache, strict=True):
            if name in known:
                _copy(cache, known[name], writer, before)
            before += len(cache)
        dropped = Counter[str]()
        for part in parts:
            dropped.update(part.dropped_captions)
        sources = [source for part in parts for source in part.sources]
        num_unmatched = sum(part.num_unmatched for part in parts)
        sets.append(writer.close(sources, num_unmatched=num_unmatched, dropped=dropped)[0])
    if sets:
        merged.arrays.write_caption_sets(sets)


def delete_leftovers(cache: Cache) -> None:
    """Delete what killed commands left: groups that are no set, partial files; and tokens of sets that are gone.

    Links stay: in a stranger's cache they may lead anywhere.
    """
    store = cache.arrays.store
    store.sweep(keep=TOKENS)
    sets = cache.arrays.caption_sets()
    groups = {info.group for info in sets}
    kept = {token_folder(info) for info in sets}
    left = [f"{CAPTION_SETS}/{name}" for name in store.names(CAPTION_SETS) if name not in (ZARR_JSON, *groups)]
    left += [f"{TOKENS}/{name}" for name in store.names(TOKENS) if TOKENS_OF_SET.fullmatch(name) and name not in kept]
    for path in left:
        folder = cache.arrays.folder / path
        if not folder.is_symlink() and not folder.parent.is_symlink():
            store.delete_below(path)


def _require_allowed(
    cache: Cache, name: str, old: CaptionSetInfo | None, source: SourceInfo, *, replaces: bool, extends: bool
) -> None:
    """Refuse to write over a set unasked, or to add to one that is not there or has the captions already.

    Raises:
        CacheError: says which flag is meant.
    """
    if old is None:
        if extends or replaces:
            sets = cache.arrays.caption_sets()
            flag = "--add" if extends else "--replace"
            raise CacheError(f"{cache.path} has no caption set {name!r}: {_listed(sets)}; leave out {flag} to make one")
        return
    if extends and any(_content(source) == _content(known) for known in old.sources):
        raise CacheError(f"{cache.path}: caption set {name!r} has the captions of {source.path} already")
    if not extends and not replaces:
        raise CacheError(
            f"{cache.path} has a caption set {name!r} of {old.num_captions:,} captions: pass --replace to write it "
            "anew, --add to add to it, or another --name"
        )


def _content(source: SourceInfo) -> dict[str, object]:
    return {key: value for key, value in source.to_plain().items() if key not in ("path", "image_root")}


def _listed(sets: Sequence[CaptionSetInfo]) -> str:
    return f"its sets are {', '.join(info.name for info in sets)}" if sets else "it has no sets"


def _keys(cache: Cache, on_keys: Callable[[int], None]) -> Iterator[RaggedBytes]:
    for start in range(0, len(cache), COPIED_ROWS):
        yield cache.arrays.read_ragged(KEY, start, start + COPIED_ROWS)
        on_keys(min(start + COPIED_ROWS, len(cache)))


def _copy(cache: Cache, old: CaptionSetInfo, writer: SetWriter, rows_before: int = 0) -> None:
    """Write the captions of a set to another, whose cache has so many rows before those of this one."""
    captions = CaptionSet(cache.arrays, old)
    images = captions.caption_image()
    for start in range(0, len(captions), COPIED_ROWS):
        stop = min(start + COPIED_ROWS, len(captions))
        tags = [old.languages[code] for code in captions.language_codes(start, stop).tolist()]
        writer.append(captions.read_texts(start, stop), rows_before + images[start:stop], tags)


def _no_captions(
    cache: Cache, source: SourceInfo, num_rows: int, num_unmatched: int, unmatched: Sequence[str], dropped: Counter[str]
) -> str:
    """Why a table gives a cache no caption, and what to do."""
    if num_unmatched < num_rows or not num_rows:
        reasons = ", ".join(f"{num:,} are left out ({reason})" for reason, num in dropped.items())
        return f"{source.path}: no captions for images of {cache.path}{f': {reasons}' if reasons else ''}"
    return (
        f"{source.path}: no record has the key of an image of {cache.path}: the keys here are such as "
        f"{', '.join(map(repr, unmatched))}, those of the cache {', '.join(map(repr, cache.keys(0, 3)))}: pass "
        "--image-field with the column that has them, or write them as the cache does"
    )
