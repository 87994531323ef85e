"""`clipglot verify --repair`, and the command that it prints: together they restore all files."""

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from clipglot.cache.read.cache import Cache
from clipglot.cache.storage.atomic import lock_folder
from clipglot.cache.write.views import make_room
from clipglot.cli.main import main
from clipglot.jobs.verify import cache_command
from support.appended_sources import write_manifests
from support.damage import flip_a_byte, rewrite
from support.s3_server import Bucket
from support.translated_scenes import MODEL


@pytest.fixture(scope="module")
def whole(
    translated_manifests: dict[str, Path], make_cache: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Cache with a text teacher, two views and settings other than the defaults. Read only."""
    path = tmp_path_factory.mktemp("whole") / "c.zarr"
    changes = {"views": 2, "augment_flip": 0.5, "limit": 30, "max_pixels": 10**6, "teacher_field": ("en",)}
    changes |= {"where": "image != 'no such'", "language": ("ru",)}
    make_cache(translated_manifests["mixed"], path, model=MODEL, **changes)
    return path


@pytest.fixture
def copied(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "c.zarr"))


def files(cache: Path) -> dict[str, bytes]:
    return {str(path.relative_to(cache)): path.read_bytes() for path in cache.rglob("*") if path.is_file()}


def repair(cache: Path) -> tuple[int, dict[str, Any]]:
    result = CliRunner().invoke(main, ["verify", str(cache), "--repair", "--json"])
    return result.exit_code, json.loads(result.stdout)


def run_again(command: str) -> None:
    words = shlex.split(command)
    assert words[:2] == ["clipglot", "cache"]
    result = CliRunner().invoke(main, [*words[1:], "--num-workers", "1", "--device", "cpu"])
    assert result.exit_code == 0, result.output


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "flipped": flip_a_byte,
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-5]),
    "deleted": Path.unlink,
}
MARKED = {
    "images/emb/c/0/2/0": "images/status/c/2",
    "images/norm/c/0/2": "images/status/c/2",
    "images/status/c/2": "images/status/c/2",
    "images/emb/c/1/2/0": "images/norm/c/1/2",
    "images/norm/c/1/2": "images/norm/c/1/2",
    "teacher/emb/c/0/1/0": "teacher/status/c/1",
    "teacher/status/c/1": "teacher/status/c/1",
}


@pytest.mark.parametrize("chunk", MARKED)
@pytest.mark.parametrize("damage", DAMAGE)
def test_repair_marks_a_lost_chunk_and_the_printed_command_restores_all_files(
    chunk: str, damage: str, copied: Path, whole: Path
) -> None:
    DAMAGE[damage](copied / chunk)
    exit_code, document = repair(copied)
    assert (exit_code, document["marked"], document["state"]) == (1, [MARKED[chunk]], "planned")
    assert len(document["faults"]) == 1
    assert "delete" not in document["faults"][0]
    assert not (copied / MARKED[chunk]).exists()
    run_again(document["command"])
    assert files(copied) == files(whole)


def test_one_repair_marks_all_lost_chunks_and_later_invalid_values(copied: Path, whole: Path) -> None:
    for i, chunk in enumerate(MARKED):
        list(DAMAGE.values())[i % 3](copied / chunk)
    _, document = repair(copied)
    assert document["marked"] == sorted(set(MARKED.values()))
    assert len(document["faults"]) == len(MARKED)
    run_again(document["command"])
    rewrite(copied, "images/emb", (0, 9, slice(8)), 3)
    _, document = repair(copied)
    assert document["marked"] == ["images/status/c/1"]
    run_again(document["command"])
    assert files(copied) == files(whole)


@pytest.mark.parametrize("file", ["captions/text/bytes/c/0", "images/key/offsets/c/0", "captions/image/c/0"])
def test_damage_that_no_pass_can_repair_is_reported_and_left_alone(file: str, copied: Path) -> None:
    flip_a_byte(copied / file)
    before = files(copied)
    exit_code, document = repair(copied)
    assert (exit_code, document["marked"], document["command"]) == (1, [], None)
    assert document["faults"][0].endswith("delete the cache and run its `clipglot cache` command again")
    assert files(copied) == before
    printed = CliRunner().invoke(main, ["verify", str(copied), "--repair"]).stdout
    assert "none of this can be embedded again" in printed


def test_repair_does_not_change_an_intact_cache(copied: Path, whole: Path) -> None:
    exit_code, document = repair(copied)
    assert (exit_code, document["marked"], document["state"]) == (0, [], "sealed")
    assert files(copied) == files(whole)


def test_repair_prints_the_command_to_run_and_nothing_to_delete(copied: Path) -> None:
    flip_a_byte(copied / "images/emb/c/0/2/0")
    printed = CliRunner().invoke(main, ["verify", str(copied), "--repair"]).stdout.splitlines()
    assert printed[-1].startswith("now run: clipglot cache ")
    assert printed[-2] == "marked to be embedded again: images/status/c/2"
    assert not [line for line in printed if "delete" in line]


def test_repair_marks_an_unfinished_view_and_the_cache_stays_sealed(copied: Path) -> None:
    cache = Cache(copied, read_only=False)
    make_room(cache, 3)
    shutil.copytree(copied / "images/emb/c/1", copied / "images/emb/c/2")
    shutil.copytree(copied / "images/norm/c/1", copied / "images/norm/c/2")
    flip_a_byte(copied / "images/emb/c/2/1/0")
    _, document = repair(copied)
    assert (document["marked"], document["state"]) == (["images/norm/c/2/1"], "sealed")


def test_repair_refuses_a_cache_that_another_process_writes(copied: Path) -> None:
    flip_a_byte(copied / "images/emb/c/0/1/0")
    with lock_folder(copied):
        result = CliRunner().invoke(main, ["verify", str(copied), "--repair"])
    assert (result.exit_code, "another clipglot command is writing it" in result.stderr) == (1, True)
    assert Cache(copied).info.state == "sealed"


def test_repair_refuses_a_merged_cache(tiny_cache: Path, tmp_path: Path) -> None:
    merged = tmp_path / "merged.zarr"
    for name in ("a", "b"):
        shutil.copytree(tiny_cache, tmp_path / name)
    given = ["merge", str(tmp_path / "a"), str(tmp_path / "b"), "-o", str(merged)]
    assert CliRunner().invoke(main, [*given, "--prefix"]).exit_code == 0
    flip_a_byte(merged / "images/emb/c/0/0/0")
    before = files(merged)
    result = CliRunner().invoke(main, ["verify", str(merged), "--repair"])
    assert (result.exit_code, "repair what it was made from" in result.stderr) == (1, True)
    assert files(merged) == before
    result = CliRunner().invoke(main, ["verify", str(merged)])
    assert "repair what it was made from, and make it again" in result.stdout
    assert "delete" not in result.stdout


@pytest.mark.parametrize("grown", [False, True])
def test_repair_of_an_appended_cache(grown: bool, make_cache: Callable[..., Any], tmp_path: Path) -> None:
    manifests, path = write_manifests(tmp_path / "appended"), tmp_path / "c.zarr"
    make_cache(manifests["old"], path)
    more = Path(shutil.copy(manifests["grown"], manifests["old"])) if grown else manifests["more"]
    make_cache(more, path, append=True)
    before, lost = files(path), ("images/emb/c/0/0/0", "images/norm/c/0/1", "images/status/c/3")
    for chunk, damage in zip(lost, DAMAGE.values(), strict=True):
        damage(path / chunk)
    _, document = repair(path)
    assert document["marked"] == [f"images/status/c/{i}" for i in (0, 1, 3)]
    assert ("--append" in shlex.split(document["command"])) == grown
    run_again(document["command"])
    assert files(path) == before
    flip_a_byte(path / "captions/image/c/0")
    said = "delete the cache and run its `clipglot cache` command again, then those that appended to it"
    assert repair(path)[1]["faults"][0].endswith(said)


def test_the_printed_command_has_all_settings_that_differ_from_defaults(whole: Path) -> None:
    words = shlex.split(cache_command(Cache(whole).info, whole))
    assert words[2].endswith("mixed.jsonl")
    expected = {"--limit": "30", "--views": "2", "--augment-flip": "0.5", "--max-pixels": "1000000"}
    for flag, value in (expected | {"--where": "image != 'no such'", "--language": "ru"}).items():
        assert words[words.index(flag) + 1] == value
    assert not {"--precision", "--image-root", "--image-field", "--text-field", "--decoding"} & set(words)


def test_repair_of_a_cache_at_a_url(bucket: Bucket, tiny_cache: Path) -> None:
    url = bucket.upload(tiny_cache, "repaired.zarr")
    before = bucket.contents("repaired.zarr")
    bucket.flip_a_byte("repaired.zarr/images/emb/c/0/1/0")
    bucket.delete("repaired.zarr/images/norm/c/0/3")
    result = CliRunner().invoke(main, ["verify", url, "--repair", "--json"])
    document = json.loads(result.stdout)
    assert (document["marked"], document["state"]) == (["images/status/c/1", "images/status/c/3"], "planned")
    run_again(document["command"])
    assert bucket.contents("repaired.zarr") == before


def test_repair_refuses_an_hdf5_file(tiny_cache: Path, tmp_path: Path) -> None:
    assert CliRunner().invoke(main, ["convert", str(tiny_cache), str(tmp_path / "c.h5")]).exit_code == 0
    result = CliRunner().invoke(main, ["verify", str(tmp_path / "c.h5"), "--repair"])
    assert (result.exit_code, "HDF5" in result.stderr) == (1, True), result.output
