"""`clipglot serve`: search caches from a browser."""

import ipaddress
import os
import secrets
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from .. import __version__
from ..cache.progress import OnProgress, Progress, ignore_progress
from ..cache.read.cache import Cache
from ..encoders.errors import EncoderError
from ..inference.errors import InputError
from ..inference.onnx_layout import is_onnx
from ..inference.towers import Towers, load_towers, require_same_tower
from ..search.errors import SearchError
from ..search.exact import ExactIndex
from ..search.ivf import IvfIndex
from ..search.open import open_index
from .settings.serve import ServeSettings

LOCAL_NAMES = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, kw_only=True)
class Served:
    """A server that answers.

    Attributes:
        url: of the page, with the token if one is needed.
        token: that clients must know; None without one.
        num_images: that it searches.
        is_public: whether other machines may reach it.
    """

    url: str
    token: str | None
    num_images: int
    is_public: bool


def serve(
    settings: ServeSettings,
    on_progress: OnProgress = ignore_progress,
    on_ready: Callable[[Served], Any] = lambda served: print(served.url, file=sys.stderr),
) -> Served:
    """Serve the search page and its JSON API until SIGTERM or Ctrl-C.

    Args:
        settings: models and caches.
        on_progress: called with the models and caches of stage `load`.
        on_ready: called once when requests are answered.

    Returns:
        What was served.

    Raises:
        CacheError: a cache that is not complete, or damaged.
        EncoderError: a model that does not load.
        InputError: a cache of another image tower.
        SearchError: Starlette or uvicorn is not installed, the port is taken, or an index does not fit.
    """
    with _explain_absent():
        from ..serve.app import make_app
        from ..serve.catalog import Catalog, state_of
        from ..serve.engine import Engine
        from ..serve.server import listen, run
        from ..serve.thumbnail_store import Thumbnails, ThumbnailStore

    listening = listen(settings.host, settings.port)  # before models are loaded: a port that is taken is told at once
    with listening:
        host, port = listening.getsockname()[:2]
        is_public = not ipaddress.ip_address(host).is_loopback
        token = settings.token or (secrets.token_urlsafe(24) if is_public else None)
        total = 1 + len(settings.against) + len(settings.caches)
        models = []
        for folder in (settings.merged, *settings.against):
            models.append(_model(folder, onnx=settings.onnx))
            on_progress(Progress("load", len(models), total))
        caches, states = [], [state_of(path) for path in settings.caches]
        for path in settings.caches:
            cache = Cache(path)
            require_same_tower(models[0], cache)
            for model, folder in zip(models[1:], settings.against, strict=True):
                _require_beside(model, folder, cache)
            caches.append(cache)
        indexes = _indexes(caches, settings.index)
        opened: list[tuple[Cache, ExactIndex | IvfIndex]] = []
        for cache in caches:
            opened.append((cache, indexes.get(len(opened)) or open_index(cache, resident=True)))
            on_progress(Progress("load", len(models) + len(opened), total))
        catalog = Catalog(opened)
        for served_cache, state in zip(catalog.caches, states, strict=True):
            served_cache.require_unchanged(state)  # else embeddings of one would have captions of another
        store = _store(ThumbnailStore, settings)
        root = None if settings.image_root is None else str(settings.image_root)
        app = make_app(
            Engine(models, catalog, fold_above=settings.fold_above),
            Thumbnails(catalog, store, root),
            hosts=_hosts(settings, host),
            token=token,
            port=port,
            version=__version__,
        )
        name = _shown_host(settings.host)
        asked = f"/?token={quote(token)}" if token else "/"
        served = Served(url=f"http://{name}:{port}{asked}", token=token, num_images=len(catalog), is_public=is_public)
        run(app, listening, lambda: on_ready(served))
    return served


def require_servable(port: int) -> None:
    """Refuse what `serve` would refuse on this machine, before what takes minutes.

    Raises:
        SearchError: Starlette or uvicorn is not installed, or the port is taken.
    """
    with _explain_absent():
        from ..serve.server import listen
    listen(ServeSettings.host, port).close()


@contextmanager
def _explain_absent() -> Iterator[None]:
    """Turn the error of a package that is not installed into one that says how to install it."""
    try:
        import starlette  # noqa: F401

        yield
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn", "anyio", "h11"):
            raise
        raise SearchError(f"{error.name} is not installed: pip install '.[serve]' in a clone of clipglot") from error


def _model(folder: Path, *, onnx: bool) -> Towers:
    """A merged CLIP, in ONNX if asked for.

    Raises:
        EncoderError: it does not load, or there is none in ONNX.
    """
    if not onnx or is_onnx(folder):
        return load_towers(folder)
    if is_onnx(folder / "onnx"):
        return load_towers(folder / "onnx")
    raise EncoderError(
        f"{folder} is no export in ONNX, and has none in its folder onnx: make one with "
        f"`clipglot export RUN -o {folder}-onnx --format onnx` and pass that"
    )


def _require_beside(model: Towers, folder: Path, cache: Cache) -> None:
    """Refuse a model of another image tower beside the first one.

    Raises:
        InputError: names it.
    """
    try:
        require_same_tower(model, cache)
    except InputError as error:
        raise InputError(
            f"--against {folder}: its image tower is another than that of {cache.path}: pass a merged CLIP with "
            "the same image tower"
        ) from error


def _indexes(caches: Sequence[Cache], files: Sequence[Path]) -> dict[int, ExactIndex | IvfIndex]:
    """Index of a cache by its number, each from the file that is of this cache.

    Raises:
        SearchError: a file that is of none of the caches, or of one that has another.
    """
    found: dict[int, ExactIndex | IvfIndex] = {}
    for file in files:
        problem: SearchError | None = None
        for number in set(range(len(caches))) - found.keys():
            try:
                found[number] = open_index(caches[number], file)
                break
            except SearchError as error:
                problem = problem or error
        else:
            raise problem or SearchError(f"--index {file}: every cache has an index already: leave it out")
    return found


def _store(store: Any, settings: ServeSettings) -> Any:
    """The thumbnails on disk.

    Raises:
        SearchError: their folder cannot be made.
    """
    cached = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clipglot" / "thumbnails"
    folder = settings.thumbnail_folder or cached
    try:
        return store(folder, settings.thumbnail_megabytes * 10**6)
    except OSError as error:
        raise SearchError(f"{folder}: {error.strerror}: pass another --thumbnail-folder") from error


def _hosts(settings: ServeSettings, address: str) -> list[str]:
    """Names that the `Host` header of a request may have: a page elsewhere must not reach the server by its own."""
    names = [*LOCAL_NAMES, settings.host, *settings.allow_host]
    if ipaddress.ip_address(address).is_unspecified:  # all interfaces, under whatever name; there is a token
        names.append("*")
    return [*names, *(f"[{name}]" for name in names if ":" in name)]


def _shown_host(host: str) -> str:
    """A host as a URL has it."""
    if host in ("0.0.0.0", "::"):
        host = socket.gethostname()
    return f"[{host}]" if ":" in host else host
