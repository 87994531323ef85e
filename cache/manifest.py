"""Manifests: jsonl, CSV and TSV tables of pictures and captions, read as a stream of rows.

Nothing here opens a picture. A row that is not as promised is an error that names the file, the line and the remedy:
a manifest is read before any work is spent, so that stopping early is the cheapest moment to learn of it.
"""

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from .errors import CacheError

SUFFIXES = (".jsonl", ".ndjson", ".csv", ".tsv")


@dataclass(frozen=True, slots=True)
class ManifestRow:
    """One line: the picture's key (its path as the manifest has it), its captions and their translations, in order."""

    line: int
    key: str
    captions: list[str]
    translations: list[str] = field(default_factory=list)


def read_manifest(
    path: Path, *, image_field: str | None, text_fields: Sequence[str], teacher_fields: Sequence[str] = ()
) -> Iterator[ManifestRow]:
    """Read a manifest row by row.

    Args:
        path: a `.jsonl`, `.ndjson`, `.csv` or `.tsv` file; tables carry a header line.
        image_field: the column of the picture's path; None for a manifest without pictures, whose keys are empty.
        text_fields: the columns of captions; in jsonl each may hold a string, a list of strings or null.
        teacher_fields: the columns of their translations, likewise.

    Raises:
        CacheError: the file or a row is not readable as such.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise CacheError(f"{path}: unknown kind of manifest {suffix!r}; known are {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise CacheError(f"{path}: no such file")
    records = _json_lines(path) if suffix in (".jsonl", ".ndjson") else _table(path, "," if suffix == ".csv" else "\t")
    for line, record in records:
        where = f"{path}:{line}"
        for name in (*([image_field] if image_field else []), *text_fields, *teacher_fields):
            if name not in record:
                option = "--image-field" if name == image_field else "--text-field"
                option = "--teacher-field" if name in teacher_fields else option
                raise CacheError(
                    f"{where}: no field {name!r} (found: {', '.join(map(str, record))}): pass {option} NAME"
                )
        key = record[image_field] if image_field else ""
        if not isinstance(key, str) or (image_field and not key):
            raise CacheError(f"{where}: {image_field!r} must be the path of a picture, found {key!r}")
        if not _is_unicode(key):
            raise CacheError(f"{where}: {image_field!r} holds half of a surrogate pair: {key!r}")
        captions, translations = (
            [text for name in names for text in _captions(record[name], name, where)]
            for names in (text_fields, teacher_fields)
        )
        yield ManifestRow(line, key, captions, translations)


def _captions(value: Any, field: str, where: str) -> list[str]:
    if value is None:
        return []
    captions = [value] if isinstance(value, str) else value
    if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
        raise CacheError(f"{where}: {field!r} must be a string or a list of strings, found {value!r:.100}")
    return captions


def _json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if not line.strip():
                continue
            try:
                record = json.loads(line.decode())  # given bytes, json would guess at UTF-16 and UTF-32
            except (ValueError, RecursionError) as error:
                raise CacheError(f"{path}:{number}: not a line of JSON in UTF-8 ({error}): mend or drop it") from None
            if not isinstance(record, dict):
                raise CacheError(f"{path}:{number}: expected a JSON object, found {type(record).__name__}")
            yield number, record


def _table(path: Path, delimiter: str) -> Iterator[tuple[int, dict[str, Any]]]:
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
                raise CacheError(f"{path}: empty: expected a header line with the names of the columns")
            if not _is_unicode("".join(header)):
                raise CacheError(f"{path}:1: not UTF-8 text: save the file as UTF-8")
            repeated = sorted({name for name in header if name and header.count(name) > 1})
            if repeated:
                raise CacheError(f"{path}:1: several columns are called {', '.join(repeated)}: rename them")
            line = reader.line_num + 1
            for fields in reader:
                if not _is_unicode("".join(fields)):
                    raise CacheError(f"{path}:{line}: not UTF-8 text: save the file as UTF-8, or mend the row")
                if fields and len(fields) != len(header):
                    raise CacheError(
                        f"{path}:{line}: {len(fields)} columns where the header has {len(header)}: "
                        "quote fields that hold the delimiter"
                    )
                if fields:
                    yield line, dict(zip(header, fields, strict=True))
                line = reader.line_num + 1
        except csv.Error as error:
            raise CacheError(f"{path}:{line}: not a row of a table ({error}): mend or drop it") from None


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
