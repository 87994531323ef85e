"""The figures of docs/scale.md are those of the format."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
from clipglot.cache.format import EMBEDDED_ARRAYS, plan_chunk_rows
from clipglot.jobs.settings.cache import CacheSettings

DIM = 512
SIZES = (10**6, 10**8, 10**9)


def row(name: str) -> list[float]:
    """Numbers of a row of the first table."""
    text = (Path(__file__).parents[2] / "docs" / "scale.md").read_text(encoding="utf-8")
    (line,) = (line for line in text.splitlines() if line.startswith(f"| {name}"))
    units = {"TB": 1e12, "GB": 1e9, "": 1.0}
    cells = [re.fullmatch(r"([\d.,]+) ?(TB|GB|)", cell.strip()) for cell in line.split("|")[2:-1]]
    return [float(cell[1].replace(",", "")) * units[cell[2]] for cell in cells if cell]


@pytest.mark.parametrize(
    ("name", "figures"),
    [
        ("embeddings, float16", [num * DIM * np.dtype(np.float16).itemsize for num in SIZES]),
        ("norm, status and hash", [num * (4 + 1 + 16) for num in SIZES]),
        ("keys and captions", [num * (30 + 8 + 50 + 8 + 8) for num in SIZES]),
    ],
)
def test_bytes(name: str, figures: list[float]) -> None:
    assert row(name) == pytest.approx(figures, rel=0.06)


def test_chunks_objects_and_requests() -> None:
    batch = CacheSettings.__dataclass_fields__["batch_size"].default
    chunks = [math.ceil(num / plan_chunk_rows(num, DIM, batch)) for num in SIZES]
    assert row("chunks of images") == chunks
    assert row("objects that a pass writes") == [len(EMBEDDED_ARRAYS) * num for num in chunks]
    assert row("[requests]") == [11 * num + 120 for num in chunks]
