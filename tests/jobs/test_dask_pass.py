"""Passes on a Dask cluster: whoever is killed, the cache has the bytes that one process makes."""

import json
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from clipglot.distill.errors import DistillError
from clipglot.jobs.settings.cache import CacheSettings
from clipglot.jobs.settings.index import IndexSettings
from clipglot.jobs.settings.verify import VerifySettings
from support.cache_bytes import delete_chunks, files
from support.command_line import run
from support.dask_cluster import DaskCluster
from support.launcher import Process
from support.metadata_edits import edit
from support.processes import listening_addresses, session
from support.worker_scripts import SLOW

# Its tower has other weights than the command's.
OTHER_WEIGHTS = """
import clipglot.encoders.image_tower as towers
hash_tensors = towers.hash_tensors
towers.hash_tensors = lambda tensors: hash_tensors(tensors)[::-1]
"""
# It has no images, as a machine without the shared filesystem.
BLIND = """
from dataclasses import replace
import clipglot.jobs.dask_pass as dask_pass
reader_of = dask_pass.reader_of
def blind(cache, *, sources, rows=None):
    return reader_of(cache, sources=[replace(source, image_root={!r}) for source in sources], rows=rows)
dask_pass.reader_of = blind
"""
# Each batch ends the process.
DEADLY = """
from clipglot.encoders.image_tower import ImageTower
ImageTower.forward = lambda tower, x: os._exit(9)
"""
# It says that it is another machine.
OTHER_HARDWARE = """
from clipglot.jobs.dask_pass import _Embedder
_Embedder._hardware = lambda embedder: "another machine"
"""
IMPATIENT = "import clipglot.jobs.dask_cluster as dask_cluster\ndask_cluster.SILENT_S = 0.5\n"
# Says in a file when it begins and ends a batch, so that two at a time would show.
COUNTED = """
from clipglot.encoders.image_tower import ImageTower
forward, at_once = ImageTower.forward, [0]
def counted(tower, x):
    at_once[0] += 1
    time.sleep(0.1)
    print("at once:", at_once[0], flush=True)
    at_once[0] -= 1
    return forward(tower, x)
ImageTower.forward = counted
"""


@pytest.fixture
def cluster(cluster: DaskCluster, many_images: Path, tiny_clip: Path) -> DaskCluster:
    """The same, for passes over `many_images`."""
    cluster.command = ["cache", many_images, "--model", f"local-dir:{tiny_clip}", "--device", "cpu"]
    cluster.command += ["--batch-size", 8, "--chunk-rows", 8, "--num-workers", 1]
    return cluster


def num_stored(cache: Path) -> int:
    folder = cache / "images/status/c"
    return sum(file.name.isdigit() for file in folder.iterdir()) if folder.is_dir() else 0


def kill(process: Process) -> None:
    process.signal_all(signal.SIGKILL)
    process.wait()


def test_two_workers_make_the_bytes_of_one_process(cluster: DaskCluster, alone: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        cluster.worker(name)
    driver = cluster.drive(tmp_path / "cache.zarr", "--json")
    result = json.loads(driver.succeed())
    assert (result["status"], result["num_pictures"], result["chunks_left"]) == ({"embedded": 80}, 80, 0)
    assert result["bottleneck"] in ("reading", "decoding", "the tower", "writing", "other workers")
    assert result["tower_s"] > 0
    assert re.fullmatch(r"Dask's dashboard: http://127\.\S+/status\n", driver.err())  # and no other line of Dask's
    assert files(tmp_path / "cache.zarr") == files(alone)
    assert "is complete already: 80" in cluster.drive(tmp_path / "cache.zarr").succeed()


@pytest.mark.slow
def test_a_worker_is_killed_and_another_joins_and_the_driver_is_killed_and_started_again(
    cluster: DaskCluster, alone: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache.zarr"
    workers = [cluster.worker(name, SLOW.format(0.5)) for name in ("a", "b")]
    driver = cluster.drive(cache)
    driver.until(lambda: num_stored(cache) >= 2)
    kill(workers[0])
    cluster.worker("c", SLOW.format(0.5) + OTHER_HARDWARE)
    driver.until(lambda: num_stored(cache) >= 6)
    kill(driver)
    again = cluster.drive(cache)
    done = int(re.search(r"cache\.zarr: (\d+) images in", again.succeed())[1])  # type: ignore[index]
    assert 0 < done <= 32
    assert re.search(
        "workers differ .*another machine.*depend on who made it$", driver.err() + again.err(), re.MULTILINE
    )
    assert files(cache) == files(alone)


@pytest.mark.slow
def test_a_lost_scheduler_is_one_clear_error_and_the_next_one_goes_on(
    cluster: DaskCluster, alone: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache.zarr"
    cluster.worker("a", SLOW.format(0.3))
    driver = cluster.drive(cache)
    driver.until(lambda: num_stored(cache) >= 2)
    kill(cluster.scheduler)
    assert driver.wait() == 1
    assert re.search(r"^Error: the Dask scheduler at tcp://127\S+ is gone; .* start it again", driver.err(), re.M)
    assert "Traceback" not in driver.err()
    kept = num_stored(cache)
    assert kept >= 2
    cluster.begin()
    cluster.worker("b")
    cluster.drive(cache).succeed()
    assert files(cache) == files(alone)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_driver_keeps_what_is_written(number: int, cluster: DaskCluster, tmp_path: Path) -> None:
    cache = tmp_path / "cache.zarr"
    cluster.worker("a", SLOW.format(0.3))
    driver = cluster.drive(cache)
    driver.until(lambda: num_stored(cache) >= 2)
    driver.signal_all(number)
    assert driver.wait() == 130
    assert re.search(r"stopped: \d+ of 80 images are embedded and kept; run the same command again", driver.err())
    assert "Traceback" not in driver.err()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "message"),
    [
        (OTHER_WEIGHTS, "Error: Dask worker impostor on .*: weights_sha256 is "),
        ("import clipglot\nclipglot.__version__ = '0.0'\n", "Error: Dask worker impostor on .* has clipglot 0.0"),
        (
            "sys.modules['clipglot'] = None\n",
            r"Error: the Dask cluster cannot take part \(.*clipglot.*\): give its",
        ),
    ],
    ids=["weights", "version", "nothing"],
)
def test_a_worker_with_other_weights_or_another_clipglot_is_refused(
    script: str, message: str, cluster: DaskCluster, tmp_path: Path
) -> None:
    cluster.worker("impostor", script)
    driver = cluster.drive(tmp_path / "cache.zarr")
    assert driver.wait() == 1
    assert re.search(f"^{message}", driver.err(), re.MULTILINE)
    assert "Traceback" not in driver.err()
    assert num_stored(tmp_path / "cache.zarr") == 0


@pytest.mark.slow
def test_a_pass_that_finds_no_image_stops_early(cluster: DaskCluster, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    table = tmp_path / "images" / "absent.jsonl"
    table.write_text("".join(f'{{"image": "{i}.png", "text": "image {i}"}}\n' for i in range(3000)))
    cluster.command[1] = table
    cluster.worker("a")
    driver = cluster.drive(tmp_path / "cache.zarr", "--chunk-rows", 200)
    assert driver.wait() == 1
    assert "none of the first 1,000 images is there, nor are others all over the source" in driver.err()


@pytest.mark.slow
def test_a_worker_that_sees_no_image_takes_no_work_from_the_others(
    cluster: DaskCluster, alone: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    blind = cluster.worker("blind", BLIND.format(str(tmp_path / "empty")))
    cache = tmp_path / "cache.zarr"
    driver = cluster.drive(cache)
    assert driver.wait() == 1
    assert "Dask worker blind on " in driver.err()
    assert "is there, but this command sees some: give all workers the images under the same paths" in driver.err()
    kill(blind)
    cluster.worker("seeing")
    cluster.drive(cache).succeed()
    assert files(cache) == files(alone)


@pytest.mark.slow
def test_a_chunk_that_ends_one_worker_after_another_is_given_up(
    cluster: DaskCluster, alone: Path, tmp_path: Path
) -> None:
    kill(cluster.scheduler)
    cluster.begin(DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES="1")
    cache = Path(shutil.copytree(alone, tmp_path / "cache.zarr"))
    edit(cache, state="planned")
    delete_chunks(cache, 3)
    for name in ("a", "b"):
        cluster.worker(name, DEADLY)
    driver = cluster.drive(cache)
    assert driver.wait() == 1
    assert "chunk 3 ended one Dask worker after another, the last one tcp://127" in driver.err()


@pytest.mark.slow
def test_a_pass_waits_for_workers_and_says_so(cluster: DaskCluster, alone: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache.zarr"
    driver = cluster.drive(cache, script=IMPATIENT)
    driver.until(lambda: "no worker at tcp://127" in driver.err())
    cluster.worker("a")
    assert "it waited for other workers" in driver.succeed()
    assert driver.err().count("no worker at") == 1
    assert files(cache) == files(alone)


@pytest.mark.slow
def test_a_worker_of_several_threads_makes_one_chunk_at_a_time(
    cluster: DaskCluster, alone: Path, tmp_path: Path
) -> None:
    worker = cluster.worker("a", COUNTED, "--nthreads", 4, "--resources", "GPU=2")
    driver = cluster.drive(tmp_path / "cache.zarr")
    driver.succeed()
    assert set(re.findall(r"at once: (\d+)", worker.out())) == {"1"}
    assert files(tmp_path / "cache.zarr") == files(alone)


@pytest.mark.slow
@pytest.mark.parametrize(
    "more", [{"teacher_field": ("en",)}, {"teacher_field": ("en",), "images": False}, {"views": 2}], ids=str
)
def test_translations_and_views_are_made_on_the_cluster(
    more: dict[str, Any],
    cluster: DaskCluster,
    translated_manifests: dict[str, Path],
    make_cache: Callable[..., Any],
    tmp_path: Path,
) -> None:
    from support.translated_scenes import MODEL  # imports torch

    source = translated_manifests["val"]
    make_cache(source, tmp_path / "alone.zarr", model=MODEL, batch_size=64, **more)
    cluster.worker("a")
    cluster.command = ["cache", source, "--model", MODEL, "--device", "cpu", "--batch-size", 64, "--num-workers", 1]
    flags = {"teacher_field": ["--teacher-field", "en"], "images": ["--no-images"], "views": ["--views", 2]}
    cluster.drive(tmp_path / "cache.zarr", *(part for name in more for part in flags[name])).succeed()
    assert files(tmp_path / "cache.zarr") == files(tmp_path / "alone.zarr")


@pytest.mark.slow
def test_a_local_cluster_listens_on_loopback_alone_and_leaves_nothing_behind(
    start_command: Any, cluster: DaskCluster, alone: Path, tmp_path: Path
) -> None:
    cache, addresses = tmp_path / "cache.zarr", set[str]()
    local = [*cluster.command, "-o", cache, "--scheduler", "local", "--num-local"]

    def stored_a_chunk() -> bool:
        addresses.update(listening_addresses(driver.pid))
        return num_stored(cache) >= 1

    driver = start_command(*local, 2)
    driver.until(stored_a_chunk)
    assert len(addresses) >= 3  # of the scheduler and two workers
    assert {address.partition(":")[0] for address in addresses} == {"0100007F"}
    driver.signal_all(signal.SIGINT)
    assert driver.wait() == 130
    assert "run the same command again to resume" in driver.err().splitlines()[-1]
    assert "Traceback" not in driver.err()
    until = time.monotonic() + 30
    while session(driver.pid) and time.monotonic() < until:  # a resource tracker ends when all its users have
        time.sleep(0.1)
    assert session(driver.pid) == {}
    driver = start_command(*local, 1)
    assert "80 of 80 embedded" in driver.succeed()
    assert all(re.match("load|embed|Dask's dashboard", line) for line in driver.err().splitlines())
    until = time.monotonic() + 30
    while session(driver.pid) and time.monotonic() < until:  # a resource tracker ends when all its users have
        time.sleep(0.1)
    assert session(driver.pid) == {}
    assert files(cache) == files(alone)


def test_without_a_scheduler_there_is_one_error(many_images: Path, tiny_clip: Path, tmp_path: Path) -> None:
    command = ["cache", many_images, "-o", tmp_path / "c.zarr", "--model", f"local-dir:{tiny_clip}", "--batch-size", 8]
    refused = run(*command, "--scheduler", "nonsense://host")
    assert (refused.exit_code, "--scheduler nonsense://host: no Dask scheduler answers" in refused.stderr) == (1, True)


def test_a_plain_pass_imports_nothing_of_dask(
    many_images: Path, tiny_clip: Path, start_command: Any, tmp_path: Path
) -> None:
    show = "import atexit\natexit.register(lambda: print({'dask', 'distributed'} & set(sys.modules)))\n"
    command = ["cache", many_images, "-o", tmp_path / "c.zarr", "--model", f"local-dir:{tiny_clip}", "--limit", 8]
    assert start_command(*command, "--device", "cpu", "--num-workers", 1, script=show).succeed().endswith("set()\n")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shard": "0/2"}, "leave out --shard"),
        ({"num_local": 2, "scheduler": "tcp://host:1"}, "--num-local is for --scheduler local"),
        ({"num_local": 0, "scheduler": "local"}, "--num-local 0"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    given = {"scheduler": "local"} | settings
    with pytest.raises(DistillError, match=message):
        CacheSettings(source=tmp_path, output=tmp_path, model="m", **given)
    if "shard" not in given:
        with pytest.raises(DistillError, match=message):
            VerifySettings(cache=tmp_path, **given)
        with pytest.raises(DistillError, match=message):
            IndexSettings(cache=tmp_path, output=tmp_path, **given)
