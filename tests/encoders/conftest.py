"""Fixtures: real weights and photographs, tiny language models."""

from pathlib import Path

import pytest
from support.tiny_lms import lm_settings, lms  # noqa: F401 (fixtures)

SHARED_DATA = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real photographs, captions and ViT weights, where this checkout has them beside it."""
    if not SHARED_DATA.is_dir():
        pytest.skip("needs the data folder beside the checkout")
    return SHARED_DATA
