"""Memory that a batch frees is there for the next one, instead of coming back from the system page by page."""

import sys
from pathlib import Path

import pytest
import torch
from clipglot.encoders.malloc import set_malloc_thresholds
from support.launcher import Launcher

COUNT_FAULTS = """
import resource, torch
from clipglot.encoders.malloc import set_malloc_thresholds
if {kept}:
    set_malloc_thresholds(torch.device("cpu"))
def batch():
    return torch.ones(10 * 2**20).sum()  # 40 MB
for _ in range(20):  # the heap finds its size
    batch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    batch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(launcher: Launcher, folder: Path, kept: bool) -> int:
    return int(launcher.run(COUNT_FAULTS.format(kept=kept), folder=folder).out())


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_the_next_batch_gets_what_the_last_one_freed(launcher: Launcher, tmp_path: Path) -> None:
    given_back = faults(launcher, tmp_path, kept=False)
    assert given_back >= 20  # a page each at least, were pages as large as that
    assert faults(launcher, tmp_path, kept=True) * 10 < given_back


def test_a_gpu_is_left_to_torch() -> None:
    assert not set_malloc_thresholds(torch.device("cuda"))
