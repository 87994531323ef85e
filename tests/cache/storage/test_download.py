"""The folder that fetched files go to is its process's alone, whoever else makes or sweeps one at that moment."""

import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from clipglot.cache.sources.download import PREFIX, DownloadCache, _sweep


@pytest.mark.parametrize("moment", ["made", "opened"])
def test_a_folder_that_another_process_sweeps_before_it_is_held_is_made_anew(
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
        spool = DownloadCache.create()
    (folder,) = tmp_path.glob(f"{PREFIX}*")
    assert [folder] != swept
    _sweep(tmp_path)
    assert folder.is_dir()  # held now
    spool.close()
    assert not list(tmp_path.iterdir())
