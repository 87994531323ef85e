"""Outline of a run and summaries of its epochs, which agree with metrics.jsonl, also after a resume."""

import math
from pathlib import Path

import pytest
from clipglot.distill.training.outline import EpochSummary, RunOutline
from clipglot.distill.training.run_folder import RunFolder, mean_recall
from clipglot.distill.training.train import train
from support.runs import settings, stop_at


def test_an_epoch_is_summed_up_as_its_lines_of_metrics_say(tiny_cache: Path, tmp_path: Path) -> None:
    epochs: list[EpochSummary] = []
    result = train(settings(tiny_cache, tmp_path / "run", val=tiny_cache), on_epoch=epochs.append)
    metrics = result.run.metrics()
    assert [(epoch.epoch, epoch.step) for epoch in epochs] == [(1, 5), (2, 10), (3, 15), (4, 20)]
    best = -1.0
    for epoch in epochs:
        lines = [line for line in metrics if line["epoch"] == epoch.epoch - 1]
        losses = [line["loss"] for line in lines if line["kind"] == "step"]
        assert epoch.loss == pytest.approx(sum(losses) / 5, rel=1e-5)
        assert epoch.images_per_s is not None
        assert math.isfinite(epoch.images_per_s)
        assert epoch.images_per_s > 0
        (validation,) = [line for line in lines if line["kind"] == "validation"]
        assert epoch.recall == {name: validation[name] for name in ("r_at_1", "r_at_5", "r_at_10", "median_rank")}
        assert epoch.is_best == (mean_recall(validation) > best)
        best = max(best, mean_recall(validation))


def test_without_validation_an_epoch_has_the_recall_of_the_runs_own_pairs(tiny_cache: Path, tmp_path: Path) -> None:
    epochs, outlines = list[EpochSummary](), list[RunOutline]()
    run = settings(tiny_cache, tmp_path / "run", epochs=20)
    result = train(run, on_epoch=epochs.append, on_outline=outlines.append)
    samples = {line["step"]: line for line in result.run.metrics() if line["kind"] == "sample"}
    assert {epoch.step for epoch in epochs if epoch.recall} == set(samples)
    assert len(samples) == 10
    assert all(epoch.recall["r_at_5"] == samples[epoch.step]["sample_r_at_5"] for epoch in epochs if epoch.recall)
    assert not any(epoch.is_best for epoch in epochs)
    assert outlines[0].val is None


def test_a_resumed_run_is_outlined_with_the_epochs_before(tiny_cache: Path, tmp_path: Path) -> None:
    epochs, outlines = list[EpochSummary](), list[RunOutline]()
    run = settings(tiny_cache, tmp_path / "run", val=tiny_cache)
    train(run, on_progress=stop_at(12), on_outline=outlines.append, on_epoch=epochs.append)
    train(run, resume=True, on_outline=outlines.append, on_epoch=epochs.append)
    assert [(outline.step, len(outline.past), len(outline.past_losses)) for outline in outlines] == [
        (0, 0, 0),
        (12, 2, 12),
    ]
    for known, past in zip(epochs, outlines[1].past, strict=False):
        assert (past.epoch, past.step, past.recall, past.is_best) == (
            known.epoch,
            known.step,
            known.recall,
            known.is_best,
        )
        assert past.loss == pytest.approx(known.loss, rel=1e-5)
    assert [epoch.epoch for epoch in epochs] == [1, 2, 3, 4]
    outline = outlines[0]
    assert (outline.batch_size, outline.steps_per_epoch, outline.num_steps, outline.epochs) == (8, 5, 20, 4)
    assert (outline.num_images, outline.val, outline.num_measured) == (40, str(tiny_cache), 40)
    assert (outline.device, outline.precision, outline.num_trained) == ("cpu", "fp32", outline.num_parameters)
    assert outline.chance_loss == pytest.approx(math.log(8), rel=0.1)
    assert outline.num_captions == RunFolder(tmp_path / "run").provenance()["num_captions"]


def test_a_warm_start_is_epoch_0(tiny_cache: Path, tmp_path: Path) -> None:
    epochs, outlines = list[EpochSummary](), list[RunOutline]()
    run = settings(tiny_cache, tmp_path / "run", val=tiny_cache, warm_start="ridge", epochs=2)
    train(run, on_progress=stop_at(7), on_epoch=epochs.append)
    train(run, resume=True, on_epoch=epochs.append, on_outline=outlines.append)
    assert [epoch.epoch for epoch in epochs] == [0, 1, 2]
    assert (epochs[0].loss, epochs[0].step, epochs[0].is_best) == (None, 0, True)
    assert [(epoch.epoch, epoch.recall) for epoch in outlines[0].past] == [
        (epoch.epoch, epoch.recall) for epoch in epochs[:2]
    ]
