"""Folder of downloaded files: one per process, even while other processes create or sweep theirs."""

import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from clipglot.cache.sources.download import PREFIX, DownloadCache, _sweep


@pytest.mark.parametrize("moment", ["made", "opened"])
def test_a_download_folder_swept_before_it_is_locked_is_created_again(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    module, name = (tempfile, "mkdtemp") if moment == "made" else (os, "open")
    plain, swept = getattr(module, name), list[Path]()

    def swept_after(*arguments: Any, **options: Any) -> Any:
        done = plain(*arguments, **options)
        if not swept and (left := list(tmp_path.glob(f"{PREFIX}*"))):
            swept.extend(left)
            _sweep(tmp_path)
        return done

    with monkeypatch.context() as patch:
        patch.setattr(module, name, swept_after)
        downloads = DownloadCache.create()
    (folder,) = tmp_path.glob(f"{PREFIX}*")
    assert [folder] != swept
    _sweep(tmp_path)
    assert folder.is_dir()  # locked now
    downloads.close()
    assert not list(tmp_path.iterdir())
