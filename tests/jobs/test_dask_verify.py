"""`clipglot verify --scheduler`: the faults, words and repairs of one process, whoever is killed."""

import json
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from clipglot.cache.read.cache import Cache
from support.cache_bytes import files
from support.command_line import run
from support.damage import flip_a_byte, rewrite
from support.dask_cluster import DaskCluster
from support.launcher import Process
from support.s3_server import Bucket
from support.worker_scripts import ELSEWHERE

# Says which chunks it checks, and takes its time.
SLOW_CHECKS = """
from clipglot.cache.read.verify import CHECKS
def slow(check):
    def slowly(cache, chunk):
        print(chunk[0], flush=True)
        time.sleep(0.03)
        yield from check(cache, chunk)
    return slowly
CHECKS.update({name: slow(check) for name, check in CHECKS.items()})
"""


@pytest.fixture(scope="module")
def whole(
    translated_manifests: dict[str, Path], make_cache: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A cache with all kinds of arrays: two views, translations; 8 rows a chunk. Read only."""
    from support.translated_scenes import MODEL  # imports torch

    path = tmp_path_factory.mktemp("whole") / "c.zarr"
    changes = {"views": 2, "augment_flip": 0.5, "limit": 60, "teacher_field": ("en",), "chunk_rows": 8}
    make_cache(translated_manifests["mixed"], path, model=MODEL, **changes)
    return path


@pytest.fixture
def copied(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "c.zarr"))


def damage_files(cache: Path) -> None:
    """Flip bits in chunks of several arrays, and lose or cut others."""
    for name in ("images/emb/c/1/3/0", "images/hash/c/5/0", "captions/text/bytes/c/0", "teacher/status/c/0"):
        flip_a_byte(cache / name)
    (cache / "images/norm/c/0/2").unlink()
    (cache / "images/emb/c/0/6/0").write_bytes((cache / "images/emb/c/0/6/0").read_bytes()[:-7])


def damage_values(cache: Path) -> None:
    """Write wrong values with right checksums, several of them in one chunk."""
    rewrite(cache, "images/emb", (0, 9, slice(8)), 3)
    rewrite(cache, "images/norm", (0, slice(10, 12)), -1)
    rewrite(cache, "images/emb", (1, 50, slice(8)), 3)
    rewrite(cache, "teacher/emb", (0, 3, 0), 7)
    rewrite(cache, "captions/image", 4, 59)


def lose_a_chunk(cache: Path) -> None:
    """As a pass that has not finished; another chunk is damaged."""
    Cache(cache, read_only=False).arrays.invalidate([("images/status", (4,))])
    flip_a_byte(cache / "images/norm/c/0/1")


def command(cache: Path, *more: object) -> list[object]:
    return ["verify", cache, "--sample", 0, "--device", "cpu", *more]


def shown(process: Process) -> tuple[int, str]:
    """Exit code and standard output; on standard error there is nothing but the dashboard's address."""
    exit_code = process.wait()
    assert re.fullmatch(r"Dask's dashboard: \S+\n", process.err()), process.err()
    return exit_code, process.out()


@pytest.mark.slow
def test_workers_find_the_faults_of_one_process_in_its_order_and_words(
    cluster: DaskCluster, whole: Path, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        cluster.worker(name)
    num_faults = []
    for damage in (damage_files, damage_values, lose_a_chunk, lambda cache: None):
        cache = Path(shutil.copytree(whole, tmp_path / "c.zarr"))
        damage(cache)
        alone = run(*command(cache, "--json"))
        assert shown(cluster.share(*command(cache, "--json"))) == (alone.exit_code, alone.stdout)
        num_faults.append(len(json.loads(alone.stdout)["faults"]))
        shutil.rmtree(cache)
    assert num_faults == [6, 5, 1, 0]


@pytest.mark.slow
def test_repair_marks_what_one_process_marks(cluster: DaskCluster, whole: Path, tmp_path: Path) -> None:
    cluster.worker("a")
    cache, repaired = tmp_path / "c.zarr", []
    for share in (False, True):
        shutil.copytree(whole, cache)
        damage_files(cache)
        given = command(cache, "--repair")
        repaired.append((shown(cluster.share(*given))[1] if share else run(*given).stdout, files(cache)))
        shutil.rmtree(cache)
    assert repaired[0] == repaired[1]
    assert "now run: clipglot cache" in repaired[0][0]


@pytest.mark.slow
def test_a_killed_worker_loses_no_fault(cluster: DaskCluster, copied: Path) -> None:
    damage_files(copied)
    alone = run(*command(copied))
    lost = cluster.worker("a", SLOW_CHECKS)
    other = cluster.worker("b", SLOW_CHECKS)
    driver = cluster.share(*command(copied))
    driver.until(lambda: bool(lost.out() and other.out()))
    lost.signal_all(signal.SIGKILL)
    assert shown(driver) == (1, alone.stdout)


@pytest.mark.slow
def test_a_cache_at_a_url_is_checked_on_workers(cluster: DaskCluster, bucket: Bucket, whole: Path) -> None:
    url = bucket.upload(whole, "shared.zarr")
    bucket.flip_a_byte("shared.zarr/images/emb/c/0/1/0")
    bucket.delete("shared.zarr/images/norm/c/0/3")
    cluster.worker("a")
    alone = run("verify", url, "--sample", 0)
    assert alone.stdout.count("run its `clipglot cache` command again to embed these rows anew") == 2
    assert shown(cluster.share("verify", url, "--sample", 0)) == (1, alone.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("other", ["absent", "another", "damaged copy"])
def test_a_worker_that_does_not_see_the_cache_is_refused(
    other: str, cluster: DaskCluster, copied: Path, whole: Path, tiny_cache: Path, tmp_path: Path
) -> None:
    seen = {"absent": tmp_path / "none.zarr", "another": tiny_cache, "damaged copy": copied}[other]
    if other == "damaged copy":
        flip_a_byte(copied / "images/emb/c/0/3/0")
    message = {
        "absent": f"does not see the cache: give all workers {whole} under the same path",
        "another": f"the metadata of {whole} are others than those that the command has read",
        "damaged copy": "images/emb/c/0/3/0: damaged .*but this command finds no fault there: give all workers the",
    }[other]
    cluster.worker("elsewhere", ELSEWHERE.format(str(seen)))
    driver = cluster.share(*command(whole))
    assert driver.wait() == 1
    assert re.search(rf"^Error: Dask worker elsewhere on \S+: {message}", driver.err(), re.MULTILINE), driver.err()
    assert "Traceback" not in driver.err()


@pytest.mark.slow
def test_a_worker_with_another_clipglot_is_refused_and_ctrl_c_ends_the_command(
    cluster: DaskCluster, whole: Path
) -> None:
    old = cluster.worker("old", "import clipglot\nclipglot.__version__ = '0.0'\n")
    driver = cluster.share(*command(whole))
    assert driver.wait() == 1
    assert "Error: Dask worker old on " in driver.err()
    assert "has clipglot 0.0, the command has" in driver.err()
    old.signal_all(signal.SIGKILL)
    slow = cluster.worker("slow", SLOW_CHECKS)
    for number in (signal.SIGINT, signal.SIGTERM):
        before = len(slow.out())
        driver = cluster.share(*command(whole))
        driver.until(lambda before=before: len(slow.out()) > before)  # type: ignore[misc]
        driver.signal_all(number)
        assert driver.wait() == 130
        assert driver.err().splitlines()[-1] == "stopped"
        assert "Traceback" not in driver.err()


@pytest.mark.slow
def test_a_second_command_on_the_same_cache_takes_the_place_of_the_first(cluster: DaskCluster, copied: Path) -> None:
    damage_files(copied)
    slow = cluster.worker("slow", SLOW_CHECKS)
    first = cluster.share(*command(copied))
    first.until(lambda: bool(slow.out()))
    second = cluster.share(*command(copied))
    assert first.wait() == 1
    assert "Error: Dask worker slow on " in first.err()
    assert "another run of this command took its place" in first.err()
    assert shown(second) == (1, run(*command(copied)).stdout)


@pytest.mark.slow
def test_a_local_cluster_finds_the_faults(start_command: Any, copied: Path) -> None:
    damage_files(copied)
    process = start_command(*command(copied), "--scheduler", "local", "--num-local", 2)
    assert (process.wait(), process.out()) == (1, run(*command(copied)).stdout)


def test_without_a_scheduler_there_is_one_error(tiny_cache: Path) -> None:
    refused = run("verify", tiny_cache, "--scheduler", "nonsense://host")
    assert (refused.exit_code, "--scheduler nonsense://host: no Dask scheduler answers" in refused.stderr) == (1, True)
