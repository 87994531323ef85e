"""Retrieval: the metrics against a brute-force reference, then on a merged CLIP and a cache."""

import json
import shutil
from collections.abc import Callable
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from clipglot.cache.read.cache import Cache
from clipglot.encoders.errors import EncoderError
from clipglot.encoders.merged_clip import load_merged
from clipglot.evals.embedding_stats import alignment, uniformity
from clipglot.evals.errors import EvalError
from clipglot.evals.retrieval import Ranks, RetrievalReport, retrieve
from clipglot.jobs.evaluate import RetrievalResult, evaluate_retrieval
from clipglot.jobs.settings.evaluate import RetrievalSettings
from hypothesis import given
from hypothesis import strategies as st
from support.drawings import draw_images


def recall(merged: Path, cache: Cache) -> RetrievalReport:
    """What `clipglot eval retrieval` computes."""
    result = evaluate_retrieval(RetrievalSettings(merged=merged, cache=cache.path))
    assert isinstance(result, RetrievalResult)
    return result.report


def reference(similarity: list[list[int]], right: list[set[int]], k: int) -> float:
    """The chance that one of the right answers is among the first k when ties are put in random order."""
    hits = []
    for scores, mine in zip(similarity, right, strict=True):
        best = max(scores[i] for i in mine)
        ahead = sum(s > best for s in scores)
        tied = [i for i, s in enumerate(scores) if s == best]
        places, wrong = max(0, k - ahead), sum(i not in mine for i in tied)
        hits.append(1 - comb(wrong, min(places, len(tied))) / comb(len(tied), min(places, len(tied))))
    return float(np.mean(hits))


@st.composite
def worlds(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Small integers as embeddings, so that ties abound and similarities are exact; images may lack captions."""
    num_images, num_texts = draw(st.integers(1, 15)), draw(st.integers(1, 15))
    vectors = st.lists(st.integers(-2, 2), min_size=2, max_size=2)
    text_emb = np.array(draw(st.lists(vectors, min_size=num_texts, max_size=num_texts)), np.float32)
    image_emb = np.array(draw(st.lists(vectors, min_size=num_images, max_size=num_images)), np.float32)
    image_index = draw(st.lists(st.integers(0, num_images - 1), min_size=num_texts, max_size=num_texts))
    texts = draw(st.lists(st.integers(0, 20), min_size=num_texts, max_size=num_texts))
    return text_emb, image_emb, np.array(sorted(image_index)), np.array(texts)


def right_answers(image_index: np.ndarray, texts: np.ndarray) -> tuple[list[set[int]], list[set[int]]]:
    """Right images of each caption, and right captions of each image that has one, by comparing every pair."""
    pairs = list(zip(image_index.tolist(), texts.tolist(), strict=True))
    of_caption = [{image for image, other in pairs if other == text} for _, text in pairs]
    of_image = [
        {i for i, (_, text) in enumerate(pairs) if (image, text) in pairs}
        for image in sorted(set(image_index.tolist()))
    ]
    return of_caption, of_image


def first_of_each(texts: np.ndarray) -> np.ndarray:
    """For each caption the first one with its text."""
    return np.array([texts.tolist().index(text) for text in texts.tolist()])


@given(worlds(), st.sampled_from([(1, 1, 1), (5, 3, 2), (1020, 4096, 255)]))
def test_recall_is_that_of_a_brute_force_search(world: tuple[Any, Any, Any, Any], sizes: tuple[int, int, int]) -> None:
    text_emb, image_emb, image_index, texts = world
    with pytest.MonkeyPatch.context() as patch:
        for name, size in zip(("TEXTS", "IMAGES", "ROWS"), sizes, strict=True):
            patch.setattr(f"clipglot.evals.retrieval.{name}", size)
        report = retrieve(text_emb, image_emb, image_index, texts).report()
    text_emb = text_emb[first_of_each(texts)]  # equal texts have one embedding
    similarity = (text_emb @ image_emb.T).astype(int)
    owned = sorted(set(image_index.tolist()))
    of_caption, of_image = right_answers(image_index, texts)
    for ranks, scores, right in (
        (report.text_to_image, similarity, of_caption),
        (report.image_to_text, similarity.T[owned], of_image),
    ):
        recalls = [reference(scores.tolist(), right, k) for k in (1, 5, 10)]
        assert [ranks.r_at_1, ranks.r_at_5, ranks.r_at_10] == pytest.approx(recalls)
        assert (ranks.num_queries, ranks.num_candidates) == scores.shape


@pytest.mark.parametrize("seed", range(5))
def test_recall_and_rank_with_equal_captions_are_those_of_a_dense_float64_search(seed: int) -> None:
    rng = np.random.default_rng(seed)
    num_images, num_texts = 120, 300
    image_index = np.sort(rng.integers(0, num_images, num_texts))
    texts = rng.choice(10**6, 80, replace=False)[rng.integers(0, 80, num_texts)]  # about four captions of each text
    image_emb, of_text = (unit(rng.normal(size=(n, 16))) for n in (num_images, num_texts))
    text_emb = of_text[np.unique(texts, return_inverse=True)[1]]
    report = retrieve(text_emb, image_emb, image_index, texts).report()
    similarity = text_emb.astype(np.float64) @ image_emb.astype(np.float64).T
    of_caption, of_image = right_answers(image_index, texts)
    assert max(map(len, of_caption)) > 4
    for ranks, scores, right in (
        (report.text_to_image, similarity, of_caption),
        (report.image_to_text, similarity.T[np.unique(image_index)], of_image),
    ):
        first = np.array([1 + (s > max(s[list(mine)])).sum() for s, mine in zip(scores, right, strict=True)])
        assert [ranks.r_at_1, ranks.r_at_5, ranks.r_at_10] == pytest.approx([(first <= k).mean() for k in (1, 5, 10)])
        assert ranks.median_rank == np.median(first)


def test_recalls_of_distinct_captions_are_those_of_the_own_image_alone() -> None:
    rng = np.random.default_rng(0)
    image_emb, text_emb = unit(rng.normal(size=(70, 8))), unit(rng.normal(size=(200, 8)))
    image_index = np.sort(rng.integers(0, 70, 200))
    similarity = text_emb @ image_emb.T
    own = similarity[np.arange(200), image_index][:, None]
    ahead = (similarity > own).sum(1)
    for texts in (None, rng.permutation(200)):
        ranks = retrieve(text_emb, image_emb, image_index, texts).report().text_to_image
        assert [ranks.r_at_1, ranks.r_at_5, ranks.r_at_10] == [(ahead < k).mean() for k in (1, 5, 10)]
        assert ranks.median_rank == np.median(ahead + 1)


def test_in_class_folders_images_find_captions_as_often_as_zero_shot_finds_classes() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(20), 30)
    classes = unit(rng.normal(size=(20, 16)))
    image_emb = unit(classes[labels] + 0.3 * rng.normal(size=(600, 16)))
    accuracy = ((image_emb.astype(float) @ classes.T.astype(float)).argmax(1) == labels).mean()
    report = retrieve(classes[labels], image_emb, np.arange(600), labels).report()
    assert 0.5 < accuracy < 0.99
    assert report.image_to_text.r_at_1 == pytest.approx(accuracy)
    assert report.text_to_image.r_at_1 == 1
    alone = retrieve(classes[labels], image_emb, np.arange(600)).report()  # as if each caption were of one image alone
    assert alone.text_to_image.r_at_1 < 0.1


def unit(emb: np.ndarray) -> np.ndarray:
    return (emb / np.linalg.norm(emb, axis=1, keepdims=True)).astype(np.float32)


def test_embeddings_that_are_all_alike_score_at_chance() -> None:
    alike = np.ones((100, 4), np.float32)
    ranks = retrieve(alike, alike, np.arange(100)).report().text_to_image
    assert [ranks.r_at_1, ranks.r_at_5, ranks.r_at_10, ranks.median_rank] == pytest.approx([0.01, 0.05, 0.1, 50.5])


def test_an_image_is_found_by_the_best_of_its_captions() -> None:
    image_emb = np.eye(3, dtype=np.float32)
    text_emb = image_emb[[0, 1, 1, 1]]  # the second caption of image 0 reads like image 1; image 2 has none
    ranks = retrieve(text_emb, image_emb, np.array([0, 0, 1, 1])).report().image_to_text
    assert ranks == Ranks(
        r_at_1=pytest.approx((1 + 2 / 3) / 2),  # image 1: two right captions and a wrong one tie
        r_at_5=1,
        r_at_10=1,
        median_rank=pytest.approx((1 + 4 / 3) / 2),
        num_queries=2,
        num_candidates=4,
    )


@pytest.mark.parametrize("side", [0, 1])
def test_embeddings_that_are_not_finite_are_refused(side: int) -> None:
    emb = [np.eye(2, dtype=np.float32), np.eye(2, dtype=np.float32)]
    emb[side][0, 0] = np.nan
    with pytest.raises(EvalError, match=("text", "image")[side]):
        retrieve(*emb, np.arange(2))


def test_alignment_and_uniformity_tell_a_match_from_a_collapse() -> None:
    eye = np.eye(8, dtype=np.float32)
    assert alignment(eye, eye) == 0
    assert alignment(eye, -eye) == 4
    assert uniformity(np.ones((8, 1), np.float32)) == 0
    assert uniformity(eye) == pytest.approx(-4)  # every squared distance is 2


def test_a_merged_clip_retrieves_as_open_clip_computes_it(merged: Path, tiny_cache: Path) -> None:
    clip = open_clip.create_model(f"local-dir:{merged}").eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{merged}")
    cache = Cache(tiny_cache)
    with torch.inference_mode():
        text_emb = clip.encode_text(tokenizer(cache.captions()), normalize=True).numpy()
    similarity = text_emb @ cache.image_emb().astype(np.float32).T
    own = similarity[np.arange(len(similarity)), cache.caption_image()]
    report = recall(merged, cache)
    assert report.text_to_image.r_at_10 == pytest.approx(((similarity > own[:, None]).sum(1) < 10).mean(), abs=0.02)
    assert report.to_json()["image_to_text"]["num_queries"] == len(cache)


def test_images_that_failed_and_their_captions_are_left_out(
    merged: Path, make_cache: Callable[..., Any], tmp_path: Path
) -> None:
    manifest = draw_images(tmp_path, 6)
    (tmp_path / "images" / "0002.png").write_bytes(b"no image")  # it has three captions
    cache = make_cache(manifest, tmp_path / "c.zarr").cache
    report = recall(merged, cache)
    assert (report.text_to_image.num_candidates, report.image_to_text.num_queries) == (5, 5)
    assert report.text_to_image.num_queries == cache.info.num_captions - 3


def test_a_cache_of_class_folders_scores_as_open_clip_classifies(
    merged: Path, make_cache: Callable[..., Any], tmp_path: Path
) -> None:
    manifest = draw_images(tmp_path, 24)
    labels = np.arange(24) % 3
    lines = [json.loads(line)["image"] for line in manifest.read_text().splitlines()]
    names = ["красный круг", "синий квадрат", "шум"]
    manifest.write_text(
        "".join(json.dumps({"image": i, "text": names[c]}) + "\n" for i, c in zip(lines, labels, strict=True))
    )
    cache = make_cache(manifest, tmp_path / "c.zarr").cache
    clip = open_clip.create_model(f"local-dir:{merged}").eval()
    with torch.inference_mode():
        classes = clip.encode_text(open_clip.get_tokenizer(f"local-dir:{merged}")(names), normalize=True).numpy()
    similarity = cache.image_emb().astype(np.float64) @ classes.astype(np.float64).T
    report = recall(merged, cache)
    assert report.image_to_text.r_at_1 == pytest.approx((similarity.argmax(1) == labels).mean())
    nearest = labels[similarity.argmax(0)]
    assert report.text_to_image.r_at_1 == pytest.approx((nearest == np.arange(3)).mean())
    assert "text" in report.to_json()["definition"]


def test_a_cache_of_another_tower_is_refused_by_name(
    other_clip: Path, merged: Path, make_cache: Callable[..., Any], manifest: Path, tmp_path: Path
) -> None:
    cache = make_cache(manifest, tmp_path / "other.zarr", model=f"local-dir:{other_clip}", limit=2).cache
    with pytest.raises(EvalError, match=r"other\.zarr was made by .* cache the images with"):
        recall(merged, cache)


def test_a_merged_folder_without_its_tokenizer_is_refused(merged: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(merged, broken)
    for file in broken.glob("token*"):
        file.unlink()
    with pytest.raises(EncoderError, match="its tokenizer does not load"):
        load_merged(broken)


def test_equal_embeddings_that_differ_by_rounding_score_at_chance() -> None:
    rng = np.random.default_rng(0)
    image_emb = unit(np.ones((400, 16)) + 1e-7 * rng.normal(size=(400, 16)))
    ranks = retrieve(image_emb[:50].copy(), image_emb, np.arange(50)).report().text_to_image
    assert ranks.r_at_1 == pytest.approx(1 / 400, rel=0.01)
    assert ranks.median_rank == pytest.approx(200.5, rel=0.01)


def test_a_text_of_many_images_is_ranked_once() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 5000)
    classes, image_emb = unit(rng.normal(size=(3, 8))), unit(rng.normal(size=(5000, 8)))
    texts = np.repeat(labels, 1)
    found = retrieve(classes[labels], image_emb, np.arange(5000), texts)
    cosines = image_emb.astype(float) @ classes.T.astype(float)  # [5000, 3]
    own = cosines[np.arange(5000), labels][:, None]
    ahead = (cosines > own) @ np.bincount(labels)  # every caption of a nearer class is ahead
    assert found.image_to_text.ahead.tolist() == ahead.tolist()
    assert found.image_to_text.right.tolist() == np.bincount(labels)[labels].tolist()
