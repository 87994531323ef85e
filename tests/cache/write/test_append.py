"""Appending: new images become rows after the old ones, whose bytes stay; killed at any step, it is finished."""

import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clipglot.cache import format as cache_format
from clipglot.cache.errors import CacheError
from clipglot.cache.format import SourceInfo
from clipglot.cache.read.cache import Cache
from clipglot.cache.read.verify import verify
from clipglot.cache.sources.kinds import open_source
from clipglot.cache.storage import local as store_files
from clipglot.cache.write import append as appending
from clipglot.distill.errors import DistillError
from support.appended_sources import content, files, write_manifests

Make = Callable[..., Any]


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_manifests(tmp_path_factory.mktemp("appended"))


@pytest.mark.parametrize("more", ["more", "grown"])
@pytest.mark.parametrize("views", [1, 3])
def test_new_images_come_after_the_old_whose_bytes_stay(
    more: str, views: int, manifests: dict[str, Path], make_cache: Make, tmp_path: Path
) -> None:
    make_cache(manifests["old"], tmp_path / "c.zarr", views=views)
    old = content(tmp_path / "c.zarr")
    old_views = [Cache(tmp_path / "c.zarr").image_emb(view) for view in range(views)]
    result = make_cache(manifests[more], tmp_path / "c.zarr", append=True)
    keys, captions, emb, norm, status = content(tmp_path / "c.zarr")
    assert (len(keys), result.report.num_pictures, result.report.num_embedded) == (30, 20, 19)
    assert keys[:10] == old[0]
    assert keys[10:] == [f"images/{'absent' if i == 12 else f'{i:04}'}.png" for i in range(10, 30)]
    assert captions[: len(old[1])] == old[1]
    assert min(row for row, _ in captions[len(old[1]) :]) == 10
    assert (emb[:10].tobytes(), norm[:10].tobytes(), status[:10]) == (old[2].tobytes(), old[3].tobytes(), old[4])
    cache = Cache(tmp_path / "c.zarr")
    for view, before in enumerate(old_views):
        assert cache.image_emb(view)[:10].tobytes() == before.tobytes()
        assert np.any(cache.image_emb(view)[10:], axis=1).tolist() == [i != 12 for i in range(10, 30)]
    assert cache.info.left_out == {"--append": 5 if more == "more" else 10}
    assert [source.first_row for source in cache.info.sources] == [0, 10]
    assert "append" not in cache.arrays.root

    make_cache(manifests["all"], tmp_path / "all.zarr", views=views)
    np.testing.assert_allclose(emb.astype(np.float32), content(tmp_path / "all.zarr")[2], atol=2e-3)


def test_the_same_command_again_is_complete_and_changes_nothing(
    manifests: dict[str, Path], make_cache: Make, tmp_path: Path
) -> None:
    path = tmp_path / "c.zarr"
    make_cache(manifests["old"], path)
    make_cache(manifests["more"], path, append=True)
    before = files(path)
    for manifest, append in (("more", True), ("old", False)):
        assert make_cache(manifests[manifest], path, append=append).report.num_pictures == 0
        assert files(path) == before
    for _ in range(2):  # it is new, but brings nothing, which is noted once
        assert make_cache(manifests["grown"], path, append=True).report.num_pictures == 0
        assert files(path) | {"zarr.json": b""} == before | {"zarr.json": b""}
        assert [source.first_row for source in Cache(path).require_sealed().info.sources] == [0, 10, 30]


def test_sources_are_appended_one_after_another(manifests: dict[str, Path], make_cache: Make, tmp_path: Path) -> None:
    path = tmp_path / "c.zarr"
    make_cache(manifests["old"], path)
    make_cache(manifests["all"], path, append=True, limit=4, language=("ru",))
    make_cache(manifests["more"], path, append=True)
    keys, _, emb, _, _ = content(path)
    cache = Cache(path)
    assert (len(keys), [source.first_row for source in cache.info.sources]) == (30, [0, 10, 14])
    assert np.any(emb, axis=1).sum() == 29
    image_index, tags = cache.caption_image(), cache.languages()
    assert tags == ["ru" if 10 <= row < 14 else "" for row in image_index.tolist()]
    assert cache.count_languages()["ru"] == tags.count("ru") > 0


def test_far_too_small_chunks_are_made_anew(
    manifests: dict[str, Path], make_cache: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c.zarr"
    make_cache(manifests["old"], path, batch_size=1, views=2)
    old = [Cache(path).image_emb(view) for view in range(2)]
    monkeypatch.setattr(cache_format, "MIN_CHUNKS", 4)
    make_cache(manifests["more"], path, append=True, batch_size=1)
    assert (Cache(path).info.chunk_rows, Cache(path).num_chunks) == (8, 4)
    assert [Cache(path).image_emb(view)[:10].tobytes() for view in range(2)] == [emb.tobytes() for emb in old]
    assert len(content(path)[0]) == 30


def test_training_goes_on_with_all_rows(
    manifests: dict[str, Path], make_cache: Make, make_run: Make, tmp_path: Path
) -> None:
    path = tmp_path / "c.zarr"
    make_cache(manifests["old"], path)
    make_run(path, tmp_path / "before")
    assert (path / "tokens").is_dir()
    make_cache(manifests["more"], path, append=True)
    assert not (path / "tokens").exists()
    make_run(path, tmp_path / "after", val=path)
    assert verify(Cache(path)) == []


class Stopped(Exception):  # noqa: N818
    """In the place of a kill."""


@pytest.mark.parametrize("rechunked", [False, True])
def test_a_plan_that_stops_at_any_write_is_the_old_or_is_finished(
    rechunked: bool, manifests: dict[str, Path], make_cache: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, old, settings = tmp_path / "c.zarr", tmp_path / "old.zarr", {"batch_size": 1} if rechunked else {}
    make_cache(manifests["old"], old, **settings)
    if rechunked:
        monkeypatch.setattr(cache_format, "MIN_CHUNKS", 4)
    source = open_source(
        SourceInfo(path=str(manifests["more"]), sha256="", image_root="", image_field="", text_fields=[])
    )
    write, num = store_files.atomic_write, 0

    def plan(stop_at: int) -> dict[str, bytes]:
        nonlocal num
        num = 0

        def counted(target: Path, data: Any) -> None:
            nonlocal num
            num += 1
            if num == stop_at:
                raise Stopped
            write(target, data)

        with monkeypatch.context() as patch:
            patch.setattr(store_files, "atomic_write", counted)
            cache = Cache(path, read_only=False)
            appending.finish_append(cache)
            if cache.info.state == "sealed":
                appending.plan_append(cache, source.batches(), source.info, left_out=Counter())
        return files(path)

    shutil.copytree(old, path)
    expected, total = plan(-1), num
    assert (Cache(path).info.chunk_rows > Cache(old).info.chunk_rows) == rechunked
    for at in (*range(1, total, max(1, total // 8)), total):
        shutil.rmtree(path)
        shutil.copytree(old, path)
        with pytest.raises(Stopped):
            plan(at)
        state = Cache(path).info.state
        assert state in ("sealed", "appending")
        if state == "sealed":
            assert verify(Cache(path)) == []
        assert plan(-1) == expected


# For each number that it is given it runs the command in a process of its own, which dies as by SIGKILL when it writes
# or deletes for that time; it answers with the exit code and how often the process did so, if it lived.
LAUNCHER = """
import os, signal, sys
import clipglot.jobs.cache
from clipglot.cache.storage import local as files
from clipglot.cli.main import main

def before(function):
    def counted(*arguments, **named):
        global num
        num += 1
        if num == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **named)
    return counted

files.atomic_write = before(files.atomic_write)
files.DurableLocalStore.delete_below = before(files.DurableLocalStore.delete_below)
for line in sys.stdin:
    at, num = int(line), 0
    pid = os.fork()
    if not pid:
        os.dup2(2, 1)
        try:
            main(sys.argv[2:])
        finally:
            with open(sys.argv[1], "w") as file:
                file.write(str(num))
            os._exit(0 if sys.exc_info()[1].code == 0 else 1)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


def test_a_kill_at_any_step_leaves_the_old_cache_or_one_that_is_finished(
    manifests: dict[str, Path], make_cache: Make, tiny_clip: Path, tmp_path: Path
) -> None:
    path, old = tmp_path / "c.zarr", tmp_path / "old.zarr"
    make_cache(manifests["old"], old)
    given = ["cache", manifests["more"], "-o", path, "--append", "--batch-size", 8, "--num-workers", 1]
    given = [str(argument) for argument in [*given, "--model", f"local-dir:{tiny_clip}", "--device", "cpu"]]
    command, pipe = [sys.executable, "-c", LAUNCHER, str(tmp_path / "count"), *given], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as launcher:
        assert launcher.stdin
        assert launcher.stdout

        def run(at: int) -> int:
            print(at, file=launcher.stdin, flush=True)
            return int(launcher.stdout.readline())  # type: ignore[union-attr]

        shutil.copytree(old, path)
        assert run(-1) == 0
        num, expected, states = int((tmp_path / "count").read_text()), files(path), set()
        assert num > 30
        for at in (*range(1, num, 9), num):
            shutil.rmtree(path)
            shutil.copytree(old, path)
            assert run(at) == -signal.SIGKILL
            cache = Cache(path)
            states.add(cache.info.state)
            if cache.info.state == "sealed" and len(cache) == 10:
                assert verify(cache) == []
                assert cache.image_emb().tobytes() == Cache(old).image_emb().tobytes()
            assert run(-1) == 0
            assert files(path) == expected
        assert states >= {"sealed", "appending", "planned"}
        launcher.stdin.close()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 4}, "batch_size was 8, now 4"),
        ({"views": 2}, "has 1 views: --append adds images alone"),
        ({"output": "absent.zarr"}, "absent.zarr: no cache to append to: leave out --append"),
    ],
)
def test_what_does_not_fit_is_refused(
    settings: dict[str, Any], message: str, manifests: dict[str, Path], make_cache: Make, tmp_path: Path
) -> None:
    make_cache(manifests["old"], tmp_path / "c.zarr")
    before = files(tmp_path)
    output = tmp_path / settings.pop("output", "c.zarr")
    with pytest.raises(DistillError, match=message):
        make_cache(manifests["more"], output, append=True, **settings)
    assert files(tmp_path) == before


def test_a_source_that_fails_leaves_the_cache_as_it_was(
    manifests: dict[str, Path], make_cache: Make, tmp_path: Path
) -> None:
    path, bad = tmp_path / "c.zarr", manifests["more"].with_name("bad.jsonl")
    make_cache(manifests["old"], path)
    before = content(path)
    bad.write_text(manifests["more"].read_text() + "\n{")
    with pytest.raises(CacheError, match=r"bad\.jsonl:\d+: not a line of JSON"):
        make_cache(bad, path, append=True)
    assert content(path)[:2] == before[:2]
    make_cache(manifests["more"], path, append=True)
    assert len(content(path)[0]) == 30
    assert appending.STAGED not in Cache(path).arrays.root
