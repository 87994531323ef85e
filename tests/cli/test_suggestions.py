"""Help for mistyped commands, options and paths; completion by the shell; exit codes."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from clipglot.cache.location import did_you_mean
from clipglot.cli.main import COMMANDS, INTERRUPTED
from support.command_line import run, small
from support.launcher import Process


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (["trian", "c.zarr"], "'train'"),
        (["sreach", "merged", "c.zarr", "x"], "'search'"),
        (["evaluate"], "'eval'"),
        (["eval", "retreival", "m", "c"], "'retrieval'"),
        (["train", "c.zarr", "-o", "r", "--epocs", "3"], "'--epochs'"),
        (["cache", "s", "-o", "c", "--modle", "m"], "'--model'"),
    ],
)
def test_a_mistyped_name_is_bad_usage_that_names_the_right_one(typed: list[str], meant: str) -> None:
    result = run(*typed)
    assert result.exit_code == 2
    assert "No such " in result.stderr
    assert meant in result.stderr.split("ou mean", 1)[1]


def test_a_name_like_no_other_has_no_suggestion() -> None:
    assert "ou mean" not in run("fly").stderr


@pytest.mark.parametrize(
    ("command", "typed", "meant"),
    [
        (["train", "{}", "-o", "new"], "trian.zarr", "train.zarr"),
        (["inspect", "{}"], "train.zar", "train.zarr"),
        (["inspect", "{}"], "a.hdf5", "ab.hdf5"),
        (["cache", "{}", "-o", "new", "--model", "m"], "data/pair.jsonl", "data/pairs.jsonl"),
        (["cache", "{}", "-o", "new", "--model", "m"], "dta/pairs.jsonl", "data/pairs.jsonl"),
        (["cache", "data/pairs.jsonl", "-o", "new", "--model", "local-dir:{}"], "mreged", "merged"),
        (["import", "{}", "-o", "new", "--model", "m"], "emd.npy", "emb.npy"),
        (["import", "emb.npy", "-o", "new", "--model", "local-dir:{}"], "mreged", "merged"),
        (["export", "{}", "-o", "new"], "rum", "run"),
        (["report", "{}", "-o", "new.html"], "rum", "run"),
        (["predict", "{}", "a.png", "--text", "x"], "merge", "merged"),
        (["predict", "merged", "{}", "--text", "x"], "cat.jgp", "cat.jpg"),
        (["train", "train.zarr", "-o", "new", "--config", "{}"], "trian.toml", "train.toml"),
    ],
)
def test_a_mistyped_path_is_named_with_the_nearest_one(
    command: list[str], typed: str, meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("train.zarr/zarr.json", "run/run.json", "merged/open_clip_config.json", "data/pairs.jsonl"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("{}")
    for name in ("ab.hdf5", "emb.npy", "cat.jpg", "train.toml"):
        (tmp_path / name).write_bytes(b"")
    result = run(*(word.replace("{}", typed) for word in command))
    is_setting = typed.endswith(".toml") or "local-dir:{}" in command
    assert result.exit_code == (2 if is_setting else 1)
    assert f"did you mean {meant}?" in result.stderr.replace(f"{tmp_path}/", "")


def test_only_a_path_that_is_absent_has_a_nearest_one(tmp_path: Path) -> None:
    (tmp_path / "train.zarr").mkdir()
    assert did_you_mean(tmp_path / "train.zarr") == ""
    assert did_you_mean(tmp_path / "pictures") == ""
    assert did_you_mean(tmp_path / "trian.zarr" / "images") == ""  # train.zarr has no images
    assert did_you_mean(Path("/proc/self/mem/x")) == ""  # no folder
    (tmp_path / "link.zarr").symlink_to("nowhere")
    assert "link.zarr" in did_you_mean(tmp_path / "lnik.zarr")


def completed(line: str) -> list[str]:
    """What `clipglot` tells bash about a line, whose last word is completed."""
    words = line.split(" ")
    environment = {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1), "_CLIPGLOT_COMPLETE": "bash_complete"}
    script = "import sys; from clipglot.cli.main import main; sys.argv[0] = 'clipglot'; main()"
    done = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | environment, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


def test_a_shell_completes_commands_options_choices_and_paths() -> None:
    assert completed("clipglot tr") == ["plain,train"]
    assert [line.partition(",")[2] for line in completed("clipglot ")] == list(COMMANDS)
    assert "plain,--epochs" in completed("clipglot train --e")
    assert "plain,few" in completed("clipglot train c.zarr --recipe ")
    assert completed("clipglot eval re") == ["plain,retrieval"]
    for line in ("clipglot train tr", "clipglot cache pa", "clipglot train c.zarr -o r", "clipglot export r"):
        assert completed(line)[0].partition(",")[0] in ("file", "dir")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_its_script(shell: str) -> None:
    script = "import sys; from clipglot.cli.main import main; sys.argv[0] = 'clipglot'; main()"
    environment = os.environ | {"_CLIPGLOT_COMPLETE": f"{shell}_source"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    if shell == "bash" and "not supported" in done.stderr:
        pytest.skip("click looks for bash 4.4 or newer")
    assert done.returncode == 0, done.stderr
    assert "_CLIPGLOT_COMPLETE" in done.stdout


WAITS_IN = {
    "import": """
class Waits:
    def find_spec(name, *rest):
        if name == "clipglot.cli.train":
            open("waits", "w").close()
            time.sleep(60)
sys.meta_path.insert(0, Waits)
""",
    "load": """
import clipglot.distill.training.train as training
training.build_run = lambda *arguments, **named: (open("waits", "w").close(), time.sleep(60))
""",
}


@pytest.mark.parametrize("script", WAITS_IN.values(), ids=WAITS_IN.keys())
def test_control_c_before_a_run_begins_exits_130_without_a_traceback(
    script: str, start_command: Callable[..., Process], tiny_cache: Path, tmp_path: Path
) -> None:
    process = start_command(*small(tiny_cache, tmp_path / "run"), script=script)
    process.until(lambda: (process.stdout.parent / "waits").exists())
    process.signal_all(signal.SIGINT)
    assert process.wait() == 130
    assert process.err().splitlines()[-1] == "stopped"
    assert "Traceback" not in process.err()


def test_the_settings_file_of_the_docs_is_a_valid_one(tmp_path: Path) -> None:
    docs = (Path(__file__).parents[2] / "docs" / "terminal.md").read_text(encoding="utf-8")
    (toml,) = re.findall(r"^```toml\n(.*?)^```", docs, re.DOTALL | re.MULTILINE)
    (tmp_path / "train.toml").write_text(toml)
    refused = run("train", tmp_path / "no.zarr", "-o", tmp_path / "run", "--config", tmp_path / "train.toml")
    assert refused.stderr.startswith(f"Error: {tmp_path / 'no.zarr'}: no such cache")  # and not bad usage


def test_the_docs_have_every_exit_code_that_commands_use() -> None:
    root = Path(__file__).parents[2]
    source = "".join(file.read_text(encoding="utf-8") for file in (root / "cli").glob("*.py"))
    used = {int(code) for code in re.findall(r"SystemExit\((\d+)\)", source)} | {0, 2, INTERRUPTED}
    docs = (root / "docs" / "terminal.md").read_text(encoding="utf-8")
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", docs, re.MULTILINE)} == used
