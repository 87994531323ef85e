"""Fixture of all loss tests: each runs with one block of logits and with many."""

import pytest
from clipglot.distill.data import targets


@pytest.fixture(autouse=True, params=[2**22, 12], ids=["one block", "many blocks"])
def _block_size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "CPU_LOGITS", request.param)
