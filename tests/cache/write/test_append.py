"""Append: new images become rows after the old ones, whose bytes stay; the next command finishes a killed append."""

import shutil
import signal
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
from clipglot.cache.storage import local
from clipglot.cache.write.append import STAGED, finish_append, plan_append
from clipglot.distill.errors import DistillError
from support.appended_sources import content, write_manifests
from support.cache_bytes import files

Make = Callable[..., Any]


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_manifests(tmp_path_factory.mktemp("appended"))


@pytest.fixture(scope="module")
def old(manifests: dict[str, Path], make_cache: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cache of the images that are there first. Read only."""
    make_cache(manifests["old"], path := tmp_path_factory.mktemp("old") / "c.zarr")
    return path


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
    manifests: dict[str, Path], old: Path, make_cache: Make, tmp_path: Path
) -> None:
    path = tmp_path / "c.zarr"
    shutil.copytree(old, path)
    make_cache(manifests["more"], path, append=True)
    before = files(path)
    for manifest, append in (("more", True), ("old", False)):
        assert make_cache(manifests[manifest], path, append=append).report.num_pictures == 0
        assert files(path) == before
    for _ in range(2):  # a new source without new images is recorded once
        assert make_cache(manifests["grown"], path, append=True).report.num_pictures == 0
        assert files(path) | {"zarr.json": b""} == before | {"zarr.json": b""}
        assert [source.first_row for source in Cache(path).require_sealed().info.sources] == [0, 10, 30]


def test_sources_are_appended_one_after_another(
    manifests: dict[str, Path], old: Path, make_cache: Make, tmp_path: Path
) -> None:
    path = tmp_path / "c.zarr"
    shutil.copytree(old, path)
    make_cache(manifests["all"], path, append=True, limit=4, language=("ru",))
    make_cache(manifests["more"], path, append=True)
    keys, _, emb, _, _ = content(path)
    cache = Cache(path)
    assert (len(keys), [source.first_row for source in cache.info.sources]) == (30, [0, 10, 14])
    assert np.any(emb, axis=1).sum() == 29
    image_index, tags = cache.caption_image(), cache.languages()
    assert tags == ["ru" if 10 <= row < 14 else "" for row in image_index.tolist()]
    assert cache.count_languages()["ru"] == tags.count("ru") > 0


def test_far_too_small_chunks_are_made_larger(
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
    manifests: dict[str, Path], old: Path, make_cache: Make, make_run: Make, tmp_path: Path
) -> None:
    path = tmp_path / "c.zarr"
    shutil.copytree(old, path)
    make_run(path, tmp_path / "before")
    assert (path / "tokens").is_dir()
    make_cache(manifests["more"], path, append=True)
    assert not (path / "tokens").exists()
    make_run(path, tmp_path / "after", val=path)
    assert verify(Cache(path)) == []


class Stopped(Exception):  # noqa: N818
    """Raised in place of a kill."""


@pytest.mark.parametrize("num_stops", [3, pytest.param(12, marks=pytest.mark.slow)])
@pytest.mark.parametrize("rechunked", [False, True])
def test_a_plan_stopped_at_any_write_leaves_the_old_cache_or_one_that_is_finished(
    rechunked: bool,
    num_stops: int,
    manifests: dict[str, Path],
    make_cache: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path, old, settings = tmp_path / "c.zarr", tmp_path / "old.zarr", {"batch_size": 1} if rechunked else {}
    make_cache(manifests["old"], old, **settings)
    if rechunked:
        monkeypatch.setattr(cache_format, "MIN_CHUNKS", 4)
    source = open_source(
        SourceInfo(path=str(manifests["more"]), sha256="", image_root="", image_field="", text_fields=[])
    )
    write, num = local.atomic_write, 0

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
            patch.setattr(local, "atomic_write", counted)
            cache = Cache(path, read_only=False)
            finish_append(cache)
            if cache.info.state == "sealed":
                plan_append(cache, source.batches(), source.info, left_out=Counter())
        return files(path)

    shutil.copytree(old, path)
    expected, total = plan(-1), num
    assert (Cache(path).info.chunk_rows > Cache(old).info.chunk_rows) == rechunked
    for at in (*range(1, total, max(1, total // num_stops)), total):
        shutil.rmtree(path)
        shutil.copytree(old, path)
        with pytest.raises(Stopped):
            plan(at)
        state = Cache(path).info.state
        assert state in ("sealed", "appending")
        if state == "sealed":
            assert verify(Cache(path)) == []
        assert plan(-1) == expected


# The process dies as by SIGKILL before its Nth write or deletion; without N it counts them.
DYING = """
import signal
from clipglot.cache.storage import local as files
at, num = {at}, 0
def counted(function):
    def wrapper(*arguments, **named):
        global num
        num += 1
        if num == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **named)
    return wrapper
files.atomic_write = counted(files.atomic_write)
files.DurableLocalStore.delete_below = counted(files.DurableLocalStore.delete_below)
import atexit
atexit.register(lambda: print("steps", num))
"""


@pytest.mark.parametrize("at_steps", ["some", pytest.param("many", marks=pytest.mark.slow)])
def test_a_kill_at_any_step_leaves_the_old_cache_or_one_that_is_finished(
    at_steps: str,
    manifests: dict[str, Path],
    old: Path,
    make_cache: Make,
    start_command: Any,
    tiny_clip: Path,
    tmp_path: Path,
) -> None:
    path = tmp_path / "c.zarr"
    command = ["cache", manifests["more"], "-o", path, "--append", "--batch-size", 8, "--num-workers", 1]
    command += ["--model", f"local-dir:{tiny_clip}", "--device", "cpu"]
    shutil.copytree(old, path)
    said = start_command(*command, script=DYING.format(at=-1)).succeed()
    num, expected, states = int(said.split("steps ")[1]), files(path), set()
    assert num > 30
    for at in (num // 3, num - 5) if at_steps == "some" else (*range(1, num, 9), num):
        shutil.rmtree(path)
        shutil.copytree(old, path)
        assert start_command(*command, script=DYING.format(at=at)).wait() == -signal.SIGKILL
        cache = Cache(path)
        states.add(cache.info.state)
        if cache.info.state == "sealed" and len(cache) == 10:
            assert verify(cache) == []
            assert cache.image_emb().tobytes() == Cache(old).image_emb().tobytes()
        make_cache(manifests["more"], path, append=True)
        assert files(path) == expected
    assert len(states) == 2 if at_steps == "some" else states >= {"sealed", "appending", "planned"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 4}, "batch_size was 8, now 4"),
        ({"views": 2}, "has 1 views: --append adds images"),
        ({"output": "absent.zarr"}, "absent.zarr: no cache to append to: leave out --append"),
    ],
)
def test_other_settings_are_refused(
    settings: dict[str, Any], message: str, manifests: dict[str, Path], old: Path, make_cache: Make, tmp_path: Path
) -> None:
    shutil.copytree(old, tmp_path / "c.zarr")
    before = files(tmp_path)
    output = tmp_path / settings.pop("output", "c.zarr")
    with pytest.raises(DistillError, match=message):
        make_cache(manifests["more"], output, append=True, **settings)
    assert files(tmp_path) == before


def test_a_source_that_fails_leaves_the_cache_as_it_was(
    manifests: dict[str, Path], old: Path, make_cache: Make, tmp_path: Path
) -> None:
    path, bad = tmp_path / "c.zarr", manifests["more"].with_name("bad.jsonl")
    shutil.copytree(old, path)
    before = content(path)
    bad.write_text(manifests["more"].read_text() + "\n{")
    with pytest.raises(CacheError, match=r"bad\.jsonl:\d+: not a line of JSON"):
        make_cache(bad, path, append=True)
    assert content(path)[:2] == before[:2]
    make_cache(manifests["more"], path, append=True)
    assert len(content(path)[0]) == 30
    assert STAGED not in Cache(path).arrays.root
