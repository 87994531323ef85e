"""The diagnosis: silent over a run that learns, and right about those that do not."""

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from clipglot.cache.store import Cache
from clipglot.cli.main import main
from clipglot.demo.captions import caption
from clipglot.demo.run import ENGLISH_CLIP
from clipglot.demo.scenes import Scene, draw, training_scenes
from clipglot.distill.data import ValidationData
from clipglot.distill.diagnosis import WINDOW, Diagnosis
from clipglot.distill.findings import Finding, chance_bound, chance_loss, find_in_pairs, remedy
from clipglot.distill.pairs import PairFigures
from clipglot.distill.tokens import tokenize
from clipglot.distill.train import TrainResult, train
from clipglot.distill.train_settings import TrainSettings
from clipglot.encoders.tokenizer import train_bpe
from clipglot.evals.geometry import anisotropy, effective_rank
from logs import logged
from runs import stop_at

TRAIN, VAL = 320, 128
PAIRS = PairFigures(num_pictures=6000)


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory, make_cache: Callable[..., Any]) -> dict[str, Path]:
    """Scenes as the demo's English tower sees them, with captions in Russian: right ones, wrong ones, all alike."""
    folder, rng = tmp_path_factory.mktemp("scenes"), random.Random(0)
    scenes = training_scenes(TRAIN + VAL, seed=0)
    told = [[caption(scene, "ru", rng) for _ in range(3)] for scene in scenes]
    shuffled = random.Random(1).sample(told[:TRAIN], TRAIN)
    parts: dict[str, tuple[list[Scene], list[list[str]]]] = {
        "train": (scenes[:TRAIN], told[:TRAIN]),
        "val": (scenes[TRAIN:], told[TRAIN:]),
        "shuffled": (scenes[:TRAIN], shuffled),
        "constant": (scenes[:64], [["фото дня на память"]] * 32 + [[]] * 32),
    }
    for i, scene in enumerate(scenes):
        draw(scene).save(folder / f"{i:03}.png")
    for name, (pictures, captions) in parts.items():
        first = TRAIN if name == "val" else 0
        lines = [{"image": f"{first + i:03}.png", "text": captions[i]} for i in range(len(pictures))]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
        make_cache(folder / f"{name}.jsonl", folder / f"{name}.zarr", model=f"local-dir:{ENGLISH_CLIP}", batch_size=64)
    return {name: folder / f"{name}.zarr" for name in parts}


def settings(cache: Path, run: Path, **changes: Any) -> TrainSettings:
    small: dict[str, Any] = {"width": 64, "layers": 1, "heads": 4, "context_length": 40, "vocab_size": 400}
    pace: dict[str, Any] = {"batch_size": 64, "epochs": 16, "lr": 3e-3, "log_every": 2, "device": "cpu"}
    return TrainSettings(cache=cache, output=run, **small | pace | changes)


def kinds(result: TrainResult) -> set[str]:
    return {finding.kind for finding in result.findings}


def found(result: TrainResult, kind: str) -> Finding:
    (finding,) = (finding for finding in result.findings if finding.kind == kind)
    return finding


@pytest.mark.parametrize(
    "changes",
    [{}, {"val": None}, {"loss": "siglip"}, {"negatives": "all"}, {"negatives": "100", "lr": 1e-3, "epochs": 8}],
    ids=["plain", "without validation", "sigmoid", "all negatives", "slower"],
)
def test_a_run_that_learns_is_not_spoken_to(caches: dict[str, Path], tmp_path: Path, changes: dict[str, Any]) -> None:
    told: list[Finding] = []
    result = train(
        settings(caches["train"], tmp_path / "run", **{"val": caches["val"]} | changes), on_finding=told.append
    )
    assert told == result.findings == []
    prefix = "" if result.validation else "sample_"
    (*_, last) = (line for line in result.run.metrics() if f"{prefix}r_at_10" in line)
    assert last[f"{prefix}r_at_10"] > 2 * chance_bound(VAL, VAL)
    assert -1 < last[f"{prefix}anisotropy"] < 0.5
    assert last[f"{prefix}effective_rank"] > 5


@pytest.mark.parametrize("loss", ["infonce", "siglip"])
def test_a_rate_that_is_far_too_low_is_named(caches: dict[str, Path], tmp_path: Path, loss: str) -> None:
    told: list[Finding] = []
    lazy = settings(caches["train"], tmp_path / "run", val=caches["val"], lr=1e-9, loss=loss)
    result = train(lazy, on_finding=told.append)
    assert told == result.findings
    assert kinds(result) == {"loss_at_chance", "recall_at_chance"}
    assert all("raise --lr (now 1e-09" in finding.advice for finding in told)
    chance = np.log(64) if loss == "infonce" else np.log(64) - 63 * np.log(63 / 64)
    assert found(result, "loss_at_chance").figures["chance"] == pytest.approx(chance, rel=0.01)
    assert found(result, "recall_at_chance").figures["chance"] == 10 / VAL
    assert all(finding.step <= 0.5 * result.num_steps for finding in told)  # while there is something to save


def test_a_rate_that_is_far_too_high_is_named(caches: dict[str, Path], tmp_path: Path) -> None:
    result = train(settings(caches["train"], tmp_path / "run", val=caches["val"], lr=10.0, schedule="constant"))
    assert kinds(result) >= {"recall_at_chance", "collapsed", "loss_at_chance"}  # more may follow: such a run is chaos
    assert found(result, "collapsed").figures["anisotropy"] > 0.9
    assert all("lower --lr (now 10)" in finding.advice for finding in result.findings)


def test_captions_of_other_pictures_are_told_from_a_wrong_rate(caches: dict[str, Path], tmp_path: Path) -> None:
    result = train(settings(caches["shuffled"], tmp_path / "run", val=caches["val"], epochs=30))
    assert kinds(result) == {"recall_at_chance"}
    assert "captions belong to their pictures" in found(result, "recall_at_chance").advice


def test_without_validation_the_runs_own_pairs_are_measured(caches: dict[str, Path], tmp_path: Path) -> None:
    result = train(settings(caches["train"], tmp_path / "run", lr=1e-9))
    assert kinds(result) == {"loss_at_chance", "recall_at_chance"}
    assert "320 training pictures" in found(result, "recall_at_chance").message
    samples = [line["step"] for line in result.run.metrics() if "sample_r_at_10" in line]
    assert samples == [step for step in range(1, 81) if step % 8 == 0]


def test_what_is_wrong_with_the_pairs_is_said_before_the_first_step(caches: dict[str, Path], tmp_path: Path) -> None:
    given = settings(caches["constant"], tmp_path / "run", batch_size=16, epochs=2, context_length=4)
    result = train(given)
    assert result.run.metrics()[0]["finding"] == "common_captions"
    common, cut, without = result.findings[:3]
    assert (common.step, common.figures["equal"], common.figures["masked"]) == (0, 1.0, 1.0)
    assert '"фото дня на память" by 100% of all pictures' in common.message
    longer = cut.figures["longer"]
    assert (cut.kind, cut.figures["cut"]) == ("cut_captions", 1.0)
    assert kinds(result) - {"recall_at_chance"} == {finding.kind for finding in result.findings[:3]}  # nothing to learn
    again = train(replace(given, output=tmp_path / "again", context_length=int(longer)))
    assert "cut_captions" not in kinds(again)
    assert without.figures == {"without": 0.5}
    assert without.message.startswith("50% of the embedded pictures (32)")


def test_captions_that_just_fit_are_not_cut(caches: dict[str, Path], tmp_path: Path) -> None:
    captions = Cache(caches["train"]).captions()
    longest = max(map(len, train_bpe(captions, 400).encode(captions, 1000)))
    for length, expected in ((longest, 0.0), (longest - 1, 0.05)):
        pairs = _pairs(caches["train"], tmp_path / str(length), length)
        assert pairs.cut <= expected
        assert (pairs.cut > 0) == (length < longest)


def _pairs(cache: Path, run: Path, context_length: int) -> PairFigures:
    from clipglot.distill.data import load_data, open_images
    from clipglot.distill.pairs import count_pairs
    from torch import device

    given, opened = settings(cache, run, context_length=context_length), Cache(cache)
    tokenizer = train_bpe(opened.captions(), 400)
    images = open_images(opened, given, device("cpu"))
    return count_pairs(opened, load_data(opened, images, tokenizer, given, run), tokenizer, context_length)


def test_pairs_are_counted_as_they_are(caches: dict[str, Path], tmp_path: Path) -> None:
    cache = Cache(caches["train"])
    texts, rows = cache.captions(), cache.caption_image().tolist()
    carriers: dict[str, set[int]] = {}
    for text, row in zip(texts, rows, strict=True):
        carriers.setdefault(text, set()).add(row)
    counts = np.array([len(pictures) for pictures in carriers.values()])
    pairs = _pairs(caches["train"], tmp_path, 40)
    assert pairs.num_pictures == TRAIN
    assert pairs.num_without == 0
    assert pairs.equal == pytest.approx(counts[counts > 1].sum() / counts.sum())
    assert pairs.masked == pytest.approx((counts * (counts - 1)).sum() / counts.sum() / (TRAIN - 1))
    assert len(carriers[pairs.most_common]) == counts.max() == round(pairs.most_common_share * TRAIN)
    assert pairs.common == 0  # some captions are carried by a few pictures, none by many
    assert pairs.equal > 0.05


def test_a_resumed_run_says_nothing_twice(caches: dict[str, Path], tmp_path: Path) -> None:
    straight = settings(caches["train"], tmp_path / "straight", lr=1e-9, log_every=1)
    train(straight)
    broken, told = replace(straight, output=tmp_path / "broken"), []
    for step in (15, 27, 50, None):  # before the first finding, between two, after them
        listen = stop_at(step) if step else lambda *_: None
        result = train(broken, resume=step != 15, on_progress=listen, on_finding=told.append)
    assert logged(tmp_path / "broken") == logged(tmp_path / "straight")
    assert told == result.findings
    assert len(told) == len(kinds(result)) == 2


def test_findings_reach_stderr_json_and_tensorboard(caches: dict[str, Path], tmp_path: Path) -> None:
    sizes = "--width 32 --layers 1 --heads 2 --vocab-size 400 --batch-size 64 --epochs 10 --lr 1e-9 --device cpu"
    arguments = ["train", str(caches["train"]), "-o", str(tmp_path / "run"), *sizes.split(), "--log-every", "2"]
    result = CliRunner().invoke(main, [*arguments, "--json", "--log-to", "tensorboard"])
    assert result.exit_code == 0, result.output
    findings = json.loads(result.stdout)["findings"]
    assert [finding["finding"] for finding in findings] == ["loss_at_chance", "recall_at_chance"]
    lines = result.stderr.splitlines()
    assert len(lines) == 2
    for line, finding in zip(lines, findings, strict=True):
        assert line.startswith(finding["finding"].replace("_", " "))
        assert finding["message"] in line
        assert finding["advice"] in line
    assert findings == [line for line in logged(tmp_path / "run") if "finding" in line]


# Rules, on made-up figures.


def diagnose(losses: list[float], scale: float = 20.0, **changes: Any) -> list[Finding]:
    given = TrainSettings(cache=Path("c"), output=Path("o"), **{"batch_size": 512, "warmup": 0.0} | changes)
    diagnosis = Diagnosis(given, len(losses), PAIRS)
    for step, loss in enumerate(losses, start=1):
        diagnosis.of_step({"step": step, "loss": loss, "logit_scale": scale})
    return diagnosis.findings


def test_the_loss_at_chance_is_that_of_guessing() -> None:
    given = TrainSettings(cache=Path("c"), output=Path("o"), batch_size=512)
    assert chance_loss(given, PAIRS) == pytest.approx(np.log(512))
    assert chance_loss(replace(given, negatives="all"), PAIRS) == pytest.approx((np.log(512) + np.log(6000)) / 2)
    assert chance_loss(replace(given, negatives="1000"), PAIRS) == pytest.approx(
        (np.log(512) + np.log(512 + 1000 * (1 - 512 / 6000))) / 2
    )
    p = 1 / 512
    entropy = -p * np.log(p) - (1 - p) * np.log(1 - p)
    assert chance_loss(replace(given, loss="siglip"), PAIRS) == pytest.approx(512 * entropy)
    for mixed in ({"similarity": 1.0}, {"uniformity": 0.1}, {"teacher_weight": 0.5}):
        assert chance_loss(replace(given, **mixed), PAIRS) is None


def test_noise_about_chance_is_found_and_a_slow_fall_is_not() -> None:
    rng, chance = np.random.default_rng(0), np.log(512)
    noise = rng.normal(0, 0.01, 100)
    assert [finding.kind for finding in diagnose(list(chance + noise))] == ["loss_at_chance"]
    assert diagnose(list(chance + noise - np.linspace(0, 3, 100))) == []
    assert diagnose(list(np.linspace(chance + 0.5, chance - 1, 100) + noise / 10)) == []  # late, but on its way
    assert diagnose(list(0.9 * chance + noise)) == []
    assert diagnose(list(chance + noise)[: WINDOW - 1]) == []


def test_a_loss_that_rises_again_is_found_and_a_spike_is_not() -> None:
    falling = list(6.2 * np.exp(-np.arange(100) / 20) + 1.0)
    assert diagnose(falling) == []
    spike = list(falling)
    spike[60] = 6.0
    assert diagnose(spike) == []
    (finding,) = diagnose(falling[:60] + [5.5] * 40)
    assert finding.kind == "loss_rose"
    assert finding.figures["lowest"] < 1.5
    noisy = list(2.0 + np.random.default_rng(0).normal(0, 0.5, 1000))  # pools of unlike pictures
    assert diagnose([6.0] * 5 + noisy) == []


def test_a_temperature_at_its_bound_counts_only_while_nothing_is_learned() -> None:
    rng = np.random.default_rng(0)
    stuck, learned = (list(loss + rng.normal(0, 0.01, 100)) for loss in (4.0, 1.0))
    assert [finding.kind for finding in diagnose(stuck, scale=100.0)] == ["logit_scale_at_bound"]
    assert [finding.kind for finding in diagnose(stuck, scale=1.0)] == ["logit_scale_at_bound"]
    assert diagnose(learned, scale=100.0) == []
    assert diagnose(stuck, scale=50.0) == []


@pytest.mark.parametrize("num", [40, 200, 1000, 5000])
def test_guessing_hardly_ever_looks_learned(num: int) -> None:
    rng = np.random.default_rng(num)
    recalls = rng.binomial(num, 10 / num, 2000) / num
    assert (recalls > chance_bound(num, num)).mean() < 0.006
    assert chance_bound(num, num) < 2.1 * 10 / num  # and twice chance always does


@pytest.mark.parametrize(
    ("text", "image", "expected"),
    [
        ("spread", "spread", {"recall_at_chance"}),
        ("cone", "spread", {"recall_at_chance", "collapsed"}),
        ("cone", "cone", {"recall_at_chance"}),  # it only lies as the pictures do
        ("line", "spread", {"recall_at_chance", "collapsed"}),
    ],
)
def test_collapse_is_measured_against_the_pictures(text: str, image: str, expected: set[str]) -> None:
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
    tokens = tokenize(train_bpe(["кот"], 300), ["кот"], 5)
    data = ValidationData(image_emb=image_emb, tokens=tokens, captions=everyone, owners=everyone, groups=everyone)
    given = TrainSettings(cache=Path("c"), output=Path("o"), batch_size=512, warmup=0.0)
    diagnosis = Diagnosis(given, 100, PAIRS)
    for step in range(1, 51):
        diagnosis.of_step({"step": step, "loss": 5.0 + 0.01 * (step % 2), "logit_scale": 20.0})
    assert diagnosis.of_recall(metrics, data, 10, held_out=True) == []  # too early to say
    assert {finding.kind for finding in diagnosis.of_recall(metrics, data, 50, held_out=True)} == expected
    assert diagnosis.of_recall(metrics, data, 51, held_out=True) == []  # said before
    assert diagnosis.of_recall(metrics | {"r_at_10": 0.06}, data, 51, held_out=True) == []


def test_few_common_captions_are_no_finding() -> None:
    given = TrainSettings(cache=Path("c"), output=Path("o"))
    fine = PairFigures(num_pictures=1000, num_without=50, equal=0.9, common=0.1, cut=0.05, longer=100)
    assert list(find_in_pairs(fine, given)) == []


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


def test_advice_names_the_rate_of_a_language_model(tmp_path: Path) -> None:
    given = settings(tmp_path, tmp_path / "run")
    ours = replace(given, text="some/lm", width=512, layers=6, heads=8, lm_lr=2e-5)
    for step in (1, 100_000):
        assert "--lm-lr" not in remedy(step, 100_000, given, PAIRS)
        assert "--lm-lr (now 2e-05)" in remedy(step, 100_000, ours, PAIRS)
