"""The commands of README.md run, with tiny towers instead of downloaded ones; it names every command."""

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from clipglot.cli.main import COMMANDS, main
from clipglot.distill.recipes import RECIPES
from support.drawings import draw_images

README = Path(__file__).parents[2] / "README.md"
SMALL = ["--width", "32", "--layers", "1", "--heads", "2", "--vocab-size", "300", "--epochs", "2", "--batch-size", "8"]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@pytest.mark.slow
def test_the_readmes_commands_run(tmp_path: Path, tiny_clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("train", "val"):
        draw_images(tmp_path, 40).rename(tmp_path / f"{name}.jsonl")
    shutil.copy(tmp_path / "images" / "0000.png", tmp_path / "cat.jpg")
    (script,) = (block for block in blocks("bash") if "clipglot cache" in block)
    for line in script.splitlines():
        command = shlex.split(line)
        assert command[0] == "clipglot"
        if command[1] == "cache":
            command[command.index("--model") :] = ["--model", f"local-dir:{tiny_clip}", "--batch-size", "8"]
        if command[1] == "train":
            command += SMALL
        result = CliRunner().invoke(main, command[1:], catch_exceptions=False)
        assert result.exit_code == 0, result.stderr
    for code in blocks("python"):
        names: dict[str, Any] = {}
        exec(code, names)
        assert "model" not in names or not names["model"].training


def test_the_readme_names_every_command_and_every_file_it_points_at() -> None:
    text = README.read_text(encoding="utf-8")
    assert [name for name in COMMANDS if f"clipglot {name}" not in text] == []
    links = re.findall(r"\]\(([^)#]+)\)", text)
    assert links
    assert [link for link in links if not link.startswith("http") and not (README.parent / link).exists()] == []
    assert {"make demo\n", "make test\n"} <= set(blocks("bash"))


def test_the_recipes_are_listed_as_they_are() -> None:
    docs = (README.parent / "docs" / "text-towers.md").read_text(encoding="utf-8")
    for recipe, values in RECIPES.items():
        flags = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in values.items())
        assert re.search(rf"^{recipe} +{re.escape(flags)}$", docs, re.MULTILINE), recipe
