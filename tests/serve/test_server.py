"""`clipglot serve` as a process: how it starts and ends, and clients that are slow, many or half-open."""

import http.client
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from clipglot.serve import server as server_module
from support.command_line import run
from support.launcher import Process
from support.serving import send_raw, start_server

FEW_S = 0.5


def short_timeouts(process_script: str = "") -> str:
    """A script that makes the server wait for a head as long as a test can."""
    return f"from clipglot.serve import server; server.HEAD_S = server.WRITE_S = {FEW_S}\n{process_script}"


@pytest.fixture
def server(
    start_command: Callable[..., Process], merged: Path, tiny_cache: Path, tmp_path: Path
) -> Iterator[tuple[Process, str]]:
    def start(*arguments: object, **options: Any) -> Process:
        return start_command(*arguments, script=short_timeouts(), **options)

    process, told = start_server(start, merged, tiny_cache, "--thumbnail-folder", tmp_path / "thumbnails")
    yield process, told["url"]
    assert process.err() == ""


def answers(url: str) -> bool:
    with urlopen(f"{url}search?q=red", timeout=20) as answer:
        return answer.status == 200


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_cleanly(server: tuple[Process, str], number: signal.Signals) -> None:
    process, url = server
    assert answers(url)
    process.signal_all(number)
    assert process.wait(15) == 0


def test_a_signal_ends_it_while_a_source_hangs(
    start_command: Callable[..., Process], merged: Path, tiny_cache: Path, tmp_path: Path
) -> None:
    script = (
        "from clipglot.serve import server; server.GRACE_S = 1.0\n"
        "from clipglot.inference.thumbnails import ThumbnailReader\n"
        "import threading; ThumbnailReader.webp = lambda *arguments, **options: threading.Event().wait()"
    )

    def start(*arguments: object, **options: Any) -> Process:
        return start_command(*arguments, script=script, **options)

    process, told = start_server(start, merged, tiny_cache, "--thumbnail-folder", tmp_path / "thumbnails")
    assert send_raw(told["url"], b"GET /image/0 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", FEW_S) == b""
    process.signal_all(signal.SIGTERM)
    assert process.wait(15) == 0
    assert "Traceback" not in process.err()


def test_ctrl_c_ends_it_while_clients_are_connected(server: tuple[Process, str]) -> None:
    process, url = server
    host, port = url.removeprefix("http://").rstrip("/").split(":")
    with closing(socket.create_connection((host, int(port)))):
        process.signal_all(signal.SIGINT)
        assert process.wait(15) == 0


def test_half_open_and_slow_clients_do_not_hold_it(server: tuple[Process, str]) -> None:
    _, url = server
    host, port = url.removeprefix("http://").rstrip("/").split(":")
    silent = [socket.create_connection((host, int(port))) for _ in range(200)]
    for i, connection in enumerate(silent):
        connection.sendall(b"GET /search?q=x HTTP/1.1\r\nHost: 127."[: i % 40])
    assert answers(url)
    for connection in silent:  # each is given up
        connection.settimeout(10)
        with suppress(ConnectionResetError):
            assert connection.recv(1) in (b"", b"H")
        connection.close()
    assert answers(url)
    kept = http.client.HTTPConnection(host, int(port))  # the second head of a connection, too
    kept.request("GET", "/health")
    kept.getresponse().read()
    kept.sock.sendall(b"GET /hea")
    kept.sock.settimeout(10)
    assert kept.sock.recv(1) == b""
    kept.close()
    # a body that does not come
    with closing(socket.create_connection((host, int(port)))) as connection:
        connection.sendall(b"POST /search HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\nabc")
        time.sleep(2 * FEW_S)
        assert answers(url)


def test_clients_that_do_not_read_are_given_up(server: tuple[Process, str]) -> None:
    process, url = server
    host, port = url.removeprefix("http://").rstrip("/").split(":")
    silent = []
    for last in (b"", b"Connection: close\r\n"):
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((host, int(port)))
        connection.settimeout(0.2)
        ask = b"GET /search?q=red&limit=200&fold=false HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        with suppress(TimeoutError, OSError):
            connection.sendall((ask + b"\r\n") * 500 + ask + last + b"\r\n")
        silent.append(connection)
    assert answers(url)
    process.until(lambda: not open_connections(int(port)))
    for connection in silent:
        connection.close()


def open_connections(port: int) -> int:
    """Connections that a server of this machine has not given up."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(line[1].endswith(f":{port:04X}") and line[3] == "01" for line in lines)


def test_odd_bytes_are_answered_or_refused(server: tuple[Process, str]) -> None:
    _, url = server
    for content in (
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /search?q=" + b"x" * 2**20 + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"GET /search?q=%ff%fe%00 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"GET /search?q=x HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"y" * 10**6 + b"\r\n\r\n",
        b"GET /search?q=x HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"POST /search HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99999999999\r\n\r\n",
        b"POST /search HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -5\r\n\r\n",
        b"POST /search HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
        b"GET //etc/passwd HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"GET /image/0 HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
    ):
        answer = send_raw(url, content)
        assert not answer or answer.startswith(b"HTTP/1.1 "), content[:60]
        assert b"500" not in answer[:20], (content[:60], answer[:200])
        assert answers(url)


@pytest.mark.slow
def test_a_thousand_requests_at_once_are_answered(server: tuple[Process, str]) -> None:
    _, url = server
    statuses: list[int | str] = []

    def ask(i: int) -> None:
        try:
            with urlopen(f"{url}search?q=red+{i}", timeout=60) as answer:
                answer.read()
                statuses.append(answer.status)
        except OSError as error:
            statuses.append(getattr(error, "code", str(error)))

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(1000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(statuses) <= {200, 503}
    assert statuses.count(200) > 900
    assert answers(url)


def test_what_cannot_be_printed_ends_it_cleanly() -> None:
    def fail() -> None:
        raise BrokenPipeError

    listening = server_module.listen("127.0.0.1", 0)
    has_ended = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for done in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{done}.complete"})
        has_ended.append(True)

    with listening, pytest.raises(BrokenPipeError):
        server_module.run(app, listening, fail)
    assert has_ended


def test_other_machines_need_a_token(
    start_command: Callable[..., Process], merged: Path, tiny_cache: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "thumbnails"
    process, told = start_server(
        start_command, merged, tiny_cache, "--host", "0.0.0.0", "--thumbnail-folder", folder
    )  # only this machine is asked below
    assert "token" in process.err()
    assert len(told["token"]) >= 24
    port = told["url"].split(":")[2].split("/")[0]
    connection = http.client.HTTPConnection("127.0.0.1", int(port))
    with closing(connection):
        connection.request("GET", "/search?q=x")
        with connection.getresponse() as refused:
            assert refused.status == 401
    with urlopen(
        Request(f"http://127.0.0.1:{port}/search?q=x", headers={"Authorization": f"Bearer {told['token']}"})
    ) as answer:
        assert answer.status == 200
    process.signal_all(signal.SIGTERM)
    assert process.wait(15) == 0


def test_what_cannot_be_served_is_told(
    merged: Path, other_clip: Path, tiny_cache: Path, tmp_path: Path, manifest: Path
) -> None:
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        # before two minutes of work
        assert "choose another --port" in run("demo", "--serve", "--port", str(port)).output
        for arguments, told in (
            ([merged, tiny_cache, "--port", str(port)], "choose another --port"),
            ([merged, tiny_cache, "--host", "no.such.host.invalid"], "--host"),
            ([merged, tiny_cache, "--port", "70000"], "65535"),
            ([merged, tmp_path / "absent", "--port", "0"], "absent"),
            ([tmp_path / "absent", tiny_cache, "--port", "0"], "absent"),
            ([other_clip, tiny_cache, "--port", "0"], "image tower"),
            ([merged, tiny_cache, "--against", other_clip, "--port", "0"], f"--against {other_clip}"),
            ([merged, tiny_cache, "--onnx", "--port", "0"], "--format onnx"),
            ([merged, tiny_cache, "--token", "short"], "8 characters"),
            ([merged, tiny_cache, "--token", "пароль-пароль"], "ASCII"),
            ([merged, tiny_cache, "--allow-host", "https://images.example"], "without http://"),
            ([merged, tiny_cache, "--allow-host", "*"], "--allow-host"),
            ([merged, tiny_cache, "--thumbnail-folder", manifest, "--port", "0"], "--thumbnail-folder"),
            ([merged], "CACHES"),
        ):
            done = run("serve", *map(str, arguments))
            assert done.exit_code != 0, arguments
            assert told in done.output, done.output
            assert "Traceback" not in done.output
