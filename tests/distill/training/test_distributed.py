"""Distributed training: several processes equal one."""

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from clipglot.distill.training.final import load_final
from clipglot.distill.training.run_folder import RunFolder
from clipglot.distill.training.train import train
from support.run_logs import logged
from support.runs import settings, stop_at
from support.tiny_lms import save_tiny_lm

SHAPE = ["--width", "32", "--layers", "1", "--heads", "2", "--vocab-size", "300", "--context-length", "16"]
PACE = ["--epochs", "4", "--batch-size", "8", "--log-every", "1", "--checkpoint-every", "7", "--device", "cpu"]


def launcher(num_processes: int) -> list[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    how = ["-m", "torch.distributed.run", "--nproc-per-node", str(num_processes), "--master-port", str(port)]
    return [sys.executable, *how]


def torchrun(num_processes: int, cache: Path, run: Path, *more: str) -> list[str]:
    return [*launcher(num_processes), "-m", "clipglot", "train", str(cache), "-o", str(run), *SHAPE, *PACE, *more]


def run_in(num_processes: int, cache: Path, run: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = torchrun(num_processes, cache, run, *more)
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)


def assert_equal_but_for_rounding(ours: Path, theirs: Path) -> None:
    for one, other in zip(logged(ours), logged(theirs), strict=True):
        if one["kind"] == "finding":
            assert (one["finding"], one["step"]) == (other["finding"], other["step"])
            assert one["figures"] == pytest.approx(other["figures"], rel=2e-3)
            continue
        assert one.pop("kind") == other.pop("kind")
        assert one == pytest.approx(other, rel=2e-3)
    expected = load_final(RunFolder(theirs)).tower.state_dict()
    for name, tensor in load_final(RunFolder(ours)).tower.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=5e-3, atol=5e-4)


@pytest.fixture(scope="module")
def alone(tiny_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("alone") / "run"
    train(settings(tiny_cache, run, val=tiny_cache))
    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    "how", [[], ["--embeddings", "mapped", "--micro-batch", "3"]], ids=["on the device", "mapped, in micro-batches"]
)
def test_two_processes_equal_one_process(tiny_cache: Path, tmp_path: Path, alone: Path, how: list[str]) -> None:
    printed = run_in(2, tiny_cache, tmp_path / "run", "--val", str(tiny_cache), "--json", *how)
    assert json.loads(printed.stdout)["complete"]  # one document: the first process speaks for both
    assert "Warning" not in printed.stderr
    assert_equal_but_for_rounding(tmp_path / "run", alone)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"negatives": "20", "label_smoothing": 0.1},
        {"loss": "siglip"},
        {"captions_per_picture": 3, "equal_captions": "positive", "label_smoothing": 0.1, "micro_batch": 8},
        {"loss": "similarity", "uniformity": 0.5, "simcse": 0.5, "token_dropout": 0.3},
        {"loss": "mse", "alignment": 0.5, "similarity": 0.5, "token_dropout": 0.3},
    ],
    ids=str,
)
def test_every_loss_is_equal_in_two_processes(tiny_cache: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    train(settings(tiny_cache, tmp_path / "alone", **changes))
    flags = [word for name, value in changes.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    run_in(2, tiny_cache, tmp_path / "both", *flags)
    assert_equal_but_for_rounding(tmp_path / "both", tmp_path / "alone")


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [2, 4])
def test_a_head_on_stored_features_is_equal_in_several_processes(
    num_processes: int, tiny_cache: Path, tmp_path: Path
) -> None:
    lm = str(save_tiny_lm(tmp_path / "lm"))
    shape = {"width": 512, "layers": 6, "heads": 8}  # the defaults: a language model has its own
    train(
        settings(tiny_cache, tmp_path / "alone", text=lm, train_layers=0, vocab_size=32_768, context_length=40, **shape)
    )
    ignore = shutil.ignore_patterns("tokens")
    cache = Path(shutil.copytree(tiny_cache, tmp_path / "cache.zarr", ignore=ignore))
    command = [*launcher(num_processes), "-m", "clipglot", "train", str(cache), "-o", str(tmp_path / "run"), *PACE]
    command += ["--text", lm, "--train-layers", "0", "--context-length", "40", "--json"]
    told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, timeout=240).stdout)
    assert told["text_features"] == "stored"
    assert len(list((cache / "tokens").glob("features-*"))) == 1
    assert_equal_but_for_rounding(tmp_path / "run", tmp_path / "alone")


@pytest.mark.slow
def test_float16_overflows_as_often_in_four_processes_as_in_one(tiny_cache: Path, tmp_path: Path) -> None:
    train(settings(tiny_cache, tmp_path / "alone", precision="fp16"))
    run_in(4, tiny_cache, tmp_path / "four", "--precision", "fp16")
    overflowed = [
        [line["step"] for line in logged(tmp_path / run) if line.get("grad_norm", 0.0) is None]
        for run in ("alone", "four")
    ]
    assert overflowed[0]
    assert len(overflowed[1]) == len(overflowed[0])  # perhaps a step later: their rounding differs


@pytest.mark.slow
def test_patience_ends_every_process_after_the_same_step(tiny_cache: Path, tmp_path: Path) -> None:
    more = ["--val", str(tiny_cache), "--epochs", "200", "--patience", "2", "--json"]
    told = json.loads(run_in(2, tiny_cache, tmp_path / "run", *more).stdout)
    assert told["stopped_early"]
    assert told["step"] == logged(tmp_path / "run")[-1]["step"] < told["num_steps"]
    best = told["best"]["step"]
    assert told["step"] == best + 2 * 5  # two epochs
    assert json.loads((tmp_path / "run" / "best" / "config.json").read_text())["step"] == best


@pytest.mark.slow
def test_a_run_resumes_with_another_number_of_processes(tiny_cache: Path, tmp_path: Path, alone: Path) -> None:
    begun = settings(tiny_cache, tmp_path / "run", val=tiny_cache)
    assert train(begun, on_progress=stop_at(6)).step == 6
    run_in(2, tiny_cache, tmp_path / "run", "--val", str(tiny_cache), "--resume")
    assert_equal_but_for_rounding(tmp_path / "run", alone)


@pytest.mark.slow
def test_both_processes_stop_after_the_same_step(tiny_cache: Path, tmp_path: Path) -> None:
    slow = ["--epochs", "4000", "--log-every", "5"]
    with subprocess.Popen(torchrun(2, tiny_cache, tmp_path / "run", *slow), stderr=subprocess.PIPE, text=True) as job:
        metrics = tmp_path / "run" / "metrics.jsonl"
        while job.poll() is None and (not metrics.exists() or metrics.read_bytes().count(b"\n") < 3):
            time.sleep(0.01)
        job.send_signal(signal.SIGTERM)
        assert job.stderr is not None
        said = job.stderr.read()
    state = RunFolder(tmp_path / "run").load_checkpoint()
    assert state is not None, said
    assert f"stopped and saved at step {state['step']} of 20000" in said
    assert 0 <= state["step"] - logged(tmp_path / "run")[-1]["step"] < 5


@pytest.mark.slow
def test_an_indivisible_batch_ends_every_process(tiny_cache: Path, tmp_path: Path) -> None:
    failed = subprocess.run(
        torchrun(2, tiny_cache, tmp_path / "run", "--batch-size", "7"), capture_output=True, text=True, timeout=120
    )
    assert failed.returncode != 0
    assert failed.stderr.count("Error: --batch-size 7 cannot be shared by 2 processes") == 1  # the first says it


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--epochs", "0"], "--epochs 0"),
        (["--tokenizer", "nowhere"], "no tokenizer.json"),
        (["--val", "x"], "x: no such"),
    ],
    ids=["usage", "found while preparing", "no cache"],
)
def test_only_the_first_process_prints_an_error(
    tiny_cache: Path, tmp_path: Path, more: list[str], message: str
) -> None:
    command = torchrun(2, tiny_cache, tmp_path / "run", *more)
    failed = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert failed.returncode != 0
    assert failed.stderr.count(message) == 1
    assert not (tmp_path / "run").exists()


ALONE = """
import sys
from pathlib import Path
from clipglot.cache.errors import CacheError
from clipglot.distill import distributed
from clipglot.distill.errors import DistillError
import torch

def refuse_the_second():
    if distributed.rank() == 1:
        raise CacheError("a chunk is damaged")

with distributed.process_group(torch.device("cpu")):
    said = [distributed.all_or_none(distributed.rank)]
    try:
        distributed.all_or_none(refuse_the_second)
    except (CacheError, DistillError) as error:
        said.append(f"{type(error).__name__}: {error}")
    Path(sys.argv[1], str(distributed.rank())).write_text(str(said))
"""


@pytest.mark.slow
def test_an_error_in_one_process_ends_all_and_the_first_reports_it(tmp_path: Path) -> None:
    (tmp_path / "alone.py").write_text(ALONE)
    launched = [*launcher(2), str(tmp_path / "alone.py"), str(tmp_path)]
    subprocess.run(launched, check=True, capture_output=True, timeout=120)
    assert (tmp_path / "0").read_text() == "[0, 'DistillError: process 1: a chunk is damaged']"
    assert (tmp_path / "1").read_text() == "[1, 'CacheError: a chunk is damaged']"
