"""Images on a web server: which errors are an image's, and which the server's."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from clipglot.cache.errors import CacheError
from clipglot.cache.format import Status
from clipglot.cache.location import Url
from clipglot.cache.sources.image_files import PathReader
from support.drawings import draw_images

pytestmark = pytest.mark.slow


class Troubled(ThreadingHTTPServer):
    """A web server over a folder that answers with an error for some paths, or for all after so many answers."""

    def __init__(self, folder: Path, answers: int, **codes: int) -> None:
        super().__init__(("127.0.0.1", 0), partial(_Handler, directory=str(folder)))
        self.answers, self.codes = answers, codes


class _Handler(SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Troubled)
        self.server.answers -= 1
        code = self.server.codes.get(Path(self.path).stem, 503 if self.server.answers < 0 else 0)
        self.send_error(code) if code else super().do_GET()

    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def web(folder: Path, answers: int = 10**6, **codes: int) -> Iterator[str]:
    with Troubled(folder, answers, **codes) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def test_an_image_that_is_refused_costs_its_row_and_a_server_in_trouble_stops_the_pass(
    tmp_path: Path, make_cache: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipglot.cache.sources.image_files.PAUSES_S", (0.0, 0.0))
    manifest = draw_images(tmp_path / "site", 6)
    names = [f"images/{i:04}.png" for i in range(6)]
    with web(tmp_path / "site", **{"0001": 403, "0002": 404, "0003": 410}) as url:
        reader = PathReader.below(Url(url))
        found = list(reader.read(names, None))
        assert list(reader.read(["%2e%2e/secret", "../secret"], None)) == [Status.OUTSIDE_ROOT] * 2
    assert [read if isinstance(read, Status) else 0 for read in found] == [
        *(0, Status.UNREADABLE, Status.MISSING),
        *(Status.UNREADABLE, 0, 0),
    ]
    with web(tmp_path / "site", **{"0004": 503}) as url, pytest.raises(CacheError, match=r"0004\.png cannot be read"):
        list(PathReader.below(Url(url)).read(names, None))
    with web(tmp_path / "site", answers=30) as url:
        draw_images(tmp_path / "site", 40)
        with pytest.raises(CacheError, match=r"png cannot be read \(503"):
            make_cache(manifest, tmp_path / "c.zarr", image_root=Url(url))
    with web(tmp_path / "site") as url:
        cache = make_cache(manifest, tmp_path / "c.zarr", image_root=Url(url)).cache
    assert cache.info.counts == {"embedded": 40}
