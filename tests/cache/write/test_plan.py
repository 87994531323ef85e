"""Planning: rows and their order are fixed, an interrupted plan starts again, and foreign files are left alone."""

import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from clipglot.cache.errors import CacheError
from clipglot.cache.format import ATTRIBUTE, CacheInfo, SourceInfo
from clipglot.cache.read.cache import Cache
from clipglot.cache.read.verify import verify
from clipglot.cache.sources.kinds import open_source
from clipglot.cache.sources.source import ROWS_AT_A_TIME, RowBatch, SourceRow, batched
from clipglot.cache.storage.atomic import lock_folder
from clipglot.cache.write.plan import is_planned, plan_cache
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.cache_bytes import files
from support.cache_info import INFO


def rows(pairs: Iterable[tuple[str, list[str]]], at_a_time: int = ROWS_AT_A_TIME) -> Iterator[RowBatch]:
    return batched((SourceRow(line, key, captions) for line, (key, captions) in enumerate(pairs, 1)), at_a_time)


def limited(limit: int) -> CacheInfo:
    return CacheInfo(**vars(INFO) | {"source": SourceInfo(**vars(INFO.source) | {"limit": limit})})


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pairs=st.lists(st.tuples(st.sampled_from("abcdé猫"), st.lists(st.sampled_from(["x", "", "猫", " "]), max_size=3)))
    .filter(bool)
    .map(lambda pairs: [(key, [f"{line}{i}{c}" if c.strip() else c for i, c in enumerate(captions)])
                        for line, (key, captions) in enumerate(pairs)]),
    rows_at_a_time=st.sampled_from([1, 3, 8192]),
)  # fmt: skip
def test_lines_of_one_image_are_merged_in_their_order(
    pairs: list[tuple[str, list[str]]],
    rows_at_a_time: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    expected: dict[str, list[str]] = {}
    for key, captions in pairs:
        expected.setdefault(key, []).extend(caption for caption in captions if caption.strip())
    path = tmp_path_factory.mktemp("plans") / "cache.zarr"
    info = plan_cache(path, rows(pairs, rows_at_a_time), INFO)
    cache = Cache(path)
    image_index, captions = cache.caption_image(), cache.captions()
    assert cache.keys() == list(expected)
    assert [[captions[i] for i in np.flatnonzero(image_index == row)] for row in range(len(cache))] == list(
        expected.values()
    )
    assert (np.diff(image_index) >= 0).all()
    assert info.num_captions == len(captions) == len(image_index)
    assert sum(info.dropped_captions.values()) == sum(len(captions) for _, captions in pairs) - len(image_index)


def test_dropped_captions_are_counted_by_reason(tmp_path: Path) -> None:
    info = plan_cache(tmp_path / "c.zarr", rows([("a", ["", "\n\t", "кот"]), ("b", ["\ud83d", "😀"])]), INFO)
    assert info.dropped_captions == {"empty": 2, "not unicode": 1}
    assert Cache(tmp_path / "c.zarr").captions() == ["кот", "😀"]


def test_a_limit_keeps_the_first_images_and_their_later_captions(tmp_path: Path) -> None:
    info = plan_cache(tmp_path / "c.zarr", rows([("a", ["1"]), ("b", ["2"]), ("c", ["3"]), ("a", ["4"])]), limited(2))
    cache = Cache(tmp_path / "c.zarr")
    assert (cache.keys(), cache.captions(), info.num_images) == (["a", "b"], ["1", "4", "2"], 2)


@pytest.mark.parametrize("at_a_time", [1, 5, 8192])
def test_captions_beyond_a_limit_do_not_count_as_dropped(at_a_time: int, tmp_path: Path) -> None:
    pairs = [(str(i), ["ok", "", "\0"][: 2 + i % 2]) for i in range(24)]
    info = plan_cache(tmp_path / "c.zarr", rows(pairs, at_a_time), limited(2))
    assert (info.num_captions, info.dropped_captions) == (2, {"empty": 2, "holds NUL": 1})
    assert next(rows(pairs)).take(np.arange(24) > 21).dropped["holds NUL"].tolist() == [1]


def test_images_without_captions_are_planned_too(tmp_path: Path) -> None:
    plan_cache(tmp_path / "c.zarr", rows([("a", []), ("b", [])]), INFO)
    cache = Cache(tmp_path / "c.zarr")
    assert (len(cache), cache.captions(), cache.caption_image().tolist()) == (2, [], [])
    assert verify(cache) == []


def test_a_manifest_without_images_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match=r"m\.jsonl: no images in it"):
        plan_cache(tmp_path / "c.zarr", rows([]), INFO)
    assert list(tmp_path.iterdir()) == []


def test_a_manifest_that_fails_after_many_rows_leaves_nothing(tmp_path: Path) -> None:
    def bad() -> Iterator[RowBatch]:
        yield from rows((str(i), ["x"]) for i in range(ROWS_AT_A_TIME + 1))
        raise CacheError("line 8194: no JSON")

    with lock_folder(tmp_path / "c.zarr"), pytest.raises(CacheError, match="line 8194"):
        plan_cache(tmp_path / "c.zarr", bad(), INFO)
    assert list(tmp_path.iterdir()) == []


def leave_planning(path: Path) -> None:
    def cut_short() -> Iterator[RowBatch]:
        yield from rows([("old", ["old"])])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        plan_cache(path, cut_short(), INFO)
    assert Cache(path).info.state == "planning"


def leave_half_cleared(path: Path) -> None:
    """Killed while the remains of an interrupted plan were being deleted."""
    leave_planning(path)
    (path / "captions" / "zarr.json").unlink(missing_ok=True)


def leave_partial(path: Path) -> None:
    path.mkdir()
    (path / ".zarr.json.0123.partial").write_bytes(b"{")


@pytest.mark.parametrize("leave", [leave_planning, leave_half_cleared, leave_partial, Path.mkdir])
def test_a_plan_replaces_the_remains_of_an_interrupted_one(leave: Callable[[Path], None], tmp_path: Path) -> None:
    leave(tmp_path / "c.zarr")
    assert not is_planned(tmp_path / "c.zarr")
    for path in (tmp_path / "c.zarr", tmp_path / "fresh.zarr"):
        plan_cache(path, rows([("new", ["new"])]), INFO)
    assert is_planned(tmp_path / "c.zarr")
    assert files(tmp_path / "c.zarr") == files(tmp_path / "fresh.zarr")


def test_a_plan_killed_while_it_is_written_is_planned_anew(start_command: Any, tmp_path: Path) -> None:
    script = f"""
from itertools import count
from clipglot.cache.write import plan
from clipglot.cache.storage import ragged
from clipglot.cache.format import *
from clipglot.cache.sources.source import SourceRow, batched
from pathlib import Path
ragged.CHUNK_BYTES = 2**16
path = Path({str(tmp_path / "c.zarr")!r})
plan.plan_cache(path, batched(SourceRow(i, str(i), ["x" * 50]) for i in count()), {INFO!r})
"""
    process = start_command(script=script)
    process.until((tmp_path / "c.zarr" / "captions" / "text" / "bytes" / "c" / "9").exists)
    process.signal_all(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not is_planned(tmp_path / "c.zarr")
    for path in (tmp_path / "c.zarr", tmp_path / "fresh.zarr"):
        plan_cache(path, rows([("new", ["new"])]), INFO)
    assert files(tmp_path / "c.zarr") == files(tmp_path / "fresh.zarr")


def foreign_file(path: Path) -> None:
    path.write_text("mine")


def dangling_symlink(path: Path) -> None:
    path.symlink_to("absent")


def foreign_folder(path: Path) -> None:
    path.mkdir()
    (path / "thesis.txt").write_text("mine")


def foreign_group(path: Path) -> None:
    zarr.create_group(path, attributes={"mine": 1}).create_array("x", shape=(3,), dtype="f4")


def foreign_array(path: Path) -> None:
    zarr.create_array(path, shape=(3,), dtype="f4")


def newer_format(path: Path) -> None:
    zarr.create_group(path, attributes={ATTRIBUTE: {"format_version": 99, "state": "planning"}})


def damaged_cache(path: Path) -> None:
    path.mkdir()
    (path / "zarr.json").write_text('{"zarr_format": 3, "node_ty')


@pytest.mark.parametrize(
    "make",
    [foreign_file, dangling_symlink, foreign_folder, foreign_group, foreign_array, newer_format, damaged_cache],
)
def test_anything_else_at_the_output_is_refused_and_left_alone(make: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "c.zarr"
    make(path)
    before = files(tmp_path)
    with pytest.raises(CacheError, match=r"c\.zarr"):
        plan_cache(path, rows([("a", ["x"])]), INFO)
    assert files(tmp_path) == before


def test_a_planned_cache_is_not_planned_again(tmp_path: Path) -> None:
    plan_cache(tmp_path / "c.zarr", rows([("a", ["x"])]), INFO)
    with pytest.raises(CacheError, match="planned already"):
        plan_cache(tmp_path / "c.zarr", rows([("b", ["y"])]), INFO)


def test_wrong_settings_are_refused_before_anything_is_read_or_written(manifest: Path, tmp_path: Path) -> None:
    def unread() -> Iterator[RowBatch]:
        raise AssertionError("read")
        yield

    elsewhere = replace(INFO.source, path=str(manifest), image_root=str(tmp_path / "absent"))
    with pytest.raises(CacheError, match=r"absent: no such folder: pass --image-root"):
        open_source(elsewhere)
    with pytest.raises(CacheError, match=r"must be a multiple of the batch size"):
        plan_cache(tmp_path / "c.zarr", unread(), INFO, chunk_rows=3)
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_cannot_be_written_is_named_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match=r"c\.zarr: cannot be written \(.*\): make it writable or choose another -o"):
        plan_cache(tmp_path / "file" / "c.zarr", rows([("a", ["x"])]), INFO)
