"""Objects at URLs: each is downloaded once and whole, processes share it, and errors are told apart."""

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clipglot.cache.format import Status
from clipglot.cache.location import Url
from clipglot.cache.sources.download import PREFIX, DownloadCache
from clipglot.cache.sources.image_files import PathReader
from support import url_sources as urls
from support.launcher import Process
from support.s3_server import NAME, Bucket
from support.source_contract import as_table, encoded_images
from support.tars import write_img2dataset, write_shards

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("bucket")]

temporary = urls.temporary


def test_each_object_is_fetched_once(
    bucket: Bucket, tmp_path: Path, make_cache: Callable[..., Any], temporary: Path
) -> None:
    images = encoded_images(40)
    captions = [[f"подпись {i}"] for i in range(40)]
    write_shards(tmp_path / "plain", images, captions, per_shard=10)
    write_img2dataset(tmp_path / "tables", images, [texts[0] for texts in captions], per_shard=10)
    table = as_table(tmp_path / "table", images, captions)
    expected = make_cache(table, tmp_path / "expected.zarr").cache
    for name, times in (("plain", 2), ("tables", 1), ("table", 1)):  # headers have to be read first
        url = bucket.upload(tmp_path / name, f"once/{name}")
        source = f"{url}/pairs.jsonl" if name == "table" else f"{url}/{{00000..00003}}.tar"
        made = make_cache(Url(source), tmp_path / f"{name}.zarr", num_workers=3).cache
        assert np.array_equal(made.image_emb(), expected.image_emb())
        gets = bucket.num_gets(f"once/{name}/")
        once = {key: 1 for key in bucket.objects() if key.startswith(f"once/{name}/") and not key.endswith("s.json")}
        assert gets == once | {key: times for key in once if key.endswith(".tar")}
    del expected, made
    assert not [left for left in temporary.glob(f"{PREFIX}*") if list(left.glob("*.tar"))]


def test_absent_images_cost_their_row(bucket: Bucket, tmp_path: Path) -> None:
    url = Url(f"s3://{NAME}/odd")
    names = ["кот.jpg", "a b+c&d=e%20.jpg", "a//b.jpg", "*.jpg", "q?x=1.jpg", "empty.jpg"]
    for name in names:
        content = b"" if name == "empty.jpg" else name.encode()
        bucket.put(f"odd/{name}", content)
    absent = ["absent.jpg", "deep/absent.jpg", "n" * 1100 + ".jpg", "nul\0.jpg", "кот.jpg/x"]
    images = list(PathReader.below(url).read([*names, *absent, f"{url}/кот.jpg", "x/../кот.jpg"], None))
    assert images[: len(names) - 1] == [name.encode() for name in names[:-1]]
    assert images[len(names) - 1] == b""
    assert images[len(names) : -2] == [Status.MISSING] * len(absent)
    assert images[-2:] == ["кот.jpg".encode()] * 2


def test_a_large_image_comes_whole(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = (999, 1000, 1001, 5000, 5001)
    for size in sizes:
        bucket.put(f"large/{size}", os.urandom(size))
    monkeypatch.setattr("clipglot.cache.sources.image_files.FIRST_BYTES", 1000)
    monkeypatch.setattr("clipglot.cache.sources.image_files.MAX_FILE_BYTES", 5000)
    images = list(PathReader.below(Url(f"s3://{NAME}/large")).read([str(size) for size in sizes], None))
    assert [len(image) if isinstance(image, bytes) else image for image in images] == [*sizes[:-1], Status.TOO_LARGE]


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
def test_errors_name_the_url_and_the_remedy(
    source: str,
    changes: dict[str, str | None],
    message: str,
    bucket: Bucket,
    start_command: Callable[..., Process],
    tiny_clip: Path,
    tmp_path: Path,
) -> None:
    bucket.put("pairs.xlsx", b"")
    command = ["cache", source, "-o", tmp_path / "c.zarr", "--model", f"local-dir:{tiny_clip}"]
    process = start_command(*command, environment=changes)
    assert process.wait() == 1
    error = process.err()
    assert error.startswith("Error: ")
    assert message in error
    assert source.rpartition("/")[0] in error
    assert not (tmp_path / "c.zarr").exists()


def test_the_downloads_of_a_killed_process_are_removed_by_the_next(bucket: Bucket, temporary: Path) -> None:
    url = f"s3://{NAME}/file.bin"
    bucket.put("file.bin", b"x" * 1000)
    script = (
        "import os, signal; from clipglot.cache.location import Url; "
        "from clipglot.cache.sources.download import DownloadCache; "
        f"downloads = DownloadCache.create(); file = downloads.open(Url({url!r})); assert len(file.read()) == 1000; "
    )
    environment = os.environ | {"TMPDIR": str(temporary)}

    def run(end: str) -> int:
        return subprocess.run([sys.executable, "-c", script + end], env=environment).returncode

    others = DownloadCache.create()
    assert run("os.kill(os.getpid(), signal.SIGKILL)") == -9
    left = set(temporary.glob(f"{PREFIX}*")) - {others.path(Url(url)).parent}
    assert [len(list(folder.glob("*.bin"))) for folder in left] == [1]
    assert run("file.close()") == 0
    assert set(temporary.glob(f"{PREFIX}*")) == {others.path(Url(url)).parent}  # its process lives
    others.close()
    assert not list(temporary.glob(f"{PREFIX}*"))


def test_threads_share_downloads_and_few_files_are_kept(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, temporary: Path
) -> None:
    monkeypatch.setattr("clipglot.cache.sources.download.KEPT_BYTES", 2500)
    urls = [Url(f"s3://{NAME}/few/{i}.bin") for i in range(8)]
    for i in range(8):
        bucket.put(f"few/{i}.bin", bytes([i]) * 1000)
    downloads = DownloadCache.create()
    files = []
    for i, url in enumerate(urls):
        with ThreadPoolExecutor(4) as threads:
            files += threads.map(downloads.open, [url] * 4)
        assert len(list(downloads.path(url).parent.glob("*.bin"))) == min(i + 1, 3)
    assert [file.read() for file in files] == [bytes([i]) * 1000 for i in range(8) for _ in range(4)]
    assert bucket.num_gets("few/") == {f"few/{i}.bin": 1 for i in range(8)}
    for file in files:
        file.close()
    downloads.close()
