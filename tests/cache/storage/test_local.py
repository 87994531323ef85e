"""Locks and atomic writes of local folders: one writer, and a sweep of only what killed writers left."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from clipglot.cache.errors import CacheError
from clipglot.cache.storage import atomic as files
from clipglot.cache.storage.atomic import atomic_directory, lock_folder, sweep_partial
from clipglot.cache.storage.open import store_at
from clipglot.cache.write.plan import is_planned

HOLDER = """
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from clipglot.cache.storage.atomic import lock_folder
with lock_folder(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("link", ["workers", "a/workers", "workers/inside"])
def test_what_a_link_leads_to_is_not_deleted(link: str, tmp_path: Path) -> None:
    (tmp_path / "elsewhere" / "sub").mkdir(parents=True)
    (tmp_path / "elsewhere" / "sub" / "thesis.txt").write_text("mine")
    (tmp_path / "cache" / link).parent.mkdir(parents=True)
    (tmp_path / "cache" / link).symlink_to(tmp_path / "elsewhere")
    store = store_at(tmp_path / "cache", read_only=False)
    for folder in ("workers", "a/workers", "a", "workers/inside/sub", "a/workers/sub"):
        store.delete_below(folder)
    assert (tmp_path / "elsewhere" / "sub" / "thesis.txt").read_text() == "mine"


def test_a_folder_has_one_writer_whose_lock_ends_when_it_is_killed(tmp_path: Path) -> None:
    folder, pipe = tmp_path / "new" / "cache.zarr", subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdin=pipe, stdout=pipe, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(CacheError, match=r"cache\.zarr: another clipglot command is writing it: wait"),
            lock_folder(folder),
        ):
            pass
        holder.send_signal(signal.SIGKILL)
    with lock_folder(folder):
        assert not is_planned(folder)


def test_a_new_writer_waits_while_a_shared_folder_is_swept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    begun, may_end, order = threading.Event(), threading.Event(), list[str]()

    def sweep(root: Path, *, keep: str | None = None) -> int:
        begun.set()
        assert may_end.wait(60)
        order.append("swept")
        return 0

    def hold() -> None:
        with lock_folder(tmp_path, shared=True):
            order.append("held")

    monkeypatch.setattr(files, "sweep_partial", sweep)
    monkeypatch.setattr(files, "sleep", lambda seconds: may_end.set())
    with ThreadPoolExecutor(2) as threads:
        leaving = threads.submit(hold)
        assert begun.wait(60)
        try:
            threads.submit(hold).result()
        finally:
            may_end.set()
        leaving.result()
    assert order == ["held", "swept", "held", "swept"]


def test_a_locked_folder_remains_only_if_it_existed_or_has_files(tmp_path: Path) -> None:
    old, empty, filled = (tmp_path / name for name in ("old", "empty", "filled"))
    old.mkdir()
    for folder in (old, empty, filled):
        with lock_folder(folder):
            if folder == filled:
                (folder / "file").touch()
    assert sorted(tmp_path.iterdir()) == [filled, old]


@pytest.mark.parametrize("code", [errno.EBADF, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_filesystem_without_locks_is_supported(code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with lock_folder(tmp_path / "run"), lock_folder(tmp_path / "run"):
        assert (tmp_path / "run").is_dir()


def test_a_file_or_broken_symlink_is_not_locked(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("absent")
    for name, message in {"file": "is a file", "link": "is a symlink to absent", "file/x": "cannot be written"}.items():
        with pytest.raises(CacheError, match=message), lock_folder(tmp_path / name):
            pass


def test_partial_files_folders_and_symlinks_are_swept(tmp_path: Path) -> None:
    outside, root = tmp_path / "outside", tmp_path / "run"
    for folder in (outside, root / ".tokenizer.01.partial", root / "deep"):
        folder.mkdir(parents=True)
        (folder / "vocab.json").touch()
        (folder / ".vocab.json.01.partial").touch()
    (root / ".link.01.partial").symlink_to(outside)
    assert sweep_partial(root) == 3
    assert sorted(path.name for path in root.rglob("*")) == ["deep", "vocab.json"]
    assert len(list(outside.iterdir())) == 2


@pytest.mark.parametrize("name", ["merged", "merged[v2]", "m*"])
def test_an_atomic_directory_removes_only_its_own_leftovers(name: str, tmp_path: Path) -> None:
    digits = "0123456789abcdef" * 2
    mine, other = tmp_path / f".{name}.{digits}.partial", tmp_path / f".{name}.v2.{digits}.partial"
    third = tmp_path / f".merged2.{digits}.partial"
    for folder in (mine, other, third):
        folder.mkdir()
    with atomic_directory(tmp_path / name) as partial:
        (partial / "file").touch()
    assert set(tmp_path.iterdir()) == {tmp_path / name, other, third}


def test_two_writers_of_one_directory_do_not_delete_each_others_files(tmp_path: Path) -> None:
    def overtaken() -> None:
        with atomic_directory(tmp_path / "merged") as slower:
            (slower / "file").touch()
            with atomic_directory(tmp_path / "merged") as faster:
                (faster / "file").write_text("faster")
            assert (slower / "file").exists()

    with pytest.raises(OSError, match="not empty"):
        overtaken()
    assert (tmp_path / "merged" / "file").read_text() == "faster"
    assert list(tmp_path.iterdir()) == [tmp_path / "merged"]


def test_a_read_only_folder_raises_an_error_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, target: Path) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(CacheError, match=r"0\.json: cannot be written \(Read-only file system\): make it writable or"):
        store_at(tmp_path, read_only=False).write("appended/0.json", b"{}")
    assert list((tmp_path / "appended").iterdir()) == []
