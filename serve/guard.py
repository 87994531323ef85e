"""What a request must have before it is answered, and what every answer carries. ASGI middleware."""

import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse as StarletteJson
from starlette.responses import PlainTextResponse, RedirectResponse, Response

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
OPEN = ("/health",)  # without a token
MOST_PATH = 1_000  # characters; Python converts no more than 4,300 digits to a number


class JSONResponse(StarletteJson):
    """JSON in which bytes of file names that are no UTF-8 are question marks: such a text cannot be sent."""

    def render(self, content: Any) -> bytes:
        """The document."""
        dumped = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return dumped.encode("utf-8", "replace")


class SafeHeaders:
    """Headers that keep a browser from running, framing or embedding what is not ours; refuses long paths."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, with the headers."""

        async def with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *((k.encode(), v.encode()) for k, v in HEADERS.items())]
            await send(message)

        is_long = scope["type"] == "http" and len(scope["path"]) > MOST_PATH
        app = _refused(414, f"a path of more than {MOST_PATH:,} characters") if is_long else self._app
        await app(scope, receive, with_headers)


class SameOrigin:
    """Refuses requests that change something or cost much, sent by pages of another origin."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or refuse with 403."""
        if scope["type"] == "http" and scope["method"] not in ("GET", "HEAD"):
            headers = Headers(scope=scope)
            origin = headers.get("origin")
            if origin is not None and _host_of(origin) != headers.get("host"):
                await _refused(403, f"a page of {origin[:200]} may not do this")(scope, receive, send)
                return
        await self._app(scope, receive, send)


class Token:
    """Lets in who knows a token.

    It is in the header `Authorization: Bearer …`, in a cookie, or in the URL of the page, which sets the cookie.
    """

    def __init__(self, app: App, token: str, cookie: str) -> None:
        """Guard an application.

        Args:
            app: to guard.
            token: to know.
            cookie: name of the cookie; browsers share cookies between the ports of a host.
        """
        self._app, self._token, self._cookie = app, token, cookie

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or refuse with 401."""
        if scope["type"] != "http" or scope["path"] in OPEN:
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        answer: App
        asked = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        if self._is_known(headers):
            answer = self._app
        elif scope["path"] == "/" and any(name == "token" and self._fits(value) for name, value in asked):
            rest = urlencode([(name, value) for name, value in asked if name != "token"])
            redirect: Response = RedirectResponse(f"/?{rest}" if rest else "/", 303)
            redirect.set_cookie(self._cookie, self._token, httponly=True, samesite="strict", path="/")
            answer = redirect
        else:
            message = "a token is needed: open the address that the server printed when it started"
            # A person who opens the page without its token reads a sentence, not JSON.
            answer = PlainTextResponse(f"clipglot: {message}", 401) if scope["path"] == "/" else _refused(401, message)
        await answer(scope, receive, send)

    def _is_known(self, headers: Headers) -> bool:
        kind, _, token = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and self._fits(token.strip()):
            return True
        # Not http.cookies, which reads none where other servers of this host have set an odd one.
        cookies = [each.strip().partition("=") for line in headers.getlist("cookie") for each in line.split(";")]
        return any(name == self._cookie and self._fits(value) for name, _, value in cookies)

    def _fits(self, token: str) -> bool:
        return hmac.compare_digest(token.encode(), self._token.encode())


def _host_of(origin: str) -> str | None:
    """Host and port of an origin; None of what is no URL."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None


def _refused(status: int, message: str) -> Response:
    return JSONResponse({"error": message}, status)
