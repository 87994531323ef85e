"""JSON lines, read as blocks of whole lines, and as records where a block cannot be read as columns."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import CacheError
from .text_files import UTF_8, encoding_remedy, open_utf8

BLOCK_BYTES = 2**22
MAX_LINE_BYTES = 2**24  # longer lines are whole files without line breaks; a record takes some hundred bytes


class Block(NamedTuple):
    """Whole lines of a file.

    Attributes:
        line: number of the first, from 1.
        data: their bytes.
    """

    line: int
    data: bytes


def blocks(path: Path, name: Path | str, encoding: str = UTF_8) -> Iterator[Block]:
    """Read a file as blocks of whole lines, see `open_utf8`.

    A line that is too long is cut just above the limit; `records` of its block raises.
    """
    line = 1
    with open_utf8(path, str(name), encoding) as file:
        while data := file.read(BLOCK_BYTES):
            if not data.endswith(b"\n"):
                data += file.readline(MAX_LINE_BYTES + 1)
            yield Block(line, data)
            line += data.count(b"\n")


def records(name: Path | str, block: Block) -> Iterator[tuple[int, dict[str, Any]]]:
    """Parse the lines that are not blank; yields number and record of each.

    Args:
        name: of the file, for messages.
        block: of its lines.

    Raises:
        CacheError: a line is not a JSON object.
    """
    for number, line in enumerate(block.data.split(b"\n"), block.line):
        if len(line) > MAX_LINE_BYTES:
            raise CacheError(
                f"{name}:{number}: a line of more than {MAX_LINE_BYTES:,} bytes: write one record a line, or drop it"
            )
        if not line.strip():
            continue
        try:
            record = json.loads(line.decode())  # given bytes, json would guess at UTF-16 and UTF-32
        except UnicodeDecodeError as error:
            remedy = encoding_remedy(block.data if number == 1 else line)  # UTF-16 breaks lines within a character
            raise CacheError(f"{name}:{number}: not a line of JSON in UTF-8 ({error}): {remedy}") from None
        except (ValueError, RecursionError) as error:
            raise CacheError(f"{name}:{number}: not a line of JSON in UTF-8 ({error}): mend or drop it") from None
        if not isinstance(record, dict):
            raise CacheError(f"{name}:{number}: expected a JSON object, found {type(record).__name__}")
        yield number, record
