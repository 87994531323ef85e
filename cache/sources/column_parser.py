"""Parsing of columns of Arrow: what `RecordParser` takes out of records one by one, for many at once.

`RecordParser` is the definition, and has the wording of errors. Whatever is odd is left to it.
"""

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..format import SourceInfo, is_language_tag
from ..storage.ragged_bytes import RaggedBytes
from .records import SPLIT, is_unicode
from .source import RowBatch
from .where import WhereFilter
from .where_columns import fulfilled

Rows = NDArray[np.int64]


class Columns(NamedTuple):
    """Columns of n records.

    Attributes:
        num: n.
        column: gives a field by its name: of the records at some places, ascending, or of all. Its texts are UTF-8.
        keys: likewise gives the names of images; None where a field has them.
        locators: likewise gives the places of images, `[m, 3]`; None where keys are paths.
    """

    num: int
    column: Callable[[str, Rows | None], pa.Array]
    keys: Callable[[Rows | None], RaggedBytes] | None = None
    locators: Callable[[Rows | None], NDArray[np.int64]] | None = None


class ColumnParser:
    """Makes rows of columns, and leaves out those of another split or that do not fulfil `--where`."""

    def __init__(self, info: SourceInfo, left_out: Counter[str]) -> None:
        """Remember what was asked for.

        Args:
            info: the fields.
            left_out: the source's count of records that are left out, by the flag that did so.

        Raises:
            CacheError: `--where` cannot be parsed.
        """
        self._info, self._left_out = info, left_out
        self._condition = WhereFilter(info.where) if info.where is not None else None

    @property
    def is_possible(self) -> bool:
        """Whether the fields that are asked for can be taken from columns."""
        return self._info.images and not self._info.teacher_fields

    @property
    def conditions(self) -> list[str]:
        """The fields that decide whether a record is left out."""
        where = self._condition.fields if self._condition else []
        return list(dict.fromkeys([*([SPLIT] if self._info.split is not None else []), *where]))

    @property
    def is_conditional(self) -> bool:
        """Whether records may be left out: a condition can do without a field, as `'lang' == 'zh'` does by mistake."""
        return self._info.split is not None or self._condition is not None

    def batch(self, columns: Columns) -> RowBatch | None:
        """The rows of columns, of which there may be none; None if records have to be looked at one by one."""
        info = self._info
        kept = self._kept(columns)
        if kept is None:
            return None
        rows, left_out = kept
        if columns.keys is not None:
            keys = columns.keys(rows)
        else:
            names = columns.column(info.image_field, rows)
            if not is_text(names.type) or names.null_count:
                return None
            keys = _texts(names)
            if not np.diff(keys.offsets).all():
                return None
        captions = []
        for name in info.text_fields:
            texts = columns.column(name, rows)
            if not is_text(texts.type) and not (is_list(texts.type) and is_text(texts.type.value_type)):
                return None
            captions.append(_captions(texts))
        tags: list[str] | None = None
        if info.language_field and (tags := _tags(columns.column(info.language_field, rows))) is None:
            return None
        self._left_out.update(left_out)
        return _batch(keys, captions, info.languages, tags, columns.locators(rows) if columns.locators else None)

    def _kept(self, columns: Columns) -> tuple[Rows | None, dict[str, int]] | None:
        """The rows that are kept, and the numbers of others by flag; None if that is decided record by record."""
        if not self.is_conditional:
            return None, {}
        kept, left_out = np.ones(columns.num, bool), dict[str, NDArray[np.bool_]]()
        if self._info.split is not None:
            splits = columns.column(SPLIT, None)
            if not is_text(splits.type) or not is_unicode(self._info.split):
                return None
            kept = pc.equal(splits, self._info.split).fill_null(False).to_numpy(zero_copy_only=False)
            left_out["--split"] = ~kept
        if self._condition:
            fields = {name: columns.column(name, None) for name in self._condition.fields}
            fulfils = fulfilled(self._condition, fields, kept)
            if fulfils is None:
                return None
            left_out["--where"] = kept & ~fulfils
            kept = fulfils
        flags = [flag for flag, rows in left_out.items() if rows.any()]
        flags.sort(key=lambda flag: int(left_out[flag].argmax()))  # in the order in which records would be counted
        return np.flatnonzero(kept), {flag: int(np.count_nonzero(left_out[flag])) for flag in flags}


def is_text(column_type: pa.DataType) -> bool:
    """Whether a column has texts."""
    return bool(pa.types.is_string(column_type) or pa.types.is_large_string(column_type))


def is_list(column_type: pa.DataType) -> bool:
    """Whether a column has lists."""
    return bool(pa.types.is_list(column_type) or pa.types.is_large_list(column_type))


def taken(column: pa.Array, rows: Rows | None) -> pa.Array:
    """The values at some places, or all."""
    return column if rows is None else column.take(pa.array(rows))


def _texts(strings: pa.Array) -> RaggedBytes:
    """The texts of an array, without a copy; null is an empty text."""
    _, offsets, data = strings.buffers()
    dtype = np.int32 if pa.types.is_string(strings.type) else np.int64
    if not len(strings):
        return RaggedBytes.of([])
    ends = np.frombuffer(offsets, dtype)[strings.offset : strings.offset + len(strings) + 1].astype(np.int64)
    raw = np.frombuffer(data, np.uint8)[ends[0] : ends[-1]] if data and data.size else np.zeros(0, np.uint8)
    return RaggedBytes(raw, ends - ends[0])


def _captions(column: pa.Array) -> tuple[RaggedBytes, Rows]:
    """The captions of a field, without nulls, and the row of each."""
    rows, values = np.arange(len(column)), column
    if is_list(column.type):
        values = column.flatten()
        sizes = np.nan_to_num(column.value_lengths().to_numpy(zero_copy_only=False)).astype(np.int64)
        rows = np.repeat(rows, sizes)
    texts = _texts(values)
    if not values.null_count:
        return texts, rows
    valid = np.flatnonzero(values.is_valid().to_numpy(zero_copy_only=False))
    return texts.take(valid), rows[valid]


def _tags(column: pa.Array) -> list[str] | None:
    """The language tag of each row, "" where it is unknown; None if one is odd."""
    if not is_text(column.type):
        return None
    coded = column.fill_null("").dictionary_encode()
    known = coded.dictionary.to_pylist()
    if not all(not tag or is_language_tag(tag) for tag in known):
        return None
    return [known[code] for code in coded.indices.to_pylist()]


def _batch(
    keys: RaggedBytes,
    columns: list[tuple[RaggedBytes, Rows]],
    languages: list[str],
    tags: list[str] | None,
    locators: NDArray[np.int64] | None,
) -> RowBatch:
    """The captions of all fields in the order of their rows.

    Args:
        keys: of the images.
        columns: captions of each field, and the row of each.
        languages: tags, one for all captions or one for each field, or none.
        tags: of the rows, if each has its own.
        locators: of the images.
    """
    captions, image_index = columns[0]
    fields = np.zeros(len(image_index), np.int64)
    if len(columns) > 1:
        captions = RaggedBytes.joined([texts for texts, _ in columns])
        image_index = np.concatenate([rows for _, rows in columns])
        fields = np.repeat(np.arange(len(columns)), [len(rows) for _, rows in columns])
        order = np.argsort(image_index, kind="stable")
        captions, image_index, fields = captions.take(order), image_index[order], fields[order]
    of_captions: list[str] | None = None
    if tags is not None:
        of_captions = [tags[row] for row in image_index.tolist()]
    elif languages:
        of_fields = languages * (len(columns) if len(languages) == 1 else 1)
        of_captions = [of_fields[field] for field in fields.tolist()]
    return RowBatch.of(keys, captions, image_index, languages=of_captions or None, locators=locators)
