"""Runs compared: the weights that one ends with, and whether two are the same run."""

from pathlib import Path

import torch
from clipglot.distill.training.final import load_final
from clipglot.distill.training.run_folder import RunFolder

from support.run_logs import logged


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_final(RunFolder(run)).tower.state_dict()


def assert_same_run(ours: Path, theirs: Path) -> None:
    assert logged(ours) == logged(theirs)
    expected = weights(theirs)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(ours).items())
