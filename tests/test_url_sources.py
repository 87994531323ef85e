"""Manifests, pictures and tars at URLs: as on the disk, each object fetched once, and errors told apart."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bucket import NAME, Bucket, serving
from click.testing import CliRunner
from clipglot.cache.errors import CacheError
from clipglot.cache.format import Status
from clipglot.cache.location import Url
from clipglot.cache.paths import PathReader
from clipglot.cache.processes import worker_pool
from clipglot.cache.spool import PREFIX, Spool
from clipglot.cli.main import main
from drawn import draw_pictures
from source_contract import (
    CAPTIONS,
    HOSTILE,
    Made,
    Planned,
    SourceContract,
    as_table,
    encoded_pictures,
    read_rows,
    without,
)
from tarred import write_img2dataset, write_shards
from zarr.core.sync import sync

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    with serving(tmp_path_factory.mktemp("s3")) as served, pytest.MonkeyPatch.context() as patch:
        for name, value in served.environment.items():
            patch.setenv(name, value)
        fsspec.filesystem("s3").clear_instance_cache()  # what other tests had belongs to their servers
        yield served
        for asynchronous in (True, False):
            fs = fsspec.filesystem("s3", asynchronous=asynchronous)
            if getattr(fs, "_s3creator", None) is not None:
                sync(fs._s3creator.__aexit__(None, None, None), loop=None if asynchronous else fs.loop)
        fsspec.filesystem("s3").clear_instance_cache()


@pytest.fixture(autouse=True)
def temporary(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where fetched files go."""
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", None)
    return folder


ONE_EACH = [captions[:1] for captions in CAPTIONS if captions]


class AtUrl(SourceContract):
    """The contract for sources in a bucket; the local one is written first, then uploaded."""

    bucket: Bucket

    @pytest.fixture(autouse=True)
    def _bucket(self, bucket: Bucket) -> None:
        type(self).bucket = bucket

    def local(self, folder: Path, pictures: Sequence[bytes], captions: Sequence[Sequence[str]]) -> Made:
        """What is to be uploaded: of the contract that comes next in the order of base classes, if there is one."""
        return super().make(folder, pictures, captions)  # type: ignore[safe-super]

    def make(self, folder: Path, pictures: Sequence[bytes], captions: Sequence[Sequence[str]]) -> Made:
        local, name = folder / "local", folder.as_posix().strip("/")
        shutil.rmtree(local, ignore_errors=True)
        local.mkdir()
        made = self.local(local, pictures, captions)
        for key in self.bucket.objects():
            if key.startswith(f"{name}/"):
                self.bucket.delete(key)
        for empty in (found for found in local.rglob("*") if found.is_dir() and not any(found.iterdir())):
            self.bucket.put(f"{name}/{empty.relative_to(local).as_posix()}/", b"")  # as consoles of stores do
        return made.below(local, Url(self.bucket.upload(local, name)))  # type: ignore[arg-type]

    def test_the_reader_works_in_another_process(self, tmp_path: Path) -> None:
        """A process of a pass has the environment of now, where the contract's has that of the first one."""
        planned = Planned.of(self.open(self.made(tmp_path)))
        with worker_pool(1, "clipglot.cache.decoding", int) as pool:
            found = pool.submit(read_rows, planned.reader, planned.keys, planned.locators).result()
        assert found == encoded_pictures(len(self.captions))

    def test_what_is_not_there_is_named(self, tmp_path: Path) -> None:
        made = self.made(tmp_path / "source")
        for key in self.bucket.objects():
            if key.startswith(tmp_path.as_posix().strip("/")):
                self.bucket.delete(key)
        with pytest.raises(CacheError, match=str(made.path)):
            list(self.open(made).rows())

    def test_a_source_that_moved_is_resumed(self, tmp_path: Path, make_cache: Callable[..., Any]) -> None:
        cache = tmp_path / "cache.zarr"
        made = self.made(tmp_path / "here")
        whole = make_cache(made.path, cache, **made.options).cache.image_emb()
        (cache / "images" / "status" / "c" / "0").unlink()
        made = self.made(tmp_path / "there")
        result = make_cache(made.path, cache, **made.options)
        assert result.resumed
        assert result.report.num_pictures == result.cache.info.chunk_rows
        assert np.array_equal(result.cache.image_emb(), whole)

    def test_nothing_outside_the_root_is_read(self, tmp_path: Path) -> None:
        source = self.open(self.made(tmp_path / "source"))
        planned = Planned.of(source)
        secret = f"{tmp_path.as_posix().strip('/')}/secret.png"
        self.bucket.client.put_object(Bucket=NAME, Key=secret, Body=b"secret")
        names = ["../secret.png", "a/../../secret.png", "%2e%2e/secret.png", f"/{NAME}/{secret}"]
        names += [f"s3://{NAME}/{secret}", f"https://example.org/{secret}", "..\\secret.png"]
        reader = planned.reader
        located = None
        if planned.locators is not None:
            reader = type(source).reader(Url(source.info.image_root), names, source.info)
            located = np.array([(i, 0, 6) for i in range(len(names))])
        assert list(reader.read(names, located)) == [Status.OUTSIDE_ROOT] * len(names)


class TestTable(AtUrl):
    def local(self, folder: Path, pictures: Sequence[bytes], captions: Sequence[Sequence[str]]) -> Made:
        return Made(as_table(folder, pictures, captions))


class TestTars(AtUrl):
    def local(self, folder: Path, pictures: Sequence[bytes], captions: Sequence[Sequence[str]]) -> Made:
        write_shards(folder / "tars", pictures, captions)
        return Made(folder / "tars")


class TestImg2dataset(AtUrl):
    captions = ONE_EACH
    hostile = without(HOSTILE, "not unicode")

    def local(self, folder: Path, pictures: Sequence[bytes], captions: Sequence[Sequence[str]]) -> Made:
        write_img2dataset(folder, pictures, [texts[0] for texts in captions])
        return Made(folder if pictures else folder / "none.tar")


def test_each_object_is_fetched_once(
    bucket: Bucket, tmp_path: Path, make_cache: Callable[..., Any], temporary: Path
) -> None:
    pictures = encoded_pictures(40)
    captions = [[f"подпись {i}"] for i in range(40)]
    write_shards(tmp_path / "plain", pictures, captions, per_shard=10)
    write_img2dataset(tmp_path / "tables", pictures, [texts[0] for texts in captions], per_shard=10)
    table = as_table(tmp_path / "table", pictures, captions)
    expected = make_cache(table, tmp_path / "expected.zarr").cache
    for name, times in (("plain", 2), ("tables", 1), ("table", 1)):  # headers have to be read first
        url = bucket.upload(tmp_path / name, f"once/{name}")
        source = f"{url}/pairs.jsonl" if name == "table" else f"{url}/{{00000..00003}}.tar"
        made = make_cache(Url(source), tmp_path / f"{name}.zarr", workers=3).cache
        assert np.array_equal(made.image_emb(), expected.image_emb())
        gets = bucket.num_gets(f"once/{name}/")
        once = {key: 1 for key in bucket.objects() if key.startswith(f"once/{name}/") and not key.endswith("s.json")}
        assert gets == once | {key: times for key in once if key.endswith(".tar")}
    del expected, made
    assert not [left for left in temporary.glob(f"{PREFIX}*") if list(left.glob("*.tar"))]


def test_absent_pictures_cost_their_row(bucket: Bucket, tmp_path: Path) -> None:
    url = Url(f"s3://{NAME}/odd")
    names = ["кот.jpg", "a b+c&d=e%20.jpg", "a//b.jpg", "*.jpg", "q?x=1.jpg", "empty.jpg"]
    for name in names:
        content = b"" if name == "empty.jpg" else name.encode()
        bucket.client.put_object(Bucket=NAME, Key=f"odd/{name}", Body=content)
    absent = ["absent.jpg", "deep/absent.jpg", "n" * 1100 + ".jpg", "nul\0.jpg", "кот.jpg/x"]
    found = list(PathReader.below(url).read([*names, *absent, f"{url}/кот.jpg", "x/../кот.jpg"], None))
    assert found[: len(names) - 1] == [name.encode() for name in names[:-1]]
    assert found[len(names) - 1] == b""
    assert found[len(names) : -2] == [Status.MISSING] * len(absent)
    assert found[-2:] == ["кот.jpg".encode()] * 2


def test_a_large_picture_comes_whole(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = (999, 1000, 1001, 5000, 5001)
    for size in sizes:
        bucket.client.put_object(Bucket=NAME, Key=f"large/{size}", Body=os.urandom(size))
    monkeypatch.setattr("clipglot.cache.remote.FIRST_BYTES", 1000)
    monkeypatch.setattr("clipglot.cache.remote.MAX_FILE_BYTES", 5000)
    found = list(PathReader.below(Url(f"s3://{NAME}/large")).read([str(size) for size in sizes], None))
    assert [len(read) if isinstance(read, bytes) else read for read in found] == [*sizes[:-1], Status.TOO_LARGE]


@pytest.mark.parametrize(
    ("source", "changes", "message"),
    [
        ("s3://no-such-bucket/pairs.jsonl", {}, "nothing there"),
        ("s3://bucket/no/pairs.jsonl", {}, "nothing there"),
        ("s3://bucket/no/{0..3}.tar", {}, "no/0.tar: no such object: check the URL"),
        ("s3://bucket/no/tars/*.tar", {}, "no .tar there"),
        ("s3://bucket/pairs.jsonl", {"AWS_ACCESS_KEY_ID": None}, "set AWS_ACCESS_KEY_ID"),
        ("s3://bucket/tars", {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "check the connection, and AWS_ENDPOINT_URL"),
        ("s3://bucket/pairs.xlsx", {}, "is a file .xlsx, no known source. Known are"),
        ("nonsense://bucket/pairs.jsonl", {}, "Protocol not known"),
    ],
)
def test_what_fails_names_the_url_and_what_to_do(
    source: str, changes: dict[str, str | None], message: str, bucket: Bucket, tiny_clip: Path, tmp_path: Path
) -> None:
    bucket.put("pairs.xlsx", b"")
    environment = {k: v for k, v in (dict(os.environ) | changes).items() if v is not None}
    command = [sys.executable, "-m", "clipglot", "cache", source, "-o", tmp_path / "c.zarr"]
    done = subprocess.run(
        [*command, "--model", f"local-dir:{tiny_clip}"], env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr.startswith("Error: ")) == (1, True), done.stderr
    assert message in done.stderr
    assert source.rpartition("/")[0] in done.stderr
    assert not (tmp_path / "c.zarr").exists()


def test_pictures_may_lie_at_a_url_and_their_table_here(bucket: Bucket, tmp_path: Path, tiny_clip: Path) -> None:
    manifest = draw_pictures(tmp_path / "here", 6)
    url = bucket.upload(tmp_path / "here", "pictures-alone")
    shutil.rmtree(tmp_path / "here" / "images")
    bucket.delete("pictures-alone/images/0003.png")
    command = ["cache", manifest, "-o", tmp_path / "c.zarr", "--model", f"local-dir:{tiny_clip}", "--image-root", url]
    result = CliRunner().invoke(main, [*map(str, command), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["status"] == {"embedded": 5, "missing": 1}


def test_the_documented_commands_run(bucket: Bucket, tmp_path: Path, tiny_clip: Path) -> None:
    docs = (Path(__file__).parents[1] / "docs" / "sources.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```sh\n(.*?)^```", docs, re.DOTALL | re.MULTILINE)
    pictures, captions = encoded_pictures(3), [["a cat"], ["кот"], ["猫"]]
    table = as_table(tmp_path, pictures, captions)
    write_shards(tmp_path / "shards", pictures, captions, per_shard=1)
    (tmp_path / "data").mkdir()
    rows = pa.table({"image": pictures, "text": captions})
    pq.write_table(rows, tmp_path / "data" / "train-00000-of-00001.parquet")
    for file in (table, *tmp_path.glob("*/*")):
        bucket.client.put_object(Bucket=NAME, Key=file.relative_to(tmp_path).as_posix(), Body=file.read_bytes())
    for line in block.splitlines():
        command = shlex.split(line.replace(" pairs.jsonl", f" {table}").replace("-o ", f"-o {tmp_path}/"))
        given = [*command[1 : command.index("--model")], "--model", f"local-dir:{tiny_clip}", "--json"]
        result = CliRunner().invoke(main, given)
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["status"] == {"embedded": 3}


def test_a_killed_process_leaves_its_spool_to_the_next(bucket: Bucket, temporary: Path) -> None:
    url = f"s3://{NAME}/spooled.bin"
    bucket.client.put_object(Bucket=NAME, Key="spooled.bin", Body=b"x" * 1000)
    script = (
        "import os, signal; from clipglot.cache.location import Url; from clipglot.cache.spool import Spool; "
        f"spool = Spool.create(); file = spool.open(Url({url!r})); assert len(file.read()) == 1000; "
    )
    environment = os.environ | {"TMPDIR": str(temporary)}

    def run(end: str) -> int:
        return subprocess.run([sys.executable, "-c", script + end], env=environment).returncode

    others = Spool.create()
    assert run("os.kill(os.getpid(), signal.SIGKILL)") == -9
    left = set(temporary.glob(f"{PREFIX}*")) - {others.path(Url(url)).parent}
    assert [len(list(folder.glob("*.bin"))) for folder in left] == [1]
    assert run("file.close()") == 0
    assert set(temporary.glob(f"{PREFIX}*")) == {others.path(Url(url)).parent}  # its process lives
    others.close()
    assert not list(temporary.glob(f"{PREFIX}*"))


def test_processes_share_what_is_fetched_and_few_files_stay(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, temporary: Path
) -> None:
    monkeypatch.setattr("clipglot.cache.spool.KEPT_BYTES", 2500)
    urls = [Url(f"s3://{NAME}/few/{i}.bin") for i in range(8)]
    for i in range(8):
        bucket.client.put_object(Bucket=NAME, Key=f"few/{i}.bin", Body=bytes([i]) * 1000)
    spool = Spool.create()
    files = []
    for i, url in enumerate(urls):
        with ThreadPoolExecutor(4) as threads:
            files += threads.map(spool.open, [url] * 4)
        assert len(list(spool.path(url).parent.glob("*.bin"))) == min(i + 1, 3)
    assert [file.read() for file in files] == [bytes([i]) * 1000 for i in range(8) for _ in range(4)]
    assert bucket.num_gets("few/") == {f"few/{i}.bin": 1 for i in range(8)}
    for file in files:
        file.close()
    spool.close()
