"""Fixtures: the CLIP of most tests, loaded for use from Python."""

from pathlib import Path

import clipglot
import pytest


@pytest.fixture(scope="session")
def clip(merged: Path) -> clipglot.CLIP:
    """The merged CLIP of the tiny run."""
    return clipglot.load(merged, device="cpu")
