"""Caches from a stranger: whatever their files say, every way to read them answers or raises its own error.

Each case runs in a child process of bounded memory, so that a size that is believed, an endless file, a hang and a
crash all show.
"""

import shutil
from pathlib import Path

import pytest
from support.bounded_process import outcomes
from support.foreign_caches import CHANGES, WAYS
from support.launcher import Launcher

OURS = ("CacheError: ", "DamagedCacheError: ", "DistillError: ")
# The ragged reader alone, below the layer that words errors.
READERS = ("ValueError: ", "OSError: ", "KeyError: ", "TypeError: ", "WrongOffsetsError: ", "WrongLayoutError: ")
READERS += ("GroupNotFoundError: ", "RecursionError: ", "MemoryError: ")


@pytest.fixture(scope="module")
def folder(with_tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with tokens, its run, and an intact copy to merge with. Read only."""
    folder = tmp_path_factory.mktemp("foreign") / "folder"
    for name in ("own.zarr", "intact.zarr"):
        shutil.copytree(with_tokens, folder / name)
    shutil.copytree(with_tokens.parent / "run", folder / "run")
    return folder


@pytest.mark.parametrize("way", ["inspect", "reader", pytest.param("train", marks=pytest.mark.slow)])
def test_a_foreign_cache_is_read_or_refused_in_our_own_words(way: str, folder: Path, launcher: Launcher) -> None:
    _require_answers(launcher, way, folder)


@pytest.mark.slow
@pytest.mark.parametrize("way", sorted(WAYS.keys() - {"inspect", "reader", "train"}))
def test_every_other_way_to_read_a_foreign_cache_does_so(way: str, folder: Path, launcher: Launcher) -> None:
    _require_answers(launcher, way, folder)


def _require_answers(launcher: Launcher, way: str, folder: Path) -> None:
    cases = [[change, way, str(folder)] for change in CHANGES]
    found = dict(zip(CHANGES, outcomes(launcher, "support.foreign_caches:read", cases), strict=True))
    allowed = ("ok ", *OURS, *(READERS if way == "reader" else ()))
    assert {change: outcome for change, outcome in found.items() if not outcome.startswith(allowed)} == {}
    if way in ("verify", "convert", "merge", "reader"):  # which read all offsets
        believed = [change for change, outcome in found.items() if "offsets" in change and outcome.startswith("ok ")]
        assert [change for change in believed if "token" not in change] == []
