"""A web server over a folder, which can be told to fail."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread


class _Server(ThreadingHTTPServer):
    def __init__(self, folder: Path, answers: int, codes: dict[str, int]) -> None:
        super().__init__(("127.0.0.1", 0), partial(_Handler, directory=str(folder)))
        self.answers, self.codes = answers, codes


class _Handler(SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, _Server)
        self.server.answers -= 1
        code = self.server.codes.get(Path(self.path).stem, 503 if self.server.answers < 0 else 0)
        self.send_error(code) if code else super().do_GET()

    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def web_server(folder: Path, answers: int = 10**6, **codes: int) -> Iterator[str]:
    """The URL of a server.

    Args:
        folder: that it serves.
        answers: after so many it answers with 503.
        codes: by the stem of a path, the status with which it answers.
    """
    with _Server(folder, answers, codes) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
