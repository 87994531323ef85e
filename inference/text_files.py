"""Text files of users: descriptions, queries, class names, templates."""

import re
from pathlib import Path

from ..cache.sources.text_files import decode_text
from .errors import InputError

MAX_BYTES = 256 * 2**20  # of one file; Babel-ImageNet's classes have 9 MB
_LINE_END = re.compile(r"\r\n|\n|\r")  # not as of splitlines, for which U+2028 and others inside a text end a line


def read_text(file: Path, wanted: str = "a text file") -> str:
    """A text file of a sane size.

    Args:
        file: may be a pipe.
        wanted: what it should be, for messages.

    Raises:
        InputError: it cannot be read, is endless, or is not UTF-8.
    """
    try:
        with open(file, "rb") as opened:
            content = opened.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise InputError(f"{file} has more than {MAX_BYTES:,} bytes: pass {wanted}")
        return decode_text(content)
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}: pass {wanted}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8: save it as UTF-8") from error


def split_lines(text: str) -> list[str]:
    r"""Lines of a text, blank ones too, without the empty one after the last line end.

    >>> split_lines("a\u2028b\r\n\nc\n"), split_lines("")
    (['a\u2028b', '', 'c'], [])
    """
    lines = _LINE_END.split(text)
    return lines if lines[-1] else lines[:-1]


def read_lines(file: Path) -> list[str]:
    """Lines of a text file that are not blank.

    Args:
        file: may be a pipe.

    Raises:
        InputError: as of `read_text`.
    """
    return [line for line in split_lines(read_text(file)) if line.strip()]
