"""A full disk: every command names what it could not write, loses nothing finished, and goes on once there is space."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from clipglot.cache.read.cache import Cache
from clipglot.cache.read.verify import verify
from clipglot.distill.training.run_folder import RunFolder
from support.cache_bytes import cache_files
from support.command_line import run, small
from support.small_disk import fill, small_disk


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MiB."""
    with small_disk(tmp_path / "disk", 2**22) as folder:
        yield folder


def require_named(result: object, path: Path) -> None:
    """The command failed with one message: the path, that space is lacking, and no traceback."""
    assert result.exit_code == 1, result.output  # type: ignore[attr-defined]
    assert str(path) in result.stderr  # type: ignore[attr-defined]
    assert "free some space" in result.stderr  # type: ignore[attr-defined]
    assert "Traceback" not in result.stderr  # type: ignore[attr-defined]


@pytest.mark.parametrize("left", [0, 20_000, 60_000])
def test_a_pass(left: int, disk: Path, manifest: Path, tiny_clip: Path, tiny_cache: Path) -> None:
    command = ["cache", manifest, "-o", disk / "c.zarr", "--model", f"local-dir:{tiny_clip}", "--batch-size", 8]
    filler = fill(disk, left)
    require_named(run(*command, "--num-workers", 1), disk / "c.zarr")
    filler.unlink()
    assert run(*command, "--num-workers", 1).exit_code == 0
    assert verify(Cache(disk / "c.zarr")) == []
    ours, theirs = (cache_files(cache) for cache in (disk / "c.zarr", tiny_cache))
    assert {name: ours[name] for name in ours if name != "zarr.json"} == {
        name: theirs[name] for name in theirs if name != "zarr.json"
    }


@pytest.mark.parametrize("left", [0, 30_000, 120_000, 300_000])
def test_a_run(left: int, disk: Path, tiny_cache: Path, tmp_path: Path) -> None:
    cache = Path(shutil.copytree(tiny_cache, tmp_path / "c.zarr"))
    command = [*small(cache, disk / "run"), "--epochs", 2, "--checkpoint-every", 3, "--log-every", 1]
    filler = fill(disk, left)
    failed = run(*command)
    require_named(failed, disk / "run")
    filler.unlink()
    begun = (disk / "run/run.json").exists()
    assert run(*command, *(["--resume"] if begun else [])).exit_code == 0
    steps = [line["step"] for line in RunFolder(disk / "run").metrics() if line["kind"] == "step"]
    assert steps == sorted(set(steps)) == list(range(1, 11))


@pytest.mark.parametrize("left", [0, 8_000])
def test_exports_tokenizers_and_copies(left: int, disk: Path, tiny_run: Path, tiny_cache: Path, tmp_path: Path) -> None:
    other = shutil.copytree(tiny_cache, tmp_path / "other.zarr")
    commands = {
        "export": ["export", tiny_run],
        "tokenizer": ["tokenizer", tiny_cache, "--vocab-size", 4000],
        "copy.zarr": ["convert", tiny_cache],
        "copy.h5": ["convert", tiny_cache],
        "merged.zarr": ["merge", tiny_cache, other, "--prefix"],
    }
    for name, command in commands.items():
        filler = fill(disk, left)
        output = ["-o", disk / name] if command[0] != "convert" else [disk / name]
        result = run(*command, *output)
        require_named(result, disk / name)
        filler.unlink()
        assert [path for path in disk.iterdir() if path.name != "filler"] == []
