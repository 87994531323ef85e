"""JSON arrays of records, read as a stream: one record is in memory, however long the array."""

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from ..errors import CacheError
from .jsonl import MAX_LINE_BYTES
from .text_files import UTF_8, encoding_remedy, open_utf8

PART_CHARACTERS = 2**20
_BEGINNING = re.compile(rb"\s*\[\s*(\{|\]\s*$)")
_BLANK = re.compile(r"[ \t\r\n]*+")


def is_json_array(path: Path, name: str) -> bool:
    """Whether a file in any encoding begins as an array of objects does, or is an empty array."""
    with open_utf8(path, name) as file:
        return _BEGINNING.match(file.read(2**16).lstrip(b"\xff\xfe\0").replace(b"\0", b"")) is not None


def array_records(path: Path, name: str, encoding: str = UTF_8) -> Iterator[tuple[int, dict[str, Any]]]:
    """Parse the records of an array; yields number, from 1, and record of each.

    Args:
        path: of the file.
        name: of the file, for messages.
        encoding: of the file.

    Raises:
        CacheError: a record is not a JSON object, or the file ends early.
    """
    with open_utf8(path, name, encoding) as content:
        file = io.TextIOWrapper(content, encoding=UTF_8)
        array, number = _OpenArray(file), 1
        try:
            array.require("[")
            following = array.next_character()
            while following != "]":
                record = array.value()
                if not isinstance(record, dict):
                    raise ValueError(f"expected a JSON object, found {type(record).__name__}")
                yield number, record
                number += 1
                following = array.require(",", "]")
        except UnicodeDecodeError as error:
            raise CacheError(f"{name}: record {number}: not UTF-8 text: {encoding_remedy(error.object)}") from None
        except (ValueError, RecursionError) as error:
            raise CacheError(f"{name}: record {number}: not readable as JSON ({error}): mend or drop it") from None
        finally:
            file.detach()  # `open_utf8` closes the file


class _OpenArray:
    """The text of an array from the next value on."""

    def __init__(self, file: TextIO) -> None:
        self._file, self._text, self._at = file, "", 0
        self._decoder = json.JSONDecoder()

    def next_character(self) -> str:
        """The next character that is not blank; "" at the end of the file."""
        while True:
            blank = _BLANK.match(self._text, self._at)
            self._at = blank.end() if blank else self._at
            if self._at < len(self._text) or not self._read_on():
                return self._text[self._at : self._at + 1]

    def require(self, *characters: str) -> str:
        """Take the next character, which must be one of these; returns it."""
        found = self.next_character()
        if found not in characters:
            raise ValueError(f"expected {' or '.join(characters)}, found {found or 'the end of the file'}")
        self._at += 1
        return found

    def value(self) -> Any:
        """Take the next value."""
        self.next_character()
        while True:
            try:
                value, self._at = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError:  # it may only be cut off
                if len(self._text) - self._at > MAX_LINE_BYTES:
                    raise ValueError(f"no value ends within {MAX_LINE_BYTES:,} characters") from None
                if not self._read_on():
                    raise
            else:
                return value

    def _read_on(self) -> bool:
        """Read as much again as is left, so that a value of any length is parsed a few times only."""
        rest = self._text[self._at :]
        part = self._file.read(max(PART_CHARACTERS, len(rest)))
        self._text, self._at = rest + part, 0
        return bool(part)
