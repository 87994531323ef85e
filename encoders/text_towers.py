"""Table of the kinds of text towers.

A new kind is one file (a configuration, a dataclass of options, a tower; see `text_tower.py`), a line in the table
below, and a test class that inherits `TextTowerContract` (tests/support/text_tower_contract.py). Settings that only it
has are fields of `TrainSettings` (distill/train_settings.py) by the names of its options.
"""

from collections.abc import Mapping
from typing import Any

from .text_lm import LMTower
from .text_scratch import ScratchTower
from .text_tower import TextTower

TEXT_TOWERS: dict[str, type[TextTower]] = {tower.kind: tower for tower in (ScratchTower, LMTower)}


def tower_named(text: str) -> type[TextTower]:
    """Kind of the text tower that `--text` names; a folder or hub repository is a language model."""
    return next((tower for tower in TEXT_TOWERS.values() if text in tower.names), LMTower)


def stored_tower(values: Mapping[str, Any]) -> type[TextTower]:
    """Kind of the text tower whose configuration stands in `final/config.json` of a run.

    Raises:
        ValueError: it holds none of a known kind.
    """
    for kind, tower in TEXT_TOWERS.items():
        if kind in values:
            return tower
    raise ValueError(f"no text tower of a known kind ({', '.join(TEXT_TOWERS)}) in it")
