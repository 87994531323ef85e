"""img2dataset's table beside a tar: a record for each download, with its key, its status and its captions."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import CacheError
from .parquet_files import ParquetFile, small_parts

KEY, STATUS, SUCCESS = "key", "status", "success"
_DAMAGED = (pa.ArrowException, OSError, UnicodeDecodeError)


def columns_of(file: BinaryIO, where: str) -> list[str]:
    """The columns of a table. One without `KEY` and `STATUS` is not img2dataset's.

    Raises:
        CacheError: it is not readable as Parquet.
    """
    try:
        return list(pq.read_schema(file).names)
    except _DAMAGED as error:
        raise _unreadable(where, error) from error


def records_of(file: BinaryIO, where: str, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The records of the images that img2dataset could download, in order.

    Args:
        file: the table.
        where: its name, for messages.
        columns: to be read besides the key.

    Raises:
        CacheError: it is not readable as Parquet, or an image has no key.
    """
    try:
        table = ParquetFile(Path(f"/proc/self/fd/{file.fileno()}"))
        for _, _, batch in table.records(list({KEY: 0, STATUS: 0} | dict.fromkeys(columns))):
            for record in (record for part in small_parts(batch) for record in part.to_pylist()):
                if record[STATUS] == SUCCESS:
                    if not isinstance(record[KEY], str) or not record[KEY]:
                        raise CacheError(f"{where}: {KEY!r} must be the name of an image, found {record[KEY]!r}")
                    yield record
    except _DAMAGED as error:
        raise _unreadable(where, error) from error
    except (ValueError, OverflowError) as error:  # Python's dates end with the year 9999, and have no nanoseconds
        raise CacheError(
            f"{where}: a value that cannot be read ({error}): cast its column, or leave it out of the table"
        ) from error


def _unreadable(where: str, error: Exception) -> CacheError:
    return CacheError(
        f"{where} is not readable as Parquet ({error}): fetch it again, or delete it: its tar is then read instead"
    )
