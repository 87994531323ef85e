"""Output of the command line: errors and exit codes, results, progress, and the stream of each."""

import errno
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from io import StringIO
from pathlib import Path
from typing import Any

import click
import pytest
from clipglot.cli.render import PlainProgress, friendly_errors, progress_bar
from clipglot.distill.recipes import RECIPES
from clipglot.distill.training.run_folder import RunFolder
from rich.console import Console
from support.command_line import run, small
from support.drawings import draw_images
from support.launcher import Process
from support.tiny_lms import save_tiny_lm


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "c.zarr"], "Missing option '--output'"),
        (["train", "c.zarr", "-o", "r", "--epochs", "many"], "'many' is not a valid integer"),
        (["train", "c.zarr", "-o", "r", "--width", "10", "--heads", "3"], "--width 10 is not a multiple of --heads 3"),
        (["cache", "p.jsonl", "-o", "c.zarr"], "Missing option '--model'"),
        (["predict", "merged", "cat.jpg"], "Missing option '--text'"),
        (["predict", "merged", "--text", "cat"], "Missing argument 'IMAGES"),
        (["tokenizer", "c.zarr"], "--inspect FOLDER"),
        (["tokenizer", "c.zarr", "-o", "t", "--kind", "bpe", "--extend", "x"], "--kind bpe with --extend"),
        (
            ["tokenizer", "c.zarr", "--inspect", "x", "--vocab-size", "9"],
            "--vocab-size is for a new tokenizer, --inspect",
        ),
        (["convert", "c.zarr", "c.txt"], "OUT: c.txt ends in .txt"),
        (["fly"], "No such command 'fly'"),
    ],
)
def test_bad_usage_exits_2(arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["cache", "no.jsonl", "-o", "c.zarr", "--model", "ViT-B-33"],
        ["inspect", "no.zarr"],
        ["verify", "no.zarr"],
        ["tokenizer", "no.zarr", "-o", "t"],
        ["train", "no.zarr", "-o", "run"],
        ["export", "no-run", "-o", "merged"],
        ["predict", "no-merged", "cat.jpg", "--text", "cat"],
        ["eval", "retrieval", "no-merged", "no.zarr"],
        ["bench", "no.zarr"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_user_error_is_one_message_and_exit_1(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)  # no traceback
    assert result.stderr.startswith("Error: ")
    assert result.stdout == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "command",
    [
        "inspect CACHE",
        "verify CACHE",
        "tokenizer CACHE -o OUT",
        "train CACHE -o OUT",
        "train GOOD_CACHE --val CACHE -o OUT",
        "export RUN -o OUT",
        "predict MERGED cat.jpg --text cat",
        "bench CACHE",
        "eval retrieval MERGED GOOD_CACHE",
        "eval retrieval GOOD_MERGED CACHE",
    ],
)
def test_a_folder_of_another_kind_is_named_with_the_command_that_takes_it(
    command: str, tiny_cache: Path, tiny_run: Path, merged: Path
) -> None:
    kinds = {"CACHE": ("cache", tiny_cache), "RUN": ("run", tiny_run), "MERGED": ("merged CLIP", merged)}
    takes = {"cache": "clipglot train", "run": "clipglot export", "merged CLIP": "clipglot predict"}
    ((place, (expected, _)),) = [(place, kind) for place, kind in kinds.items() if place in command.split()]
    for kind, path in kinds.values():
        if kind != expected:
            given = {place: path, "GOOD_CACHE": tiny_cache, "GOOD_MERGED": merged}
            result = run(*(given.get(word, word) for word in command.split()))
            assert result.exit_code == 1
            assert result.stderr.startswith(f"Error: {path} is a {kind}, expected a {expected}: ")
            assert takes[kind] in result.stderr


def test_a_disk_error_is_a_message_without_traceback(tiny_cache: Path) -> None:
    result = run("tokenizer", tiny_cache, "-o", "/sys/tokenizer", "--vocab-size", 300)
    assert result.exit_code == 1
    assert "/sys" in result.stderr


@pytest.mark.parametrize("code", ["ENOTDIR", "EISDIR", "EEXIST", "ENAMETOOLONG", "EIO", "ELOOP", "ENOSPC", "EACCES"])
def test_an_os_error_names_the_path(code: str) -> None:
    with pytest.raises(click.ClickException, match=r"that/path"), friendly_errors():
        raise OSError(getattr(errno, code), "refused", "that/path")


def test_a_file_instead_of_a_folder_is_a_message_without_traceback(tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file" / "merged", tmp_path / ("m" * 300)):
        result = run("export", tiny_run, "-o", output)
        assert result.exit_code == 1
        assert isinstance(result.exception, SystemExit)
        assert result.stderr.startswith("Error: ")


def test_json_is_one_document_on_stdout_and_nothing_else(
    tiny_cache: Path, tiny_run: Path, tiny_clip: Path, merged: Path, manifest: Path, tmp_path: Path
) -> None:
    image = manifest.parent / "images" / "0000.png"
    model = ["--model", f"local-dir:{tiny_clip}", "--limit", 2, "--num-workers", 1]
    expected: dict[str, tuple[list[object], Any]] = {
        "num_pictures": (["cache", manifest, "-o", tmp_path / "c.zarr", *model], 2),
        "failures": (["inspect", tiny_cache], []),
        "faults": (["verify", tiny_cache], []),
        "vocab_size": (["tokenizer", tiny_cache, "-o", tmp_path / "t", "--vocab-size", 300], 300),
        "complete": ([*small(tiny_cache, tmp_path / "run"), "--epochs", 1], True),
        "num_probes": (["export", tiny_run, "-o", tmp_path / "merged"], 8),
    }
    for key, (arguments, value) in expected.items():
        result = run(*arguments, "--json")
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)[key] == value
    retrieval = json.loads(run("eval", "retrieval", merged, tiny_cache, "--json").stdout)
    assert retrieval["text_to_image"]["num_candidates"] == 40
    (prediction,) = json.loads(run("predict", merged, image, "--text", "шум", "--json").stdout)
    assert (prediction["texts"], prediction["image"]) == (["шум"], str(image))


def test_tables_and_json_have_the_same_values(merged: Path, tiny_cache: Path, manifest: Path, tiny_run: Path) -> None:
    retrieval = run("eval", "retrieval", merged, tiny_cache).output
    recall = json.loads(run("eval", "retrieval", merged, tiny_cache, "--json").stdout)["text_to_image"]["r_at_10"]
    assert f"{recall:.1%}" in retrieval
    inspected = run("inspect", tiny_cache).output
    for part in ("sealed", "40", "local-dir:", "embedded", "100.00%"):
        assert part in inspected
    assert "every checksum holds" in run("verify", tiny_cache).output
    validation = RunFolder(tiny_run).last_validation()
    assert validation is not None
    assert validation["r_at_10"] == pytest.approx(recall, abs=0.05)


def test_names_and_texts_are_printed_verbatim(merged: Path, manifest: Path, tmp_path: Path) -> None:
    odd = tmp_path / "[red]a[b] :cat: 1.png"
    odd.write_bytes((manifest.parent / "images" / "0000.png").read_bytes())
    result = run("predict", merged, odd, "--text", "[/i] :dog:", "--text", "шум " * 60)
    assert result.exit_code == 0, result.output
    assert odd.name in result.output
    assert "[/i] :dog:" in result.output
    assert "шум " * 59 in result.output  # not cut where there is no terminal


def in_a_terminal(*words: str) -> list[str]:
    """Output lines of a Python command in a terminal of 80 columns."""
    ours, theirs = pty.openpty()
    command = [sys.executable, *words]
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, env=os.environ | {"COLUMNS": "80", "TERM": "xterm"}):
        os.close(theirs)
        shown = b""
        with suppress(OSError):  # so Linux says that the other side of a pseudo-terminal was closed
            while block := os.read(ours, 65536):
                shown += block
    os.close(ours)
    return click.unstyle(shown.decode()).splitlines()


def test_a_table_fits_a_terminal_of_80_columns(tiny_cache: Path) -> None:
    lines = in_a_terminal("-m", "clipglot", "inspect", str(tiny_cache))
    assert lines[-1].split() == ["embedded", "40", "100.00%", "in", "the", "cache"]
    assert max(map(len, lines)) <= 80


def test_a_terminal_wraps_lines_between_words_and_a_pipe_does_not() -> None:
    line = "c.zarr: 300 images in 26.1 s (23/s; it waited for the tower), 300 of 300 embedded [red] :cat:"
    script = f"from clipglot.cli.render import say, warn; say({line!r}); warn({line!r})"
    wrapped = ["c.zarr: 300 images in 26.1 s (23/s; it waited for the tower), 300 of 300", "embedded [red] :cat:"]
    assert [line.rstrip() for line in in_a_terminal("-c", script)] == wrapped * 2
    piped = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert (piped.stdout, piped.stderr) == (f"{line}\n", f"{line}\n")


def test_piped_tables_have_no_trailing_spaces(tiny_cache: Path) -> None:
    lines = run("inspect", tiny_cache).stdout.splitlines()
    assert [line for line in lines if line != line.rstrip()] == []
    assert "" in lines


def test_a_stage_without_a_total_shows_no_count(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = StringIO()
    monkeypatch.setattr("clipglot.cli.render.status", Console(file=shown, force_terminal=True, width=100))
    with progress_bar() as progress:
        progress.add_task("draw", total=3, note="")
        progress.add_task("export", total=None, note="")
    lines = click.unstyle(shown.getvalue()).splitlines()
    assert any("draw" in line and "0/3" in line for line in lines)
    assert any("export" in line for line in lines)
    assert "0/?" not in shown.getvalue()
    assert "-:--:--" not in shown.getvalue()


def test_plain_progress_waits_a_minute_between_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("clipglot.cli.render.time.monotonic", lambda: now)
    plain = PlainProgress()
    for now in range(0, 150, 10):
        plain.show(f"{now}", at_once=now == 80)
    assert capsys.readouterr().err.split() == ["0", "60", "80", "140"]


def test_training_ends_with_a_summary(tiny_cache: Path, tmp_path: Path) -> None:
    trained = run(*small(tiny_cache, tmp_path / "run"), "--epochs", 3, "--vocab-size", 5000, "--profile", 2)
    tokens = json.loads(run("train", tiny_cache, "-o", tmp_path / "run", "--resume", "--json").stdout)["vocab_size"]
    assert tokens < 5000
    assert f"tokenizer: {tokens} tokens, fewer than --vocab-size 5,000" in trained.stdout
    trace = tmp_path / "run" / "profile" / "trace.json"
    assert trace.exists()
    assert f"profile: 2 of 2 steps in {trace}" in trained.stdout
    again = run("train", tiny_cache, "-o", tmp_path / "run", "--resume")
    assert f"{tmp_path / 'run'} was already finished, after 15 steps" in again.stdout
    short = run(*small(tiny_cache, tmp_path / "short"), "--epochs", 1, "--profile", 2)
    assert "profile: nothing recorded in 5 steps: the first 10 are warm-up" in short.stdout


def test_a_run_that_learned_nothing_is_not_sent_to_the_export(tiny_cache: Path, tmp_path: Path) -> None:
    arguments = ["--epochs", 12, "--val", tiny_cache, "--log-every", 1, "--schedule", "constant"]
    nothing = [*small(tiny_cache, tmp_path / "nothing"), *arguments, "--lr", "1e-12", "--ema", 0.999]
    learned = [*small(tiny_cache, tmp_path / "learned"), *arguments, "--lr", "3e-3"]
    said = {lr: run(*command).stdout for lr, command in {"nothing": nothing, "learned": learned}.items()}
    assert "clipglot export" not in said["nothing"].splitlines()[-1]
    assert "docs/diagnosis.md" in said["nothing"].splitlines()[-1]
    assert said["learned"].splitlines()[-1] == f"next: clipglot export {tmp_path / 'learned'} -o merged"


@pytest.mark.parametrize(
    ("name", "more", "next_"),
    [
        ("train.zarr", [], "{} -o run"),
        ("retrieval.zarr", [], "{} -o run"),
        ("val.zarr", [], "TRAIN_CACHE -o run --val {}"),
        ("coco_val2014.zarr", [], "TRAIN_CACHE -o run --val {}"),
        ("Test-1k.zarr", [], "TRAIN_CACHE -o run --val {}"),
    ],
)
def test_a_cache_named_for_validation_is_not_sent_to_training(
    name: str, more: list[object], next_: str, manifest: Path, tiny_clip: Path, tmp_path: Path
) -> None:
    output = tmp_path / name
    said = run(
        "cache", manifest, "-o", output, "--model", f"local-dir:{tiny_clip}", "--limit", 2, "--num-workers", 1, *more
    )
    assert said.stdout.splitlines()[-1] == f"next: clipglot train {next_.format(output)}"


def test_a_cache_of_class_folders_is_sent_to_zero_shot(manifest: Path, tiny_clip: Path, tmp_path: Path) -> None:
    (tmp_path / "shapes" / "star").mkdir(parents=True)
    image = json.loads(manifest.read_text(encoding="utf-8").splitlines()[0])["image"]
    shutil.copy(manifest.parent / image, tmp_path / "shapes" / "star")
    output = tmp_path / "train.zarr"
    said = run("cache", tmp_path / "shapes", "-o", output, "--model", f"local-dir:{tiny_clip}", "--num-workers", 1)
    assert said.stdout.splitlines()[-1] == f"next: clipglot eval zeroshot MERGED {output}"


def test_few_images_take_their_recipe_unless_a_setting_of_it_is_given(
    make_cache: Callable[..., Any], tmp_path: Path
) -> None:
    make_cache(draw_images(tmp_path, 260), tmp_path / "c.zarr", batch_size=64)
    told = json.loads(run("train", tmp_path / "c.zarr", "-o", tmp_path / "few", "--device", "cpu", "--json").stdout)
    assert (told["recipe"], told["complete"]) == ("few", True)
    begun = RunFolder(tmp_path / "few").settings()
    assert {name: begun[name] for name in RECIPES["few"]} == RECIPES["few"]
    again = run("train", tmp_path / "c.zarr", "-o", tmp_path / "few", "--resume", "--json")
    assert json.loads(again.stdout)["complete"]
    said = run("train", tmp_path / "c.zarr", "-o", tmp_path / "few").stdout  # refused, as the run is there
    assert "--recipe few for 260 images" in said
    assert "--recipe none" in said
    for plain in (["--recipe", "none"], ["--epochs", "3"]):  # the plain batch is larger than this cache
        refused = run("train", tmp_path / "c.zarr", "-o", tmp_path / "plain", *plain)
        assert refused.exit_code == 1
        assert "--batch-size 512 exceeds the 260" in refused.stderr
        assert "--recipe" not in refused.stdout


@pytest.mark.parametrize(
    ("more", "recipe"),
    [((), "frozen"), (("--recipe", "auto"), "frozen"), (("--recipe", "none"), None), (("--lm-lr", "1e-5"), None)],
)
def test_a_language_model_on_the_cpu_is_frozen_unless_a_setting_says_how_it_is_trained(
    more: tuple[str, ...], recipe: str | None, make_cache: Callable[..., Any], tmp_path: Path
) -> None:
    cache = tmp_path / "c.zarr"
    make_cache(draw_images(tmp_path, 40), cache, batch_size=8)
    said = run(
        "train",
        cache,
        "-o",
        tmp_path / "run",
        "--text",
        save_tiny_lm(tmp_path / "lm"),
        "--device",
        "cpu",
        "--context-length",
        16,
        *more,
    )
    assert ("--recipe frozen for a language model on the CPU" in said.stdout) == (recipe is not None)
    assert ("no recipe, because of --lm-lr" in said.stderr) == ("--lm-lr" in more)
    begun = tmp_path / "run" / "run.json"
    if recipe:
        assert json.loads(begun.read_text())["settings"]["train_layers"] == 0
    else:  # the plain batch is larger than this cache
        assert "--batch-size 512 exceeds" in said.stderr


def test_interrupted_training_exits_130_and_says_how_to_go_on(
    start_command: Callable[..., Process], tiny_cache: Path, tmp_path: Path
) -> None:
    process = start_command(*small(tiny_cache, tmp_path / "run"), "--epochs", 10**6, "--log-every", 1, "--json")
    metrics = tmp_path / "run" / "metrics.jsonl"
    process.until(lambda: metrics.exists() and metrics.stat().st_size > 0)
    process.signal_all(signal.SIGINT)
    assert process.wait() == 130
    told, stopped = process.err().splitlines()[-2:]
    assert "second signal" in told  # at once
    assert stopped.startswith("stopped and saved at step ")
    assert "--resume" in process.err()
    assert json.loads(process.out())["complete"] is False  # a real process, too, prints one document and nothing else
