"""HDF5 files from a stranger: each is refused in our own words and bounded memory; nothing outside the file is read."""

from pathlib import Path

import pytest
from support.bounded_process import outcomes
from support.foreign_hdf5 import CHANGES
from support.launcher import Launcher

WORDS = {
    "soft link": "link",
    "external link": "link",
    "second name": "second name",
    "group in itself": "second name",
    "deep groups": "deeper",
    "external storage": "chunks with fletcher32 alone",
    "virtual dataset": "chunks with fletcher32 alone",
    "deflated": "chunks with fletcher32 alone",
    "shuffled": "chunks with fletcher32 alone",
    "fifo": "not a regular file",
    "device": "not a regular file",
    "1e15 rows in many chunks": "chunks, more than",
    "planned": "not sealed",
}


@pytest.fixture(scope="module")
def found(h5: Path, launcher: Launcher) -> dict[str, str]:
    """What reading each changed file gave."""
    cases = [[name, str(h5)] for name in CHANGES]
    return dict(zip(CHANGES, outcomes(launcher, "support.foreign_hdf5:read", cases), strict=True))


@pytest.mark.parametrize("change", CHANGES)
def test_a_foreign_hdf5_file_is_refused(change: str, found: dict[str, str]) -> None:
    assert found[change].startswith(("CacheError: ", "DamagedCacheError: "))
    assert WORDS.get(change, "") in found[change]
