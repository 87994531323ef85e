"""A local S3 server with one bucket: caches and sources are read and written by the real protocol."""

import re
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import fsspec
from zarr.core.sync import sync

NAME = "bucket"


class Bucket:
    """A bucket, and the log of its server."""

    def __init__(self, endpoint: str, log: Path) -> None:
        self.environment = {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        }
        self._log = log
        self._log_start = 0
        self.client: Any = boto3.client(
            "s3",
            endpoint_url=endpoint,
            region_name="us-east-1",
            aws_access_key_id="key",
            aws_secret_access_key="secret",
        )
        self.client.create_bucket(Bucket=NAME)

    def reset(self) -> None:
        """Empty the bucket and forget its requests."""
        reset = urllib.request.Request(f"{self.environment['AWS_ENDPOINT_URL']}/moto-api/reset", method="POST")
        urllib.request.urlopen(reset).close()
        self.client.create_bucket(Bucket=NAME)
        self._log_start = self._log.stat().st_size

    def upload(self, folder: Path, name: str) -> str:
        """Put every file of a folder, one object each; returns the URL."""
        for file in folder.rglob("*"):
            if file.is_file():
                self.client.put_object(
                    Bucket=NAME, Key=f"{name}/{file.relative_to(folder).as_posix()}", Body=file.read_bytes()
                )
        return f"s3://{NAME}/{name}"

    def objects(self) -> set[str]:
        """The keys of all objects."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=NAME)
        return {found["Key"] for page in pages for found in page.get("Contents", ())}

    def contents(self, name: str) -> dict[str, bytes]:
        """Every object below a key, named as from there."""
        found = sorted(key for key in self.objects() if key.startswith(f"{name}/"))
        return {key.removeprefix(f"{name}/"): self.content(key) for key in found}

    def content(self, key: str) -> bytes:
        """The bytes of an object."""
        content: bytes = self.client.get_object(Bucket=NAME, Key=key)["Body"].read()
        return content

    def put(self, key: str, content: bytes) -> None:
        """Make an object, or replace one."""
        self.client.put_object(Bucket=NAME, Key=key, Body=content)

    def flip_a_byte(self, key: str) -> None:
        """Damage an object."""
        content = bytearray(self.content(key))
        content[len(content) // 2] ^= 1
        self.put(key, bytes(content))

    def delete(self, key: str) -> None:
        """Take an object away."""
        self.client.delete_object(Bucket=NAME, Key=key)

    def num_gets(self, below: str) -> Counter[str]:
        """How often each object below a key was fetched until now."""
        coloured = "(?:\x1b\\[35m\x1b\\[1m)?"  # as the server shows parts of objects
        log = self._log.read_bytes()[self._log_start :].decode()
        return Counter(re.findall(rf'"{coloured}GET /{NAME}/({re.escape(below)}\S*) HTTP', log))


@contextmanager
def serving(folder: Path) -> Iterator[Bucket]:
    """A server in a process of its own, on a free port, with an empty bucket."""
    log = folder / "server.log"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    with log.open("wb") as file, subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT) as server:
        try:
            while not (found := re.search(r"Running on (http://127\.0\.0\.1:\d+)", log.read_text())):
                assert server.poll() is None, log.read_text()
                time.sleep(0.05)
            yield Bucket(found[1], log)
        finally:
            server.kill()


def close_connections() -> None:
    """Close fsspec's connections to S3 and drop its instances, which are shared by all stores of a process."""
    for asynchronous in (True, False):
        fs = fsspec.filesystem("s3", asynchronous=asynchronous)
        if getattr(fs, "_s3creator", None) is not None:  # it was used
            sync(fs._s3creator.__aexit__(None, None, None), loop=None if asynchronous else fs.loop)
    fsspec.filesystem("s3").clear_instance_cache()
