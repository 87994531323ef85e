"""Search page and JSON API, as an ASGI application."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from ..cache.errors import CacheError
from ..cache.format import RejectedImageError
from ..encoders.errors import EncoderError
from ..inference.errors import InputError
from ..search.errors import SearchError
from .batcher import BusyError
from .catalog import Filter
from .engine import MOST_RESULTS, Engine, Query
from .guard import HEADERS, JSONResponse, SafeHeaders, SameOrigin, Token
from .openapi import description
from .thumbnail_store import SIDES, Thumbnails

MOST_BODY = 20 * 2**20  # bytes of an image that a client sends
MOST_BODIES = 16 * MOST_BODY  # of all that are read or wait to be embedded
BODY_S = 30.0  # to send it
MOST_QUERY = 2_000  # characters of a query or a filter
MOST_LABELS = 200
MOST_AT_ONCE = 200  # results of an answer
TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}


def make_app(
    engine: Engine,
    thumbnails: Thumbnails,
    *,
    hosts: Sequence[str],
    token: str | None,
    port: int,
    version: str,
) -> Starlette:
    """The application.

    Args:
        engine: answers queries.
        thumbnails: of the engine's images.
        hosts: names that the `Host` header may have; `*` for any.
        token: that clients must know; None without one.
        port: on which it is served.
        version: of clipglot.
    """
    handlers = _Handlers(engine, thumbnails, version)
    middleware = [
        Middleware(SafeHeaders),
        Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False),
        Middleware(SameOrigin),
    ]
    if token is not None:
        middleware.append(Middleware(Token, token=token, cookie=f"clipglot-{port}"))

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        engine.close()

    return Starlette(
        routes=handlers.routes(),
        middleware=middleware,
        lifespan=lifespan,
        exception_handlers={
            HTTPException: _told,
            InputError: _status(400),
            EncoderError: _status(400),
            IndexError: _status(404),
            SearchError: _status(503),
            CacheError: _status(503),
            BusyError: _busy,
            Exception: _failed,
        },
    )


class _Handlers:
    """Handlers of the routes."""

    def __init__(self, engine: Engine, thumbnails: Thumbnails, version: str) -> None:
        self._engine, self._catalog, self._thumbnails = engine, engine.catalog, thumbnails
        self._version = version
        self._bodies = _Bodies()
        static = files(__package__) / "static"
        self._static = {each.name: each.read_bytes() for each in static.iterdir() if each.is_file()}

    def routes(self) -> list[Route]:
        return [
            Route("/", self.page),
            Route("/static/{name}", self.static),
            Route("/info", self.info),
            Route("/search", self.search, methods=["GET"]),
            Route("/search", self.search_by_image, methods=["POST"]),
            Route("/similar/{row:int}", self.similar),
            Route("/image/{row:int}", self.image),
            Route("/row/{row:int}", self.row),
            Route("/labels/{row:int}", self.labels),
            Route("/labels", self.labels_of_image, methods=["POST"]),
            Route("/health", self.health),
            Route("/openapi.json", self.openapi),
        ]

    async def page(self, request: Request) -> Response:
        return Response(self._static["index.html"], media_type="text/html", headers={"cache-control": "no-cache"})

    async def static(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in self._static:
            raise HTTPException(404, f"no file {name[:100]!r}")
        kind = TYPES.get(name.rpartition(".")[2], "application/octet-stream")
        return Response(self._static[name], media_type=kind, headers={"cache-control": "no-cache"})

    async def health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def openapi(self, request: Request) -> Response:
        return JSONResponse(description(self._version))

    async def info(self, request: Request) -> Response:
        caches = self._catalog.caches
        languages: dict[str, int] = {}
        for cache in caches:
            for tag, num in cache.languages.items():
                languages[tag] = languages.get(tag, 0) + num
        told = {
            "version": self._version,
            "models": [
                {"name": name, "context_length": each.context_length}
                for name, each in zip(self._engine.names, self._engine.models, strict=True)
            ],
            "caches": [{"name": c.name, "images": len(c), "captions": c.num_captions} for c in caches],
            "languages": languages,
            "num_images": len(self._catalog),
            "image_version": self._thumbnails.version,
            "examples": list(dict.fromkeys(text for cache in caches for text in cache.examples()))[:12],
        }
        return JSONResponse(told)

    async def search(self, request: Request) -> Response:
        asked = _Asked(request, self._engine)
        text = asked.text("q")
        query = Query(model=asked.model, text=text, k=asked.k, chosen=asked.chosen)
        return await self._results(asked, query, text)

    async def search_by_image(self, request: Request) -> Response:
        asked = _Asked(request, self._engine)
        async with self._bodies.read(request) as content:
            emb = await self._engine.embed_image(content)
        return await self._results(asked, Query(model=asked.model, emb=emb, k=asked.k, chosen=asked.chosen), None)

    async def similar(self, request: Request) -> Response:
        asked = _Asked(request, self._engine)
        row = request.path_params["row"]
        emb = self._embedding(row)
        query = Query(model=asked.model, emb=emb, k=asked.k + 1, chosen=asked.chosen)
        return await self._results(asked, query, None, without=row)

    async def image(self, request: Request) -> Response:
        row = request.path_params["row"]
        asked = _number(request, "side", 256, 1, SIDES[-1])
        side = next(side for side in SIDES if side >= asked)
        whole = _flag(request, "whole", default=False)
        self._catalog.require_unchanged()
        number, own = self._catalog.place(row)
        tag = f'"{self._thumbnails.digest(row, side, whole=whole)[:32]}"'
        is_known = request.query_params.get("v") == self._thumbnails.version
        kept = "max-age=604800, immutable" if is_known else "no-cache"  # rows may be of other caches later
        headers = {"etag": tag, "cache-control": f"private, {kept}"}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        try:
            content = await self._thumbnails.webp(row, side, whole=whole)
        except RejectedImageError as rejected:
            reason = f"the image is {rejected.status.label}"
        except CacheError as error:
            reason = str(error)
        else:
            return Response(content, media_type="image/webp", headers=headers)
        return JSONResponse({"error": reason, "key": self._catalog.caches[number].key(own)}, 404)

    async def row(self, request: Request) -> Response:
        self._catalog.require_unchanged()
        return JSONResponse(self._image(request.path_params["row"]))

    async def labels(self, request: Request) -> Response:
        asked = _Asked(request, self._engine)
        emb = self._embedding(request.path_params["row"])
        return JSONResponse({"labels": await self._engine.labels(emb, asked.labels(), asked.model)})

    async def labels_of_image(self, request: Request) -> Response:
        asked = _Asked(request, self._engine)
        labels = asked.labels()
        async with self._bodies.read(request) as content:
            emb = await self._engine.embed_image(content)
        return JSONResponse({"labels": await self._engine.labels(emb, labels, asked.model)})

    def _embedding(self, row: int) -> NDArray[np.float32]:
        """Embedding of an image of the catalog.

        Raises:
            InputError: it could not be embedded.
            IndexError: no such row.
        """
        self._catalog.require_unchanged()
        number, own = self._catalog.place(row)
        if not self._catalog.caches[number].embedded[own]:
            raise InputError(f"image {row} could not be embedded: choose another")
        emb: NDArray[np.float32] = self._catalog.emb(np.array([row]))[0]
        return emb

    async def _results(self, asked: "_Asked", query: Query, text: str | None, without: int | None = None) -> Response:
        started = time.perf_counter()
        self._catalog.require_unchanged()
        answer = await self._page(asked, query, without)
        model = self._engine.names[asked.model]
        took = (time.perf_counter() - started) * 1000
        return JSONResponse({"model": model, "query": text, **answer, "took_ms": round(took, 2)})

    async def _page(self, asked: "_Asked", query: Query, without: int | None) -> dict[str, Any]:
        k, loop = query.k, asyncio.get_running_loop()
        while True:
            found = await self._engine.search(replace(query, k=k))
            rest = found.without(without)
            if not asked.fold:
                scores, rows = rest.scores, rest.rows
                page = [
                    (int(row), float(score), list[int]())
                    for row, score in zip(rows[asked.offset :], scores[asked.offset :], strict=True)
                ][: asked.limit]
                is_more = len(rows) > asked.offset + asked.limit
            else:
                page, is_more = await loop.run_in_executor(None, self._engine.folded, rest, asked.offset, asked.limit)
            if is_more or len(found.rows) < k or k >= MOST_RESULTS:
                break
            k = min(8 * k, MOST_RESULTS)  # folding left too few; each round waits for its turn
        end = asked.offset + len(page)
        return {
            "num_searched": found.num_searched,
            "next_offset": end if is_more and end < MOST_RESULTS else None,
            "hits": [self._hit(row, score, alike) for row, score, alike in page],
        }

    def _hit(self, row: int, score: float, alike: list[int]) -> dict[str, Any]:
        return self._image(row) | {"score": round(score, 6), "alike": alike[:MOST_AT_ONCE]}

    def _image(self, row: int) -> dict[str, Any]:
        number, own = self._catalog.place(row)
        cache = self._catalog.caches[number]
        return {"row": row, "cache": number, "key": cache.key(own), "captions": cache.captions(own)}


class _Asked:
    """Parameters of a request.

    Attributes:
        model: number of the model.
        offset: results to leave out at the beginning.
        limit: results to give.
        fold: whether near-duplicates are folded.
        chosen: which images to choose from.
    """

    def __init__(self, request: Request, engine: Engine) -> None:
        """Read the parameters.

        Raises:
            HTTPException: one that cannot be; says which, and what is expected.
        """
        self._request = request
        num_caches = len(engine.catalog.caches)
        self.model = _number(request, "model", 0, 0, len(engine.models) - 1)
        self.limit = _number(request, "limit", 40, 1, MOST_AT_ONCE)
        self.offset = _number(request, "offset", 0, 0, MOST_RESULTS)
        self.fold = _flag(request, "fold", default=True)
        cache = _number(request, "cache", -1, 0, num_caches - 1) if request.query_params.get("cache") else None
        language = request.query_params.get("language")
        self.chosen = Filter(text=self.text("text"), language=language, cache=cache)

    @property
    def k(self) -> int:
        """Images to find at first: one more than asked for tells whether there are more."""
        return min(MOST_RESULTS, self.offset + self.limit + 1)

    def text(self, name: str) -> str:
        """A text, "" where it is not given.

        Raises:
            HTTPException: too long.
        """
        text = self._request.query_params.get(name, "")
        if len(text) > MOST_QUERY:
            raise HTTPException(400, f"{name} has {len(text):,} characters: at most {MOST_QUERY:,} are taken")
        return text

    def labels(self) -> list[str]:
        """Distinct labels.

        Raises:
            HTTPException: none, or too many.
        """
        labels = list(dict.fromkeys(label.strip() for label in self._request.query_params.getlist("label")))
        labels = [label for label in labels if label]
        if not 1 <= len(labels) <= MOST_LABELS or max(map(len, labels)) > MOST_QUERY:
            raise HTTPException(400, f"pass label=…, 1 to {MOST_LABELS} times, of at most {MOST_QUERY:,} characters")
        return labels


def _number(request: Request, name: str, default: int, least: int, most: int) -> int:
    given = request.query_params.get(name)
    if given is None:
        return default
    if not (given.isascii() and given.isdigit() and len(given) < 10 and least <= int(given) <= most):
        raise HTTPException(400, f"{name}={given[:50]!r}: pass a number from {least} to {most}")
    return int(given)


def _flag(request: Request, name: str, *, default: bool) -> bool:
    given = request.query_params.get(name)
    known = {None: default, "true": True, "1": True, "false": False, "0": False}
    if given not in known:
        raise HTTPException(400, f"{name}={given[:50]!r}: pass true or false")  # type: ignore[index]
    return known[given]


class _Bodies:
    """Bodies of requests, counted while they come, each and all together."""

    def __init__(self) -> None:
        self._held = 0

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytes]:
        """Body of a request; it counts until the block ends.

        Raises:
            HTTPException: none, too large, or too slow.
            BusyError: others take all the memory that there is for bodies.
        """
        if int(request.headers.get("content-length") or 0) > MOST_BODY:
            raise HTTPException(413, f"more than {MOST_BODY:,} bytes: send a smaller image")
        content = bytearray()
        try:
            try:
                async with asyncio.timeout(BODY_S):
                    async for part in request.stream():
                        content += part
                        self._held += len(part)
                        if len(content) > MOST_BODY:
                            raise HTTPException(413, f"more than {MOST_BODY:,} bytes: send a smaller image")
                        if self._held > MOST_BODIES:
                            raise BusyError
            except TimeoutError:
                raise HTTPException(408, f"the image did not come within {BODY_S:.0f} s") from None
            except ClientDisconnect:
                raise HTTPException(400, "the client has gone") from None
            if not content:
                raise HTTPException(400, "no image: send one as the body of the request")
            yield bytes(content)
        finally:
            self._held -= len(content)


async def _told(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, headers=error.headers)


def _status(status: int) -> Any:
    async def handle(request: Request, error: Exception) -> Response:
        return JSONResponse({"error": str(error)}, status)

    return handle


async def _busy(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": "too many requests wait: try again"}, 503, headers={"retry-after": "1"})


async def _failed(request: Request, error: Exception) -> Response:
    # Starlette answers outside of all middleware here.
    return JSONResponse({"error": "the server failed; its log says why"}, 500, headers=HEADERS)
