"""Modes of the training engine equal the plain mode; invalid settings are refused; runs are logged."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from clipglot.cache.read.cache import Cache
from clipglot.distill.errors import DistillError
from clipglot.distill.train_settings import ScheduleSettings, TrainSettings
from clipglot.distill.training.run_folder import RunFolder
from clipglot.distill.training.schedule import learning_rate
from clipglot.distill.training.setup import build_run
from clipglot.distill.training.train import train
from support.run_comparison import assert_same_run, weights
from support.run_logs import logged
from support.runs import settings, stop_at

CPU = torch.device("cpu")


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in logged(run) if "loss" in line]


@pytest.fixture(scope="module")
def plain_run(tiny_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("plain") / "run"
    train(settings(tiny_cache, run))
    return run


def test_micro_batches_and_gradient_checkpointing_equal_the_plain_run_up_to_rounding(
    tiny_cache: Path, tmp_path: Path, plain_run: Path
) -> None:
    for name, change in (("cached", {"micro_batch": 3}), ("checkpointed", {"grad_checkpointing": True, "layers": 1})):
        train(settings(tiny_cache, tmp_path / name, **change))
        assert losses(tmp_path / name) == pytest.approx(losses(plain_run), rel=1e-4)
        expected = weights(plain_run)
        for tensor_name, tensor in weights(tmp_path / name).items():
            torch.testing.assert_close(tensor, expected[tensor_name], rtol=1e-3, atol=1e-4)


def test_mapped_embeddings_give_the_same_run(tiny_cache: Path, tmp_path: Path, plain_run: Path) -> None:
    train(settings(tiny_cache, tmp_path / "mapped", embeddings="mapped"))
    assert_same_run(tmp_path / "mapped", plain_run)


@pytest.mark.parametrize("where", ["device", "mapped"])
def test_loss_with_negatives_equals_the_dense_softmax(tiny_cache: Path, tmp_path: Path, where: str) -> None:
    given = settings(tiny_cache, tmp_path / "run", negatives="20", embeddings=where)
    _require_plain_softmax(given, num_negatives=20)


def test_all_negatives_are_all_images(tiny_cache: Path, tmp_path: Path) -> None:
    _require_plain_softmax(settings(tiny_cache, tmp_path / "run", negatives="all"), num_negatives=40)


def _require_plain_softmax(given: TrainSettings, num_negatives: int) -> None:
    """Loss of a step, computed from all images and caption texts of the cache."""
    cache = Cache(given.cache)
    captions, image_index, image_emb = (
        cache.captions(),
        cache.caption_image(),
        torch.from_numpy(cache.image_emb()).float(),
    )
    setup = build_run(given, CPU)
    tokenizer, student, loader = setup.tokenizer, setup.student, setup.loader
    num_masked = 0
    for step, host_batch in enumerate(loader.batches(0, 10)):
        epoch, index = divmod(step, loader.steps_per_epoch)
        batch = loader.sampler.batch(epoch, index)
        assert loader.negatives is not None
        drawn = loader.negatives.draw(epoch, index, batch, batch.captions).rows.tolist()
        candidates = [*batch.rows.tolist(), *(row for row in drawn if row not in batch.rows)]
        assert len(drawn) == num_negatives
        ids = tokenizer.encode([captions[i] for i in batch.captions], given.context_length)
        text_emb = F.normalize(student.tower.encode(ids), dim=-1)
        carries = {row: {captions[i] for i in np.flatnonzero(image_index == row)} for row in candidates}
        texts = [captions[i] for i in batch.captions]
        logits = student.logit_scale * text_emb @ image_emb[candidates].T
        masked = [
            (i, j) for i, text in enumerate(texts) for j, r in enumerate(candidates) if text in carries[r] and i != j
        ]
        num_masked += sum(j < len(texts) for _, j in masked)
        for i, j in masked:
            logits[i, j] = -torch.inf
        own = torch.arange(len(texts))
        expected = (F.cross_entropy(logits, own) + F.cross_entropy(logits[:, : len(texts)].T, own)) / 2
        loss = student.loss(text_emb, host_batch.to(CPU).targets)
        torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    assert num_masked, "no caption was shared within a batch"


def test_resume_with_negatives_equals_the_uninterrupted_run(tiny_cache: Path, tmp_path: Path) -> None:
    straight = settings(tiny_cache, tmp_path / "straight", negatives="11", ema=0.9)
    train(straight)
    broken = replace(straight, output=tmp_path / "broken")
    train(broken, on_progress=stop_at(9))
    assert train(broken, resume=True).complete
    assert_same_run(tmp_path / "broken", tmp_path / "straight")


def test_bfloat16_trains_close_to_float32(tiny_cache: Path, tmp_path: Path, plain_run: Path) -> None:
    train(settings(tiny_cache, tmp_path / "run", precision="bf16"))
    assert losses(tmp_path / "run") == pytest.approx(losses(plain_run), rel=0.05)


def test_float16_skips_overflowing_steps_learns_and_resumes_exactly(tiny_cache: Path, tmp_path: Path) -> None:
    straight = settings(tiny_cache, tmp_path / "straight", precision="fp16")
    train(straight)
    measured = losses(tmp_path / "straight")
    assert sum(measured[-5:]) < 0.8 * sum(measured[:5])
    broken = replace(straight, output=tmp_path / "broken")
    train(broken, on_progress=stop_at(3))  # while the scale of the gradients is still being found
    assert train(broken, resume=True).complete
    assert_same_run(tmp_path / "broken", tmp_path / "straight")


def test_the_average_of_the_weights_is_exported(tiny_cache: Path, tmp_path: Path, plain_run: Path) -> None:
    train(settings(tiny_cache, tmp_path / "run", ema=0.5))
    assert losses(tmp_path / "run") == losses(plain_run)  # it watches, it does not steer
    state = RunFolder(tmp_path / "run").load_checkpoint()
    assert state is not None
    for name, tensor in weights(tmp_path / "run").items():
        assert torch.equal(tensor, state["average"][f"module.{name}"])
    assert not torch.equal(weights(tmp_path / "run")["text.text_projection"], state["tower"]["text.text_projection"])


def test_schedules() -> None:
    def rates(**changes: Any) -> list[float]:
        given = ScheduleSettings(lr=2.0, warmup=0.2, **changes)
        return [learning_rate(step, 10, given) for step in range(10)]

    assert rates(schedule="constant") == [1.0, *[2.0] * 9]
    falling = rates(schedule="wsd", cooldown=0.4)
    assert falling[:7] == [1.0, *[2.0] * 6]
    assert falling[7:] == pytest.approx([2 * (1 - (i / 4) ** 0.5) for i in (1, 2, 3)])
    assert rates(schedule="wsd", cooldown=0.8)[2:] == pytest.approx([2 * (1 - (i / 8) ** 0.5) for i in range(8)])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"negatives": "many"}, "--negatives many"),
        ({"dropout": 1.0}, "--dropout 1.0"),
        ({"token_dropout": -0.1}, "--token-dropout -0.1"),
        ({"label_smoothing": 1.0}, "--label-smoothing 1.0"),
        ({"label_smoothing": 0.1, "loss": "siglip"}, "--label-smoothing belongs to"),
        ({"simcse": 0.1}, "--simcse 0.1: .* --dropout"),
        ({"alignment": -1.0}, "--alignment -1.0"),
        ({"loss": "similarity", "similarity": 0.5}, "--similarity is an auxiliary term"),
        ({"teacher_temperature": 0.0}, "--teacher-temperature 0.0"),
        ({"negatives": "5", "loss": "siglip"}, "--negatives belong to the softmax"),
        ({"ema": 1.0}, "--ema 1.0"),
        ({"micro_batch": 0}, "--micro-batch 0"),
        ({"micro_batch": 9}, "--micro-batch 9: .* --batch-size 8"),
        ({"schedule": "wsd", "warmup": 0.3, "cooldown": 0.8}, "--warmup 0.3 and --cooldown 0.8: .* at most 1"),
        ({"cooldown": 2.0}, "--cooldown 2.0"),
        ({"buffer_gb": 0.0}, "--buffer-gb 0.0"),
        ({"temperature": 2.0}, "--temperature 2.0"),
        ({"temperature": 0.0}, "--temperature 0.0"),
        ({"lr": float("inf")}, "--lr inf"),
    ],
)
def test_invalid_settings_are_refused(wrong: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(DistillError, match=message):
        settings(tmp_path, tmp_path / "run", **wrong)


def test_compiling_on_the_cpu_is_refused(tiny_cache: Path, tmp_path: Path) -> None:
    with pytest.raises(DistillError, match="--compile on: only a GPU"):
        train(settings(tiny_cache, tmp_path / "run", compile="on"))
    assert not (tmp_path / "run").exists()


def test_metrics_go_to_tensorboard(tiny_cache: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(settings(tiny_cache, tmp_path / "run", val=tiny_cache, epochs=2, log_to=("tensorboard",)))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    shown = [event.value for event in events.Scalars("train/loss")]
    assert shown == pytest.approx(losses(tmp_path / "run"), rel=1e-6)
    assert len(events.Scalars("validation/r_at_10")) == 2


def test_a_logger_that_is_not_installed_is_named_before_the_first_step(
    tiny_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipglot.distill.training.loggers.find_spec", lambda name: None)
    with pytest.raises(DistillError, match=r"pip install wandb"):
        train(settings(tiny_cache, tmp_path / "run", log_to=("wandb",)))
    assert not (tmp_path / "run").exists()


def test_the_profiler_writes_a_trace(tiny_cache: Path, tmp_path: Path) -> None:
    train(settings(tiny_cache, tmp_path / "run", profile=2))
    trace = json.loads((tmp_path / "run" / "profile" / "trace.json").read_text())
    assert any("ProfilerStep" in event.get("name", "") for event in trace["traceEvents"])
