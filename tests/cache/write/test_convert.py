"""Conversion: a copy is complete or absent, and converting back gives the same bytes."""

import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from clipglot.cache.errors import CacheError
from clipglot.cache.read.cache import Cache
from clipglot.cache.read.verify import verify
from clipglot.cache.write.convert import convert
from support.cache_bytes import files
from support.command_line import run
from support.metadata_edits import edit
from support.s3_server import Bucket

AGAIN = "convert it again from the cache that this is a copy of"


def test_converting_there_and_back_gives_the_same_bytes(with_tokens: Path, h5: Path, tmp_path: Path) -> None:
    done = convert(Cache(h5), tmp_path / "back.zarr")
    assert files(tmp_path / "back.zarr") == files(with_tokens)
    assert any("tokens/" in name for name in files(with_tokens))
    convert(Cache(tmp_path / "back.zarr"), tmp_path / "again.hdf5")
    assert (tmp_path / "again.hdf5").read_bytes() == h5.read_bytes()
    assert done.num_chunks == sum("/c/" in name for name in files(with_tokens))


def test_views_and_text_targets_are_converted_too(
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
    with_tokens: Path, h5: Path, bucket: Bucket, tmp_path: Path
) -> None:
    url = bucket.upload(with_tokens, "own.zarr")
    for name in ("a.h5", "a.zarr"):
        assert run("convert", url, tmp_path / name).exit_code == 0
    bucket.flip_a_byte("own.zarr/captions/text/bytes/c/0")
    result = run("convert", url, tmp_path / "b.h5")
    assert f"{url}: damaged chunk captions/text/bytes/c/0" in result.stderr
    assert (tmp_path / "a.h5").read_bytes() == h5.read_bytes()
    assert files(tmp_path / "a.zarr") == files(with_tokens)
    assert {path.name for path in tmp_path.iterdir()} == {"a.h5", "a.zarr"}


def test_only_a_sealed_cache_is_converted_and_only_to_a_free_name(tiny_cache: Path, h5: Path, tmp_path: Path) -> None:
    open_ = Path(shutil.copytree(tiny_cache, tmp_path / "open.zarr"))
    edit(open_, state="planned")
    (open_ / "images" / "status" / "c" / "1").unlink()
    result = run("convert", open_, tmp_path / "x.h5")
    assert (result.exit_code, "is not complete (1 of its chunks" in result.stderr) == (1, True)
    result = run("convert", tiny_cache, h5)
    assert (result.exit_code, "exists: choose another name" in result.stderr) == (1, True)
    assert sorted(tmp_path.iterdir()) == [open_]


def test_a_damaged_cache_is_not_converted(tiny_cache: Path, tmp_path: Path) -> None:
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
def test_a_conversion_killed_at_any_moment_leaves_nothing_of_that_name(
    name: str, h5: Path, start_command: Any, tmp_path: Path
) -> None:
    script = (
        "from pathlib import Path\nfrom clipglot.cache.write.convert import convert\n"
        "from clipglot.cache.read.cache import Cache\n"
        "def show(done, total):\n    print(done, flush=True)\n    time.sleep(0.01)\n"
        f"convert(Cache(Path({str(h5)!r})), Path({str(tmp_path / name)!r}), show)"
    )
    for num_done in (1, 8, 15):
        process = start_command(script=script)
        process.until(lambda num=num_done, process=process: f"{num}\n" in process.out())
        process.signal_all(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert not (tmp_path / name).exists()
        assert len(list(tmp_path.iterdir())) == 1  # the next one clears it away
    convert(Cache(h5), tmp_path / name)
    assert verify(Cache(tmp_path / name)) == []
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["out.h5", "out.zarr"])
def test_a_full_disk_is_one_clear_error_and_leaves_nothing(
    name: str, h5: Path, start_command: Any, tmp_path: Path
) -> None:
    limit = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))"
    done = start_command("convert", h5, tmp_path / name, script=limit)
    assert done.wait() == 1
    assert done.err().startswith(f"Error: {tmp_path / name}: cannot be written (File too large): free some space")
    assert len(done.err().strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_cannot_be_written_is_named(h5: Path) -> None:
    for name in ("out.h5", "out.zarr"):
        with pytest.raises(CacheError, match=rf"^/proc/none/{name}: cannot be written \(.*choose another name and run"):
            convert(Cache(h5), Path("/proc/none") / name)
