"""Files of models that strangers made: only regular files of a sane size are opened, and JSON is read in one way."""

import json
import stat
from pathlib import Path
from typing import Any

from ..errors import EncoderError

MAX_JSON = 64 * 2**20
MAX_VOCABULARY = 256 * 2**20  # the tokenizer.json of a vocabulary of 256,000 tokens has 34 MB


def require_regular(file: Path, most: int | None = None) -> Path:
    """The file that a path leads to.

    Args:
        file: a file, or a link to one as in the caches of hubs.
        most: bytes that it may have.

    Raises:
        EncoderError: a FIFO, a socket, a device or a folder, which would hang or never end; or a larger file.
    """
    try:
        status = file.stat()
    except OSError as error:
        raise EncoderError(f"{file}: cannot be read ({error.strerror})") from error
    if not stat.S_ISREG(status.st_mode):
        raise EncoderError(f"{file}: not a file but a FIFO, a device, a folder or a link to one: fetch the model again")
    if most is not None and status.st_size > most:
        raise EncoderError(f"{file}: has {status.st_size:,} bytes, expected at most {most:,}: fetch the model again")
    return file.resolve()


def read_json(file: Path, most: int = MAX_JSON) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        EncoderError: as `require_regular`; or no JSON, or JSON of another kind.
    """
    try:
        value = json.loads(require_regular(file, most).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise EncoderError(f"{file}: no JSON ({reason}): fetch the model, or export the run, again") from error
    if not isinstance(value, dict):
        raise EncoderError(f"{file}: holds a {type(value).__name__}, expected an object: fetch the model again")
    return value
