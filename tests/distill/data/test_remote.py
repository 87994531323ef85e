"""Cache in an object store: it reads, trains and fails like a local one, over the real S3 protocol."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from clipglot.cache.errors import CacheError
from clipglot.cache.location import Url, to_location
from clipglot.cache.read.cache import Cache
from clipglot.cache.read.verify import verify
from clipglot.cli.main import main
from clipglot.distill.data.image_embeddings import OnDevice, open_images
from clipglot.distill.errors import DistillError
from clipglot.distill.train_settings import EmbeddingSettings
from clipglot.distill.training.final import load_final
from clipglot.distill.training.run_folder import RunFolder
from clipglot.distill.training.train import train
from clipglot.jobs.export import export_run
from clipglot.jobs.settings.export import ExportSettings
from support.launcher import Process
from support.metadata_edits import edited
from support.run_logs import logged
from support.runs import settings, stop_at
from support.s3_server import Bucket

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def url(bucket: Bucket, tiny_cache: Path) -> str:
    """The tiny cache, uploaded to the object store. Read only."""
    return bucket.upload(tiny_cache, "tiny.zarr")


@pytest.fixture
def own(bucket: Bucket, tiny_cache: Path) -> tuple[str, str]:
    """A copy that a test may damage: its URL, and its key in the bucket."""
    name = f"{len(bucket.objects())}.zarr"
    return bucket.upload(tiny_cache, name), name


def pooled(cache: Path) -> dict[str, Any]:
    """Settings of a run that cannot hold all chunks at once."""
    info = Cache(cache).info
    return {"embeddings": "chunks", "buffer_gb": 3.5 * 2 * info.chunk_rows * info.encoder.dim / 1e9, "batch_size": 4}


def assert_same_run(ours: Path, theirs: Path) -> None:
    assert logged(ours) == logged(theirs)
    expected = load_final(RunFolder(theirs)).tower.state_dict()
    assert all(
        torch.equal(tensor, expected[name]) for name, tensor in load_final(RunFolder(ours)).tower.state_dict().items()
    )


def test_paths_and_urls_are_distinguished() -> None:
    assert to_location("train.zarr") == to_location(Path("train.zarr")) == Path("train.zarr")
    assert to_location("file:///data/train.zarr") == Path("/data/train.zarr")
    found = to_location("s3://bucket/a//b.zarr/")
    assert isinstance(found, Url)
    assert (found, found.scheme, to_location(Url("simplecache::gs://b/c")).scheme) == (
        "s3://bucket/a//b.zarr",
        "s3",
        "gs",
    )  # type: ignore[union-attr]


def test_reads_equal_those_of_the_local_cache(url: str, tiny_cache: Path) -> None:
    far, near = Cache(url), Cache(tiny_cache)
    assert (str(far.path), far.info, len(far)) == (url, near.info, len(near))
    assert (far.captions(), far.keys(3, 9), list(far.failures())) == (near.captions(), near.keys(3, 9), [])
    rows = np.array([39, 0, 39, 7])
    for read in (Cache.image_emb, Cache.norm, Cache.status, Cache.caption_image, lambda c: c.emb_rows(rows)):
        assert np.array_equal(read(far), read(near))
    assert far.missing_chunks() == []
    assert verify(far) == []


def test_commands_take_a_url(url: str, tiny_cache: Path, merged: Path) -> None:
    def printed(*arguments: object) -> Any:
        result = CliRunner().invoke(main, [*map(str, arguments), "--json"])
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    assert printed("inspect", url) == printed("inspect", tiny_cache) | {"path": url}
    checked = printed("verify", url)
    assert (checked["state"], checked["faults"], checked["probes"]["num"]) == ("sealed", [], 16)
    assert printed("eval", "retrieval", merged, url) == printed("eval", "retrieval", merged, tiny_cache)


def test_any_fsspec_store_is_read(tiny_cache: Path) -> None:
    fsspec.filesystem("memory").put(str(tiny_cache), "/shelf/tiny.zarr", recursive=True)
    assert np.array_equal(Cache("memory://shelf/tiny.zarr").image_emb(), Cache(tiny_cache).image_emb())


def test_chunks_give_the_run_of_the_local_copy_and_are_fetched_once_per_epoch(
    bucket: Bucket, url: str, own: tuple[str, str], tiny_cache: Path, tmp_path: Path
) -> None:
    (cache, key), given = own, pooled(tiny_cache)
    (tmp_path / "val.toml").write_text(f'val = "{url}"\n')
    before = bucket.objects()
    shutil.copytree(tiny_cache, tmp_path / "local.zarr")
    train(settings(tmp_path / "local.zarr", tmp_path / "near", val=tiny_cache, **given))
    result = CliRunner().invoke(
        main,
        [
            "train",
            cache,
            "-o",
            str(tmp_path / "far"),
            "--config",
            str(tmp_path / "val.toml"),
            "--width",
            "32",
            "--layers",
            "1",
            "--heads",
            "2",
        ]
        + ["--vocab-size", "300", "--context-length", "16", "--epochs", "4", "--log-every", "1", "--device", "cpu"]
        + [part for name, value in given.items() for part in (f"--{name.replace('_', '-')}", str(value))],
    )
    assert result.exit_code == 0, result.output
    assert_same_run(tmp_path / "far", tmp_path / "near")
    gets = bucket.num_gets(f"{key}/images/emb/c/")
    assert len(gets) == Cache(tiny_cache).num_chunks
    assert 1 < max(gets.values()) <= 4  # once in each of four epochs, less where an epoch ends and the next begins
    assert bucket.objects() == before
    assert len(list((tmp_path / "far" / "tokens").rglob("ids"))) == 1
    written = json.loads((tmp_path / "far" / "run.json").read_text())
    named = (written["settings"]["cache"], written["settings"]["val"], written["provenance"]["cache"])
    assert named == (cache, url, cache)


@pytest.mark.parametrize("embeddings", ["device", "auto"])
def test_embeddings_on_the_device_give_the_run_of_the_local_copy(
    embeddings: Any, url: str, tiny_cache: Path, tmp_path: Path
) -> None:
    near, far = (settings(c, tmp_path / n, val=tiny_cache) for c, n in ((tiny_cache, "near"), (url, "far")))
    train(near)
    train(replace(far, cache=to_location(url), val=to_location(url), embeddings=embeddings))
    assert_same_run(tmp_path / "far", tmp_path / "near")
    assert isinstance(open_images(Cache(url), far, CPU), OnDevice)


def test_a_run_resumes_from_the_url_or_the_local_copy(url: str, tiny_cache: Path, tmp_path: Path) -> None:
    straight = settings(tiny_cache, tmp_path / "straight", **pooled(tiny_cache))
    train(straight)
    broken = replace(straight, output=tmp_path / "broken")
    assert not train(broken, on_progress=stop_at(9)).complete
    broken = replace(broken, cache=to_location(url))
    assert not train(broken, resume=True, on_progress=stop_at(21)).complete
    assert train(broken, resume=True).complete
    assert_same_run(tmp_path / "broken", tmp_path / "straight")


def test_what_needs_a_local_disk_is_refused_with_a_remedy(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for cannot in (
        lambda: open_images(Cache(url), EmbeddingSettings(embeddings="mapped"), CPU),
        lambda: Cache(url).mapped("images/emb"),
    ):
        with pytest.raises(
            CacheError, match=rf"{url}: rows can be mapped only from .* local disk: .* --embeddings chunks"
        ):
            cannot()
    monkeypatch.setattr("clipglot.distill.data.image_embeddings.free_bytes", lambda device: 1000)
    with pytest.raises(DistillError, match=rf"{url}: its embeddings would take more than half .* --embeddings chunks"):
        open_images(Cache(url), EmbeddingSettings(), CPU)
    for arguments in (["train", url, "-o", "s3://bucket/run"],):
        result = CliRunner().invoke(main, arguments)
        assert (result.exit_code, "is a URL, expected a local path" in result.stderr) == (2, True)


READERS: dict[str, Callable[[Cache], Any]] = {
    "images/emb/c/0/1/0": lambda cache: cache.emb_rows(np.arange(len(cache))),
    "images/status/c/1": Cache.status,
    "captions/text/bytes/c/0": Cache.captions,
    "images/key/offsets/c/0": Cache.keys,
}


@pytest.mark.parametrize("chunk", READERS)
def test_damaged_and_missing_objects_are_named(chunk: str, bucket: Bucket, own: tuple[str, str]) -> None:
    url, key = own
    again = "upload it again from the cache that this is a copy of"
    bucket.flip_a_byte(f"{key}/{chunk}")
    with pytest.raises(CacheError, match=rf"{url}: damaged chunk {chunk} \(.*\): {again}"):
        READERS[chunk](Cache(url))
    (fault,) = map(str, verify(Cache(url)))
    assert fault.startswith(f"{chunk}: damaged (")
    bucket.delete(f"{key}/{chunk}")
    with pytest.raises(CacheError, match=rf"{url}: {chunk} is absent: {again}"):
        READERS[chunk](Cache(url))
    (fault,) = map(str, verify(Cache(url)))
    assert fault.startswith(f"{chunk}: absent: {again}, or delete ")


def test_reading_rows_fetches_only_their_chunks(bucket: Bucket, own: tuple[str, str]) -> None:
    url, key = own
    bucket.delete(f"{key}/images/emb/c/0/1/0")
    assert Cache(url).emb_rows(np.array([39, 0, 7, 16])).any(axis=1).all()
    assert bucket.num_gets(f"{key}/images/emb/c/").total() == 3


def test_captions_read_in_parts_are_fetched_once(bucket: Bucket, own: tuple[str, str]) -> None:
    cache = Cache(own[0])
    assert [cache.captions(i, i + 1)[0] for i in range(40)] == cache.captions(0, 40)
    assert set(bucket.num_gets(f"{own[1]}/captions/text/bytes/c/").values()) == {1}


def test_uploaded_tokens_are_verified(bucket: Bucket, tiny_cache: Path, tmp_path: Path) -> None:
    local = Path(shutil.copytree(tiny_cache, tmp_path / "cache.zarr", ignore=lambda *_: ["tokens"]))
    train(settings(local, tmp_path / "run", epochs=1))
    url = bucket.upload(local, "tokens.zarr")
    assert verify(Cache(url)) == []
    (damaged,) = [key for key in bucket.objects() if key.startswith("tokens.zarr/tokens") and key.endswith("ids/c/0")]
    bucket.flip_a_byte(damaged)
    (fault,) = map(str, verify(Cache(url)))
    assert damaged.removeprefix("tokens.zarr/") in fault


def test_an_unsealed_cache_is_refused(bucket: Bucket, own: tuple[str, str], tiny_cache: Path) -> None:
    url, key = own
    bucket.put(f"{key}/zarr.json", edited((tiny_cache / "zarr.json").read_bytes(), state="planned"))
    bucket.delete(f"{key}/images/status/c/2")
    with pytest.raises(CacheError, match=rf"{url} is not complete \(1 of its chunks"):
        Cache(url).require_sealed()
    assert sum(Cache(url).status() == 0) == Cache(url).info.chunk_rows


def test_export_embeds_images_of_a_remote_cache_again(url: str, make_run: Callable[..., Path], tmp_path: Path) -> None:
    run = make_run(to_location(url), tmp_path / "run", epochs=1)
    assert export_run(ExportSettings(run=run, output=tmp_path / "merged")).num_probes == 8


@pytest.mark.parametrize(
    ("named", "changes", "message"),
    [
        ("s3://no-such-bucket/x.zarr", {}, "s3://no-such-bucket/x.zarr: no such cache (The specified bucket does not"),
        ("s3://bucket/no.zarr", {}, "s3://bucket/no.zarr: no such cache (The specified key does not"),
        ("s3://bucket/tiny.zarr", {"AWS_ACCESS_KEY_ID": None}, "tiny.zarr/zarr.json cannot be read (Unable to locate "),
        (
            "s3://bucket/tiny.zarr",
            {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"},
            'cannot be read (Could not connect to the endpoint URL: "http://127.0.0.1:9',
        ),
        ("gs://bucket/tiny.zarr", {}, "gs://bucket/tiny.zarr: Please install gcsfs"),
        ("nonsense://bucket/tiny.zarr", {}, "nonsense://bucket/tiny.zarr: Protocol not known: nonsense: pass a local"),
    ],
    ids=["bucket", "cache", "credentials", "connection", "package", "scheme"],
)
@pytest.mark.usefixtures("url")
def test_errors_name_the_url_and_the_remedy(
    named: str, changes: dict[str, str | None], message: str, start_command: Callable[..., Process]
) -> None:
    process = start_command("inspect", named, environment=changes)
    assert process.wait() == 1
    assert process.err().startswith(f"Error: {named}")
    assert message in process.err()
    assert len(process.err().splitlines()) == 1
    remedy = {"credentials": "set AWS_ACCESS_KEY_ID", "connect": "check the connection, and AWS_ENDPOINT_URL"}
    assert all(text in process.err() for word, text in remedy.items() if word in message.lower())


def test_a_missing_s3_package_is_named(start_command: Callable[..., Process]) -> None:
    process = start_command("inspect", "s3://b/c", script="sys.modules['s3fs'] = None")
    assert (process.wait(), "pip install s3fs" in process.err()) == (1, True)
