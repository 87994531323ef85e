"""`clipglot search` on terminals: text, images by sixel and kitty, terminals that show none or are silent."""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clipglot.cli import terminal_images
from clipglot.cli.terminal_images import Graphics, TerminalImage
from PIL import Image
from rich.console import Console
from support.command_line import run
from support.launcher import Process
from support.terminal import ANSWERS, CELL, Screen, Shown, run_on_terminal

ROWS = 5  # lines of a thumbnail
SIDE = ROWS * CELL[1]
Start = Callable[..., Process]


def reference(image: Path) -> np.ndarray:
    """The square that the tower sees of an image, in a thumbnail's size, by Pillow alone."""
    opened = Image.open(image).convert("RGB")
    scale = SIDE / min(opened.size)
    resized = opened.resize((round(opened.width * scale), round(opened.height * scale)), Image.Resampling.BICUBIC)
    left, top = (resized.width - SIDE) // 2, (resized.height - SIDE) // 2
    return np.asarray(resized.crop((left, top, left + SIDE, top + SIDE)), np.float64)


def nearest(pixels: np.ndarray, folder: Path) -> tuple[str, float]:
    """The image of a folder whose colours are nearest, and their mean difference."""
    distances = {
        f"images/{file.name}": float(np.abs(reference(file) - pixels).mean()) for file in folder.glob("images/*.png")
    }
    best = min(distances, key=lambda name: distances[name])
    return best, distances[best]


@pytest.fixture
def shown(start_command: Start, merged: Path, tiny_cache: Path) -> Callable[..., Shown]:
    """`shown("sixel", …)`: a search on a terminal that answers so."""

    def show(kind: str, *arguments: object, **options: Any) -> Shown:
        given = [merged, tiny_cache, "шум", "--top", 3, *arguments]
        return run_on_terminal(start_command, "search", *given, answers=ANSWERS[kind], **options)

    return show


@pytest.mark.parametrize("kind", ["sixel", "kitty"])
@pytest.mark.parametrize("environment", [{}, {"NO_COLOR": "1"}], ids=["colours", "no colours"])
def test_thumbnails_stand_beside_their_captions(
    kind: str, environment: dict[str, str], shown: Callable[..., Shown], manifest: Path, merged: Path, tiny_cache: Path
) -> None:
    result = shown(kind, environment=environment)
    assert (result.code, result.left, result.echoes) == (0, b"", True), result.written
    (expected,) = json.loads(run("search", merged, tiny_cache, "шум", "--top", 3, "--json").stdout)
    screen = Screen.of(result.written)
    lines, keys = screen.text(), [hit["key"] for hit in expected["hits"]]
    assert [key for line in lines for key in re.findall(r"images/\S+png", line)] == keys
    assert [image.pixels.shape for image in screen.images] == [(SIDE, SIDE, 3)] * 3
    header = next(line for line in lines if "thumbnail" in line)
    for image, hit in zip(screen.images, expected["hits"], strict=True):
        assert hit["key"] in lines[image.row]  # the first line of the image is that of its hit
        assert image.column == header.index("thumbnail")
        assert f"{hit['score']:.3f}" in lines[image.row]
        captions = [line[header.index("captions") :].strip() for line in lines[image.row : image.row + ROWS]]
        assert [caption for caption in captions if caption] == hit["captions"]
        best, difference = nearest(image.pixels, manifest.parent)
        assert (best, difference < (12 if kind == "sixel" else 2)) == (hit["key"], True), difference  # 256 colours
    assert not screen.titles


@pytest.mark.parametrize(
    ("kind", "options", "environment"),
    [
        ("tmux", [], {}),
        ("old kitty", [], {}),
        ("silent", [], {}),
        ("half", [], {}),
        ("garbled", [], {}),
        ("sixel", ["--no-thumbnails"], {}),
        ("sixel", [], {"TERM": "dumb"}),
    ],
)
def test_other_terminals_show_text_alone_and_keep_no_junk(
    kind: str, options: list[str], environment: dict[str, str], shown: Callable[..., Shown]
) -> None:
    begin = time.monotonic()
    result = shown(kind, *options, environment=environment)
    assert (result.code, result.left, result.echoes) == (0, b"", True), result.written
    assert time.monotonic() - begin < 60  # no terminal makes it wait for ever
    screen = Screen.of(result.written)
    assert not screen.images
    assert sum("images/" in line for line in screen.text()) == 3
    assert not any("thumbnail" in line for line in screen.text())
    asked = terminal_images.DEVICE_ATTRIBUTES in result.written
    assert asked != bool(options or environment)


def test_what_is_typed_ahead_is_left_to_the_shell(shown: Callable[..., Shown]) -> None:
    result = shown("sixel", typed=b"ls")
    assert (result.code, result.left, result.echoes) == (0, b"ls", True)
    assert not Screen.of(result.written).images


def test_without_the_library_there_are_no_images_and_asked_for_them_the_reason(shown: Callable[..., Shown]) -> None:
    absent = "import sys\nsys.modules['textual_image'] = None\nimport importlib.util as u\nfind = u.find_spec\n"
    absent += "u.find_spec = lambda name, *more: None if name == 'textual_image' else find(name, *more)\n"
    quiet = shown("sixel", script=absent)
    assert (quiet.code, Screen.of(quiet.written).images, "textual" in quiet.written) == (0, [], False)
    told = shown("sixel", "--thumbnails", script=absent)
    assert (told.code, "[terminal]" in told.written) == (0, True)
    assert "takes neither sixel" in shown("tmux", "--thumbnails").written


def test_an_image_that_cannot_be_read_has_the_reason_in_its_place(
    shown: Callable[..., Shown], manifest: Path, tmp_path: Path
) -> None:
    (tmp_path / "images").mkdir()
    result = shown("sixel", "--image-root", tmp_path)
    screen = Screen.of(result.written)
    assert (result.code, screen.images) == (0, [])
    assert sum("missing" in line for line in screen.text()) == 3
    for file in (manifest.parent / "images").iterdir():
        (tmp_path / "images" / file.name).write_bytes(b"no image")
    text = Screen.of(shown("sixel", "--image-root", tmp_path).written).text()
    assert sum("no such" in line for line in text) == 3  # "image" is on the next line
    assert "".join(text).count("is another image than the one that was cached") == 1


def test_a_pipe_gets_whole_lines_and_no_images(merged: Path, tiny_cache: Path) -> None:
    result = run("search", merged, tiny_cache, "шум", "красный", "--top", 2)
    assert result.exit_code == 0
    assert "\x1b" not in result.output
    blocks = result.stdout.split("\n\n")
    assert [block.splitlines()[0] for block in blocks] == ["шум", "красный"]
    assert all(block.splitlines()[1].split() == ["rank", "score", "image", "captions"] for block in blocks)
    wanted = run("search", merged, tiny_cache, "шум", "--thumbnails")
    assert "no thumbnails: standard input and output are no terminal" in wanted.stderr


class _Stranger:
    """A library that draws something else than an image."""

    def __init__(self, *arguments: object, **options: object) -> None:
        pass

    def __rich_console__(self, console: Console, options: object) -> Any:
        from rich.segment import ControlType, Segment

        for control in ("\x1b]0;owned\x07", "\x1b[2J", "\x1bPq\x1b[31m\x1b\\", "\x1b_Ga=t;\x07\x1b\\", "\x1bc"):
            yield Segment(control, control=[(ControlType.CURSOR_FORWARD, 0)])


@pytest.mark.parametrize("protocol", ["sixel", "kitty"])
def test_controls_that_are_no_image_are_shown(protocol: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import textual_image.renderable

    for name in ("SixelImage", "TGPImage"):
        monkeypatch.setattr(textual_image.renderable, name, _Stranger)
    graphics = Graphics(protocol=protocol, cell_width=8, cell_height=16)
    image = TerminalImage(Image.new("RGB", (8, 8)), graphics, columns=1, rows=1)
    segments = list(image.__rich_console__(Console(), Console().options))
    assert not any(segment.control for segment in segments)
    assert not re.search("[\x00-\x09\x0b-\x1f]", "".join(segment.text for segment in segments))
