"""Diagnosis of real runs: no findings for a run that learns, the right ones for runs that do not."""

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from clipglot.cache.progress import ignore_progress
from clipglot.cache.read.cache import Cache
from clipglot.cli.main import main
from clipglot.demo.captions import caption
from clipglot.demo.run import ENGLISH_CLIP
from clipglot.demo.scenes import Scene, draw, training_scenes
from clipglot.distill.data.statistics import CaptionStats
from clipglot.distill.training.diagnosis import Finding, chance_bound
from clipglot.distill.training.setup import build_run
from clipglot.distill.training.train import TrainResult, train
from clipglot.encoders.tokenizer import train_bpe
from support.diagnosis_settings import settings
from support.run_logs import logged
from support.runs import stop_at

TRAIN, VAL = 320, 128


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory, make_cache: Callable[..., Any]) -> dict[str, Path]:
    """Caches of demo scenes with Russian captions: right ones, shuffled ones, and all equal."""
    folder, rng = tmp_path_factory.mktemp("scenes"), random.Random(0)
    scenes = training_scenes(TRAIN + VAL, seed=0)
    scene_captions = [[caption(scene, "ru", rng) for _ in range(3)] for scene in scenes]
    shuffled = random.Random(1).sample(scene_captions[:TRAIN], TRAIN)
    parts: dict[str, tuple[list[Scene], list[list[str]]]] = {
        "train": (scenes[:TRAIN], scene_captions[:TRAIN]),
        "val": (scenes[TRAIN:], scene_captions[TRAIN:]),
        "shuffled": (scenes[:TRAIN], shuffled),
        "constant": (scenes[:64], [["фото дня на память"]] * 32 + [[]] * 32),
    }
    for i, scene in enumerate(scenes):
        draw(scene).save(folder / f"{i:03}.png")
    for name, (images, captions) in parts.items():
        first = TRAIN if name == "val" else 0
        lines = [{"image": f"{first + i:03}.png", "text": captions[i]} for i in range(len(images))]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
        make_cache(folder / f"{name}.jsonl", folder / f"{name}.zarr", model=f"local-dir:{ENGLISH_CLIP}", batch_size=64)
    return {name: folder / f"{name}.zarr" for name in parts}


def kinds(result: TrainResult) -> set[str]:
    return {finding.kind for finding in result.findings}


def finding_of(result: TrainResult, kind: str) -> Finding:
    (finding,) = (finding for finding in result.findings if finding.kind == kind)
    return finding


@pytest.mark.parametrize(
    "changes",
    [{}, {"val": None}, {"loss": "siglip"}, {"negatives": "all"}, {"negatives": "100", "lr": 1e-3}],
    ids=["plain", "without validation", "sigmoid", "all negatives", "slower"],
)
def test_a_run_that_learns_has_no_findings(caches: dict[str, Path], tmp_path: Path, changes: dict[str, Any]) -> None:
    reported: list[Finding] = []
    result = train(
        settings(caches["train"], tmp_path / "run", **{"val": caches["val"], "epochs": 8} | changes),
        on_finding=reported.append,
    )
    assert reported == result.findings == []
    prefix = "" if result.validation else "sample_"
    (*_, last) = (line for line in result.run.metrics() if f"{prefix}r_at_10" in line)
    assert last[f"{prefix}r_at_10"] > 2 * chance_bound(10 / VAL, VAL)
    assert -1 < last[f"{prefix}anisotropy"] < 0.5
    assert last[f"{prefix}effective_rank"] > 5


@pytest.mark.parametrize("loss", ["infonce", "siglip"])
def test_a_far_too_low_learning_rate_is_named(caches: dict[str, Path], tmp_path: Path, loss: str) -> None:
    reported: list[Finding] = []
    lazy = settings(caches["train"], tmp_path / "run", val=caches["val"], lr=1e-9, loss=loss)
    result = train(lazy, on_finding=reported.append)
    assert reported == result.findings
    assert kinds(result) == {"loss_at_chance", "recall_at_chance"}
    assert all("raise --lr (now 1e-09" in finding.advice for finding in reported)
    chance = np.log(64) if loss == "infonce" else np.log(64) - 63 * np.log(63 / 64)
    assert finding_of(result, "loss_at_chance").figures["chance"] == pytest.approx(chance, rel=0.01)
    assert finding_of(result, "recall_at_chance").figures["chance"] == pytest.approx(
        10 / VAL, rel=0.1
    )  # some share one
    assert all(finding.step <= 0.5 * result.num_steps for finding in reported)  # while there is something to save


def test_a_far_too_high_learning_rate_is_named(caches: dict[str, Path], tmp_path: Path) -> None:
    result = train(settings(caches["train"], tmp_path / "run", val=caches["val"], lr=10.0, schedule="constant"))
    assert kinds(result) >= {"recall_at_chance", "collapsed", "loss_at_chance"}  # more may follow: such a run is chaos
    assert finding_of(result, "collapsed").figures["anisotropy"] > 0.9
    assert all("lower --lr (now 10)" in finding.advice for finding in result.findings)


def test_shuffled_captions_are_distinguished_from_a_wrong_learning_rate(
    caches: dict[str, Path], tmp_path: Path
) -> None:
    result = train(settings(caches["shuffled"], tmp_path / "run", val=caches["val"], epochs=30))
    assert kinds(result) == {"recall_at_chance"}
    assert "captions belong to their images" in finding_of(result, "recall_at_chance").advice


def test_without_validation_training_pairs_are_measured(caches: dict[str, Path], tmp_path: Path) -> None:
    result = train(settings(caches["train"], tmp_path / "run", lr=1e-9))
    assert kinds(result) == {"loss_at_chance", "recall_at_chance"}
    assert "320 training images" in finding_of(result, "recall_at_chance").message
    samples = [line["step"] for line in result.run.metrics() if "sample_r_at_10" in line]
    assert samples == [step for step in range(1, 81) if step % 8 == 0]


def test_faults_of_captions_are_reported_before_the_first_step(caches: dict[str, Path], tmp_path: Path) -> None:
    given = settings(caches["constant"], tmp_path / "run", batch_size=16, epochs=2, context_length=4)
    result = train(given)
    assert result.run.metrics()[0]["finding"] == "common_captions"
    common, cut, without = result.findings[:3]
    assert (common.step, common.figures["equal"], common.figures["masked"]) == (0, 1.0, 1.0)
    assert '"фото дня на память" by 100% of all images' in common.message
    longer = cut.figures["longer"]
    assert (cut.kind, cut.figures["cut"]) == ("cut_captions", 1.0)
    assert kinds(result) - {"recall_at_chance"} == {finding.kind for finding in result.findings[:3]}  # nothing to learn
    again = train(replace(given, output=tmp_path / "again", context_length=int(longer)))
    assert "cut_captions" not in kinds(again)
    assert without.figures == {"without": 0.5}
    assert without.message.startswith("50% of the embedded images (32)")


def test_captions_of_exactly_context_length_are_not_cut(caches: dict[str, Path], tmp_path: Path) -> None:
    captions = Cache(caches["train"]).captions()
    longest = max(map(len, train_bpe(captions, 400).encode(captions, 1000)))
    for length, expected in ((longest, 0.0), (longest - 1, 0.05)):
        pairs = _pairs(caches["train"], tmp_path / str(length), length)
        assert pairs.cut <= expected
        assert (pairs.cut > 0) == (length < longest)


def _pairs(cache: Path, run: Path, context_length: int) -> CaptionStats:
    return build_run(settings(cache, run, context_length=context_length), torch.device("cpu")).captions


def test_caption_statistics_equal_direct_counts(caches: dict[str, Path], tmp_path: Path) -> None:
    cache = Cache(caches["train"])
    texts, rows = cache.captions(), cache.caption_image().tolist()
    carriers: dict[str, set[int]] = {}
    for text, row in zip(texts, rows, strict=True):
        carriers.setdefault(text, set()).add(row)
    counts = np.array([len(images) for images in carriers.values()])
    pairs = _pairs(caches["train"], tmp_path, 40)
    assert pairs.num_images == TRAIN
    assert pairs.num_without == 0
    assert pairs.equal == pytest.approx(counts[counts > 1].sum() / counts.sum())
    assert pairs.masked == pytest.approx((counts * (counts - 1)).sum() / counts.sum() / (TRAIN - 1))
    assert len(carriers[pairs.most_common]) == counts.max() == round(pairs.most_common_share * TRAIN)
    assert pairs.common == 0  # some captions are carried by a few images, none by many
    assert pairs.equal > 0.05


def test_a_resumed_run_repeats_no_finding(caches: dict[str, Path], tmp_path: Path) -> None:
    straight = settings(caches["train"], tmp_path / "straight", lr=1e-9, log_every=1)
    train(straight)
    broken, reported = replace(straight, output=tmp_path / "broken"), []
    for step in (15, 27, 50, None):  # before the first finding, between two, after them
        listen = stop_at(step) if step else ignore_progress
        result = train(broken, resume=step != 15, on_progress=listen, on_finding=reported.append)
    assert logged(tmp_path / "broken") == logged(tmp_path / "straight")
    assert reported == result.findings
    assert len(reported) == len(kinds(result)) == 2


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
    lines = [line for line in logged(tmp_path / "run") if line["kind"] == "finding"]
    assert lines == [{"kind": "finding"} | finding for finding in findings]
