"""The pass over appended rows: local and at URLs, in shards, after losses; what else has to wait for it."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from clipglot.cache import format as cache_format
from clipglot.cache.errors import CacheError
from clipglot.cache.format import HASH
from clipglot.cache.location import to_location
from clipglot.cache.read.cache import Cache
from clipglot.cache.read.verify import verify
from clipglot.cache.storage import local
from clipglot.cache.storage.remote import RemoteStore
from clipglot.cli.main import main
from clipglot.distill.errors import DistillError
from support.appended_sources import content, write_manifests
from support.cache_bytes import files
from support.metadata_edits import make_older
from support.s3_server import Bucket
from support.tars import members_of, write_tar
from support.worker_scripts import SLOW

Make = Callable[..., Any]


class Stopped(Exception):  # noqa: N818
    """Raised in place of a kill."""


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_manifests(tmp_path_factory.mktemp("appended"))


@pytest.fixture(scope="module")
def intact(manifests: dict[str, Path], make_cache: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten images in chunks of eight rows: the second chunk has two of them, and room for six. Read only."""
    make_cache(manifests["old"], path := tmp_path_factory.mktemp("intact") / "old.zarr")
    assert (Cache(path).info.chunk_rows, Cache(path).num_chunks) == (8, 2)
    return path


@pytest.fixture
def old(intact: Path, tmp_path: Path) -> Path:
    """Copy of `intact`, for tests that append to it."""
    return Path(shutil.copytree(intact, tmp_path / "old.zarr"))


def test_settings_that_are_not_given_are_those_of_the_cache(
    manifests: dict[str, Path], tiny_clip: Path, make_cache: Make, tmp_path: Path
) -> None:
    cache, given = tmp_path / "c.zarr", {"max_pixels": 4000, "decoding": "scaled", "precision": "bf16", "batch_size": 4}
    make_cache(manifests["old"], cache, **given)
    for options in ([], ["--append"], ["--append", "--model", f"local-dir:{tiny_clip}"]):
        command = ["cache", str(manifests["more" if options else "old"]), "-o", str(cache), "--device", "cpu", *options]
        done = CliRunner().invoke(main, command)
        assert (done.exit_code, done.stderr.count("Error")) == (0, 0), done.output
    info = Cache(cache).require_sealed().info
    assert (info.batch_size, info.max_pixels, info.decoding, info.encoder.precision) == (4, 4000, "scaled", "bf16")
    assert len(Cache(cache)) == 30
    refused = CliRunner().invoke(main, [*command, "--batch-size", "8"])
    assert "batch_size was 4, now 8" in refused.stderr


@pytest.mark.parametrize("rechunked", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_at_a_url_a_cache_has_the_bytes_of_a_local_one(
    rechunked: bool,
    manifests: dict[str, Path],
    make_cache: Make,
    bucket: Bucket,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name, near, given = f"appended{rechunked}.zarr", tmp_path / "near.zarr", {"batch_size": 1} if rechunked else {}
    make_cache(manifests["old"], near, **given)
    if rechunked:
        monkeypatch.setattr(cache_format, "MIN_CHUNKS", 4)
    far = to_location(bucket.upload(near, name))
    make_cache(manifests["more"], near, append=True, **given)
    put, num = RemoteStore.set, 0

    async def counted(store: RemoteStore, key: str, *arguments: Any) -> None:
        nonlocal num
        num += 1
        if num % 17 == 0:
            raise Stopped
        await put(store, key, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(RemoteStore, "set", counted)
        for _ in range(3):
            with pytest.raises(Stopped):
                make_cache(manifests["more"], far, append=True, **given)
    make_cache(manifests["more"], far, append=True, **given)
    assert bucket.contents(name) == files(near)
    assert len(content(near)[0]) == 30


@pytest.mark.slow
def test_shards_divide_an_append_once_the_first_has_planned_it(
    start_worker: Any, many_images: Path, alone: Path, make_cache: Make, tmp_path: Path
) -> None:
    path, lone, part = tmp_path / "cache.zarr", tmp_path / "lone.zarr", many_images.with_name("part.jsonl")
    part.write_text("\n".join(many_images.read_text().splitlines()[:30]))
    refused = start_worker(path, "1/2", "", "--append")
    assert refused.wait() == 1
    assert "no cache to append to" in refused.err()
    make_cache(part, path, chunk_rows=8)
    shutil.copytree(path, lone)
    make_cache(many_images, lone, chunk_rows=8, append=True)
    second = start_worker(path, "1/2", "", "--append")
    second.until(lambda: "shard 1/2 is waiting for shard 0 to plan" in second.err())
    first = start_worker(path, "0/2", SLOW.format(0.6), "--append")
    done = [worker.succeed() for worker in (first, second)]
    assert all(int(line.split(" did ")[1].split()[0]) for line in done)
    assert files(path) == files(lone)
    assert Cache(path).image_emb()[:24].tobytes() == Cache(alone).image_emb()[:24].tobytes()


@pytest.mark.slow
def test_shards_do_not_wait_for_a_source_without_new_images(start_worker: Any, alone: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(alone, tmp_path / "cache.zarr"))
    second = start_worker(path, "1/2", "", "--append")
    second.until(lambda: "is waiting for shard 0" in second.err())
    for worker in (start_worker(path, "0/2", "", "--append"), second):
        assert "is complete already: 80" in worker.succeed()
    assert files(path) | {"zarr.json": b""} == files(alone) | {"zarr.json": b""}


def stopped_at(ending: str, make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a cache until a file is to be written whose name ends so."""
    write = local.atomic_write

    def write_or_stop(target: Path, data: Any) -> None:
        if target.as_posix().endswith(ending):
            raise Stopped
        write(target, data)

    with monkeypatch.context() as patch:
        patch.setattr(local, "atomic_write", write_or_stop)
        with pytest.raises(Stopped):
            make()


@pytest.mark.parametrize("lost", ["images/emb/c/0/1/0", "images/norm/c/0/1", "images/hash/c/1/0"])
def test_lost_old_rows_of_a_chunk_are_an_error_not_zeros(
    lost: str, old: Path, manifests: dict[str, Path], make_cache: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content(old)
    stopped_at("images/emb/c/0/1/0", lambda: make_cache(manifests["more"], old, append=True), monkeypatch)
    assert Cache(old).missing_chunks() == [1, 2, 3]
    assert [Cache(old).first_pending(chunk) for chunk in range(4)] == [None, 10, None, None]
    (old / lost).unlink()
    with pytest.raises(CacheError, match=rf"{lost} is absent: delete images/status/c/1 and run its"):
        make_cache(manifests["more"], old, append=True)
    (old / "images/status/c/1").unlink()
    assert make_cache(manifests["more"], old, append=True).report.num_pictures == 22
    keys, _, emb, _, _ = content(old)
    assert (len(keys), emb[:8].tobytes()) == (30, before[2][:8].tobytes())


def test_a_half_written_chunk_is_no_fault_and_is_written_again(
    old: Path, manifests: dict[str, Path], make_cache: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Path(shutil.copytree(old, tmp_path / "whole.zarr"))
    make_cache(manifests["more"], whole, append=True)
    stopped_at("images/status/c/1", lambda: make_cache(manifests["more"], old, append=True), monkeypatch)
    assert verify(Cache(old)) == []
    assert Cache(old).missing_chunks() == [1, 2, 3]
    shown = CliRunner().invoke(main, ["inspect", str(old)])
    assert "1 of 4 chunks are stored (planned)" in shown.stdout
    with pytest.raises(DistillError, match="not embedded in its 1 views: run this command without --views first"):
        make_cache(manifests["old"], old, views=2)
    assert make_cache(manifests["old"], old).report.num_pictures == 20  # the first source's command will do
    assert files(old) == files(whole)


def test_nothing_else_is_done_in_state_appending(
    old: Path, manifests: dict[str, Path], make_cache: Make, make_run: Make, tmp_path: Path, monkeypatch: Any
) -> None:
    whole = Path(shutil.copytree(old, tmp_path / "whole.zarr"))
    make_cache(manifests["more"], whole, append=True)
    stopped_at("zarr/captions/image/c/0", lambda: make_cache(manifests["more"], old, append=True), monkeypatch)
    assert Cache(old).info.state == "appending"
    said = "was being appended to when it stopped: run its `clipglot cache` command again"
    with pytest.raises(CacheError, match=said):
        verify(Cache(old))
    with pytest.raises(CacheError, match=said):
        make_run(old, tmp_path / "run")
    for command in (["inspect", str(old)], ["verify", str(old)]):
        refused = CliRunner().invoke(main, command)
        assert (refused.exit_code, said in " ".join(refused.output.split())) == (1, True)
    make_cache(manifests["old"], old)
    assert files(old) == files(whole)


def test_tars_are_appended_to_files_and_to_other_tars(
    old: Path, manifests: dict[str, Path], make_cache: Make, tmp_path: Path
) -> None:
    images = manifests["old"].parent / "images"
    for name, numbers in (("a", (20, 21, 3)), ("b", (22, 9))):
        members = [m for i in numbers for m in members_of(f"{name}{i}", (images / f"{i:04}.png").read_bytes(), ["x"])]
        make_cache(write_tar(tmp_path / f"{name}.tar", members), old, append=True)
    keys, _, emb, _, status = content(old)
    cache = Cache(old)
    assert (len(keys), status, cache.files()) == (15, [1] * 15, ["a.tar", "b.tar"])
    assert emb[[12, 14]].tobytes() == emb[[3, 9]].tobytes()
    locators = cache.locators()
    assert locators is not None
    assert locators[:, 0].tolist() == [-1] * 10 + [0] * 3 + [1] * 2
    assert cache.info.num_duplicates == 2
    for chunk in ("0", "1"):
        (old / "images/status/c" / chunk).unlink()
    make_cache(manifests["old"], old)  # each row from the source that it came from
    assert content(old)[2].tobytes() == emb.tobytes()


@pytest.mark.parametrize("hashed", [True, False])
def test_duplicates_are_counted_over_old_and_new_images(
    hashed: bool, old: Path, manifests: dict[str, Path], make_cache: Make
) -> None:
    images, twins = manifests["old"].parent / "images", manifests["old"].with_name("twins.jsonl")
    for name in ("0001", "0009"):
        shutil.copy(images / f"{name}.png", images / f"twin{name}.png")
    twins.write_text("".join(f'{{"image": "images/twin{name}.png", "text": "a"}}\n' for name in ("0001", "0009")))
    if not hashed:
        shutil.rmtree(old / HASH)
        make_older(old, "num_duplicates")
    make_cache(twins, old, append=True)
    cache = Cache(old).require_sealed()
    assert (HASH in cache.arrays.root, cache.info.num_duplicates) == (hashed, 2 if hashed else None)
    assert cache.image_emb()[10:].tobytes() == cache.image_emb()[[1, 9]].tobytes()
    assert verify(cache) == []


def test_the_command_counts_images_that_the_cache_has_already(
    old: Path, manifests: dict[str, Path], tiny_clip: Path
) -> None:
    given = ["cache", manifests["more"], "-o", old, "--append", "--batch-size", 8, "--num-workers", 1]
    made = CliRunner().invoke(main, [str(argument) for argument in [*given, "--model", f"local-dir:{tiny_clip}"]])
    assert made.exit_code == 0, made.output
    left_out = "(the cache has their images already; their captions were not added: `clipglot captions` adds captions)"
    assert f"5 rows were left out by --append {left_out}\n" in made.stdout
    assert "next: " not in made.stdout
    again = CliRunner().invoke(main, [str(argument) for argument in [*given, "--model", f"local-dir:{tiny_clip}"]])
    assert "29 images embedded" in again.stdout
    assert "--append" not in again.stdout
    given[1] = manifests["old"]
    made = CliRunner().invoke(main, [str(argument) for argument in [*given, "--model", f"local-dir:{tiny_clip}"]])
    assert f"10 rows were left out by --append {left_out}\n" in made.stdout
    shown = CliRunner().invoke(main, ["inspect", str(old)]).stdout
    assert f"left out by --append  15 rows {left_out}\n" in shown
    assert ", from row 10" in shown
