"""A copy is whole or absent, and there and back gives the same bytes."""

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
from clipglot.cache.errors import CacheError
from clipglot.cache.read.cache import Cache
from clipglot.cache.read.verify import verify
from clipglot.cache.write.convert import convert
from support.copies import files, run
from support.metadata_edits import edit
from support.s3_server import serving
from zarr.core.sync import sync

AGAIN = "convert it again from the cache that this is a copy of"


def test_there_and_back_gives_the_same_bytes(with_tokens: Path, h5: Path, tmp_path: Path) -> None:
    done = convert(Cache(h5), tmp_path / "back.zarr")
    assert files(tmp_path / "back.zarr") == files(with_tokens)
    assert any("tokens/" in name for name in files(with_tokens))
    convert(Cache(tmp_path / "back.zarr"), tmp_path / "again.hdf5")
    assert (tmp_path / "again.hdf5").read_bytes() == h5.read_bytes()
    assert done.num_chunks == sum("/c/" in name for name in files(with_tokens))


def test_views_and_teachers_go_there_and_back(
    translated_caches: dict[str, Path], manifest: Path, make_cache: Callable[..., Any], tmp_path: Path
) -> None:
    make_cache(manifest, tmp_path / "views.zarr", views=3)
    for i, cache in enumerate([translated_caches["mixed"], tmp_path / "views.zarr"]):
        convert(Cache(cache), tmp_path / f"{i}.h5")
        assert verify(Cache(tmp_path / f"{i}.h5")) == []
        convert(Cache(tmp_path / f"{i}.h5"), tmp_path / str(i))
        assert files(tmp_path / str(i)) == files(cache)


def test_views_that_are_being_added_are_left_out(
    manifest: Path, make_cache: Callable[..., Any], tmp_path: Path
) -> None:
    from clipglot.cache.write.views import make_room

    make_cache(manifest, tmp_path / "a.zarr")
    before = files(tmp_path / "a.zarr")
    make_room(Cache(tmp_path / "a.zarr", read_only=False), 3)
    convert(Cache(tmp_path / "a.zarr"), tmp_path / "b.zarr")
    assert files(tmp_path / "b.zarr") == before


def test_a_url_is_copied_to_the_disk_in_either_form(
    with_tokens: Path, h5: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "s3").mkdir()
    with serving(tmp_path / "s3") as bucket:
        for name, value in bucket.environment.items():
            monkeypatch.setenv(name, value)
        url = bucket.upload(with_tokens, "own.zarr")
        for name in ("a.h5", "a.zarr"):
            assert run("convert", url, tmp_path / name).exit_code == 0
        bucket.flip_a_byte("own.zarr/captions/text/bytes/c/0")
        result = run("convert", url, tmp_path / "b.h5")
        sync(fsspec.filesystem("s3", asynchronous=True)._s3creator.__aexit__(None, None, None))
    assert f"{url}: damaged chunk captions/text/bytes/c/0" in result.stderr
    assert (tmp_path / "a.h5").read_bytes() == h5.read_bytes()
    assert files(tmp_path / "a.zarr") == files(with_tokens)
    assert {path.name for path in tmp_path.iterdir()} <= {"a.h5", "a.zarr", "s3"}


def test_only_a_sealed_cache_is_converted_and_only_to_a_free_name(tiny_cache: Path, h5: Path, tmp_path: Path) -> None:
    open_ = Path(shutil.copytree(tiny_cache, tmp_path / "open.zarr"))
    edit(open_, state="planned")
    (open_ / "images" / "status" / "c" / "1").unlink()
    result = run("convert", open_, tmp_path / "x.h5")
    assert (result.exit_code, "is not complete (1 of its chunks" in result.stderr) == (1, True)
    result = run("convert", tiny_cache, h5)
    assert (result.exit_code, "exists: choose another name" in result.stderr) == (1, True)
    assert sorted(tmp_path.iterdir()) == [open_]


def test_damage_of_the_cache_stops_it(tiny_cache: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(tiny_cache, tmp_path / "own.zarr"))
    content = bytearray((own / "images/emb/c/0/1/0").read_bytes())
    content[5] ^= 1
    (own / "images/emb/c/0/1/0").write_bytes(content)
    with pytest.raises(CacheError, match=r"damaged chunk images/emb/c/0/1/0 .* delete images/status/c/1"):
        convert(Cache(own), tmp_path / "x.h5")
    (own / "captions/image/zarr.json").unlink()
    with pytest.raises(CacheError, match=r"captions/image/zarr.json is absent or damaged"):
        convert(Cache(own), tmp_path / "x.h5")
    assert list(tmp_path.iterdir()) == [own]


@pytest.mark.parametrize("name", ["out.h5", "out.zarr"])
def test_killed_at_any_moment_it_leaves_nothing_of_that_name(name: str, h5: Path, tmp_path: Path) -> None:
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom clipglot.cache.write.convert import convert\n"
        "from clipglot.cache.read.cache import Cache\n"
        "def show(done, total):\n    print(done, flush=True)\n    time.sleep(0.01)\n"
        "convert(Cache(Path(sys.argv[1])), Path(sys.argv[2]), show)"
    )
    command = [sys.executable, "-c", script, str(h5), str(tmp_path / name)]
    for wanted in (1, 8, 15):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout
            while int(process.stdout.readline()) < wanted:
                time.sleep(0)
            process.send_signal(signal.SIGKILL)
        assert not (tmp_path / name).exists()
        assert len(list(tmp_path.iterdir())) == 1  # the next one clears it away
    convert(Cache(h5), tmp_path / name)
    assert verify(Cache(tmp_path / name)) == []
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["out.h5", "out.zarr"])
def test_a_full_disk_is_said_and_leaves_nothing(name: str, h5: Path, tmp_path: Path) -> None:
    script = (
        "import resource, sys\nfrom clipglot.cli.main import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))\nmain(sys.argv[1:])"
    )
    command = [sys.executable, "-B", "-c", script, "convert", str(h5), str(tmp_path / name)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith(f"Error: {tmp_path / name}: cannot be written (File too large): free some space")
    assert len(done.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_named(h5: Path) -> None:
    for name in ("out.h5", "out.zarr"):
        with pytest.raises(CacheError, match=rf"^/proc/none/{name}: cannot be written \(.*choose another name and run"):
            convert(Cache(h5), Path("/proc/none") / name)
