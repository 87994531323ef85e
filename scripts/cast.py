"""Animated picture of `clipglot demo` in a terminal for README, docs/images/demo.svg, from a real run.

    python scripts/cast.py [--recording demo.cast] [--out docs/images/demo.svg]

Runs the demo in a pseudo-terminal and records what it writes, or takes a recording that exists (asciicast, version 2).
"""

import argparse
import codecs
import fcntl
import html
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
COLUMNS, ROWS = 96, 24
COMMAND = "clipglot demo"
FRAMES = 24  # of the animation, besides the last
PLAY_S, HOLD_S = 9.0, 6.0  # seconds of the run, however long it took, and of its end
CHARACTER, LINE, MARGIN, BAR = 8.4, 17, 14, 34  # pixels; BAR is that of the window
FONT = 'ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace'
BACKGROUND, FOREGROUND = "#1e2127", "#d4d7dd"
PALETTE = ["#1e2127", "#e06c75", "#98c379", "#e5c07b", "#61afef", "#c678dd", "#56b6c2", "#d4d7dd"]
EXTENDED = {197: "#e0527a", 237: "#3e4451", 70: "#7fb347"}  # of 256 colours, those of rich's bars
TOKEN = re.compile(r"\x1b\[([0-9;?]*)([@-~])|\x1b\](?:[^\x07\x1b]*)(?:\x07|\x1b\\)|(.)", re.DOTALL)
Style = tuple[str, bool, bool]
"""Colour, bold and dim."""
PLAIN: Style = (FOREGROUND, False, False)
Line = tuple[tuple[str, Style], ...]
"""Characters of a line with their styles."""


def record(command: list[str]) -> list[tuple[float, str]]:
    """Run a command in a terminal: what it wrote, and seconds from its start."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", ROWS, COLUMNS, 0, 0))
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": str(COLUMNS)}
    decode = codecs.getincrementaldecoder("utf-8")().decode
    events, started = list[tuple[float, str]](), time.monotonic()
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        with suppress(OSError):  # so Linux says that the other side of a pseudo-terminal was closed
            while block := os.read(ours, 2**16):
                events.append((time.monotonic() - started, decode(block)))
    os.close(ours)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}")
    return events


@dataclass
class Screen:
    """Screen that grows downwards, for what rich writes: text, colours, lines erased and drawn again."""

    lines: list[dict[int, tuple[str, Style]]] = field(default_factory=lambda: [{}])
    row: int = 0
    column: int = 0
    style: Style = PLAIN

    def write(self, text: str) -> None:
        """Draw a text."""
        for match in TOKEN.finditer(text):
            numbers, final, character = match.groups()
            if final == "A":
                self.row = max(0, self.row - int(numbers or 1))
            elif final == "K":
                self.lines[self.row].clear()
            elif final == "m":
                self._set_style([int(number or 0) for number in numbers.split(";")])
            elif character == "\r":
                self.column = 0
            elif character == "\n":
                self.row += 1
                if self.row == len(self.lines):
                    self.lines.append({})
            elif character and character != "\x1b":
                self.lines[self.row][self.column] = (character, self.style)
                self.column += 1

    def _set_style(self, codes: list[int]) -> None:
        colour, bold, dim = self.style
        while codes:
            code = codes.pop(0)
            if code == 0:
                colour, bold, dim = PLAIN
            elif code in (1, 2, 22):
                bold, dim = (code == 1 or bold, code == 2 or dim) if code != 22 else (False, False)
            elif code == 38 and codes[:1] == [5]:
                colour, codes = EXTENDED.get(codes[1], FOREGROUND), codes[2:]
            elif 30 <= code <= 37 or 90 <= code <= 97:
                colour = PALETTE[code % 10]
            elif code == 39:
                colour = FOREGROUND
        self.style = (colour, bold, dim)

    def show(self) -> tuple[Line, ...]:
        """The lines as they are now."""
        blank = (" ", PLAIN)
        return tuple(tuple(line.get(i, blank) for i in range(max(line, default=-1) + 1)) for line in self.lines)


def frames_of(events: list[tuple[float, str]]) -> list[tuple[float, tuple[Line, ...]]]:
    """Screens at equal distances of the run, each with its second, and the last one."""
    screen, frames = Screen(), list[tuple[float, tuple[Line, ...]]]()
    length = events[-1][0]
    for second, text in events:
        while second >= len(frames) * length / FRAMES and len(frames) < FRAMES:
            frames.append((len(frames) * length / FRAMES, screen.show()))
        screen.write(text)
    return [*frames, (length, screen.show())]


def svg_of(events: list[tuple[float, str]]) -> str:
    """The animation: its frames lie below each other on a strip, which moves through a window; equal lines are one."""
    frames, symbols = frames_of(events), dict[Line, str]()
    length, prompt = events[-1][0], tuple((c, (PALETTE[2], True, False)) for c in "$ ")
    typed: Line = (*prompt, *((c, PLAIN) for c in COMMAND))
    screens = [(typed, *screen) for _, screen in frames]
    height = max(len(screen) for screen in screens) * LINE
    strip = []
    for number, screen in enumerate(screens):
        for row, line in enumerate(screen):
            if line:
                name = symbols.setdefault(line, f"l{len(symbols)}")
                strip.append(f'<use href="#{name}" y="{number * height + row * LINE}"/>')
    defs = "".join(f'<text id="{name}" y="{LINE - 4}">{_spans(line)}</text>' for line, name in symbols.items())
    whole = PLAY_S + HOLD_S
    moments = [second / length * PLAY_S / whole * 100 for second, _ in frames]
    steps = "".join(
        f"{moment:.2f}%{{transform:translateY({-number * height}px)}}" for number, moment in enumerate(moments)
    )
    last = -(len(screens) - 1) * height
    width, full = round(COLUMNS * CHARACTER + 2 * MARGIN), height + BAR + MARGIN
    faster = f"{length:.0f} s, shown {length / PLAY_S:.0f} times as fast"
    dots = "".join(
        f'<circle cx="{20 + 18 * i}" cy="17" r="6" fill="{c}"/>'
        for i, c in enumerate(("#e06c75", "#e5c07b", "#98c379"))
    )
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {full}" width="{width}" height="{full}">
<title>clipglot demo in a terminal: {faster}</title>
<style>
text{{font:14px {FONT};white-space:pre;fill:{FOREGROUND}}}
.strip{{animation:play {whole:g}s step-end infinite}}
@keyframes play{{{steps}100%{{transform:translateY({last}px)}}}}
@media (prefers-reduced-motion:reduce){{.strip{{animation:none;transform:translateY({last}px)}}}}
</style>
<rect width="{width}" height="{full}" rx="8" fill="{BACKGROUND}"/>{dots}
<text x="{width / 2:g}" y="22" text-anchor="middle" style="font-size:12px;fill:#8b919d">{COMMAND}: {faster}</text>
<defs>{defs}</defs>
<svg x="{MARGIN}" y="{BAR}" width="{width - 2 * MARGIN}" height="{height}"><g class="strip">{"".join(strip)}</g></svg>
</svg>
"""


def _spans(line: Line) -> str:
    """A line as text elements, each placed by its column, whatever the font's width."""
    spans, start = [], 0
    while start < len(line):
        end = next((i for i in range(start, len(line)) if line[i][1] != line[start][1]), len(line))
        text, (colour, bold, dim) = "".join(character for character, _ in line[start:end]), line[start][1]
        if text.strip():
            look = f' fill="{colour}"' * (colour != FOREGROUND) + ' font-weight="700"' * bold + ' opacity=".6"' * dim
            place = f'x="{start * CHARACTER:.1f}" textLength="{len(text) * CHARACTER:.1f}"'
            spans.append(f'<tspan {place} lengthAdjust="spacingAndGlyphs"{look}>{html.escape(text)}</tspan>')
        start = end
    return "".join(spans)


def main() -> None:
    """Record, draw and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recording", type=Path, help="taken if it exists, else written")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images" / "demo.svg")
    arguments = parser.parse_args()
    if arguments.recording and arguments.recording.exists():
        lines = arguments.recording.read_text(encoding="utf-8").splitlines()[1:]
        events = [(second, text) for second, _, text in map(json.loads, lines)]
    else:
        events = record([sys.executable, "-m", *COMMAND.split()])
        if arguments.recording:
            header = json.dumps({"version": 2, "width": COLUMNS, "height": ROWS})
            lines = [header, *(json.dumps([second, "o", text]) for second, text in events)]
            arguments.recording.write_text("\n".join(lines) + "\n", encoding="utf-8")
    arguments.out.write_text(svg_of(events), encoding="utf-8")
    print(f"{arguments.out}: {arguments.out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
