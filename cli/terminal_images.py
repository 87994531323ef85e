r"""Small images on a terminal that shows them, by sixel (iTerm2, WezTerm, foot, Konsole, …) or kitty's protocol.

The terminal is asked once, here: `textual_image` asks at its import, may take a late answer for typed text, and puts a
kitty's query into the title of tmux. What it draws is made of our pixels alone, and taken only if it has the form of
an image (`_IMAGE`): any other control is shown, not obeyed, as of all that `cli.terminal` guards.
"""

import io
import os
import re
import select
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

from PIL import Image
from rich.console import Console, ConsoleOptions, RenderResult
from rich.control import Control
from rich.measure import Measurement
from rich.segment import ControlType, Segment

from .terminal import visible

ANSWER_S = 1.0  # as of a terminal behind a slow line; every terminal answers DEVICE_ATTRIBUTES
USUAL_CELL = (10, 20)  # pixels, of a terminal that does not tell
DEVICE_ATTRIBUTES, VERSION, CELL_SIZE = "\x1b[c", "\x1b[>q", "\x1b[16t"
_ATTRIBUTES = re.compile(rb"\x1b\[\?([\d;]*)c")
_VERSION = re.compile(rb"\x1bP>\|(kitty|ghostty)\W*(\d+)\.(\d+)")
_CELL_SIZE = re.compile(rb"\x1b\[6;(\d{1,3});(\d{1,3})t")
_SIXEL = "4"  # among the attributes
_PLACEHOLDERS_SINCE = {b"kitty": (0, 28), b"ghostty": (1, 0)}  # images that scroll as text does
# A position saved and restored, the cursor moved, a sixel image; kitty's messages, whose payload is base64.
_IMAGE = re.compile(r"\x1b[78]|(?:\x1b\[\d*[A-D])*|\x1bP[\d;]*q[\x20-\x7e]*\x1b\\|(?:\x1b_G[\w=,]*;?[\w+/=]*\x1b\\)+")
_AS_CONTROL = [(ControlType.CURSOR_FORWARD, 0)]  # marks a segment for rich, which then takes it as it is


@dataclass(frozen=True, kw_only=True)
class Graphics:
    """How a terminal shows images.

    Attributes:
        protocol: by which it takes them.
        cell_width: of a character, in pixels.
        cell_height: likewise.
    """

    protocol: Literal["sixel", "kitty"]
    cell_width: int
    cell_height: int


def find_graphics() -> Graphics | str:
    """How the terminal shows images, or why there are none."""
    if not all(stream and stream.isatty() for stream in (sys.__stdin__, sys.__stdout__, sys.stdout)):
        return "standard input and output are no terminal"
    if find_spec("textual_image") is None:
        return "textual-image is not installed: pip install '.[terminal]' in a clone of clipglot"
    if os.environ.get("TERM", "dumb") in ("dumb", "unknown", "linux"):
        return "this terminal shows none"
    return _ask() or "this terminal shows none: it takes neither sixel images nor those of kitty"


def _ask() -> Graphics | None:
    """What the terminal answers about itself; None if it shows no images, or does not answer."""
    import termios

    assert sys.__stdin__ is not None
    assert sys.__stdout__ is not None
    keyboard, screen = sys.__stdin__.fileno(), sys.__stdout__.fileno()
    cell = _cell_size(screen)
    try:
        if os.tcgetpgrp(keyboard) != os.getpgrp():  # in the background: setting the terminal would stop the process
            return None
        before = termios.tcgetattr(keyboard)
    except (OSError, termios.error):  # the terminal of another session
        return None
    silent = [*before[:6], [*before[6]]]
    silent[3] &= ~(termios.ECHO | termios.ICANON)
    restore = termios.TCSADRAIN
    try:
        termios.tcsetattr(keyboard, termios.TCSADRAIN, silent)
        if select.select([keyboard], [], [], 0)[0]:  # typed ahead, for the shell
            return None
        sys.__stdout__.flush()
        os.write(screen, ((CELL_SIZE if cell is None else "") + VERSION + DEVICE_ATTRIBUTES).encode())
        answer, deadline = b"", time.monotonic() + ANSWER_S
        while not (attributes := _ATTRIBUTES.search(answer)):  # the answer to the last question
            left_s = deadline - time.monotonic()
            is_there = left_s > 0 and select.select([keyboard], [], [], left_s)[0]
            if not (is_there and (block := os.read(keyboard, 4096))):  # nothing is read once the terminal is gone
                restore = termios.TCSAFLUSH  # half an answer is nothing for the shell
                return None
            answer += block
    finally:
        termios.tcsetattr(keyboard, restore, before)
    if cell is None and (told := _CELL_SIZE.search(answer)):
        cell = int(told[2]), int(told[1])
    width, height = cell if cell and min(cell) else USUAL_CELL
    if _SIXEL in attributes[1].decode().split(";"):
        return Graphics(protocol="sixel", cell_width=width, cell_height=height)
    version = _VERSION.search(answer)
    if version and (int(version[2]), int(version[3])) >= _PLACEHOLDERS_SINCE[version[1]]:
        return Graphics(protocol="kitty", cell_width=width, cell_height=height)
    return None


def _cell_size(screen: int) -> tuple[int, int] | None:
    """Width and height of a character in pixels, as the system knows them."""
    import fcntl
    import struct
    import termios

    try:
        rows, columns, width, height = struct.unpack("4H", fcntl.ioctl(screen, termios.TIOCGWINSZ, bytes(8)))
    except OSError:
        return None
    size = (width // columns, height // rows) if rows and columns else (0, 0)
    return size if min(size) else None


class TerminalImage:
    """Image that rich prints, also in a table."""

    def __init__(self, image: Image.Image, graphics: Graphics, *, columns: int, rows: int) -> None:
        """Draw an image.

        Args:
            image: RGB.
            graphics: of the terminal.
            columns: characters that it covers.
            rows: lines that it covers.
        """
        self._columns = columns
        self._segments = list(_segments(image, graphics, columns, rows))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from self._segments

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(self._columns, self._columns)


def _segments(image: Image.Image, graphics: Graphics, columns: int, rows: int) -> Iterator[Segment]:
    """What the library draws of an image."""
    console = Console(file=io.StringIO())
    with _apart(graphics) as sent:
        from textual_image.renderable import SixelImage, TGPImage

        kind: Any = SixelImage if graphics.protocol == "sixel" else TGPImage
        drawn = list(kind(image, width=columns, height=rows).__rich_console__(console, console.options))
    if sent.getvalue():
        yield _control(sent.getvalue())
        drawn.append(Segment(" "))  # a line between two images, which sixel images have
    for each in drawn:
        segment = each.segment if isinstance(each, Control) else each
        if segment.control:
            yield _control(segment.text)
        elif segment.style and segment.style.color and segment.style.color.triplet:
            # The colour is the number of the image: as a control it stays where rich has fewer colours, or none.
            yield _colour("38;2;{};{};{}".format(*segment.style.color.triplet))
            yield Segment(segment.text.rstrip("\n"))
            yield _colour("39")
            yield Segment.line()
        else:
            yield Segment(segment.text)


def _control(text: str) -> Segment:
    """A control that passes the guard if it is an image's."""
    return Segment(text, control=_AS_CONTROL) if _IMAGE.fullmatch(text) else Segment(visible(text))


def _colour(code: str) -> Segment:
    return Segment(f"\x1b[{code}m", control=_AS_CONTROL)


@contextmanager
def _apart(graphics: Graphics) -> Iterator[io.StringIO]:
    """Keep the library from the terminal: it neither asks nor writes there; yields what it would have written."""
    names = {"TEXTUAL_CELL_WIDTH": graphics.cell_width, "TEXTUAL_CELL_HEIGHT": graphics.cell_height}
    kept, stdout = {name: os.environ.get(name) for name in names}, sys.__stdout__
    sent = io.StringIO()
    os.environ |= {name: str(size) for name, size in names.items()}
    sys.__stdout__ = sent  # type: ignore[misc, assignment]
    try:
        yield sent
    finally:
        sys.__stdout__ = stdout  # type: ignore[misc]
        for name, value in kept.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
