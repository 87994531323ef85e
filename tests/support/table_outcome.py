"""What reading a table comes to: a number of rows, or an error."""

from pathlib import Path

from clipglot.cache.errors import CacheError
from clipglot.cache.format import SourceInfo
from clipglot.cache.sources.table import TableSource


def open_table(path: Path) -> TableSource:
    return TableSource(SourceInfo(path=str(path), sha256="", image_root="", image_field="image", text_fields=["text"]))


def outcome(path: Path) -> tuple[int, str]:
    """Rows and no error, or no rows and the error. Reading as columns and line by line agree."""
    outcomes = []
    for count in (lambda: sum(map(len, open_table(path).batches())), lambda: sum(1 for _ in open_table(path).rows())):
        try:
            outcomes.append((count(), ""))
        except CacheError as error:
            outcomes.append((0, str(error)))
    assert outcomes[0] == outcomes[1]
    return outcomes[0]
