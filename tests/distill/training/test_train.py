"""Training on a tiny cache: it learns, resumes exactly, and refuses mismatches."""

import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from clipglot.cache.read.cache import Cache
from clipglot.distill.errors import DistillError
from clipglot.distill.training.final import load_final
from clipglot.distill.training.optimizer import make_optimizer
from clipglot.distill.training.run_folder import RunFolder
from clipglot.distill.training.train import train
from clipglot.encoders.errors import EncoderError
from support.drawings import draw_images
from support.run_logs import TIMING, logged
from support.runs import settings, stop_at
from support.tiny_towers import make_tower
from torch import nn


def test_a_run_learns_the_captions_of_colours(tiny_cache: Path, tmp_path: Path) -> None:
    result = train(settings(tiny_cache, tmp_path / "run", val=tiny_cache, epochs=30, lr=3e-3))
    losses = [line["loss"] for line in logged(tmp_path / "run") if "loss" in line]
    assert losses[-1] < 0.7 * losses[0]
    assert result.validation is not None
    assert result.validation["r_at_10"] > 2 * 10 / 40  # twice chance


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [3, 5, 12])
def test_resume_equals_the_uninterrupted_run(tiny_cache: Path, tmp_path: Path, step: int, number: int) -> None:
    straight = settings(tiny_cache, tmp_path / "straight", val=tiny_cache)
    train(straight)
    broken = replace(straight, output=tmp_path / "broken")
    stopped = train(broken, on_progress=stop_at(step, number))
    assert stopped.step == step
    assert not stopped.complete
    assert train(broken, resume=True).complete
    assert logged(tmp_path / "broken") == logged(tmp_path / "straight")
    ours, theirs = (load_final(RunFolder(tmp_path / name))[0].state_dict() for name in ("broken", "straight"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_resuming_a_complete_run_changes_nothing(tiny_cache: Path, tmp_path: Path) -> None:
    finished = settings(tiny_cache, tmp_path / "run", epochs=1)
    train(finished)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "final").iterdir()}
    assert train(finished, resume=True).complete
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "final").iterdir()}


def test_the_run_folder_records_settings_and_provenance(tiny_cache: Path, tmp_path: Path) -> None:
    given = settings(tiny_cache, tmp_path / "run", epochs=1, seed=3)
    train(given)
    written = json.loads((tmp_path / "run" / "run.json").read_text())
    assert written["settings"]["seed"] == 3
    assert written["settings"]["weight_decay"] == given.weight_decay  # defaults too
    assert written["provenance"]["encoder"]["weights_sha256"] == Cache(tiny_cache).info.encoder.weights_sha256
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert line.keys() == {"kind", "step", "epoch", "loss", "lr", "logit_scale", "grad_norm"} | TIMING


def test_metrics_lines_without_a_kind_are_read(tiny_cache: Path, tmp_path: Path) -> None:
    straight = settings(tiny_cache, tmp_path / "straight", val=tiny_cache, lr=1e-9)
    train(straight)
    broken = replace(straight, output=tmp_path / "broken")
    train(broken, on_progress=stop_at(13))
    run, file = RunFolder(broken.output), broken.output / "metrics.jsonl"
    lines, last, best = run.metrics(), run.last_validation(), run.best_validation()
    assert {line["kind"] for line in lines} == {"step", "validation", "finding"}
    file.write_text("".join(json.dumps({k: v for k, v in line.items() if k != "kind"}) + "\n" for line in lines))
    assert (run.metrics(), run.last_validation(), run.best_validation()) == (lines, last, best)
    assert train(broken, resume=True).complete
    assert logged(broken.output) == logged(straight.output)


def test_mismatches_are_refused_by_name(tiny_cache: Path, tmp_path: Path, make_cache: Any) -> None:
    begun = settings(tiny_cache, tmp_path / "run", epochs=1)
    train(begun)
    with pytest.raises(DistillError, match="--resume"):
        train(begun)
    with pytest.raises(DistillError, match=r"lr = 0\.001, now it is 0\.1"):
        train(replace(begun, lr=0.1), resume=True)
    make_cache(draw_images(tmp_path / "other", 20), tmp_path / "other.zarr")
    _swap_cache_of_run(tmp_path / "run", tmp_path / "other.zarr")
    with pytest.raises(DistillError, match="another cache"):
        train(replace(begun, cache=tmp_path / "other.zarr"), resume=True)
    with pytest.raises(DistillError, match="--batch-size 64 exceeds the 40"):
        train(settings(tiny_cache, tmp_path / "large", batch_size=64))
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").touch()
    with pytest.raises(DistillError, match="holds no run"):
        train(settings(tiny_cache, tmp_path / "taken"))
    train(settings(tiny_cache, tmp_path / "half"), on_progress=stop_at(2))
    with pytest.raises(DistillError, match="has not finished"):
        load_final(RunFolder(tmp_path / "half"))


def _swap_cache_of_run(run: Path, cache: Path) -> None:
    """Simulate another cache under the path that the run has recorded."""
    file = run / "run.json"
    described = json.loads(file.read_text())
    described["settings"]["cache"] = str(cache)
    file.write_text(json.dumps(described))


def test_a_validation_cache_of_another_tower_is_refused(
    tiny_cache: Path, tmp_path: Path, make_cache: Any, tiny_clip: Path
) -> None:
    from safetensors.torch import load_file, save_file

    other = tmp_path / "other_clip"
    shutil.copytree(tiny_clip, other)
    tensors = load_file(other / "open_clip_model.safetensors")
    tensors["visual.proj"] += 1
    save_file(tensors, other / "open_clip_model.safetensors")
    make_cache(draw_images(tmp_path / "val", 16), tmp_path / "val.zarr", model=f"local-dir:{other}")
    with pytest.raises(DistillError, match="weights_sha256"):
        train(settings(tiny_cache, tmp_path / "run", val=tmp_path / "val.zarr"))


def test_failed_images_are_in_no_batch(tmp_path: Path, make_cache: Any) -> None:
    manifest = draw_images(tmp_path, 24)
    for i in (0, 7, 23):
        (tmp_path / "images" / f"{i:04}.png").write_bytes(b"no image")
    make_cache(manifest, tmp_path / "cache.zarr")
    assert train(settings(tmp_path / "cache.zarr", tmp_path / "run", batch_size=7, epochs=1)).num_steps == 3
    with pytest.raises(DistillError, match="exceeds the 21"):
        train(settings(tmp_path / "cache.zarr", tmp_path / "large", batch_size=22))


def test_a_loss_that_is_not_finite_stops_the_run(tiny_cache: Path, tmp_path: Path) -> None:
    with pytest.raises(DistillError, match=r"loss is nan at step \d+: lower --lr"):
        train(settings(tiny_cache, tmp_path / "run", lr=1e30, grad_clip=0.0, epochs=20))


def test_norms_biases_and_the_temperature_are_not_decayed() -> None:
    tower, loss = make_tower(layers=1), nn.Module()
    loss.register_parameter("logit_scale", nn.Parameter(torch.tensor(2.0)))
    rates = {"lr": 1e-3, "lm_lr": 1e-4, "layer_decay": 1.0}
    decayed, free = make_optimizer(tower, loss, **rates, weight_decay=0.2, beta2=0.98).param_groups
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.2, 0.0)
    names = {id(parameter): name for name, parameter in [*tower.named_parameters(), *loss.named_parameters()]}
    assert {p.ndim for p in decayed["params"]} == {2}
    assert {p.ndim for p in free["params"]} == {0, 1}
    assert len(decayed["params"]) + len(free["params"]) == len(names)
    free_names = {names[id(p)] for p in free["params"]}
    assert {"logit_scale", "text.ln_final.weight", "text.transformer.resblocks.0.mlp.c_fc.bias"} <= free_names


@pytest.mark.parametrize(
    "wrong",
    [{"batch_size": 1}, {"width": 30, "heads": 4}, {"warmup": 2.0}, {"lr": 0.0}, {"epochs": 0}, {"context_length": 2}],
)
def test_invalid_settings_name_the_flag(wrong: dict[str, Any], tmp_path: Path) -> None:
    flag = next(iter(wrong)).replace("_", "-")
    with pytest.raises(DistillError, match=f"--{flag}"):
        settings(tmp_path, tmp_path / "run", **wrong)


def test_bf16_trains_close_to_fp32(tiny_cache: Path, tmp_path: Path) -> None:
    for precision in ("fp32", "bf16"):
        train(settings(tiny_cache, tmp_path / precision, precision=precision))
    fp32, bf16 = ([line["loss"] for line in logged(tmp_path / p) if "loss" in line] for p in ("fp32", "bf16"))
    assert bf16 == pytest.approx(fp32, rel=0.05)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch_size": 64}, "exceeds the 40"),
        ({"tokenizer": Path("nowhere")}, "no tokenizer.json"),
        ({"vocab_size": 10}, "--vocab-size 10"),
        ({"device": "cuda:77"}, "not usable here"),
    ],
)
def test_a_command_can_be_corrected_after_a_refusal(
    tiny_cache: Path, tmp_path: Path, wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises((DistillError, EncoderError), match=message):
        train(settings(tiny_cache, tmp_path / "run", **wrong))
    assert not (tmp_path / "run").exists()
    assert train(settings(tiny_cache, tmp_path / "run", epochs=1)).complete


def test_a_run_killed_at_its_start_resumes(tiny_cache: Path, tmp_path: Path) -> None:
    begun = settings(tiny_cache, tmp_path / "run", epochs=1)
    left = tmp_path / "run" / f".tokenizer.{'0' * 32}.partial"
    left.mkdir(parents=True)
    (left / "tokenizer.json").touch()
    assert train(begun).complete
    assert not left.exists()


def test_a_damaged_checkpoint_is_named_and_the_previous_one_resumes(tiny_cache: Path, tmp_path: Path) -> None:
    straight = settings(tiny_cache, tmp_path / "straight", checkpoint_every=5)
    train(straight)
    broken = replace(straight, output=tmp_path / "broken")
    train(broken, on_progress=stop_at(12))
    newest = tmp_path / "broken" / "checkpoints" / "step-000000012.pt"
    newest.write_bytes(newest.read_bytes()[:500])
    with pytest.raises(DistillError, match=r"step-000000012.pt is damaged .*: delete it to go on from step-000000010"):
        train(broken, resume=True)
    newest.unlink()
    assert train(broken, resume=True).complete
    assert logged(tmp_path / "broken") == logged(tmp_path / "straight")


def test_a_validation_cache_without_captions_is_refused_before_the_first_step(
    tiny_cache: Path, tmp_path: Path, make_cache: Any
) -> None:
    manifest = draw_images(tmp_path, 10)
    lines = [json.loads(line) | {"text": []} for line in manifest.read_text(encoding="utf-8").splitlines()]
    manifest.write_text("\n".join(map(json.dumps, lines)))
    make_cache(manifest, tmp_path / "val.zarr")
    with pytest.raises(DistillError, match=r"val.zarr has no caption of an embedded image.*--text-field"):
        train(settings(tiny_cache, tmp_path / "run", val=tmp_path / "val.zarr"))
    assert not (tmp_path / "run").exists()


def test_a_run_resumes_with_a_moved_cache(tiny_cache: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_cache, tmp_path / "here.zarr")
    begun = settings(tmp_path / "here.zarr", tmp_path / "run")
    train(begun, on_progress=stop_at(5))
    (tmp_path / "here.zarr").rename(tmp_path / "there.zarr")
    assert train(replace(begun, cache=tmp_path / "there.zarr"), resume=True).complete
