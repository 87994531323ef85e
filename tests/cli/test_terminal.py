"""What reaches a terminal: text with visible controls, whatever keys, captions, fields, metadata and errors hold."""

import io
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from clipglot.cli.render import SafeConsole, Table, progress_bar
from clipglot.cli.terminal import SafeStream, json_safe, visible, visible_line
from hypothesis import given
from hypothesis import strategies as st
from rich.progress import Progress
from rich.text import Text
from support.command_line import run, small
from support.drawings import draw_images
from support.launcher import Process
from support.terminal import Screen, run_on_terminal

TITLE, COLOUR, LINK, UP = "\x1b]0;owned\x07", "\x1b[31m", "\x1b]8;;http://x\x1b\\here", "\r\x1b[1A\x1b[2K"
C1, BIDI, OTHERS = "\x9b31m\x85\x90", "\u202egnp.exe\u2066\u200f", "\x00\x08\x7f\u2028"
PAYLOAD = f"a{TITLE}{COLOUR}{LINK}{UP}{C1}{BIDI}{OTHERS}[red]b[/] c"
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


@given(st.text())
def test_text_keeps_all_but_controls(text: str) -> None:
    shown = visible(text)
    assert not CONTROLS.search(shown)
    assert visible(shown) == shown
    assert CONTROLS.sub("", text) == text or shown != text
    assert not set(visible_line(text)) & set("\n\t")


@given(st.recursive(st.text(), lambda part: st.lists(part) | st.dictionaries(st.text(), part)))
def test_json_keeps_its_values(value: Any) -> None:
    document = json_safe(json.dumps(value, ensure_ascii=False))
    assert not CONTROLS.search(document)
    assert json.loads(document) == value


def test_a_guarded_stream_shows_controls_and_gives_no_bytes() -> None:
    behind = io.StringIO()
    stream = SafeStream(behind)
    print(PAYLOAD, file=stream)
    stream.writelines([PAYLOAD])
    assert not CONTROLS.search(behind.getvalue())
    assert not hasattr(stream, "buffer")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest whose keys, captions, languages and a column's name hold controls."""
    folder = tmp_path_factory.mktemp("hostile")
    lines = [json.loads(line) for line in draw_images(folder, 24).read_text().splitlines()]
    for number, line in enumerate(lines):
        line["text"] = [f"{PAYLOAD} {number}".replace("\x00", ""), f"\x1b[2J {number % 3} cat"]
        line["lang"], line["tag"] = "ru", f"ru{COLOUR}"
        line[f"en{PAYLOAD}"] = f"{TITLE}a cat"
    lines[3]["image"] = f"gone{PAYLOAD}.png"
    lines[4]["image"] = lines[5]["image"]
    broken = folder / f"broken{COLOUR}\u202e.png"
    broken.write_bytes(b"no image")
    lines[6]["image"] = broken.name
    file = folder / f"hostile{COLOUR}.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


@pytest.fixture(scope="module")
def made(hostile: Path, tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A cache, a run and an export of the hostile manifest, in folders with hostile names."""
    folder = tmp_path_factory.mktemp("made") / f"m{COLOUR}\u202e"
    folder.mkdir()
    paths = {name: folder / f"{name}{COLOUR}" for name in ("cache.zarr", "run", "merged")}
    cache, trained, exported = paths.values()
    given_ = ["--language-field", "lang", "--model", f"local-dir:{tiny_clip}", "--num-workers", "1"]
    for arguments in (
        ["cache", hostile, "-o", cache, *given_],
        [*small(cache, trained), "--val", cache, "--epochs", "1"],
        ["export", trained, "-o", exported],
    ):
        result = run(*arguments)
        assert result.exit_code == 0, result.output
        assert not CONTROLS.search(result.output), ascii(result.output)
    return paths


def captions(manifest: Path) -> list[str]:
    return [text for line in manifest.read_text().splitlines() for text in json.loads(line)["text"]]


def commands(made: dict[str, Path], hostile: Path, out: Path) -> dict[str, list[object]]:
    cache, trained, merged = made.values()
    field = f"en{PAYLOAD}"
    image = next(hostile.parent.rglob("*0.png"))
    return {
        "inspect": ["inspect", cache, "--pairs", "9", "--failures"],
        "verify": ["verify", cache],
        "duplicates": ["duplicates", cache, "--pairs", "9"],
        "against": ["duplicates", cache, "--against", cache],
        "index": ["index", cache, "-o", out / f"index{COLOUR}", "--clip", merged],
        "tokenizer": ["tokenizer", cache, "-o", out / f"tokenizer{COLOUR}", "--vocab-size", "300"],
        "retrieval": ["eval", "retrieval", merged, cache],
        "predict": ["predict", merged, image, "--text", PAYLOAD.replace("\x00", ""), "--text", "b"],
        "search": ["search", merged, cache, PAYLOAD.replace("\x00", ""), "--language", "RU"],
        "convert": ["convert", cache, out / f"copy{COLOUR}.h5"],
        "merge": ["merge", cache, "-o", out / f"merged{COLOUR}.zarr"],
        "done": [*small(cache, trained), "--val", cache, "--epochs", "1", "--resume"],
        # Errors, which repeat what they refuse.
        "no field": ["cache", hostile, "-o", out / "a.zarr", "--model", "x", "--text-field", f"no{COLOUR}"],
        "field": ["cache", hostile, "-o", out / "b.zarr", "--model", f"{COLOUR}x", "--teacher-field", field],
        "no tower": ["cache", hostile, "-o", out / "c.zarr", "--model", f"local-dir:{out}{PAYLOAD}"],
        "no cache": ["inspect", out / f"none{COLOUR}\u202e"],
        "no value": ["train", cache, "-o", out / "d", "--epochs", f"9{COLOUR}"],
        "no option": ["train", cache, "-o", out / "d", f"--{COLOUR}"],
        "no command": [f"fly{COLOUR}"],
        "no image": ["predict", merged, out / f"no{COLOUR}.png", "--text", "a"],
        "no condition": ["cache", hostile, "-o", out / "e.zarr", "--model", "x", "--where", f"a = '{COLOUR}"],
        "no such language": ["search", merged, cache, "a", "--language", f"ru{COLOUR}"],
        "no queries": ["search", merged, cache, "--queries", out / f"no{COLOUR}"],
        "no language": ["cache", hostile, "-o", out / "g.zarr", "--model", "x", "--language-field", "tag"],
        "exists": [*small(cache, trained), "--epochs", "1"],
        "no language model": [*small(cache, out / "f"), "--text", f"{out}/{COLOUR}"],
    }


IN_JSON = ("inspect", "verify", "duplicates", "against", "index", "retrieval", "predict", "search", "convert", "done")


def test_no_command_prints_a_control(made: dict[str, Path], hostile: Path, tmp_path: Path) -> None:
    for name, arguments in commands(made, hostile, tmp_path).items():
        result = run(*arguments)
        assert result.output.strip(), name
        assert not CONTROLS.search(result.output), (name, ascii(result.output))
        assert result.exception is None or isinstance(result.exception, SystemExit), (name, result.exception)


@pytest.mark.parametrize("name", IN_JSON)
def test_json_is_exact(name: str, made: dict[str, Path], hostile: Path, tmp_path: Path) -> None:
    result = run(*commands(made, hostile, tmp_path)[name], "--json")
    assert result.exit_code == 0, result.output
    assert not CONTROLS.search(result.output), ascii(result.output)
    report = json.loads(result.stdout)
    if name == "inspect":
        assert {pair["caption"] for pair in report["pairs"]} <= set(captions(hostile))
        assert f"gone{PAYLOAD}.png" in [failure["key"] for failure in report["failures"]]
    if name == "search":
        assert report[0]["query"] == PAYLOAD.replace("\x00", "")
        assert {text for hit in report[0]["hits"] for text in hit["captions"]} <= set(captions(hostile))
    if name == "predict":
        assert PAYLOAD.replace("\x00", "") in report[0]["texts"]


def test_a_terminal_is_not_steered(
    made: dict[str, Path], hostile: Path, start_command: Callable[..., Process], tmp_path: Path
) -> None:
    """On a terminal rich's own sequences are there; none of the data's is."""
    for name in ("inspect", "duplicates", "search", "done", "no tower", "no field"):
        arguments = [str(a).replace("\x00", "") for a in commands(made, hostile, tmp_path)[name]]
        master, slave = pty.openpty()
        process = start_command(*arguments, terminal=os.ttyname(slave))
        os.close(slave)
        shown = b""
        while True:
            try:
                block = os.read(master, 2**16)
            except OSError:
                break
            if not block:
                break
            shown += block
        process.wait()
        os.close(master)
        text = shown.decode()
        assert text.strip(), name
        for steering in ("\x1b]", "\x07", "\x1b[31m", "\x1b[2J", "\x9b", "\u202e", "\u2066", "\x08", "\x7f"):
            assert steering not in text, (name, ascii(text))


def test_bars_are_drawn(start_command: Callable[..., Process], tiny_cache: Path) -> None:
    shown = run_on_terminal(start_command, "duplicates", tiny_cache, answers={})
    assert (shown.code, r"\x1b" in shown.written) == (0, False), shown.written  # rich's sequences are not written out
    assert re.search("compare \u2501+ ([\\d,]+)/\\1 100%", "\n".join(Screen.of(shown.written).text()))


def test_a_traceback_shows_controls(tmp_path: Path) -> None:
    script = tmp_path / "bug.py"
    script.write_text(
        "import sys\nfrom clipglot.cli import main\n"
        "def bug(*_): raise RuntimeError(sys.argv[1])\n"
        "main.LazyGroup.get_command = bug\nmain.main(['inspect'])\n"
    )
    process = subprocess.run([sys.executable, script, COLOUR + BIDI], capture_output=True, check=False)
    assert process.returncode == 1
    assert b"RuntimeError: \\x1b[31m\\u202e" in process.stderr
    assert not CONTROLS.search(process.stderr.decode())


def test_drawn_texts_are_visible_and_no_markup() -> None:
    file = io.StringIO()
    console = SafeConsole(file=file, force_terminal=True, width=2000, markup=False, emoji=False, highlight=False)
    rows = Table("a")
    rows.add_row(PAYLOAD)
    console.print(rows, Text(PAYLOAD), PAYLOAD)
    with progress_bar() as bars:
        columns = bars.columns
    with Progress(*columns, console=console) as shown:
        shown.add_task(PAYLOAD, total=3, note=PAYLOAD)
    text = re.sub(r"\x1b\[[\d;?]*[A-Za-ln-z]|\x1b\[(?!31m)[\d;]*m|\r", "", file.getvalue())  # rich's own
    assert not CONTROLS.search(text), ascii(text)
    assert text.count("[red]b[/]") >= 3


def test_the_cache_keeps_what_it_was_given(made: dict[str, Path], hostile: Path) -> None:
    from clipglot.cache.read.cache import Cache

    assert set(Cache(made["cache.zarr"]).captions()) == set(captions(hostile))
