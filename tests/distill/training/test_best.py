"""The best weights of a run: which validation is the best, what is kept, when patience ends the run, exact resuming."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from clipglot.cache.progress import Progress
from clipglot.distill.errors import DistillError
from clipglot.distill.train_settings import TrainSettings
from clipglot.distill.training.final import load_final
from clipglot.distill.training.run_folder import RunFolder
from clipglot.distill.training.train import train
from clipglot.encoders.tokenizer import CaptionTokenizer
from clipglot.jobs.export import export_run
from clipglot.jobs.settings.export import ExportSettings
from support.command_line import run as command
from support.drawings import draw_images
from support.run_logs import logged
from support.runs import settings, stop_at

NUM_STEPS = 50  # ten epochs


def wavering(cache: Path, run: Path, **changes: Any) -> TrainSettings:
    """Settings of a run whose recall goes up and down."""
    return settings(cache, run, val=cache, epochs=10, lr=1e-2, schedule="constant", **changes)


def validations(run: Path) -> list[tuple[int, float]]:
    """Step and mean recall of each validation."""
    lines = [line for line in logged(run) if line["kind"] == "validation"]
    return [(line["step"], (line["r_at_1"] + line["r_at_5"] + line["r_at_10"]) / 3) for line in lines]


def best_step(run: Path) -> int:
    measured = validations(run)
    highest = max(recall for _, recall in measured)
    return next(step for step, recall in measured if recall == highest)


def assert_same_towers(ours: Path, theirs: Path) -> None:
    """Both runs keep the same best and last weights."""
    for which in ("best", "last"):
        one, other = load_final(RunFolder(ours), which), load_final(RunFolder(theirs), which)
        expected = other.tower.state_dict()
        assert one.logit_scale == other.logit_scale
        assert all(torch.equal(tensor, expected[name]) for name, tensor in one.tower.state_dict().items())


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_the_weights_of_the_best_validation_are_kept(tiny_cache: Path, tmp_path: Path, ema: float) -> None:
    result = train(wavering(tiny_cache, tmp_path / "run", ema=ema))
    step = best_step(tmp_path / "run")
    assert 0 < step < NUM_STEPS
    assert result.best is not None
    assert (result.best["step"], result.step, result.stopped_early) == (step, NUM_STEPS, False)
    # Another run, stopped at that step, has those weights: with --ema the average, which is what was validated.
    train(wavering(tiny_cache, tmp_path / "stopped", ema=ema), on_progress=stop_at(step))
    checkpoint = RunFolder(tmp_path / "stopped").load_checkpoint()
    assert checkpoint is not None
    then = {n.removeprefix("module."): t for n, t in checkpoint["average" if ema else "tower"].items()}
    best = load_final(RunFolder(tmp_path / "run"), "best").tower.state_dict()
    last = load_final(RunFolder(tmp_path / "run"), "last").tower.state_dict()
    assert all(torch.equal(tensor, then[name]) for name, tensor in best.items())
    assert not all(torch.equal(tensor, best[name]) for name, tensor in last.items())


@pytest.fixture(scope="module")
def patient(tiny_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainSettings, int]:
    """A finished run that stopped early, and the step at which it had to."""
    folder = tmp_path_factory.mktemp("patient")
    train(wavering(tiny_cache, folder / "to_the_end"))
    highest, num_since, expected = -1.0, 0, NUM_STEPS
    for step, recall in validations(folder / "to_the_end"):
        num_since = 0 if recall > highest else num_since + 1
        highest = max(highest, recall)
        if num_since == 2:
            expected = step
            break
    straight = wavering(tiny_cache, folder / "run", patience=2)
    result = train(straight)
    assert result.complete
    assert result.stopped_early == (expected < NUM_STEPS)
    assert result.step == expected
    return straight, expected


def test_patience_stops_the_run_which_is_then_finished(patient: tuple[TrainSettings, int], tmp_path: Path) -> None:
    straight, expected = patient
    assert expected < NUM_STEPS
    assert max(line["step"] for line in logged(straight.output)) == expected
    copy = replace(straight, output=shutil.copytree(straight.output, tmp_path / "run"))
    again = train(copy, resume=True)
    assert (again.began_at, again.step, again.complete, again.stopped_early) == (expected, expected, True, True)
    assert logged(copy.output) == logged(straight.output)
    shown = command("train", straight.cache, "-o", copy.output, "--resume", "--json")
    assert json.loads(shown.stdout)["stopped_early"] is True
    assert export_run(ExportSettings(run=copy.output, output=tmp_path / "merged")).which == "best"


@pytest.mark.parametrize("step", [3, 11, "before the stop"])
def test_a_stopped_run_resumes_to_the_same_best_and_the_same_stop(
    patient: tuple[TrainSettings, int], tmp_path: Path, step: int | str
) -> None:
    straight, expected = patient
    broken = replace(straight, output=tmp_path / "broken")
    train(broken, on_progress=stop_at(step if isinstance(step, int) else expected - 1))
    assert train(broken, resume=True).step == expected
    assert logged(broken.output) == logged(straight.output)
    assert_same_towers(broken.output, straight.output)


def test_recall_on_other_pairs_is_not_compared(
    tiny_cache: Path, make_cache: Callable[..., Any], tmp_path: Path
) -> None:
    easier = tmp_path / "easier.zarr"
    make_cache(draw_images(tmp_path, 2), easier)  # the first two images: recall at 5 and 10 is 1
    begun = wavering(tiny_cache, tmp_path / "run")
    train(replace(begun, val=easier), on_progress=stop_at(10))
    result = train(begun, resume=True)
    on_these = [(recall, -step) for step, recall in validations(tmp_path / "run") if step > 10]
    assert result.best is not None
    assert result.best["step"] == -max(on_these)[1]


def test_a_crash_before_the_first_checkpoint_loses_no_best(tiny_cache: Path, tmp_path: Path) -> None:
    straight = settings(tiny_cache, tmp_path / "straight", val=tiny_cache, warm_start="ridge", width=64, lr=0.3)
    result = train(straight)
    assert result.best is not None
    assert result.best["step"] == 0  # the steps undo the warm start

    def crash(progress: Progress) -> None:
        if progress.stage == "train" and progress.done == 2:
            raise RuntimeError("a crash")

    broken = replace(straight, output=tmp_path / "broken")
    with pytest.raises(RuntimeError, match="a crash"):
        train(broken, on_progress=crash)
    train(broken, resume=True)
    assert logged(broken.output) == logged(straight.output)
    assert_same_towers(broken.output, straight.output)


def test_an_export_takes_the_best_weights_and_says_so(tiny_cache: Path, tmp_path: Path) -> None:
    run = RunFolder(train(wavering(tiny_cache, tmp_path / "run")).run.path)
    step, captions = best_step(run.path), ["синий квадрат", "red"]
    ids = CaptionTokenizer.load(run.tokenizer).encode(captions, 16)
    for flags, which, at in (((), "best", step), (("--step", "last"), "last", NUM_STEPS)):
        folder = tmp_path / which
        told = json.loads(command("export", run.path, "-o", folder, *flags, "--json").stdout)
        assert (told["which"], told["step"], told["validation"]["step"]) == (which, at, at)
        measured = next(line for line in logged(run.path) if line["kind"] == "validation" and line["step"] == at)
        card = (folder / "README.md").read_text(encoding="utf-8")
        assert f"R@1 {measured['r_at_1']:.1%}, R@5 {measured['r_at_5']:.1%}" in card
        assert f"step {at}" in card if which == "best" else f"last step, {at}" in card
        clip, tokenizer = (load(f"local-dir:{folder}") for load in (open_clip.create_model, open_clip.get_tokenizer))
        with torch.inference_mode():
            theirs = clip.eval().encode_text(tokenizer(captions))
            ours = load_final(run, which).tower.encode(ids)
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)
    shown = command("export", run.path, "-o", tmp_path / "shown").stdout
    assert f"after step {step}" in shown
    assert "--step last" in shown


def test_a_run_without_best_weights_exports_the_last(tiny_cache: Path, tmp_path: Path) -> None:
    plain = train(settings(tiny_cache, tmp_path / "plain", epochs=1)).run  # without validation
    begun = wavering(tiny_cache, tmp_path / "old")
    train(begun, on_progress=stop_at(12))
    make_old(begun.output)  # as a version wrote it that kept no best weights
    old = train(begun, resume=True).run
    for run in (plain, old):
        told = export_run(ExportSettings(run=run.path, output=tmp_path / f"{run.path.name}_merged"))
        assert told.which == "last"
        with pytest.raises(DistillError, match="--step last"):
            export_run(ExportSettings(run=run.path, output=tmp_path / "refused", step="best"))
    file = plain.final / "config.json"
    file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "step"}))
    told = export_run(ExportSettings(run=plain.path, output=tmp_path / "older"))
    assert (told.which, told.step) == ("last", None)


def make_old(run: Path) -> None:
    for file in (run / "checkpoints").iterdir():
        state = torch.load(file, weights_only=True)
        del state["best"]
        torch.save(state, file)


def test_patience_without_validation_is_refused(tiny_cache: Path, tmp_path: Path) -> None:
    with pytest.raises(DistillError, match="--patience 2: pass --val"):
        settings(tiny_cache, tmp_path / "run", patience=2)
