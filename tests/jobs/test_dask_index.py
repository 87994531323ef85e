"""`clipglot index --scheduler`: byte for byte the file of one process, whoever is killed."""

import json
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from clipglot.cache.format import EMB
from clipglot.cache.read.cache import Cache
from support.command_line import run
from support.damage import flip_a_byte
from support.dask_cluster import DaskCluster
from support.launcher import Process
from support.worker_scripts import ELSEWHERE

# Rows are divided by single chunks.
SMALL_SPANS = "import clipglot.search.ivf as ivf\nivf.READ_BYTES = 1\n"
# Says when it assigns rows, and takes its time.
SLOW_LISTS = """
from clipglot.search.ivf import NearestCentroid
nearest = NearestCentroid.__call__
def slowly(self, emb):
    print(len(emb), flush=True)
    time.sleep(0.3)
    return nearest(self, emb)
NearestCentroid.__call__ = slowly
"""


@pytest.fixture
def cache(translated_caches: dict[str, Path]) -> Path:
    """Of several chunks, some of whose captions have translations. Read only."""
    return translated_caches["mixed"]


def without_times(process: Process) -> dict[str, Any]:
    report = json.loads(process.succeed())
    return {name: value for name, value in report.items() if name not in ("file", "wall_s", "build_s")}


@pytest.mark.slow
def test_the_file_is_that_of_one_process_though_a_worker_is_killed(
    cluster: DaskCluster, start_command: Any, cache: Path, tmp_path: Path
) -> None:
    assert len(Cache(cache).arrays.stored_chunks(f"{EMB}/c/0")) >= 4
    alone, shared = tmp_path / "alone.index", tmp_path / "shared.index"
    expected = without_times(start_command("index", cache, "-o", alone, "--json", script=SMALL_SPANS))
    lost = cluster.worker("a", SLOW_LISTS)
    other = cluster.worker("b", SLOW_LISTS)
    driver = cluster.share("index", cache, "-o", shared, "--json", script=SMALL_SPANS)
    driver.until(lambda: bool(lost.out()))
    lost.signal_all(signal.SIGKILL)
    assert without_times(driver) == expected
    assert shared.read_bytes() == alone.read_bytes()
    assert other.out()


@pytest.mark.slow
def test_a_worker_that_reads_a_damaged_copy_leaves_no_file(cluster: DaskCluster, cache: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(cache, tmp_path / "copy.zarr"))
    flip_a_byte(copy / "images/emb/c/0/1/0")
    cluster.worker("elsewhere", ELSEWHERE.format(str(copy)))
    driver = cluster.share("index", cache, "-o", tmp_path / "t.index")
    assert driver.wait() == 1
    assert re.search(r"^Error: Dask worker elsewhere on \S+: .*damaged chunk images/emb/c/0/1/0", driver.err(), re.M)
    assert not list(tmp_path.glob("*.index*"))


def test_without_a_scheduler_there_is_one_error_and_no_file(cache: Path, tmp_path: Path) -> None:
    refused = run("index", cache, "-o", tmp_path / "t.index", "--scheduler", "nonsense://host")
    assert (refused.exit_code, "--scheduler nonsense://host: no Dask scheduler answers" in refused.stderr) == (1, True)
    assert list(tmp_path.iterdir()) == []
