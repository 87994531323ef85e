"""docs/sources.md: its commands run on sources of these names, and its source of one's own is cached."""

import json
import re
import runpy
import shlex
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from clipglot.cache.read.cache import Cache
from clipglot.cache.read.verify import verify
from clipglot.cache.sources.kinds import KINDS
from clipglot.cli.main import main
from support import source_makers as makers
from support.launcher import Launcher
from support.source_contract import encoded_images, write_images
from support.tars import write_img2dataset, write_shards

DOCS = (Path(__file__).parents[3] / "docs" / "sources.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", DOCS, re.DOTALL | re.MULTILINE)


COMMANDS = [shlex.split(line) for block in blocks("bash") for line in block.splitlines()]
IMAGES, CAPTIONS = encoded_images(3), [["a cat"], ["кот", "кошка"], ["猫"]]


def make_tables(folder: Path) -> None:
    names = write_images(folder, IMAGES)
    lines = [json.dumps({"image": name, "text": texts}) for name, texts in zip(names, CAPTIONS, strict=True)]
    (folder / "pairs.jsonl").write_text("\n".join(lines))
    (folder / "pairs.csv").write_text("file,zh,en\n" + "".join(f"{name},猫,a cat\n" for name in names))


def make_hub(folder: Path) -> None:
    made = makers.ParquetFolderOfASplit().make(folder, IMAGES, CAPTIONS)
    for path in made.path.iterdir():
        pq.write_table(pq.read_table(path).rename_columns(["image", "caption", "width"]), path)


def make_muge(folder: Path) -> None:
    (folder / "MUGE").mkdir()
    makers.Muge().make(folder / "MUGE", IMAGES, CAPTIONS)


def make_sidecars(folder: Path) -> None:
    names = write_images(folder / "unpacked", IMAGES)
    for name, texts in zip(names, CAPTIONS, strict=True):
        (folder / "unpacked" / name).with_suffix(".txt").write_text(texts[0])


def make_birds(folder: Path) -> None:
    for name, image in zip(("hooded_crow", "blue_tit", "swift"), IMAGES, strict=True):
        write_images(folder / "birds" / name, [image])


MAKE = {
    "pairs.jsonl": make_tables,
    "pairs.csv": make_tables,
    "shards": lambda folder: write_shards(folder / "shards", IMAGES, CAPTIONS, per_shard=1),
    "shards/{00000..00002}.tar": lambda folder: write_shards(folder / "shards", IMAGES, CAPTIONS, per_shard=1),
    "downloads": lambda folder: write_img2dataset(folder / "downloads", IMAGES, [texts[0] for texts in CAPTIONS]),
    "pairs.parquet": lambda folder: makers.ParquetOfBytes().make(folder, IMAGES, CAPTIONS),
    "data": make_hub,
    "pairs.feather": lambda folder: makers.Feather().make(folder, IMAGES, CAPTIONS),
    "saved": lambda folder: makers.SavedSplits().make(folder, IMAGES, CAPTIONS),
    "MUGE": make_muge,
    "unpacked": make_sidecars,
    "birds": make_birds,
    "annotations/captions_train2017.json": lambda folder: makers.Coco().make(folder, IMAGES, CAPTIONS),
}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[2])
def test_every_command_runs(
    command: list[str], tmp_path: Path, tiny_clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    MAKE[command[2]](tmp_path)
    monkeypatch.chdir(tmp_path)
    assert command[:2] == ["clipglot", "cache"]
    output = command[command.index("-o") + 1]
    given = command[1 : command.index("--model")]
    assert command[command.index("--model") + 2] == "--pretrained"  # without weights it would be refused
    result = CliRunner().invoke(main, [*given, "--model", f"local-dir:{tiny_clip}", "--num-workers", "1"])
    assert result.exit_code == 0, result.output
    assert Cache(tmp_path / output).info.counts == {"embedded": 3}


def test_every_kind_is_documented() -> None:
    assert {command[2] for command in COMMANDS} == set(MAKE)
    for word in (word for kind in KINDS for word in re.findall(r"\.[a-z]+|[a-z_]+\.json\b|_imgs\.tsv", kind.shape)):
        assert word in DOCS
    said = " ".join(CliRunner().invoke(main, ["cache", "--help"]).stdout.split())
    for words in (
        "table",
        "tars",
        "Parquet or Arrow files",
        "dataset",
        "MUGE folder",
        "texts beside",
        "class folders",
        "COCO's",
    ):
        assert words in said


def test_the_documented_source_of_ones_own_is_cached_and_resumed(
    tmp_path: Path,
    tiny_clip: Path,
    launcher: Launcher,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (code,) = blocks("python")
    script = tmp_path / "own.py"
    tower = 'model="ViT-B-32", pretrained="openai"'
    assert code.count(tower) == 1
    script.write_text(code.replace(tower, f"model={f'local-dir:{tiny_clip}'!r}"))
    with closing(sqlite3.connect(tmp_path / "pairs.db")) as database, database:
        database.execute("CREATE TABLE pairs (id INTEGER PRIMARY KEY, image BLOB, caption TEXT)")
        rows = [*zip(IMAGES, ["a cat", "кот", "猫"], strict=True), (None, "nothing")]
        database.executemany("INSERT INTO pairs (image, caption) VALUES (?, ?)", rows)
    as_main = f"__file__ = sys.argv[1]\n{script.read_text()}"  # workers take it for the script that was started
    done = launcher.run(as_main, script, folder=tmp_path)
    assert done.out() == "{'embedded': 3, 'missing': 1}\n"
    cache = Cache(tmp_path / "own.zarr")
    assert cache.info.source.kind == "database"
    assert cache.captions() == ["a cat", "кот", "猫", "nothing"]
    shutil.rmtree(tmp_path / "own.zarr" / "images" / "status" / "c")
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(script), run_name="__main__")  # another process than the first resumes
    assert capsys.readouterr().out == done.out()
    (tmp_path / "own.zarr/images/emb/c/0/0/0").unlink()
    checked = CliRunner().invoke(main, ["verify", str(tmp_path / "own.zarr")])
    assert "delete images/status/c/0 and run your program again to embed these rows anew" in checked.stdout
    refused = CliRunner().invoke(main, ["verify", str(tmp_path / "own.zarr"), "--repair"])
    assert "comes from a source of your own (database)" in refused.stderr
    (tmp_path / "own.zarr/images/status/c/0").unlink()
    runpy.run_path(str(script), run_name="__main__")
    assert verify(Cache(tmp_path / "own.zarr")) == []
