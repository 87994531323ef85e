"""HTTP server of an application, until a signal ends it."""

import asyncio
import logging
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..search.errors import SearchError

HEAD_S = 10.0  # for the head of a request
IDLE_S = 15.0  # between the requests of a connection
WRITE_S = 30.0  # to take an answer, or a part of 64 KB of it
GRACE_S = 5.0  # for requests under way, when the server ends
BACKLOG = 2_048


class PatientProtocol(H11Protocol):
    """HTTP whose clients must send a head within `HEAD_S` and read within `WRITE_S`; uvicorn would wait for ever."""

    _head_timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for the first head."""
        super().connection_made(transport)
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        """Take data: a head that is complete is no longer waited for, one that has begun is."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_waiting()
        elif self._head_timer is None:
            self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timers."""
        self._stop_waiting()
        self._stop_writing_timer()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Wait for a client that does not read."""
        super().pause_writing()
        self._start_writing_timer()

    def resume_writing(self) -> None:
        """Go on: the client reads."""
        self._stop_writing_timer()
        super().resume_writing()

    def on_response_complete(self) -> None:
        """Wait for the client to take the rest of an answer after which the connection is closed."""
        super().on_response_complete()
        if self.transport.is_closing():
            self._start_writing_timer()

    def timeout_keep_alive_handler(self) -> None:
        """Close the idle connection, also where its client has not taken the last answer yet."""
        super().timeout_keep_alive_handler()
        self.transport.abort()

    def _wait_for_head(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_S, self._give_up)

    def _stop_waiting(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _give_up(self) -> None:
        self._head_timer = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.abort()

    def _start_writing_timer(self) -> None:
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(WRITE_S, self.transport.abort)

    def _stop_writing_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None


class _Server(uvicorn.Server):
    """A server that SIGTERM, Ctrl-C and a closed terminal end with exit code 0, and that says when it listens."""

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready
        self.failure: Exception | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            try:
                self._on_ready()
            except Exception as error:  # standard output is closed: end as at a signal, then tell
                self.failure = error
                asyncio.get_running_loop().call_soon(self.handle_exit, signal.SIGTERM, None)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """End at a signal, without raising it again at the end."""
        ending = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # the terminal is closed; not under nohup
            ending.append(signal.SIGHUP)
        previous = {number: signal.signal(number, self.handle_exit) for number in ending}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Args:
        host: name or address of an interface of this machine.
        port: 0 for any that is free.

    Raises:
        SearchError: the port is taken, or there is no such interface.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen(BACKLOG)
        except BaseException:
            listening.close()
            raise
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise SearchError(f"{host}:{port}: {reason}: choose another --port (0 takes any free one) or --host") from error
    return listening


def _is_no_cancellation(record: logging.LogRecord) -> bool:
    """Whether a record is none of a request that the end of the server cut off, which is no bug."""
    return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))


def run(app: Any, listening: socket.socket, on_ready: Callable[[], None]) -> None:
    """Serve an application until SIGTERM or Ctrl-C.

    Args:
        app: ASGI application.
        listening: as of `listen`.
        on_ready: called when requests are answered.
    """
    log = logging.getLogger("uvicorn.error")
    log.setLevel(logging.ERROR)  # no line for each odd request
    log.addFilter(_is_no_cancellation)
    config = uvicorn.Config(
        app,
        http=PatientProtocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=True,
        timeout_keep_alive=int(IDLE_S),
        timeout_graceful_shutdown=int(GRACE_S),
        backlog=BACKLOG,
    )
    server = _Server(config, on_ready)
    asyncio.run(server.serve(sockets=[listening]))
    if server.failure:
        raise server.failure
