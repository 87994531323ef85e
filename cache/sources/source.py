"""What every source of images and captions promises: rows to plan from, and a reader of the images' bytes.

A source of one's own is one class; `docs/sources.md` shows one. B images of a block.
"""

from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..format import SourceInfo, Status
from ..location import Location
from ..storage.ragged import RaggedBytes


class RejectedImageError(Exception):
    """An image that costs its row: carries the status to record."""

    def __init__(self, status: Status) -> None:
        super().__init__(status.label)
        self.status = status


ROWS_AT_A_TIME = 8192
MAX_CAPTION_BYTES = 65_536  # longer ones are pages or broken quotes; a text tower reads some hundred bytes
SEPARATOR = "\n"  # between several texts of a teacher for one caption, none of which holds it


class Locator(NamedTuple):
    """Where in a larger file an image lies: which of the source's files, and two numbers that its reader knows."""

    file: int
    start: int
    size: int


class SourceRow(NamedTuple):
    """One record: an image and its captions.

    Attributes:
        line: number of the record, from 1, for messages.
        key: the image's name, unique in a cache; without locator its path below the image root.
        captions: in order.
        translations: into a language that a teacher reads, see `align`.
        languages: the tag of each caption; empty where the source tells none.
        locator: where the image lies, if inside a larger file.
    """

    line: int
    key: str
    captions: Sequence[str]
    translations: Sequence[str] = ()
    languages: Sequence[str] = ()
    locator: Locator | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RowBatch:
    """Rows as columns.

    Attributes:
        keys: of n images.
        captions: the m that are worth keeping.
        image_index: `[m]`, the row in this batch of each caption, ascending.
        translations: of each caption, as `align` gives them; None where the rows have none.
        languages: the tag of each caption; None where the rows have none.
        locators: `[n, 3]`, see `Locator`; None where keys are paths.
        dropped: by reason, of each caption that was not worth it the row in this batch.
    """

    keys: RaggedBytes
    captions: RaggedBytes
    image_index: NDArray[np.int64]
    translations: RaggedBytes | None = None
    languages: Sequence[str] | None = None
    locators: NDArray[np.int64] | None = None
    dropped: Mapping[str, NDArray[np.int64]]

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, wanted: NDArray[np.bool_]) -> "RowBatch":
        """The batch without some of its rows, `[n] bool`."""
        kept, new_row = np.flatnonzero(wanted[self.image_index]), np.cumsum(wanted) - 1
        return RowBatch(
            keys=self.keys.take(np.flatnonzero(wanted)),
            captions=self.captions.take(kept),
            image_index=new_row[self.image_index[kept]],
            translations=self.translations.take(kept) if self.translations is not None else None,
            languages=[self.languages[i] for i in kept.tolist()] if self.languages is not None else None,
            locators=self.locators[wanted] if self.locators is not None else None,
            dropped={reason: new_row[rows[wanted[rows]]] for reason, rows in self.dropped.items()},
        )


def batched(rows: Iterable[SourceRow], rows_at_a_time: int = ROWS_AT_A_TIME) -> Iterator[RowBatch]:
    """Rows as columns, so many at a time."""
    iterator = iter(rows)
    while some := list(islice(iterator, rows_at_a_time)):
        yield _columns(some)


def _columns(rows: Sequence[SourceRow]) -> RowBatch:
    captions, image_index, translations, languages = [], [], [], []
    dropped = defaultdict[str, list[int]](list)
    for i, row in enumerate(rows):
        lessons = align(row.captions, row.translations) if row.translations else [""] * len(row.captions)
        tags = row.languages or [""] * len(row.captions)
        for caption, lesson, tag in zip(row.captions, lessons, tags, strict=True):
            text, reason = _encoded(caption)
            if reason:
                dropped[reason].append(i)
            else:
                captions.append(text)
                image_index.append(i)
                translations.append(lesson.encode(errors="replace"))
                languages.append(tag)
    located = [row.locator for row in rows if row.locator is not None]
    assert len(located) in (0, len(rows)), "either every row of a source has a locator, or none"
    return RowBatch(
        keys=RaggedBytes.of([row.key.encode() for row in rows]),
        captions=RaggedBytes.of(captions),
        image_index=np.asarray(image_index, np.int64),
        translations=RaggedBytes.of(translations) if any(row.translations for row in rows) else None,
        languages=languages if any(row.languages for row in rows) else None,
        locators=np.asarray(located, np.int64) if located else None,
        dropped={reason: np.asarray(places, np.int64) for reason, places in dropped.items()},
    )


def _encoded(caption: str) -> tuple[bytes, str]:
    """A caption as UTF-8, and the reason to drop it, empty where there is none."""
    if not caption.strip():
        return b"", "empty"
    if "\0" in caption:
        return b"", "holds NUL"
    try:
        text = caption.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, from JSON's \\ud83d
        return b"", "not unicode"
    return text, "too long" if len(text) > MAX_CAPTION_BYTES else ""


def align(captions: Sequence[str], translations: Sequence[str]) -> list[str]:
    """The teacher's text for each caption of a row; empty where there is none.

    Lists of the same length belong together one by one. Otherwise nobody can say which belongs to which, and every
    caption gets all: its target is the direction of their mean.

    >>> align(["кот", "рыжий кот"], ["a cat", "a ginger cat"])
    ['a cat', 'a ginger cat']
    >>> align(["кот", "рыжий кот"], ["a cat"])
    ['a cat', 'a cat']
    """
    lines = [" ".join(text.split()) for text in translations]
    if len(lines) == len(captions):
        return lines
    return [SEPARATOR.join(filter(None, lines))] * len(captions)


class Reader(ABC):
    """Gives a decoding process the encoded images. It is pickled once to each process and opens files there."""

    @abstractmethod
    def read(self, keys: Sequence[str], locators: NDArray[np.int64] | None) -> Iterator[bytes | Status]:
        """The bytes of each image of a block, or why there are none, one at a time.

        Args:
            keys: of B images.
            locators: `[B, 3]`, see `Locator`; None where keys are paths.
        """


class Source(ABC):
    """Images and captions in one of the shapes that people have them in.

    Attributes:
        kind: its name, kept in the cache.
        image_field: where a record names the image, unless the user says otherwise.
        text_fields: where it has captions, unless the user says otherwise.
        info: what was asked for, complete but for kind and sha256.
        left_out: records that were read and left out, by the flag that did so.
    """

    kind: ClassVar[str]
    image_field: ClassVar[str] = "image"
    text_fields: ClassVar[tuple[str, ...]] = ("text",)

    def __init__(self, info: SourceInfo) -> None:
        self.info = info
        self.left_out: Counter[str] = Counter()

    @abstractmethod
    def rows(self) -> Iterator[SourceRow]:
        """Every record, in an order that is always the same. No image is decoded.

        Raises:
            CacheError: a record is not as promised; the message names file, record and remedy.
        """

    @abstractmethod
    def sha256(self) -> str:
        """Hex digest by which a changed source is recognised when a pass is resumed."""

    def batches(self) -> Iterator[RowBatch]:
        """The same records as columns; a source that can read faster so has a `batches` of its own."""
        return batched(self.rows())

    def files(self) -> list[str]:
        """What locators count: paths of the larger files below the image root. Complete once the rows are read."""
        return []

    @classmethod
    def reader(cls, root: Location, files: Sequence[str], info: SourceInfo) -> Reader:
        """What reads the images of rows that have a locator.

        Args:
            root: the image root.
            files: as `files` gave them when the cache was planned.
            info: as the cache keeps it.
        """
        raise NotImplementedError(f"{cls.__name__} gives locators, so it needs a reader")
