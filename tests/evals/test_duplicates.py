"""Near-duplicates and leakage: blockwise search against all cosines at once, samples, groups, captions and keys."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from clipglot.cache.errors import CacheError
from clipglot.cache.format import Status
from clipglot.cache.progress import Progress
from clipglot.cache.read.cache import Cache
from clipglot.cli.main import main
from clipglot.evals import duplicates
from clipglot.evals.duplicates import DisjointSets, DuplicateGroups, find_near_duplicates
from clipglot.evals.errors import EvalError
from hypothesis import given
from hypothesis import strategies as st
from support.drawings import draw_images


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images: 30 to 39 are copies of 0 to 4, twice, and 12 is broken. `val` has 38 to 55 and copies of 5 to 8."""
    folder = tmp_path_factory.mktemp("copies")
    draw_images(folder, 60)
    images = folder / "images"
    for i in range(10):
        shutil.copy(images / f"{i % 5:04}.png", images / f"{30 + i:04}.png")
    for i in range(4):
        shutil.copy(images / f"{5 + i:04}.png", images / f"{56 + i:04}.png")
    (images / "0012.png").write_bytes(b"broken")
    lines = (folder / "pairs.jsonl").read_text(encoding="utf-8").splitlines()
    (folder / "train.jsonl").write_text("\n".join(lines[:40]), encoding="utf-8")
    (folder / "val.jsonl").write_text("\n".join(lines[38:]), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def caches(folder: Path, make_cache: Callable[..., Any]) -> tuple[Cache, Cache]:
    for name in ("train", "val"):
        make_cache(folder / f"{name}.jsonl", folder / f"{name}.zarr")
    return Cache(folder / "train.zarr"), Cache(folder / "val.zarr")


def unit(cache: Cache) -> Any:
    emb = cache.image_emb().astype(np.float32)
    return emb / np.maximum(np.linalg.norm(emb, axis=1, keepdims=True), 1e-12)


@pytest.mark.parametrize("rows", [(8, 4), (24, 16), (16_384, 4096)])
def test_search_in_blocks_equals_all_cosines_at_once(
    rows: tuple[int, int], caches: tuple[Cache, Cache], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duplicates, "READ_ROWS", rows[0])
    monkeypatch.setattr(duplicates, "BLOCK_ROWS", rows[1])
    train, _ = caches
    embedded = np.flatnonzero(train.status() == Status.EMBEDDED)
    products = (unit(train) @ unit(train).T)[np.ix_(embedded, embedded)]
    np.fill_diagonal(products, -1)
    nearest = np.sort(products.max(1))
    for threshold in (float(nearest[8] + nearest[9]) / 2, 0.99999):
        report = find_near_duplicates(train, threshold=threshold, num_listed=-1)
        assert (report.num_pictures, report.num_compared, report.num_others) == (39, 39, 38)
        for cosine, count in report.above.items():
            assert count == (nearest >= float(cosine)).sum()
        _, component = np.unique(_components(products >= threshold), return_inverse=True)
        sizes = np.bincount(component)
        assert report.groups is not None
        assert report.groups.num_groups == (sizes > 1).sum()
        assert report.groups.num_pictures == sizes[sizes > 1].sum()
        assert report.groups.largest == sizes.max()
        assert report.share == report.share_low == report.share_high == (nearest >= threshold).mean()
    assert report.groups.num_groups == 5  # the last threshold: copies, three of each
    assert {(pair.key[-8:-4], pair.other_key[-8:-4]) for pair in report.pairs} >= {("0000", "0030"), ("0004", "0034")}


def _components(near: Any) -> Any:
    label = np.arange(len(near))
    for _ in range(len(near)):
        label = np.minimum(label, np.where(near, label[None], len(near)).min(1))
    return label


def test_images_of_a_second_cache_are_searched_in_the_first(caches: tuple[Cache, Cache]) -> None:
    train, val = caches
    progress: list[Progress] = []
    report = find_near_duplicates(train, val, threshold=0.99999, on_progress=progress.append)
    best = (unit(val) @ unit(train).T).max(1)
    assert (report.num_pictures, report.num_others, report.groups) == (22, 39, None)
    assert report.above["0.99999"] == (best >= 0.99999).sum() == 6  # four copies, and the two rows of both manifests
    leaked = {pair.key[-8:-4]: pair.other_key[-8:-4] for pair in report.pairs}
    assert leaked | {"0038": "", "0039": ""} == {"0038": "", "0039": ""} | {
        f"{56 + i:04}": f"{5 + i:04}" for i in range(4)
    }
    assert report.num_same_keys == 2
    ours, theirs = set(train.captions()), val.captions()
    assert (report.num_captions, report.num_repeated_captions) == (len(theirs), sum(c in ours for c in theirs))
    assert progress[-1] == Progress("compare", 22 * 39, 22 * 39)


def test_repeated_captions_are_counted(caches: tuple[Cache, Cache]) -> None:
    captions = caches[0].captions()
    report = find_near_duplicates(caches[0])
    assert report.num_repeated_captions == sum(captions.count(caption) > 1 for caption in captions) > 0


def test_a_sample_has_an_interval_and_no_image_is_its_own_neighbour(caches: tuple[Cache, Cache]) -> None:
    train, _ = caches
    reports = [find_near_duplicates(train, threshold=0.99999, sample=10, seed=seed) for seed in (3, 3, 4)]
    assert reports[0] == reports[1] != reports[2]
    assert (reports[0].num_pictures, reports[0].num_compared, reports[0].groups) == (39, 10, None)
    assert reports[0].share_low < reports[0].share < reports[0].share_high
    emb = unit(train)
    embedded = np.flatnonzero(train.status() == Status.EMBEDDED)
    drawn = np.sort(np.random.default_rng(3).choice(embedded, 10, replace=False, shuffle=False))
    products = emb[drawn] @ emb[embedded].T
    products[drawn[:, None] == embedded] = -1
    assert reports[0].above["0.99999"] == (products.max(1) >= 0.99999).sum()


def test_too_many_pairs_are_sampled_unless_all_are_requested(
    caches: tuple[Cache, Cache], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duplicates, "MAX_PAIRS", 39 * 39 - 1)
    monkeypatch.setattr(duplicates, "SAMPLE_SIZE", 7)
    assert find_near_duplicates(caches[0]).num_compared == 7
    assert find_near_duplicates(caches[0], sample=0).num_compared == 39
    monkeypatch.setattr(duplicates, "MAX_PAIRS", 39 * 39)
    assert find_near_duplicates(caches[0]).num_compared == 39


@given(st.integers(1, 12).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.tuples(*[st.integers(0, n - 1)] * 2)))))
def test_disjoint_sets_are_the_components_of_the_graph(drawn: tuple[int, list[tuple[int, int]]]) -> None:
    num, pairs = drawn
    near = np.eye(num, dtype=bool)
    components = DisjointSets(num)
    for start in range(0, len(pairs), 3):
        a, b = np.array(pairs[start : start + 3]).T
        components.unite(a, b)
        near[a, b] = near[b, a] = True
    sizes = np.bincount(_components(near))
    assert sorted(components.sizes()) == sorted(sizes[sizes > 0])
    groups = DuplicateGroups.of(components.sizes())
    assert (groups.num_groups, groups.num_pictures) == ((sizes > 1).sum(), sizes[sizes > 1].sum())
    assert groups.largest == (sizes.max() if sizes.max() > 1 else 0)


def test_caches_of_other_towers_and_damaged_ones_are_refused(
    caches: tuple[Cache, Cache], folder: Path, tmp_path: Path, make_cache: Callable[..., Any], other_clip: Path
) -> None:
    make_cache(folder / "val.jsonl", tmp_path / "other.zarr", model=f"local-dir:{other_clip}")
    with pytest.raises(EvalError, match=r"made by different image towers \(weights_sha256\)"):
        find_near_duplicates(caches[0], Cache(tmp_path / "other.zarr"))
    damaged = Path(shutil.copytree(folder / "val.zarr", tmp_path / "damaged.zarr"))
    (damaged / "images/emb/c/0/1/0").write_bytes(b"")
    with pytest.raises(CacheError, match="damaged chunk images/emb/c/0/1/0"):
        find_near_duplicates(caches[0], Cache(damaged))


def test_a_cache_of_texts_is_refused(
    translated_manifests: dict[str, Path], make_cache: Callable[..., Any], tmp_path: Path
) -> None:
    from support.translated_scenes import MODEL

    make_cache(
        translated_manifests["train"], tmp_path / "texts", model=MODEL, teacher_field=("en",), images=False, limit=20
    )
    with pytest.raises(EvalError, match="holds texts, no images"):
        find_near_duplicates(Cache(tmp_path / "texts"))


def test_the_table_of_the_command_agrees_with_its_json(folder: Path, caches: tuple[Cache, Cache]) -> None:
    arguments = ["duplicates", str(folder / "train.zarr"), "--threshold", "0.99999", "--device", "cpu"]
    printed = CliRunner().invoke(main, [*arguments, "--pairs", "2"])
    assert printed.exit_code == 0, printed.output
    assert "5 groups hold 15 images, the largest 3: 10 could go" in printed.stdout
    assert "more: --pairs -1 lists all" in printed.stdout
    sampled = CliRunner().invoke(main, [*arguments, "--sample", "10"]).stdout
    assert "a sample of 10 of 39 images" in sampled
    assert "(95 %)" in sampled
    against = CliRunner().invoke(main, [*arguments, "--against", str(folder / "val.zarr"), "--json"])
    found = json.loads(against.stdout)
    assert (found["above"]["0.99999"], found["num_same_keys"]) == (6, 2)
    assert CliRunner().invoke(main, [*arguments, "--threshold", "2"]).exit_code == 2
