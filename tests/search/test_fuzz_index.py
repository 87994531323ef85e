"""Index files changed at random, with checksums that match, in a bounded process."""

from pathlib import Path

import pytest
from clipglot.jobs.bench_data import write_random_cache
from clipglot.search.codings import CODINGS
from support.bounded_process import outcomes
from support.fuzz_index import DIM, NUM
from support.launcher import Launcher
from support.nearest_rows import draw_odd
from support.search_index import write_index


@pytest.mark.parametrize("kind", CODINGS)
@pytest.mark.parametrize("num", [60, pytest.param(600, marks=pytest.mark.slow)])
def test_a_forged_index_is_searched_or_refused(num: int, kind: str, launcher: Launcher, tmp_path: Path) -> None:
    cache = write_random_cache(tmp_path / "c.zarr", ([] for _ in range(NUM)), DIM, draw_odd)
    write_index(cache, tmp_path / "c.index", kind)
    cases = [[str(cache.path), str(tmp_path / "c.index"), str(seed)] for seed in range(num)]
    found = outcomes(launcher, "support.fuzz_index:search_forged", cases)
    odd = [each for each in found if not each.startswith(("ok searched", "SearchError: "))]
    assert odd == []
    assert {each.split()[0] for each in found} == {"ok", "SearchError:"}
