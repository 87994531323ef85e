"""Manifests: jsonl, CSV and TSV tables of pictures and captions, read as a stream of rows.

Nothing here opens a picture. A row that is not as promised is an error that names the file, the line and the remedy:
a manifest is read before any work is spent, so that stopping early is the cheapest moment to learn of it.
"""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from .errors import CacheError
from .files import sha256_file
from .records import RecordReader, is_unicode
from .rows import Row
from .source import Source
from .spool import local_file

SUFFIXES = (".jsonl", ".ndjson", ".csv", ".tsv")


class Table(Source):
    """A `.jsonl`, `.ndjson`, `.csv` or `.tsv` file with a record a line; tables of columns carry a header line.

    In jsonl a field of captions may hold a string, a list of strings or null.
    """

    kind = "table"

    def rows(self) -> Iterator[Row]:
        """Every record.

        Raises:
            CacheError: the file or a record is not readable as such.
        """
        name = self.info.path
        suffix = Path(name).suffix.lower()
        if suffix not in SUFFIXES:
            raise CacheError(f"{name}: unknown kind of manifest {suffix!r}; known are {', '.join(SUFFIXES)}")
        path = local_file(name)
        if not path.is_file():
            raise CacheError(f"{name}: no such file")
        lines = suffix in (".jsonl", ".ndjson")
        records = _json_lines(path, name) if lines else _table(path, name, "," if suffix == ".csv" else "\t")
        reader = RecordReader(self.info)
        for line, record in records:
            yield reader.row(record, line, f"{name}:{line}")

    def sha256(self) -> str:
        """Of the file's bytes."""
        return sha256_file(local_file(self.info.path))


def _json_lines(path: Path, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if not line.strip():
                continue
            try:
                record = json.loads(line.decode())  # given bytes, json would guess at UTF-16 and UTF-32
            except (ValueError, RecursionError) as error:
                raise CacheError(f"{name}:{number}: not a line of JSON in UTF-8 ({error}): mend or drop it") from None
            if not isinstance(record, dict):
                raise CacheError(f"{name}:{number}: expected a JSON object, found {type(record).__name__}")
            yield number, record


def _table(path: Path, name: str, delimiter: str) -> Iterator[tuple[int, dict[str, Any]]]:
    csv.field_size_limit(2**24)
    # TSV in the wild does not quote: a lone quotation mark in a caption must not swallow the next lines.
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if delimiter == "," else csv.QUOTE_NONE
    # Strict: a quotation mark that is never closed is an error, not a caption of the size of the file.
    # Bytes that are no UTF-8 pass as surrogates, because a decoder that reads ahead could not name their line.
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, quoting=quoting, strict=True)
        line = 1
        try:
            header = next(reader, None)
            if header is None:
                raise CacheError(f"{name}: empty: expected a header line with the names of the columns")
            if not is_unicode("".join(header)):
                raise CacheError(f"{name}:1: not UTF-8 text: save the file as UTF-8")
            repeated = sorted({column for column in header if column and header.count(column) > 1})
            if repeated:
                raise CacheError(f"{name}:1: several columns are called {', '.join(repeated)}: rename them")
            line = reader.line_num + 1
            for fields in reader:
                if not is_unicode("".join(fields)):
                    raise CacheError(f"{name}:{line}: not UTF-8 text: save the file as UTF-8, or mend the row")
                if fields and len(fields) != len(header):
                    raise CacheError(
                        f"{name}:{line}: {len(fields)} columns where the header has {len(header)}: "
                        "quote fields that hold the delimiter"
                    )
                if fields:
                    yield line, dict(zip(header, fields, strict=True))
                line = reader.line_num + 1
        except csv.Error as error:
            raise CacheError(f"{name}:{line}: not a row of a table ({error}): mend or drop it") from None
