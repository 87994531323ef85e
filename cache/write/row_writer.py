"""Writer of planned rows: stores batches as they come, then merges the lines of an image into one row.

L lines, N images, M captions. It holds 16 bytes per line in memory, and while it sorts a few numbers per line and
caption, never all texts.
"""

from collections import Counter

import numpy as np
import zarr
from numpy.typing import NDArray

from ..format import CAPTION_IMAGE, KEY, LANGUAGE, LOCATOR, PLANNED_ARRAYS, TEACHER_TEXT, TEXT
from ..sources.source import RowBatch
from ..storage.digests import Digests, digests_of, first_lines
from ..storage.encoding import open_array
from ..storage.ragged import RaggedReader, RaggedWriter, StreamedArray
from ..storage.ragged_bytes import RaggedBytes


class RowWriter:
    """Writes the planned arrays of a cache below a group."""

    def __init__(self, root: zarr.Group, *, has_text_targets: bool, limit: int | None = None) -> None:
        """Create the arrays.

        Args:
            root: the group.
            has_text_targets: whether captions have translations to embed.
            limit: maximum number of images; lines of further images are left out.
        """
        self._root, self._limit = root, limit
        self._keys, self._texts = RaggedWriter(root, KEY), RaggedWriter(root, TEXT)
        self._translations = RaggedWriter(root, TEACHER_TEXT) if has_text_targets else None
        self._owners = StreamedArray(root, CAPTION_IMAGE, "int64")
        self._languages: StreamedArray | None = None
        self._locators: StreamedArray | None = None
        self._digests: list[Digests] = []
        self._within: set[bytes] = set()  # digests of the images so far, if there is a limit
        self._num_lines = 0
        self._num_captions = 0
        self.codes: dict[str, int] = {}  # of language tags, in the order of first use
        self.dropped: Counter[str] = Counter()

    def append(self, batch: RowBatch) -> bool:
        """Add lines.

        Returns:
            False if the limit was reached before, and no line has a caption for an image within it.
        """
        digests = digests_of(batch.keys)
        if self._limit is not None:
            full = len(self._within) >= self._limit
            is_within = self._is_within(digests)
            batch, digests = batch.take(is_within), digests[is_within]
            if full and not len(batch.captions):
                return False
        self._keys.append(batch.keys)
        self._digests.append(digests)
        self._texts.append(batch.captions)
        if self._translations:
            self._translations.append(batch.translations or RaggedBytes.of([b""] * len(batch.captions)))
        self._owners.append(self._num_lines + batch.image_index)
        self._append_languages(batch)
        self._append_locators(batch)
        self._num_lines += len(batch)
        self._num_captions += len(batch.captions)
        self.dropped += Counter({reason: len(rows) for reason, rows in batch.dropped.items()})
        return True

    @property
    def names(self) -> list[str]:
        """Names of the written arrays; some exist only if a batch had their values."""
        optional = [(LANGUAGE, self._languages), (LOCATOR, self._locators)]
        translations = [f"{TEACHER_TEXT}/bytes", f"{TEACHER_TEXT}/offsets"] if self._translations else []
        return [*PLANNED_ARRAYS, *translations, *(name for name, writer in optional if writer)]

    def close(self) -> tuple[int, int]:
        """Complete the arrays and merge the lines of each image; returns N and M."""
        writers = (self._keys, self._texts, self._translations, self._owners, self._languages, self._locators)
        for writer in writers:
            if writer:
                writer.close()
        digests = np.concatenate(self._digests) if self._digests else np.zeros((0, 2), np.uint64)
        self._digests = []
        first = first_lines(digests)
        del digests
        is_first = first == np.arange(len(first))
        num = int(np.count_nonzero(is_first))
        if num < len(first):
            rows = (np.cumsum(is_first) - 1)[first]
            del first
            self._merge_lines(is_first, rows)
        return num, self._num_captions

    def _is_within(self, digests: Digests) -> NDArray[np.bool_]:
        assert self._limit is not None
        is_within = np.zeros(len(digests), bool)
        for i, digest in enumerate(map(bytes, digests)):
            if digest not in self._within and len(self._within) < self._limit:
                self._within.add(digest)
            is_within[i] = digest in self._within
        return is_within

    def _append_languages(self, batch: RowBatch) -> None:
        if batch.languages is not None and self._languages is None:
            self.codes.setdefault("", 0)
            self._languages = StreamedArray(self._root, LANGUAGE, "uint16")
            self._languages.append(np.zeros(self._num_captions, np.uint16))
        if self._languages:
            tags = [""] * len(batch.captions) if batch.languages is None else batch.languages
            codes = [self.codes.setdefault(tag, len(self.codes)) for tag in tags]
            self._languages.append(np.array(codes, np.uint16))

    def _append_locators(self, batch: RowBatch) -> None:
        if batch.locators is not None and self._locators is None:
            self._locators = StreamedArray(self._root, LOCATOR, "int64", width=3)
            self._locators.append(np.full((self._num_lines, 3), -1))
        if self._locators:
            self._locators.append(np.full((len(batch), 3), -1) if batch.locators is None else batch.locators)

    def _merge_lines(self, is_first: NDArray[np.bool_], rows: NDArray[np.int64]) -> None:
        """Merge the lines of an image into one row with all its captions, at the position of the first line.

        Args:
            is_first: `[L]`, whether a line is the first of its image.
            rows: `[L]`, the row of each line's image.
        """
        lines = np.flatnonzero(is_first)
        reorder_texts(self._root, KEY, lines)
        if self._locators:
            reorder(self._root, LOCATOR, lines)
        image_index = rows[np.asarray(open_array(self._root, CAPTION_IMAGE)[:])]
        order = np.argsort(image_index, kind="stable")
        rewrite(self._root, CAPTION_IMAGE, image_index[order])
        if (np.diff(order) < 0).any():
            for name in (TEXT, TEACHER_TEXT) if self._translations else (TEXT,):
                reorder_texts(self._root, name, order)
            if self._languages:
                reorder(self._root, LANGUAGE, order)


def reorder_texts(root: zarr.Group, name: str, order: NDArray[np.int64]) -> None:
    """Rewrite texts in another order; only one piece and one block are in memory at a time."""
    moved = f"{name}-moved"
    writer = RaggedWriter(root, moved)
    for piece in RaggedReader(root, name).gathered(order):
        writer.append(piece)
    writer.close()
    del root[name]
    writer, reader = RaggedWriter(root, name), RaggedReader(root, moved)  # object stores cannot rename
    for piece in reader.blocks():
        writer.append(piece)
    writer.close()
    del root[moved]


def reorder(root: zarr.Group, name: str, order: NDArray[np.int64]) -> None:
    """Rewrite an array in another order of its rows."""
    rewrite(root, name, np.asarray(open_array(root, name)[:])[order])


def rewrite(root: zarr.Group, name: str, values: NDArray[np.generic]) -> None:
    """Replace an array by one of these values."""
    del root[name]
    width = values.shape[1] if values.ndim > 1 else None
    writer = StreamedArray(root, name, str(values.dtype), width=width)
    writer.append(values)
    writer.close()
