"""A model hub on this machine: the part of its HTTP API that an upload speaks, with what it received."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Hub:
    """What a hub has received.

    Attributes:
        url: of the hub.
        files: content by "ORG/NAME/path".
        repositories: by name, with whether each is private.
        tokens: that came with requests.
        refuses: HTTP status of every answer, to refuse all.
    """

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    repositories: dict[str, bool] = field(default_factory=dict)
    tokens: set[str] = field(default_factory=set)
    refuses: int | None = None
    _objects: dict[str, bytes] = field(default_factory=dict)

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        """Status and JSON of one request."""
        if self.refuses:
            return self.refuses, {"error": "refused"}
        parts = path.strip("/").split("/")
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            self.repositories[name] = asked.get("private") is True or asked.get("visibility") == "private"
            return 200, {"url": f"{self.url}/{name}", "name": name}
        if method == "PUT" and parts[0] == "objects":
            assert hashlib.sha256(body).hexdigest() == parts[1]
            self._objects[parts[1]] = body
            return 200, {}
        if path.endswith(".git/info/lfs/objects/batch"):
            asked = json.loads(body)
            actions = lambda oid: {"upload": {"href": f"{self.url}/objects/{oid}"}}  # noqa: E731
            objects = [{**each, "actions": actions(each["oid"])} for each in asked["objects"]]
            return 200, {"objects": objects, "transfer": "basic"}
        if path.startswith("/api/validate-yaml"):
            return 200, {"errors": [], "warnings": []}
        if parts[:2] == ["api", "models"]:
            name, rest = "/".join(parts[2:4]), parts[4:]
            if name not in self.repositories:
                return 404, {"error": "no such repository"}
            if rest[:1] == ["preupload"]:
                modes = [self._mode(each) for each in json.loads(body)["files"]]
                return 200, {"files": modes}
            if rest[:1] == ["commit"]:
                self._commit(name, [json.loads(line) for line in body.decode().splitlines()])
                return 200, {"commitUrl": f"{self.url}/{name}/commit/1", "commitOid": "1" * 40, "success": True}
            if rest[:1] == ["tree"]:
                mine = [key.removeprefix(f"{name}/") for key in self.files if key.startswith(f"{name}/")]
                return 200, [{"type": "file", "path": key, "size": 1, "oid": "0" * 40} for key in mine]
            siblings = [{"rfilename": key.removeprefix(f"{name}/")} for key in self.files if key.startswith(f"{name}/")]
            return 200, {
                "id": name,
                "modelId": name,
                "sha": "1" * 40,
                "siblings": siblings,
                "private": False,
                "tags": [],
            }
        return 404, {"error": f"{method} {path} is not part of this hub"}

    @staticmethod
    def _mode(file: dict[str, Any]) -> dict[str, Any]:
        is_large = file["path"].endswith((".safetensors", ".onnx", ".bin"))
        return {
            "path": file["path"],
            "uploadMode": "lfs" if is_large else "regular",
            "shouldIgnore": False,
            "oid": None,
        }

    def _commit(self, name: str, operations: list[dict[str, Any]]) -> None:
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "file":
                self.files[f"{name}/{value['path']}"] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                self.files[f"{name}/{value['path']}"] = self._objects[value["oid"]]
            elif operation["key"] == "deletedFile":
                self.files.pop(f"{name}/{value['path']}")


@contextmanager
def serving_hub() -> Iterator[Hub]:
    """Run a hub on 127.0.0.1 until the end of the block."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            hub.tokens.add(self.headers.get("authorization", ""))
            status, value = hub.answer(self.command, self.path.split("?")[0], self._body())
            content = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def _body(self) -> bytes:
            if self.headers.get("transfer-encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("content-length") or 0))
            content = b""
            while size := int(self.rfile.readline(), 16):
                content += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return content

        do_GET = do_POST = do_PUT = _answer  # noqa: N815

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing is logged."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
