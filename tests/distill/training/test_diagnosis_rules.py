"""Rules of the diagnosis on synthetic metrics: chance, noise, falls and rises, collapse, and the advice."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from clipglot.distill.data.pairs import ValidationData
from clipglot.distill.data.statistics import CaptionStats
from clipglot.distill.data.tokens import tokenize
from clipglot.distill.train_settings import LearningSettings
from clipglot.distill.training.diagnosis import (
    WINDOW,
    Diagnosis,
    Finding,
    advise,
    chance_bound,
    chance_loss,
    chance_recall,
    check_captions,
)
from clipglot.encoders.tokenizer import train_bpe
from clipglot.evals.embedding_stats import anisotropy, effective_rank

CAPTIONS = CaptionStats(num_images=6000)


def diagnose(losses: list[float], scale: float = 20.0, **changes: Any) -> list[Finding]:
    given = LearningSettings(**{"batch_size": 512, "warmup": 0.0} | changes)
    diagnosis = Diagnosis(given, len(losses), CAPTIONS, context_length=77)
    for step, loss in enumerate(losses, start=1):
        diagnosis.check_step({"step": step, "loss": loss, "logit_scale": scale})
    return diagnosis.findings


def validation_data(image_emb: Any, image_index: Any, text_ids: Any) -> ValidationData:
    tokens = tokenize(train_bpe(["кот"], 300), ["кот"], 5)
    captions = np.arange(len(text_ids))
    return ValidationData(
        image_emb=image_emb,
        tokens=tokens,
        captions=captions,
        image_index=image_index,
        groups=captions,
        text_ids=text_ids,
    )


def test_chance_loss_is_that_of_guessing() -> None:
    given = LearningSettings(batch_size=512)
    assert chance_loss(given, CAPTIONS) == pytest.approx(np.log(512))
    assert chance_loss(replace(given, negatives="all"), CAPTIONS) == pytest.approx((np.log(512) + np.log(6000)) / 2)
    assert chance_loss(replace(given, negatives="1000"), CAPTIONS) == pytest.approx(
        (np.log(512) + np.log(512 + 1000 * (1 - 512 / 6000))) / 2
    )
    p = 1 / 512
    entropy = -p * np.log(p) - (1 - p) * np.log(1 - p)
    assert chance_loss(replace(given, loss="siglip"), CAPTIONS) == pytest.approx(512 * entropy)
    for mixed in ({"similarity": 1.0}, {"uniformity": 0.1}, {"teacher_weight": 0.5}):
        assert chance_loss(replace(given, **mixed), CAPTIONS) is None


def test_noise_around_chance_is_a_finding_and_a_slow_fall_is_not() -> None:
    rng, chance = np.random.default_rng(0), np.log(512)
    noise = rng.normal(0, 0.01, 100)
    assert [finding.kind for finding in diagnose(list(chance + noise))] == ["loss_at_chance"]
    assert diagnose(list(chance + noise - np.linspace(0, 3, 100))) == []
    assert diagnose(list(np.linspace(chance + 0.5, chance - 1, 100) + noise / 10)) == []  # late, but on its way
    assert diagnose(list(0.9 * chance + noise)) == []
    assert diagnose(list(chance + noise)[: WINDOW - 1]) == []


def test_a_long_run_at_chance_is_found_as_soon_as_its_weights_have_moved_far() -> None:
    rng = np.random.default_rng(0)

    def first_finding(lr: float) -> int | None:
        diagnosis = Diagnosis(
            LearningSettings(batch_size=512, warmup=0.001, lr=lr), 100_000, CAPTIONS, context_length=77
        )
        for step in range(10, 3_000, 10):
            loss = np.log(512) + rng.normal(0, 0.01)
            for finding in diagnosis.check_step({"step": step, "loss": loss, "lr": lr, "logit_scale": 20.0}):
                assert finding.kind == "loss_at_chance"
                return finding.step
        return None

    early = first_finding(1e-3)
    assert early is not None
    assert 500 <= early < 1_000  # not a quarter of the steps
    assert first_finding(1e-5) is None  # a rate that may only be slow


def test_a_run_of_few_steps_is_told_to_take_more_and_no_other_rate() -> None:
    advice = advise(6, 6, LearningSettings(), CAPTIONS)
    assert "only 6 steps" in advice
    assert "--epochs" in advice
    assert "--lr" not in advice
    assert "raise --lr (now 1e-09" in advise(1_000, 1_000, LearningSettings(lr=1e-9), CAPTIONS)


def test_recall_is_judged_at_fewer_places_where_many_images_share_captions() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(400) % 8  # by chance, R@10 is 74 %, R@5 49 % and R@1 13 %
    data, given = validation_data(rng.normal(size=(400, 16)), np.arange(400), labels), LearningSettings(batch_size=512)
    spread = {"anisotropy": 0.0, "effective_rank": 9.0}
    learned, guessed = ({"r_at_1": r, "r_at_5": 0.6, "r_at_10": 0.8} | spread for r in (0.9, 0.12))
    assert Diagnosis(given, 10, CAPTIONS, context_length=77).check_recall(learned, data, 10, held_out=True) == []
    (finding,) = Diagnosis(given, 10, CAPTIONS, context_length=77).check_recall(guessed, data, 10, held_out=True)
    assert finding.figures["r_at_1"] == 0.12
    assert finding.figures["chance"] == pytest.approx(1 / 8)


@pytest.mark.parametrize(("last", "learned"), [(0.02, False), (0.5, True)])
def test_a_recall_above_chance_in_the_end_counts_after_one_at_chance(last: float, learned: bool) -> None:
    emb = np.eye(500, dtype=np.float32)
    data, given = validation_data(emb, np.arange(500), np.arange(500)), LearningSettings(batch_size=512, warmup=0.0)
    metrics = {"r_at_10": 0.02, "anisotropy": 0.0, "effective_rank": 100.0}
    diagnosis = Diagnosis(given, 10, CAPTIONS, context_length=77)
    assert diagnosis.has_learned  # as far as is known
    (finding,) = diagnosis.check_recall(metrics, data, 5, held_out=True)
    diagnosis.check_recall(metrics | {"r_at_10": last}, data, 10, held_out=True)
    assert diagnosis.has_learned is learned
    lines = [{"kind": "finding"} | finding.to_json(), {"kind": "validation", "step": 10, "r_at_10": last}]
    assert Diagnosis(given, 10, CAPTIONS, context_length=77, past=lines).has_learned is learned  # of a finished run


def test_a_rising_loss_is_a_finding_and_a_spike_is_not() -> None:
    falling = list(6.2 * np.exp(-np.arange(100) / 20) + 1.0)
    assert diagnose(falling) == []
    spike = list(falling)
    spike[60] = 6.0
    assert diagnose(spike) == []
    (finding,) = diagnose(falling[:60] + [5.5] * 40)
    assert finding.kind == "loss_rose"
    assert finding.figures["lowest"] < 1.5
    noisy = list(2.0 + np.random.default_rng(0).normal(0, 0.5, 1000))  # pools of unlike images
    assert diagnose([6.0] * 5 + noisy) == []


def test_a_temperature_at_its_bound_is_a_finding_only_at_high_loss() -> None:
    rng = np.random.default_rng(0)
    stuck, learned = (list(loss + rng.normal(0, 0.01, 100)) for loss in (4.0, 1.0))
    assert [finding.kind for finding in diagnose(stuck, scale=100.0)] == ["logit_scale_at_bound"]
    assert [finding.kind for finding in diagnose(stuck, scale=1.0)] == ["logit_scale_at_bound"]
    assert diagnose(learned, scale=100.0) == []
    assert diagnose(stuck, scale=50.0) == []


@pytest.mark.parametrize("num", [40, 200, 1000, 5000])
def test_random_recall_hardly_ever_exceeds_the_chance_bound(num: int) -> None:
    rng = np.random.default_rng(num)
    recalls = rng.binomial(num, 10 / num, 2000) / num
    assert (recalls > chance_bound(10 / num, num)).mean() < 0.006
    assert chance_bound(10 / num, num) < 2.1 * 10 / num  # and twice chance always does


def test_chance_knows_of_images_that_share_a_caption() -> None:
    rng = np.random.default_rng(0)
    image_index = np.sort(rng.integers(0, 60, 90))
    text_ids = rng.integers(100, 112, 90)
    data = validation_data(np.eye(60, dtype=np.float32), image_index, text_ids)
    right = [set(image_index[text_ids == text].tolist()) for text in text_ids]
    assert data.num_right.tolist() == [len(images) for images in right]
    orders = [set(rng.permutation(60)[:10].tolist()) for _ in range(2000)]
    guessed = np.mean([[bool(images & first) for images in right] for first in orders])
    assert chance_recall(data.num_right, 60) == pytest.approx(guessed, abs=0.02)
    assert chance_recall(np.ones(5, np.int64), 1000) == pytest.approx(0.01)
    assert chance_recall(np.array([3]), 4) == 1  # fewer candidates than places


@pytest.mark.parametrize(
    ("text", "image", "expected"),
    [
        ("spread", "spread", {"recall_at_chance"}),
        ("cone", "spread", {"recall_at_chance", "collapsed"}),
        ("cone", "cone", {"recall_at_chance"}),  # it only lies as the images do
        ("line", "spread", {"recall_at_chance", "collapsed"}),
    ],
)
def test_collapse_is_measured_relative_to_the_images(text: str, image: str, expected: set[str]) -> None:
    rng = np.random.default_rng(0)

    def embed(shape: str) -> Any:
        emb = rng.normal(size=(500, 32))
        if shape == "cone":
            emb[:, 0] += 100
        if shape == "line":
            emb[:, 1:] *= 1e-4
        return (emb / np.linalg.norm(emb, axis=1, keepdims=True)).astype(np.float32)

    text_emb, image_emb = embed(text), embed(image)
    metrics = {
        "r_at_10": 0.02,
        "anisotropy": anisotropy(text_emb),
        "effective_rank": effective_rank(text_emb),
    }
    everyone = np.arange(500)
    data = validation_data(image_emb, everyone, everyone)
    diagnosis = Diagnosis(LearningSettings(batch_size=512, warmup=0.0), 100, CAPTIONS, context_length=77)
    for step in range(1, 51):
        diagnosis.check_step({"step": step, "loss": 5.0 + 0.01 * (step % 2), "logit_scale": 20.0})
    assert diagnosis.check_recall(metrics, data, 10, held_out=True) == []  # too early to say
    assert {finding.kind for finding in diagnosis.check_recall(metrics, data, 50, held_out=True)} == expected
    assert diagnosis.check_recall(metrics, data, 51, held_out=True) == []  # said before
    assert diagnosis.check_recall(metrics | {"r_at_10": 0.06}, data, 51, held_out=True) == []


def test_few_common_captions_are_no_finding() -> None:
    fine = CaptionStats(num_images=1000, num_without=50, equal=0.9, common=0.1, cut=0.05, longer=100)
    assert list(check_captions(fine, 77)) == []


def test_anisotropy_is_the_mean_cosine_of_different_captions() -> None:
    rng = np.random.default_rng(0)
    emb = rng.normal(size=(30, 8)) + 0.5
    emb = (emb / np.linalg.norm(emb, axis=1, keepdims=True)).astype(np.float32)
    groups = rng.integers(0, 12, 30)
    emb = emb[groups]  # equal captions, equal embeddings
    cosines = (emb @ emb.T)[groups[:, None] != groups]
    assert anisotropy(emb, groups) == pytest.approx(cosines.mean(), abs=1e-6)
    assert anisotropy(emb[:1]) == 0.0
    assert effective_rank(np.ones((5, 4), np.float32)) == 1.0


def test_advice_names_the_learning_rate_of_a_language_model() -> None:
    for step in (1, 100_000):
        assert "--lm-lr" not in advise(step, 100_000, LearningSettings(), CAPTIONS)
        assert "--lm-lr (now 2e-05)" in advise(step, 100_000, LearningSettings(), CAPTIONS, lm_lr=2e-5)
