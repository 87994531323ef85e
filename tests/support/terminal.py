"""Terminal emulator: a pseudo-terminal that answers what programs ask of it, and a screen with the images they draw."""

import codecs
import fcntl
import io
import os
import pty
import re
import select
import struct
import termios
from base64 import b64decode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.cells import cell_len

CELL = (9, 18)  # pixels of a character
ROWS, COLUMNS = 40, 100
PLACEHOLDER = "\U0010eeee"
SIZE, ATTRIBUTES, VERSION = "\x1b[16t", "\x1b[c", "\x1b[>q"
ANSWERS: dict[str, dict[str, str]] = {
    "sixel": {SIZE: f"\x1b[6;{CELL[1]};{CELL[0]}t", ATTRIBUTES: "\x1b[?62;4;22c"},
    "kitty": {SIZE: f"\x1b[6;{CELL[1]};{CELL[0]}t", VERSION: "\x1bP>|kitty(0.35.1)\x1b\\", ATTRIBUTES: "\x1b[?62c"},
    "tmux": {VERSION: "\x1bP>|tmux 3.3a\x1b\\", ATTRIBUTES: "\x1b[?1;2c"},
    "old kitty": {VERSION: "\x1bP>|kitty(0.26.5)\x1b\\", ATTRIBUTES: "\x1b[?62;c"},
    "silent": {},
    "garbled": {ATTRIBUTES: "4;4;4c\x1b[?" + "9" * 3000},
    "half": {ATTRIBUTES: "\x1b[?62;4"},
}
# A control sequence, a string for the terminal, an escape of one character, or a character.
_TOKEN = re.compile(r"\x1b\[([0-9;?>=]*)([@-~])|\x1b([P_])([^\x1b]*)\x1b\\|\x1b(.)|(.)", re.DOTALL)
ON_TERMINAL = """
import os
os.dup2(os.open(os.ttyname(1), os.O_RDWR), 0)
"""


@dataclass
class Shown:
    """What a command left on a terminal.

    Attributes:
        written: all that it wrote.
        code: its exit code.
        left: what was there to read after its end: junk for the shell.
        echoes: whether the terminal was left as a shell expects it.
    """

    written: str
    code: int
    left: bytes
    echoes: bool


def run_on_terminal(
    start_command: Callable[..., Any],
    *arguments: object,
    answers: Mapping[str, str],
    typed: bytes = b"",
    script: str = "",
    environment: Mapping[str, str | None] | None = None,
) -> Shown:
    """Run a command on a terminal.

    Args:
        start_command: the fixture.
        *arguments: of the command.
        answers: by question.
        typed: ahead, before the command asks.
        script: Python that runs before the command.
        environment: variables to set, or to unset where None.
    """
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", ROWS, COLUMNS, 0, 0))
    os.write(master, typed)
    variables = {"TERM": "xterm-256color", "COLORTERM": None, "NO_COLOR": None, "COLUMNS": None, "LINES": None}
    process = start_command(
        *arguments,
        terminal=os.ttyname(slave),
        script=ON_TERMINAL + script,
        environment=variables | dict(environment or {}),
    )
    written, begin, decode = "", 0, codecs.getincrementaldecoder("utf-8")().decode
    descriptor = os.dup(slave)  # keeps what is left to read
    os.close(slave)
    code: list[int] = []
    while True:
        block = os.read(master, 2**16) if select.select([master], [], [], 0.05)[0] else b""
        written += decode(block)
        asked = {place: question for question in answers if (place := written.find(question, begin)) >= 0}
        for place, question in sorted(asked.items()):
            os.write(master, answers[question].encode())
            begin = place + len(question)
        if not block:
            if code:
                break
            if is_over(process.pid):
                code.append(process.wait())
    is_sane = bool(
        termios.tcgetattr(descriptor)[3] & termios.ECHO and termios.tcgetattr(descriptor)[3] & termios.ICANON
    )
    left = _pending(descriptor)
    os.close(descriptor)
    os.close(master)
    return Shown(written=written, code=code[0], left=left, echoes=is_sane)


def is_over(pid: int) -> bool:
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] == "Z"


def _pending(descriptor: int) -> bytes:
    """What waits to be read, in canonical mode or not."""
    before = termios.tcgetattr(descriptor)
    raw = [*before[:6], [*before[6]]]
    raw[3] &= ~termios.ICANON
    raw[6][termios.VMIN], raw[6][termios.VTIME] = 0, 0
    termios.tcsetattr(descriptor, termios.TCSANOW, raw)
    return os.read(descriptor, 4096)


@dataclass
class DrawnImage:
    """An image on the screen.

    Attributes:
        row: of its first line, from 0.
        column: of its left edge.
        pixels: `[height, width, 3] uint8`.
    """

    row: int
    column: int
    pixels: NDArray[np.uint8]


@dataclass
class Screen:
    """Endless screen of text and images.

    Attributes:
        lines: characters of each line, by column.
        images: in the order drawn.
        titles: strings for the terminal that are no images.
    """

    lines: dict[int, dict[int, str]] = field(default_factory=dict)
    images: list[DrawnImage] = field(default_factory=list)
    titles: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, written: str) -> "Screen":
        """Show what a command wrote."""
        screen = cls()
        row = column = 0
        saved = (0, 0)
        colour: tuple[int, int, int] | None = None
        pending: dict[int, str] = {}  # payloads of kitty's images
        placed: set[int] = set()
        for match in _TOKEN.finditer(written):
            numbers, final, kind, content, escape, character = match.groups()
            if final:
                first = int(numbers) if numbers.isdigit() else 1
                if final in "AB":
                    row += first if final == "B" else -first
                elif final in "CD":
                    column += first if final == "C" else -first
                elif final == "K":
                    screen.lines.pop(row, None)
                elif final == "m":
                    parts = numbers.split(";")
                    if parts[:2] == ["38", "2"]:
                        colour = (int(parts[2]), int(parts[3]), int(parts[4]))
            elif kind == "P":
                screen.images.append(DrawnImage(row, column, decode_sixel(content)))
            elif kind == "_":
                settings, _, payload = content[1:].partition(";")
                number = int(dict(each.split("=") for each in settings.split(","))["i"])
                pending[number] = pending.get(number, "") + payload
            elif escape:
                if escape == "7":
                    saved = row, column
                elif escape == "8":
                    row, column = saved
                else:
                    screen.titles.append(match[0])
            elif character == "\n":
                row += 1
            elif character == "\r":
                column = 0
            elif character == PLACEHOLDER:
                assert colour
                number = (colour[0] << 16) + (colour[1] << 8) + colour[2]
                (full,) = [each for each in pending if each & 0xFFFFFF == number]
                if full not in placed:
                    placed.add(full)
                    image = Image.open(io.BytesIO(b64decode(pending[full])))
                    screen.images.append(DrawnImage(row, column, np.asarray(image.convert("RGB"))))
                column += 1
            else:
                if width := cell_len(character):
                    screen.lines.setdefault(row, {})[column] = character
                    column += width
        return screen

    def text(self) -> list[str]:
        """Lines of text."""
        return [
            "".join(self.lines.get(row, {}).get(column, " ") for column in range(COLUMNS * 2)).rstrip()
            for row in range(max(self.lines, default=-1) + 1)
        ]


def decode_sixel(content: str) -> NDArray[np.uint8]:
    """Pixels `[height, width, 3] uint8` of a sixel image, from its parameters to its end."""
    body = content.partition("q")[2]
    _, _, width, height = map(int, re.match(r'"(\d+);(\d+);(\d+);(\d+)', body).groups())  # type: ignore[union-attr]
    pixels = np.zeros((height + 6, width, 3), np.uint8)
    palette: dict[int, tuple[int, ...]] = {}
    x = y = colour = 0
    for repeat, sixel, number, rgb, control in re.findall(
        r"(?:!(\d+))?([?-~])|#(\d+)(?:;2;(\d+;\d+;\d+))?|([$-])", body[body.index("#") :]
    ):
        if control:
            x, y = 0, y + 6 * (control == "-")
        elif number:
            colour = int(number)
            if rgb:
                palette[colour] = tuple(round(int(part) * 2.55) for part in rgb.split(";"))
        else:
            times, bits = int(repeat or 1), ord(sixel) - ord("?")
            for bit in range(6):
                if bits >> bit & 1:
                    pixels[y + bit, x : x + times] = palette[colour]
            x += times
    return pixels[:height]
