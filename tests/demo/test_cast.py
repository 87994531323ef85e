"""The script that draws the demo's terminal: a real recording becomes an image of what the terminal showed."""

import importlib.util
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "cast.py"
SVG = "{http://www.w3.org/2000/svg}"
COMMAND = """
import time
from rich.console import Console
from rich.progress import Progress
console = Console()
with Progress(console=console) as bars:
    for stage in ("draw", "train"):
        for _ in bars.track(range(3), description=stage):
            time.sleep(0.1)
            console.print("a line above", style="bold green") if stage == "train" else None
console.print("[dim]4 < 5[/dim] & █▏", highlight=False)
"""


@pytest.fixture(scope="module")
def cast() -> Any:
    spec = importlib.util.spec_from_file_location("cast", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["cast"] = module
    spec.loader.exec_module(module)
    return module


def test_the_last_frame_is_what_the_terminal_shows_at_the_end(cast: Any) -> None:
    events = cast.record([sys.executable, "-c", COMMAND])
    *_, (second, lines) = cast.frames_of(events)
    assert second == events[-1][0]
    shown = ["".join(character for character, _ in line).rstrip() for line in lines]
    assert shown[:3] == ["a line above"] * 3
    assert [line.split()[0] for line in shown[3:5]] == ["draw", "train"]
    assert all("100%" in line for line in shown[3:5])
    assert shown[5:] == ["4 < 5 & █▏", ""]
    assert {style for _, style in lines[0]} == {(cast.PALETTE[2], True, False)}
    assert lines[5][0][1] == (cast.FOREGROUND, False, True)


def test_the_picture_is_valid_and_shows_every_line(cast: Any) -> None:
    events = [(i / 10, f"line {i} <b>\r\n") for i in range(12)]
    page = ElementTree.fromstring(cast.svg_of(events))
    texts = {"".join(text.itertext()): text.get("id") for text in page.iter(f"{SVG}text")}
    used = [use.get("href") for use in page.iter(f"{SVG}use")]
    assert all(f"#{texts[f'line {i} <b>']}" in used for i in range(12))
    assert len(used) > len(set(used))  # lines that several frames show are there once


def test_the_committed_picture_is_of_the_demo_and_small() -> None:
    file = SCRIPT.parents[1] / "docs" / "images" / "demo.svg"
    page = "".join(ElementTree.parse(file).getroot().itertext())
    assert file.stat().st_size < 200_000
    for shown in ("$ clipglot demo", "zero-shot accuracy", "new tower", "Look at it"):
        assert shown in page
