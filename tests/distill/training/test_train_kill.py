"""Training runs killed at random moments: resuming gives the same losses and the same weights."""

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from clipglot.distill.training.final import load_final
from clipglot.distill.training.run_folder import RunFolder
from support.run_logs import logged

SETTINGS = [
    *("--width", "64", "--layers", "2", "--heads", "2", "--vocab-size", "300", "--context-length", "16"),
    *("--epochs", "30", "--batch-size", "8", "--log-every", "1", "--checkpoint-every", "3", "--device", "cpu"),
]


def command(cache: Path, run: Path, *more: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "clipglot",
        "train",
        str(cache),
        "-o",
        str(run),
        "--val",
        str(cache),
        *SETTINGS,
        *more,
    ]


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("--patience", "6", "--epochs", "200")], ids=["to the end", "with patience"])
def test_a_run_killed_at_random_moments_equals_the_uninterrupted_run(
    tiny_cache: Path, tmp_path: Path, more: tuple[str, ...]
) -> None:
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    subprocess.run(command(tiny_cache, straight, *more), check=True, capture_output=True)
    if more:
        assert max(line["step"] for line in logged(straight)) < 1000  # patience ran out

    chance = random.Random(0)
    num_kills = 0
    while num_kills < 4:
        lines_before = _num_lines(broken)
        process = subprocess.Popen(command(tiny_cache, broken, *more, "--resume"), stdout=subprocess.DEVNULL)
        # Kill once it has logged some more steps, at a moment that has nothing to do with its own rhythm.
        wanted = lines_before + chance.randint(5, 45)
        while process.poll() is None and _num_lines(broken) < wanted:
            time.sleep(0.001)
        time.sleep(chance.random() * 0.01)
        if process.poll() is not None:
            break
        process.kill()
        process.wait()
        num_kills += 1
    assert num_kills >= 2
    finished = subprocess.run(command(tiny_cache, broken, *more, "--resume", "--json"), check=True, capture_output=True)
    assert json.loads(finished.stdout)["complete"]

    assert logged(broken) == logged(straight)
    for which in ("last", "best"):
        ours, theirs = (load_final(RunFolder(run), which) for run in (broken, straight))
        assert ours[1] == theirs[1]
        theirs_state = theirs[0].state_dict()
        assert all(torch.equal(tensor, theirs_state[name]) for name, tensor in ours[0].state_dict().items())


def _num_lines(run: Path) -> int:
    file = run / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0
