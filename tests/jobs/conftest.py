"""Fixtures of commands."""

from pathlib import Path
from typing import Any

import pytest
from support.dask_cluster import DaskCluster
from support.tiny_lms import lm_settings, lms  # noqa: F401 (fixtures)


@pytest.fixture
def cluster(start_command: Any, tmp_path: Path) -> DaskCluster:
    """A scheduler without workers."""
    return DaskCluster(start_command, tmp_path)
