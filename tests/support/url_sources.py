"""Sources at URLs: their contract, and the folder of their downloads."""

import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clipglot.cache.errors import CacheError
from clipglot.cache.format import Status
from clipglot.cache.location import Url

from support.s3_server import NAME, Bucket
from support.source_contract import Captions, Made, Planned, SourceContract


@pytest.fixture(autouse=True)
def temporary(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that downloads go to."""
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", None)
    return folder


class AtUrl(SourceContract):
    """The contract of sources in a bucket. The next base class writes a source on the disk, which is then uploaded."""

    bucket: Bucket

    @pytest.fixture(autouse=True)
    def _bucket(self, bucket: Bucket) -> None:
        type(self).bucket = bucket

    def make(self, folder: Path, images: Sequence[bytes], captions: Captions) -> Made:
        local, name = folder / "local", folder.as_posix().strip("/")
        shutil.rmtree(local, ignore_errors=True)
        local.mkdir()
        made = super().make(local, images, captions)  # type: ignore[safe-super]
        self._delete(folder)
        for empty in (path for path in local.rglob("*") if path.is_dir() and not any(path.iterdir())):
            self.bucket.put(f"{name}/{empty.relative_to(local).as_posix()}/", b"")  # as consoles of stores do
        return made.below(local, Url(self.bucket.upload(local, name)))  # type: ignore[arg-type]

    def _delete(self, folder: Path) -> None:
        """Delete the objects that were uploaded from a folder."""
        for key in self.bucket.objects():
            if key.startswith(f"{folder.as_posix().strip('/')}/"):
                self.bucket.delete(key)

    def test_an_absent_source_is_named(self, tmp_path: Path) -> None:
        made = self.made(tmp_path / "source")
        self._delete(tmp_path)
        with pytest.raises(CacheError, match=re.escape(str(made.path))):
            list(self.open(made).rows())

    def test_a_source_that_moved_is_resumed(self, tmp_path: Path, make_cache: Callable[..., Any]) -> None:
        cache = tmp_path / "cache.zarr"
        made = self.made(tmp_path / "here")
        whole = make_cache(made.path, cache, **made.options).cache.image_emb()
        (cache / "images" / "status" / "c" / "0").unlink()
        made = self.made(tmp_path / "there")
        result = make_cache(made.path, cache, **made.options)
        assert result.resumed
        assert result.report.num_pictures == result.cache.info.chunk_rows
        assert np.array_equal(result.cache.image_emb(), whole)

    def test_nothing_outside_the_root_is_read(self, tmp_path: Path) -> None:
        source = self.open(self.made(tmp_path / "source"))
        planned = Planned.of(source)
        secret = f"{tmp_path.as_posix().strip('/')}/secret.png"
        self.bucket.put(secret, b"secret")
        names = ["../secret.png", "a/../../secret.png", "%2e%2e/secret.png", f"/{NAME}/{secret}"]
        names += [f"s3://{NAME}/{secret}", f"https://example.org/{secret}", "..\\secret.png"]
        reader, locators = planned.reader, None
        if planned.locators is not None:
            reader = type(source).reader(Url(source.info.image_root), names, source.info)
            locators = np.array([(i, 0, 6) for i in range(len(names))])
        assert list(reader.read(names, locators)) == [Status.OUTSIDE_ROOT] * len(names)
