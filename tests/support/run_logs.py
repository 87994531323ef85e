"""What a run logged, for comparing runs."""

import json
from pathlib import Path
from typing import Any

TIMING = {"pairs_per_s", "data_s", "step_s"}


def logged(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, less what depends on the clock."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMING} for line in lines]
