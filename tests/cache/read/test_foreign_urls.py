"""Caches from a stranger at URLs: no object is read beyond what it may have, no array believed without its chunks."""

import json
import shutil
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from clipglot.cache.errors import CacheError
from clipglot.cache.read.cache import Cache
from support.bounded_process import outcomes
from support.launcher import Launcher
from support.s3_server import Bucket

TEXT = "captions/text/bytes"


class _Endless(BaseHTTPRequestHandler):
    """Sends bytes without end, whatever range is asked for."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        with suppress(OSError):  # the client has had enough
            while True:
                self.wfile.write(b" " * 2**20)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def endless() -> Iterator[str]:
    """The URL of a server whose files never end."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Endless) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_a_web_server_that_never_ends_is_left(endless: str, launcher: Launcher) -> None:
    (outcome,) = outcomes(launcher, "support.foreign_caches:open_url", [f"{endless}/c.zarr"])
    assert outcome.startswith("CacheError: ")
    assert "zarr.json" in outcome


def test_an_object_larger_than_declared_is_damage(tiny_cache: Path, bucket: Bucket) -> None:
    cache = Cache(bucket.upload(tiny_cache, "larger.zarr"))
    bucket.put("larger.zarr/images/status/c/1", b"\0" * 10**6)
    with pytest.raises(CacheError, match="damaged chunk images/status/c/1 "):
        cache.status()
    bucket.put("larger.zarr/images/norm/zarr.json", b" " * (2**26 + 1))
    with pytest.raises(CacheError, match=r"images/norm/zarr\.json is absent or damaged"):
        cache.norm()


def test_many_chunks_are_listed_before_they_are_believed(tiny_cache: Path, bucket: Bucket, tmp_path: Path) -> None:
    own = Path(shutil.copytree(tiny_cache, tmp_path / "own.zarr"))
    document = json.loads((own / TEXT / "zarr.json").read_text())
    document |= {"shape": [10**6]}
    document["chunk_grid"]["configuration"]["chunk_shape"] = [1]
    (own / TEXT / "zarr.json").write_text(json.dumps(document))
    cache = Cache(bucket.upload(own, "many.zarr"))
    before = bucket.num_gets(f"many.zarr/{TEXT}/c").total()
    with pytest.raises(CacheError, match=rf"{TEXT}/c/\d+"):
        cache.captions()
    assert bucket.num_gets(f"many.zarr/{TEXT}/c").total() == before


@pytest.mark.parametrize("num", [10**10, 10**15])
def test_sizes_without_bytes_are_refused(num: int, tiny_cache: Path, bucket: Bucket, tmp_path: Path) -> None:
    own = Path(shutil.copytree(tiny_cache, tmp_path / "own.zarr"))
    document = json.loads((own / "images/status/zarr.json").read_text()) | {"shape": [num]}
    (own / "images/status/zarr.json").write_text(json.dumps(document))
    with pytest.raises(CacheError, match=r"images/status/zarr\.json: shape"):
        Cache(bucket.upload(own, "sizes.zarr")).status()
