"""Text files of users: descriptions, queries, class names, templates."""

from pathlib import Path

from ..cache.sources.text_files import decode_text, split_lines
from .errors import InputError

MAX_BYTES = 256 * 2**20  # of one file; Babel-ImageNet's classes have 9 MB


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


def read_lines(file: Path) -> list[str]:
    """Lines of a text file that are not blank.

    Args:
        file: may be a pipe.

    Raises:
        InputError: as of `read_text`.
    """
    return [line for line in split_lines(read_text(file)) if line.strip()]
