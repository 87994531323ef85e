"""Interface of sources of images and captions: rows to plan from.

`docs/sources.md` shows a source of one's own; `kinds.py` says how to add one to clipglot. Its reader is in `reader.py`.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..format import SourceInfo
from ..location import Location
from ..storage.ragged_bytes import RaggedBytes
from .captions import align, encode_caption, keep_captions
from .reader import Locator, Reader

ROWS_AT_A_TIME = 8192
BATCH_CHARACTERS = 2**26  # of the texts of rows that are made columns at once


class Source(ABC):
    """Images and captions in one of the shapes that people have them in.

    Attributes:
        kind: its name, kept in the cache.
        begins_at_once: whether the first row comes before the whole source is read.
        image_field: where a record names the image, unless the user says otherwise.
        text_fields: where it has captions, unless the user says otherwise.
        info: what was asked for, complete but for kind and sha256.
        left_out: records that were left out, by the flag that did so, and files that were passed over, by kind.
        notes: of how the source was read, for the user; complete once rows are read.
    """

    kind: ClassVar[str]
    begins_at_once: ClassVar[bool] = True
    image_field: ClassVar[str] = "image"
    text_fields: ClassVar[tuple[str, ...]] = ("text",)

    def __init__(self, info: SourceInfo) -> None:
        self.info = info
        self.left_out: Counter[str] = Counter()
        self.notes: list[str] = []

    @abstractmethod
    def rows(self) -> Iterator["SourceRow"]:
        """Every record, in an order that is always the same. No image is decoded.

        Raises:
            CacheError: a record is not as promised; the message names file, record and remedy.
        """

    @abstractmethod
    def sha256(self) -> str:
        """Hex digest by which a changed source is recognised when a pass is resumed."""

    def batches(self) -> Iterator["RowBatch"]:
        """The same records as columns. A source that can read columns faster overrides this."""
        return batched(self.rows())

    def files(self) -> list[str]:
        """The larger files that locators number: their names below the image root. Complete once rows are read."""
        return []

    @classmethod
    def reader(cls, root: Location, files: Sequence[str], info: SourceInfo) -> Reader:
        """The reader of images that have a locator.

        Args:
            root: the image root.
            files: as `files` gave them when the cache was planned.
            info: as the cache keeps it.
        """
        raise NotImplementedError(f"{cls.__name__} gives locators, so it needs a reader")


class SourceRow(NamedTuple):
    """A record of a source: an image and its captions.

    Attributes:
        line: number of the record, from 1, for messages.
        key: the image's name, unique in a cache; without locator its path below the image root.
        captions: in order.
        translations: of the captions, into a language that a text teacher reads, see `align`.
        languages: the tag of each caption; empty where the source has none.
        locator: the image's place, if it lies inside a larger file.
    """

    line: int
    key: str
    captions: Sequence[str]
    translations: Sequence[str] = ()
    languages: Sequence[str] = ()
    locator: Locator | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RowBatch:
    """n rows as columns, with the m captions that are kept.

    Attributes:
        keys: `[n]`, of the images.
        captions: `[m]`.
        image_index: `[m]`, the row in this batch of each caption, ascending.
        translations: `[m]`, as `align` gives them; None where the rows have none.
        languages: `[m]`, the tag of each caption; None where the rows have none.
        locators: `[n, 3]`, see `Locator`; None where keys are paths.
        dropped: by reason, the row in this batch of each caption that was dropped, see `keep_captions`.
    """

    keys: RaggedBytes
    captions: RaggedBytes
    image_index: NDArray[np.int64]
    translations: RaggedBytes | None = None
    languages: Sequence[str] | None = None
    locators: NDArray[np.int64] | None = None
    dropped: Mapping[str, NDArray[np.int64]]

    @classmethod
    def of(
        cls,
        keys: RaggedBytes,
        captions: RaggedBytes,
        image_index: NDArray[np.int64],
        *,
        translations: RaggedBytes | None = None,
        languages: Sequence[str] | None = None,
        locators: NDArray[np.int64] | None = None,
    ) -> "RowBatch":
        """Make a batch of columns that still have every caption: those that are not kept are dropped here.

        Args:
            keys: `[n]`, of the images.
            captions: all of them, as `encode_caption` gives them.
            image_index: of all captions, as are translations and languages.
            translations: see `RowBatch`.
            languages: see `RowBatch`.
            locators: see `RowBatch`.
        """
        kept, dropped = keep_captions(captions)
        batch = cls(
            keys=keys,
            captions=captions,
            image_index=image_index,
            translations=translations,
            languages=languages,
            locators=locators,
            dropped={reason: image_index[indices] for reason, indices in dropped.items()},
        )
        return batch._with_captions(kept) if dropped else batch

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, mask: NDArray[np.bool_]) -> "RowBatch":
        """The batch of some of its rows, `mask [n] bool`, with their captions."""
        new_row = np.cumsum(mask) - 1
        batch = self._with_captions(np.flatnonzero(mask[self.image_index]))
        return replace(
            batch,
            keys=self.keys.take(np.flatnonzero(mask)),
            image_index=new_row[batch.image_index],
            locators=self.locators[mask] if self.locators is not None else None,
            dropped={reason: new_row[rows[mask[rows]]] for reason, rows in self.dropped.items()},
        )

    def _with_captions(self, kept: NDArray[np.int64]) -> "RowBatch":
        return replace(
            self,
            captions=self.captions.take(kept),
            image_index=self.image_index[kept],
            translations=self.translations.take(kept) if self.translations is not None else None,
            languages=[self.languages[i] for i in kept.tolist()] if self.languages is not None else None,
        )


def batched(rows: Iterable[SourceRow], rows_at_a_time: int = ROWS_AT_A_TIME) -> Iterator[RowBatch]:
    """Rows as columns, so many at a time, or fewer if their texts are long."""
    some: list[SourceRow] = []
    num_characters = 0
    for row in rows:
        some.append(row)
        num_characters += sum(map(len, row.captions))
        if len(some) == rows_at_a_time or num_characters > BATCH_CHARACTERS:
            yield _columns(some)
            some, num_characters = [], 0
    if some:
        yield _columns(some)


def _columns(rows: Sequence[SourceRow]) -> RowBatch:
    captions: list[bytes] = []
    image_index: list[int] = []
    translations: list[str] = []
    languages: list[str] = []
    for i, row in enumerate(rows):
        captions += map(encode_caption, row.captions)
        image_index += [i] * len(row.captions)
        translations += align(row.captions, row.translations) if row.translations else [""] * len(row.captions)
        languages += row.languages or [""] * len(row.captions)
    locators = [row.locator for row in rows if row.locator is not None]
    assert len(locators) in (0, len(rows)), "either every row of a source has a locator, or none"
    assert len(languages) == len(captions), "either every caption of a row has a language, or none"
    has_translations = any(row.translations for row in rows)
    return RowBatch.of(
        RaggedBytes.of([row.key.encode() for row in rows]),
        RaggedBytes.of(captions),
        np.asarray(image_index, np.int64),
        translations=RaggedBytes.of([t.encode(errors="replace") for t in translations]) if has_translations else None,
        languages=languages if any(row.languages for row in rows) else None,
        locators=np.asarray(locators, np.int64) if locators else None,
    )
