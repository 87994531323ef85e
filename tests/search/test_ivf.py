"""Index files: recall against exact search, filters, other caches, damage and forgery; the same bytes as of faiss."""

import errno
import json
import os
import shutil
import struct
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import clipglot
import faiss
import numpy as np
import pytest
from clipglot.cache.errors import CacheError
from clipglot.cache.format import Status
from clipglot.cache.read.cache import Cache
from clipglot.inference.errors import InputError
from clipglot.jobs.bench_data import write_random_cache
from clipglot.jobs.convert import convert_cache
from clipglot.jobs.index import IndexResult, build_index
from clipglot.jobs.settings.convert import ConvertSettings
from clipglot.jobs.settings.index import IndexSettings
from clipglot.search import index_file, ivf
from clipglot.search.codings import CODINGS, Coding, Int8Coding, RabitqCoding
from clipglot.search.errors import SearchError
from clipglot.search.exact import ExactIndex
from clipglot.search.index_file import END, IndexInfo, seal_index
from clipglot.search.ivf import IvfIndex, Lists, write_lists
from clipglot.search.open import open_index
from clipglot.search.tune import tune
from support.command_line import run
from support.nearest_rows import draw_odd, nearest_rows, unit_queries
from support.search_index import write_index

DIM = 37


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    path = tmp_path_factory.mktemp("search") / "c.zarr"
    return write_random_cache(path, ([] for _ in range(3000)), DIM, draw_odd)


@pytest.fixture(scope="module", params=CODINGS)
def file(request: pytest.FixtureRequest, cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_index(cache, tmp_path_factory.mktemp("index") / "c.index", request.param)


@pytest.fixture
def reads_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """However few the images are, an index does not compare all of them."""
    monkeypatch.setattr(ivf, "EXACT_ROWS", 1)


def recall(found: Any, expected: Any) -> float:
    return float(np.mean([len(np.intersect1d(*rows)) / len(rows[1]) for rows in zip(found, expected, strict=True)]))


@pytest.mark.parametrize("coding", CODINGS.values())
def test_the_file_begins_as_faiss_itself_writes_it(coding: type[Coding], cache: Cache, tmp_path: Path) -> None:
    (tmp_path / "lists").touch()
    layout = write_lists(cache, tmp_path / "lists", coding=coding)
    index = faiss.read_index(str(tmp_path / "lists"))
    assert (index.ntotal, index.nlist) == (int((cache.status() == Status.EMBEDDED).sum()), len(layout.centroids))
    faiss.write_index(index, str(tmp_path / "again"))
    assert (tmp_path / "again").read_bytes() == (tmp_path / "lists").read_bytes()


@pytest.mark.usefixtures("reads_lists")
def test_scores_are_exact_and_recall_is_what_the_file_says(cache: Cache, file: Path) -> None:
    index = IvfIndex(cache, file)
    queries = unit_queries(np.random.default_rng(8), 200, DIM)
    scores, rows = index.search(queries, 10)
    expected = nearest_rows(cache, queries, 10)
    assert recall(rows, expected[1]) > 0.93
    assert abs(recall(rows, expected[1]) - index.info.recall) < 0.03
    emb = cache.image_emb().astype(np.float64)
    for query, own_scores, own_rows in zip(queries, scores, rows, strict=True):
        np.testing.assert_array_equal(own_scores, (emb[own_rows] @ query.astype(np.float64)).astype(np.float32))
        assert (np.diff(own_scores) <= 0).all()
        assert len(set(own_rows.tolist())) == 10


@pytest.mark.parametrize("exact_rows", [0, 50_000])
@pytest.mark.parametrize("share", [0, 0.001, 0.05, 0.6, 1])
def test_only_allowed_and_embedded_images_are_found(
    share: float, exact_rows: int, cache: Cache, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ivf, "EXACT_ROWS", exact_rows or 1)
    rng = np.random.default_rng(9)
    allowed, queries = rng.random(3000) < share, unit_queries(rng, 30, DIM)
    for k in (1, 10, 500, 4000):
        scores, rows = IvfIndex(cache, file).search(queries, k, allowed)
        expected = nearest_rows(cache, queries, k, allowed)
        assert rows.shape == scores.shape == expected[1].shape
        assert allowed[rows].all()
        assert (cache.status()[rows] == Status.EMBEDDED).all()
        if exact_rows:
            np.testing.assert_array_equal(rows, expected[1])
        elif rows.size:
            assert recall(rows, expected[1]) > 0.8


def test_a_search_without_queries_or_with_more_images_than_there_are(cache: Cache, file: Path) -> None:
    index = IvfIndex(cache, file)
    assert index.search(np.empty((0, DIM), np.float32), 5)[1].shape == (0, 5)
    queries = unit_queries(np.random.default_rng(1), 2, DIM)
    np.testing.assert_array_equal(index.search(queries, 5000)[1], nearest_rows(cache, queries, 5000)[1])


def test_a_copy_of_the_cache_has_the_same_index(cache: Cache, file: Path, tmp_path: Path) -> None:
    shutil.copytree(cache.arrays.folder, tmp_path / "copy.zarr")
    convert_cache(ConvertSettings(cache=cache.path, out=tmp_path / "c.h5"))
    queries = unit_queries(np.random.default_rng(2), 3, DIM)
    expected = IvfIndex(cache, file).search(queries, 4)[1]
    for copy in ("copy.zarr", "c.h5"):
        np.testing.assert_array_equal(open_index(Cache(tmp_path / copy), file).search(queries, 4)[1], expected)


def test_no_file_opens_an_exact_search(cache: Cache) -> None:
    assert isinstance(open_index(cache), ExactIndex)


def test_the_index_of_another_or_of_a_changed_cache_is_refused(
    manifest: Path, make_cache: Callable[..., Any], cache: Cache, file: Path, tmp_path: Path
) -> None:
    lines = manifest.read_text(encoding="utf-8").splitlines()
    for name, part in (("first", lines[:25]), ("more", lines[25:])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(part), encoding="utf-8")
    grown, given = tmp_path / "c.zarr", {"image_root": manifest.parent}
    make_cache(tmp_path / "first.jsonl", grown, **given)
    with pytest.raises(SearchError, match=r"c.index.* another cache.*clipglot index"):
        open_index(Cache(grown), file)
    own = write_index(Cache(grown), tmp_path / "own.index")
    open_index(Cache(grown), own)
    make_cache(tmp_path / "more.jsonl", grown, append=True, **given)
    with pytest.raises(SearchError, match=r"own.index.* appended .*clipglot index"):
        open_index(Cache(grown), own)


def test_damage_is_refused_with_the_file_and_what_to_do(cache: Cache, file: Path, tmp_path: Path) -> None:
    content = file.read_bytes()
    rng = np.random.default_rng(0)
    cut = [content[:at] for at in (0, 10, END.size, len(content) // 2, len(content) - 1)]
    ends = range(len(content) - 40, len(content))
    places = [*rng.integers(0, len(content), 40).tolist(), *ends]
    flipped = [content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :] for at in places]
    for damaged in [*cut, content + b"x", *flipped]:
        (tmp_path / "d.index").write_bytes(damaged)
        with pytest.raises(SearchError, match=r"d\.index.*clipglot index"):
            IvfIndex(cache, tmp_path / "d.index")
    for odd in (tmp_path, tmp_path / "none.index"):
        with pytest.raises(SearchError, match="clipglot index"):
            IvfIndex(cache, odd)


@pytest.mark.usefixtures("reads_lists")
def test_rows_that_the_cache_does_not_have_are_refused(cache: Cache, file: Path, tmp_path: Path) -> None:
    content, opened = file.read_bytes(), index_file.read_index_file(file)
    faiss_bytes, *_ = END.unpack(content[-END.size :])
    forged = bytearray(content[:faiss_bytes])
    for at in range(faiss_bytes - 8 * 20, faiss_bytes, 8):  # the last list ends with its rows
        forged[at : at + 8] = struct.pack("<q", 10**12)
    (tmp_path / "c.index").write_bytes(forged)
    fields = asdict(opened.info) | {"num_probes": opened.info.num_lists, "depth": 3000}
    seal_index(tmp_path / "c.index", opened.coding, lambda sums: IndexInfo(**fields | {"checksums": sums}))
    with pytest.raises(SearchError, match="names row"):
        IvfIndex(cache, tmp_path / "c.index").search(unit_queries(np.random.default_rng(3), 1, DIM), 3)


def test_a_cache_without_an_embedded_image_has_no_index(cache: Cache, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(Cache, "status", lambda self: np.full(len(self), Status.DAMAGED, np.uint8))
    (tmp_path / "lists").touch()
    with pytest.raises(SearchError, match="no embedded image"):
        write_lists(cache, tmp_path / "lists")


def test_one_bit_a_feature_takes_the_codes_of_faiss_and_a_sixth_of_the_bytes(cache: Cache, tmp_path: Path) -> None:
    for coding in CODINGS.values():
        (tmp_path / coding.kind).touch()
        layout = write_lists(cache, tmp_path / coding.kind, coding=coding)
    turned = layout.coding.queries(cache.image_emb().astype(np.float32))
    quantizer = faiss.IndexFlatIP(DIM)
    quantizer.add(layout.coding.centroids(layout.centroids))
    theirs = faiss.IndexIVFRaBitQ(quantizer, DIM, len(layout.centroids), faiss.METRIC_INNER_PRODUCT)
    theirs.train(turned)
    embedded = np.flatnonzero(layout.lists >= 0)
    given = [
        np.ascontiguousarray(each) for each in (turned[embedded], embedded, layout.lists[embedded].astype(np.int64))
    ]
    theirs.add_core(len(embedded), *map(faiss.swig_ptr, (given[0], given[1], given[2])))
    ours = faiss.read_index(str(tmp_path / RabitqCoding.kind))
    for each in range(len(layout.centroids)):
        size = ours.invlists.list_size(each)
        assert size == theirs.invlists.list_size(each)
        stored = [faiss.rev_swig_ptr(index.invlists.get_codes(each), size * ours.code_size) for index in (ours, theirs)]
        own, expected = (codes.reshape(size, -1) for codes in stored)
        np.testing.assert_array_equal(own[:, :-8], expected[:, :-8])
        factors = [np.ascontiguousarray(codes[:, -8:]).view(np.float32) for codes in (own, expected)]
        np.testing.assert_allclose(*factors, rtol=1e-4, atol=1e-4)  # turned in other blocks, so rounded differently
    assert RabitqCoding.code_bytes(512) + 8 < (Int8Coding.code_bytes(512) + 8) / 6


@pytest.mark.parametrize("coding", CODINGS.values())
def test_a_target_of_all_finds_nearly_all(coding: type[Coding], cache: Cache, tmp_path: Path) -> None:
    (tmp_path / "lists").touch()
    layout = write_lists(cache, tmp_path / "lists", coding=coding)
    lists = Lists(tmp_path / "lists", layout.coding)
    queries = unit_queries(np.random.default_rng(4), 100, DIM)
    low, high = (tune(cache, layout, lists, queries, target) for target in (0.6, 1.0))
    assert high.recall > 0.97
    assert low.num_probes < high.num_probes
    assert low.num_queries == 50


# The command


def build(cache: Path, output: Path, **settings: Any) -> IndexResult:
    return build_index(IndexSettings(cache=cache, output=output, **settings))


@pytest.mark.usefixtures("reads_lists")
def test_the_command_tunes_by_captions_and_the_clip_searches_by_the_index(
    merged: Path, tiny_cache: Path, tmp_path: Path
) -> None:
    result = build(tiny_cache, tmp_path / "t.index", clip=merged, recall=1.0, num_queries=40)
    assert (result.queries, result.num_queries, result.num_rows, result.is_small) == ("captions", 20, 40, True)
    assert result.num_bytes == (tmp_path / "t.index").stat().st_size
    clip = clipglot.load(merged, device="cpu")
    queries = ["a red circle", "a blue square"]
    assert clip.search(tiny_cache, queries, 3, index=tmp_path / "t.index") == clip.search(tiny_cache, queries, 3)
    opened = open_index(Cache(tiny_cache), resident=True)
    assert clip.search(tiny_cache, queries, 3, index=opened) == clip.search(tiny_cache, queries, 3)
    with pytest.raises(CacheError, match="exists"):
        build(tiny_cache, tmp_path / "t.index", clip=merged)


def test_the_command_line_prints_the_recall_and_that_few_images_need_no_index(
    merged: Path, tiny_cache: Path, tmp_path: Path
) -> None:
    shown = run("index", tiny_cache, "-o", tmp_path / "a.index", "--clip", merged)
    assert shown.exit_code == 0, shown.output
    assert all(fact in shown.stdout for fact in ("recall@10", "captions", "need no index"))
    plain = run("index", tiny_cache, "-o", tmp_path / "b.index", "--clip", merged, "--json")
    report = json.loads(plain.stdout)
    assert report["file"] == str(tmp_path / "b.index")
    assert report["kind"] == "ivf-int8"
    assert {"num_rows", "kind", "num_lists", "num_probes", "depth", "recall", "num_bytes", "wall_s"} <= set(report)
    refused = run("index", tiny_cache, "-o", tmp_path / "b.index", "--clip", merged)
    assert (refused.exit_code, "exists" in refused.stderr) == (1, True)


def test_queries_come_from_a_file_and_the_file_is_reproducible(merged: Path, tiny_cache: Path, tmp_path: Path) -> None:
    (tmp_path / "q.txt").write_text("a red circle\n\na red circle\na blue square\n", encoding="utf-8")
    given = {"clip": merged, "queries": tmp_path / "q.txt"}
    result = build(tiny_cache, tmp_path / "a.index", **given)
    assert (result.queries, result.num_queries) == ("texts", 1)
    build(tiny_cache, tmp_path / "b.index", **given)
    assert (tmp_path / "a.index").read_bytes() == (tmp_path / "b.index").read_bytes()
    (tmp_path / "q.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(InputError, match=r"q\.txt"):
        build(tiny_cache, tmp_path / "c.index", **given)


def test_without_texts_to_measure_by_the_command_says_what_to_pass(
    tiny_cache: Path, merged: Path, tmp_path: Path
) -> None:
    with pytest.raises(SearchError, match="--clip"):
        build(tiny_cache, tmp_path / "t.index")
    (tmp_path / "q.txt").write_text("one\n", encoding="utf-8")
    with pytest.raises(SearchError, match="at least two"):
        build(tiny_cache, tmp_path / "t.index", clip=merged, queries=tmp_path / "q.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["q.txt"]


def test_a_full_disk_is_told_and_leaves_nothing(
    merged: Path, tiny_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(CacheError, match=r"t\.index.*free some space"):
        build(tiny_cache, tmp_path / "t.index", clip=merged)
    assert list(tmp_path.iterdir()) == []


def test_translations_serve_as_texts(translated_caches: dict[str, Path], tmp_path: Path) -> None:
    with_teacher = next(path for path in translated_caches.values() if Cache(path).info.source.has_teacher)
    assert build(with_teacher, tmp_path / "t.index").queries == "translations"


def test_a_forged_size_is_refused_though_all_checksums_match(cache: Cache, file: Path, tmp_path: Path) -> None:
    opened = index_file.read_index_file(file)
    faiss_bytes, *_ = END.unpack(file.read_bytes()[-END.size :])
    body = file.read_bytes()[:faiss_bytes]
    before, behind = index_file.faiss_header(type(opened.coding), DIM, opened.info.num_rows, opened.info.num_lists)
    sizes_at = len(before) + opened.info.num_lists * DIM * 4 + len(behind)

    def forged(at: int, value: bytes, **claims: int) -> Path:
        path = tmp_path / "forged.index"
        path.write_bytes(body[:at] + value + body[at + len(value) :])
        fields = asdict(opened.info)
        seal_index(path, opened.coding, lambda sums: IndexInfo(**fields | claims | {"checksums": sums}))
        return path

    huge = struct.pack("<Q", 2**62)
    IvfIndex(cache, forged(0, b""))
    for at, value in ((0, b"IwFl"), (8, huge), (sizes_at, huge), (sizes_at - 8, huge), (len(before) - 8, huge)):
        with pytest.raises(SearchError, match="forged"):
            IvfIndex(cache, forged(at, value))
    for claims in ({"num_rows": 10**15}, {"dim": 2**40}, {"num_lists": 2**60}, {"num_rows": 0}, {"num_probes": -1}):
        with pytest.raises(SearchError, match="forged"):
            IvfIndex(cache, forged(0, b"", **claims))
