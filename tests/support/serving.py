"""Search server of the tiny run inside a test, and a real one in a process of its own."""

import json
import socket
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from clipglot.cache.read.cache import Cache
from clipglot.inference.towers import load_towers
from clipglot.search.open import open_index
from clipglot.serve.app import make_app
from clipglot.serve.catalog import Catalog
from clipglot.serve.engine import Engine
from clipglot.serve.thumbnail_store import Thumbnails, ThumbnailStore
from starlette.testclient import TestClient

from support.launcher import Process


def client_of(
    models: list[Path],
    caches: list[Path],
    folder: Path,
    *,
    token: str | None = None,
    fold_above: float = 0.98,
    image_root: str | None = None,
) -> TestClient:
    """A client of an application in this process; `client.app.state.engine` is its engine."""
    opened = [Cache(path) for path in caches]
    catalog = Catalog([(cache, open_index(cache, resident=True)) for cache in opened])
    engine = Engine([load_towers(model) for model in models], catalog, fold_above=fold_above)
    thumbnails = Thumbnails(catalog, ThumbnailStore(folder / "thumbnails", 10**7), image_root)
    app = make_app(engine, thumbnails, hosts=["127.0.0.1"], token=token, port=1, version="0")
    app.state.engine = engine
    return TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False)


def start_server(start_command: Callable[..., Process], *arguments: object) -> tuple[Process, dict[str, Any]]:
    """`clipglot serve` on a free port, once it answers, and what it printed."""
    process = start_command("serve", *arguments, "--port", "0", "--json")
    process.until(lambda: process.out().rstrip().endswith("}"))
    return process, json.loads(process.out())


def send_raw(url: str, content: bytes, timeout_s: float = 10.0) -> bytes:
    """What a server answers to bytes, until it closes or is silent."""
    host, port = url.removeprefix("http://").rstrip("/").split(":")
    with closing(socket.create_connection((host, int(port)), timeout_s)) as connection:
        connection.sendall(content)
        answer = b""
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            try:
                part = connection.recv(65536)
            except (TimeoutError, ConnectionResetError):
                break
            if not part:
                break
            answer += part
            if b"\r\n\r\n" in answer and b"content-length: 0" not in answer:
                connection.settimeout(0.2)
        return answer
