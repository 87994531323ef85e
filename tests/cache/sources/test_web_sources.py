"""Images on a web server: errors of an image cost its row, errors of the server stop the pass."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from clipglot.cache.errors import CacheError
from clipglot.cache.format import Status
from clipglot.cache.location import Url
from clipglot.cache.sources.image_files import PathReader
from support.drawings import draw_images
from support.web_server import web_server

pytestmark = pytest.mark.slow


def test_a_refused_image_costs_its_row_and_a_failing_server_stops_the_pass(
    tmp_path: Path, make_cache: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipglot.cache.sources.image_files.PAUSES_S", (0.0, 0.0))
    manifest = draw_images(tmp_path / "site", 6)
    names = [f"images/{i:04}.png" for i in range(6)]
    with web_server(tmp_path / "site", **{"0001": 403, "0002": 404, "0003": 410}) as url:
        reader = PathReader.below(Url(url))
        images = list(reader.read(names, None))
        assert list(reader.read(["%2e%2e/secret", "../secret"], None)) == [Status.OUTSIDE_ROOT] * 2
    assert [image if isinstance(image, Status) else 0 for image in images] == [
        *(0, Status.UNREADABLE, Status.MISSING),
        *(Status.UNREADABLE, 0, 0),
    ]
    with (
        web_server(tmp_path / "site", **{"0004": 503}) as url,
        pytest.raises(CacheError, match=r"0004\.png cannot be read"),
    ):
        list(PathReader.below(Url(url)).read(names, None))
    with web_server(tmp_path / "site", answers=30) as url:
        draw_images(tmp_path / "site", 40)
        with pytest.raises(CacheError, match=r"png cannot be read \(503"):
            make_cache(manifest, tmp_path / "c.zarr", image_root=Url(url))
    with web_server(tmp_path / "site") as url:
        cache = make_cache(manifest, tmp_path / "c.zarr", image_root=Url(url)).cache
    assert cache.info.counts == {"embedded": 40}
