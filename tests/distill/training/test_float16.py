"""float16: steps whose gradients overflow change neither the weights, nor their average, nor the schedule."""

from dataclasses import replace
from math import cos, pi
from pathlib import Path

import pytest
import torch
from clipglot.distill.training.setup import build_run
from clipglot.distill.training.train import train
from support.run_comparison import assert_same_run
from support.run_logs import logged
from support.runs import settings, stop_at

CPU = torch.device("cpu")
EMA = 0.75


def test_a_skipped_step_changes_neither_weights_nor_their_average(tiny_cache: Path, tmp_path: Path) -> None:
    given = settings(tiny_cache, tmp_path / "run", precision="fp16", ema=EMA)
    setup = build_run(given, CPU)
    student, overflow = setup.student, False
    parameter = student.tower.text.positional_embedding  # type: ignore[union-attr]
    parameter.register_hook(lambda grad: torch.full_like(grad, torch.inf) if overflow else grad)
    average: torch.Tensor | None = None
    num_learned = 0
    for step, batch in enumerate(setup.loader.batches(0, 20)):
        overflow = step in (8, 9, 13)
        before = parameter.detach().clone()
        result = student.step(batch.to(CPU), 1e-3, number=step)
        after = parameter.detach().double()
        skipped = not torch.isfinite(result.grad_norm)
        assert skipped or not overflow
        assert torch.equal(before, parameter) == skipped
        if not skipped:  # the average by its formula, in float64; it begins at the first weights that were learned
            num_learned += 1
            average = after.clone() if average is None else EMA * average + (1 - EMA) * after
            torch.testing.assert_close(student.evaluated.text.positional_embedding.double(), average, atol=1e-6, rtol=0)  # type: ignore[union-attr]
        assert student.num_skipped == step + 1 - num_learned
    assert num_learned >= 10


def test_skipped_steps_do_not_use_up_the_schedule_and_resuming_knows_them(tiny_cache: Path, tmp_path: Path) -> None:
    straight = settings(tiny_cache, tmp_path / "straight", precision="fp16", ema=EMA, warmup=0.25, lr=2e-3)
    result = train(straight)
    num_learned = 0
    for line in logged(straight.output):
        if line["kind"] == "step":
            progress = (num_learned - 5) / 15  # 20 steps, 5 of warm-up
            expected = 2e-3 * ((num_learned + 1) / 5 if num_learned < 5 else 0.5 * (1 + cos(pi * progress)))
            assert line["lr"] == pytest.approx(expected)
            num_learned += line["grad_norm"] is not None
    assert 0 < num_learned < result.num_steps == 20  # the scale of the gradients is found by overflowing
    broken = replace(straight, output=tmp_path / "broken")
    train(broken, on_progress=stop_at(7))
    assert train(broken, resume=True).complete
    assert_same_run(broken.output, straight.output)
