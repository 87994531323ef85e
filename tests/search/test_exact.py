"""Exact search against all cosines at once in float64: filters, ties, odd sizes, views, threads, without torch."""

import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clipglot.cache.read.cache import Cache
from clipglot.jobs.bench_data import write_random_cache
from clipglot.jobs.convert import convert_cache
from clipglot.jobs.settings.convert import ConvertSettings
from clipglot.search import codes, exact
from clipglot.search.exact import ExactIndex
from hypothesis import given, settings
from hypothesis import strategies as st
from support.nearest_rows import draw_odd, nearest_rows, unit_queries

WAYS = ["single", "resident", "resident without numkong"]


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Cache]:
    folder = tmp_path_factory.mktemp("search")
    return {dim: write_random_cache(folder / f"{dim}.zarr", ([] for _ in range(700)), dim, draw_odd) for dim in (3, 37)}


def opened(cache: Cache, way: str, monkeypatch: pytest.MonkeyPatch) -> ExactIndex:
    if way.endswith("numkong"):
        monkeypatch.setattr(exact, "has_kernel", lambda: False)
    return ExactIndex(cache, resident=way != "single")


@pytest.mark.parametrize("way", WAYS)
def test_search_equals_all_cosines_at_once(way: str, caches: dict[int, Cache], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "BLOCK_ROWS", 64)
    monkeypatch.setattr(codes, "BLOCK_ROWS", 64)
    indexes = {dim: opened(cache, way, monkeypatch) for dim, cache in caches.items()}

    @settings(deadline=None, max_examples=30)
    @given(
        st.sampled_from([3, 37]),
        st.sampled_from([0, 1, 2, 5, 40]),
        st.integers(1, 900),
        st.sampled_from([0, 0.01, 0.5, None]),
        st.integers(0, 5),
    )
    def check(dim: int, num_queries: int, k: int, share: float | None, seed: int) -> None:
        rng = np.random.default_rng(seed)
        queries = unit_queries(rng, num_queries, dim)
        allowed = None if share is None else rng.random(700) < share
        scores, rows = indexes[dim].search(queries, k, allowed)
        expected = nearest_rows(caches[dim], queries, k, allowed)
        np.testing.assert_array_equal(rows, expected[1])
        np.testing.assert_array_equal(scores, expected[0])
        assert (scores.dtype, rows.dtype) == (np.float32, np.int64)

    check()


@pytest.mark.parametrize("way", WAYS)
def test_of_equal_images_the_lower_row_comes_first(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "BLOCK_ROWS", 16)
    monkeypatch.setattr(codes, "BLOCK_ROWS", 16)
    pattern = np.random.default_rng(0).standard_normal((3, 20)).astype(np.float32)

    def draw(rows: slice, dim: int, rng: np.random.Generator) -> Any:
        return pattern[np.arange(rows.start, rows.stop) % 3]

    cache = write_random_cache(tmp_path / "c.zarr", ([] for _ in range(90)), 20, draw)
    query = (pattern[1] / np.linalg.norm(pattern[1]))[None]
    _, rows = opened(cache, way, monkeypatch).search(query, 35)
    np.testing.assert_array_equal(rows[0, :30], np.arange(1, 90, 3))


@pytest.mark.parametrize("way", WAYS)
def test_appended_rows_and_the_plain_view_are_searched(
    way: str, manifest: Path, make_cache: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = manifest.read_text(encoding="utf-8").splitlines()
    for name, part in (("first", lines[:25]), ("more", lines[25:])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(part), encoding="utf-8")
    make_cache(tmp_path / "first.jsonl", tmp_path / "c.zarr", views=2, image_root=manifest.parent)
    make_cache(tmp_path / "more.jsonl", tmp_path / "c.zarr", views=2, append=True, image_root=manifest.parent)
    cache = Cache(tmp_path / "c.zarr")
    assert (len(cache), cache.info.num_views) == (40, 2)
    queries = unit_queries(np.random.default_rng(0), 3, cache.info.encoder.dim)
    scores, rows = opened(cache, way, monkeypatch).search(queries, 7)
    expected = nearest_rows(cache, queries, 7)
    np.testing.assert_array_equal(rows, expected[1])
    np.testing.assert_array_equal(scores, expected[0])


def test_a_resident_index_holds_an_hdf5_cache_in_memory(caches: dict[int, Cache], tmp_path: Path) -> None:
    convert_cache(ConvertSettings(cache=caches[37].path, out=tmp_path / "c.h5"))
    queries = unit_queries(np.random.default_rng(1), 2, 37)
    found = ExactIndex(Cache(tmp_path / "c.h5"), resident=True).search(queries, 9)
    for ours, expected in zip(found, nearest_rows(caches[37], queries, 9), strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_searches_in_several_threads_agree(caches: dict[int, Cache]) -> None:
    index = ExactIndex(caches[37], resident=True)
    queries = unit_queries(np.random.default_rng(2), 16, 37)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda i: index.search(queries[i : i + 1], 5)[1][0], range(16)))
    np.testing.assert_array_equal(np.stack(found), nearest_rows(caches[37], queries, 5)[1])


def test_the_bound_of_int8_cosines_holds_also_for_rows_unlike_the_sample(
    caches: dict[int, Cache], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codes, "SAMPLE", 3)  # most rows are then cut off at the largest code
    cache = caches[37]
    index = ExactIndex(cache, resident=True)
    queries = unit_queries(np.random.default_rng(3), 8, 37)
    exactly = queries.astype(np.float64) @ cache.image_emb().astype(np.float64).T
    for start, cosines, error in index._coded().cosines(queries):
        assert (np.abs(exactly[:, start : start + cosines.shape[1]] - cosines) <= error).all()
    np.testing.assert_array_equal(index.search(queries, 5)[1], nearest_rows(cache, queries, 5)[1])


def test_a_lower_precision_of_torch_changes_nothing(caches: dict[int, Cache]) -> None:
    queries = unit_queries(np.random.default_rng(4), 40, 37)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        found = ExactIndex(caches[37]).search(queries, 6)[1]
    finally:
        torch.set_float32_matmul_precision(before)
    np.testing.assert_array_equal(found, nearest_rows(caches[37], queries, 6)[1])


def test_search_imports_no_torch(caches: dict[int, Cache]) -> None:
    script = (
        "import sys, json, numpy as np\nfrom clipglot.cache.read.cache import Cache\n"
        "from clipglot.search.exact import ExactIndex\n"
        f"cache = Cache({str(caches[37].path)!r})\n"
        "found = [ExactIndex(cache, resident=resident).search(np.eye(37, dtype=np.float32)[:2], 3)[1].tolist()\n"
        "         for resident in (False, True)]\n"
        "assert 'torch' not in sys.modules\nprint(json.dumps(found))"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    expected = nearest_rows(caches[37], np.eye(37, dtype=np.float32)[:2], 3)[1].tolist()
    assert json.loads(done.stdout) == [expected, expected]
