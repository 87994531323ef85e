"""What the batches of a source hold, however they are cut, and the check that columns equal records."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from clipglot.cache.errors import CacheError
from clipglot.cache.sources.source import RowBatch, Source, batched


class Content(NamedTuple):
    """The content of batches.

    Attributes:
        rows: key, captions and their languages of each.
        locators: of all rows, or none.
        dropped: reason and row of each caption that was dropped.
        left_out: records that were left out, by flag.
        error: that ended it, and nothing else then.
    """

    rows: list[tuple[str, list[str], list[str]]]
    locators: list[list[int]]
    dropped: list[tuple[str, int]]
    left_out: dict[str, int]
    error: str


def content(source: Source, batches: Iterable[RowBatch]) -> Content:
    """Read batches of a source to their end or to the first error."""
    rows: list[tuple[str, list[str], list[str]]] = []
    locators: list[list[int]] = []
    dropped: list[tuple[str, int]] = []
    try:
        for batch in batches:
            assert len(batch)
            start = len(rows)
            rows += [(key.decode(), [], []) for key in batch.keys.split()]
            tags = batch.languages or [""] * len(batch.captions)
            for owner, caption, tag in zip(batch.image_index.tolist(), batch.captions.split(), tags, strict=True):
                rows[start + owner][1].append(caption.decode())
                rows[start + owner][2].append(tag)
            locators += [] if batch.locators is None else batch.locators.tolist()
            dropped += [(reason, start + row) for reason, places in batch.dropped.items() for row in places.tolist()]
    except CacheError as error:
        return Content([], [], [], {}, str(error))
    return Content(rows, locators, sorted(dropped), dict(source.left_out), "")


def columns_as_records(opened: Callable[[], Source]) -> Content:
    """What a source holds, read as columns and record by record, which has to be the same."""
    fast, careful = opened(), opened()
    as_columns, as_records = content(fast, fast.batches()), content(careful, batched(careful.rows()))
    assert as_columns == as_records
    assert [*as_columns.left_out] == [*as_records.left_out]  # in the order in which the user is told
    return as_columns
