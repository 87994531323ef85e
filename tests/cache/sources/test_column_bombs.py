"""Columns in which one long value stands in every row are planned from in bounded memory."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.column_bombs import COLUMN_BOMBS, ROWS, VALUE_BYTES

MEMORY_MB = 900  # above what the imports take
READ = """
import resource, sys
from pathlib import Path
from support.source_contract import Made, SourceContract

before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
source = SourceContract.open(Made(Path(sys.argv[1])))
source.sha256()
batches = list(source.batches())
rows, captions = sum(map(len, batches)), sum(len(batch.captions) for batch in batches)
too_long = sum(len(batch.dropped["too long"]) for batch in batches)
print(rows, captions, too_long, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", COLUMN_BOMBS)
def test_a_value_in_every_row_takes_little_memory(name: str, tmp_path: Path) -> None:
    assert ROWS * VALUE_BYTES > 2 * MEMORY_MB * 2**20
    COLUMN_BOMBS[name](tmp_path / name)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", READ, str(tmp_path / name)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    rows, captions, too_long, peak_mb = map(int, done.stdout.split())
    assert (rows, captions, too_long) == (ROWS, 0, ROWS)
    assert peak_mb < MEMORY_MB
