"""Thumbnails on disk: kept within the limit, the least recently used go first, cut files are not given."""

import os
import shutil
from pathlib import Path

from clipglot.serve import thumbnail_store
from clipglot.serve.thumbnail_store import ThumbnailStore


def webp(size: int) -> bytes:
    return b"RIFF" + (size - 8).to_bytes(4, "little") + bytes(size - 8)


def name(i: int) -> str:
    return f"{i:064x}"


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    store = ThumbnailStore(tmp_path, 10**6)
    for i in range(20):
        store.put(name(i), webp(1000))
        os.utime(tmp_path / name(i)[:2] / f"{name(i)}.webp", (i, i))
    assert store.get(name(0)) == webp(1000)  # used now
    (tmp_path / "else.txt").write_text("stays")
    ThumbnailStore(tmp_path, 5_000)
    assert [i for i in range(20) if store.get(name(i))] == [0, 16, 17, 18, 19]
    assert (tmp_path / "else.txt").exists()


def test_it_is_swept_while_it_grows(tmp_path: Path, monkeypatch: object) -> None:
    store = ThumbnailStore(tmp_path, 10_000)
    for i in range(3 * thumbnail_store.SWEPT_AFTER):
        store.put(name(i), webp(100))
    assert sum(file.stat().st_size for file in tmp_path.rglob("*.webp")) <= 10_000


def test_cut_and_odd_files_are_made_again(tmp_path: Path) -> None:
    store = ThumbnailStore(tmp_path, 10**6)
    store.put(name(1), webp(500))
    file = tmp_path / name(1)[:2] / f"{name(1)}.webp"
    (tmp_path / "other.webp").write_bytes(webp(500))
    for content in (webp(500)[:300], b"", b"x" * 500, webp(500) + b"x"):
        file.write_bytes(content)
        assert store.get(name(1)) is None
    for make in (lambda: os.mkfifo(file), lambda: file.symlink_to(tmp_path / "other.webp"), file.mkdir):
        file.unlink()
        make()
        assert store.get(name(1)) is None
        if file.is_dir():
            file.rmdir()
            file.touch()
    store.put(name(1), webp(500))
    assert store.get(name(1)) == webp(500)
    assert store.get(name(2)) is None
    with open(file, "r+b") as opened:
        opened.truncate(2**40)  # sparse
    assert store.get(name(1)) is None


def test_files_of_others_stay(tmp_path: Path) -> None:
    (tmp_path / "ab").mkdir()
    for other in ("cat.webp", "x.partial", f"{name(1)}.webp.old"):
        (tmp_path / "ab" / other).write_bytes(bytes(5000))
    ThumbnailStore(tmp_path, 1000)
    assert len(list((tmp_path / "ab").iterdir())) == 3


def test_a_folder_that_was_deleted_is_made_again(tmp_path: Path) -> None:
    store = ThumbnailStore(folder := tmp_path / "thumbnails", 10**6)
    shutil.rmtree(folder)
    assert store.get(name(1)) is None
    store.put(name(1), webp(500))
    assert store.get(name(1)) == webp(500)
