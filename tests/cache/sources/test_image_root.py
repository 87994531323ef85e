"""Nothing outside the image root is opened, even if a link replaces a file after it was checked."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from clipglot.cache.format import RejectedImageError, Status
from clipglot.cache.sources import image_root
from clipglot.cache.sources.download import SourceFiles
from clipglot.cache.sources.image_files import PathReader
from clipglot.cache.sources.image_root import open_below
from clipglot.cache.sources.tar_reader import TarReader
from support.tars import write_tar

NAME = "folder/deep/image.tar"


def image_becomes_a_link(path: Path, outside: Path) -> None:
    path.rename(path.with_suffix(".old"))
    path.symlink_to(outside / NAME)


def folder_becomes_a_link(path: Path, outside: Path) -> None:
    folder = path.parents[1]
    folder.rename(folder.with_suffix(".old"))
    folder.symlink_to(outside / "folder")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with an image, and the same name outside it."""
    for folder in ("root", "outside"):
        write_tar(tmp_path / folder / NAME, [("1.jpg", folder.encode())])
    return tmp_path / "root"


@pytest.mark.parametrize(
    ("change", "status"),
    [(image_becomes_a_link, Status.UNREADABLE), (folder_becomes_a_link, Status.OUTSIDE_ROOT)],
)
def test_a_link_that_replaces_a_checked_file_is_not_followed(
    change: Callable[[Path, Path], None], status: Status, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve = image_root._resolve_below

    def resolve_then_change(root: Path, name: str) -> Path:
        path = resolve(root, name)
        if not (root.parent / "changed").exists():
            (root.parent / "changed").touch()
            change(path, root.parent / "outside")
        return path

    openers: list[Callable[[], object]] = [
        lambda: open_below(root, NAME),
        lambda: SourceFiles(root, [NAME]).open(0),
    ]
    for open_file in openers:
        with monkeypatch.context() as patch:
            patch.setattr(image_root, "_resolve_below", resolve_then_change)
            with pytest.raises(RejectedImageError) as rejected:
                open_file()
        assert rejected.value.status == status
        assert (root.parent / "changed").exists()
        undo(root)
    with monkeypatch.context() as patch:
        patch.setattr(image_root, "_resolve_below", resolve_then_change)
        assert list(PathReader.below(root).read([NAME], None)) == [status]
    undo(root)
    reader = TarReader(root, [NAME], ["jpg"])
    assert list(reader.read(["1"], np.array([[0, 512, 4]]))) == [b"root"]


def undo(root: Path) -> None:
    """Put the image back."""
    (root.parent / "changed").unlink()
    for old in root.rglob("*.old"):
        new = old.with_suffix(".tar") if old.is_file() else old.with_suffix("")
        new.unlink()
        old.rename(new)


def test_a_fifo_that_takes_the_place_of_a_file_is_not_waited_for(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resolve = image_root._resolve_below

    def resolve_then_change(root: Path, name: str) -> Path:
        path = resolve(root, name)
        path.unlink()
        os.mkfifo(path)
        return path

    monkeypatch.setattr(image_root, "_resolve_below", resolve_then_change)
    with pytest.raises(RejectedImageError) as rejected:
        open_below(root, NAME)
    assert rejected.value.status == Status.UNREADABLE


def test_a_link_within_the_root_is_followed(root: Path) -> None:
    (root / "link.tar").symlink_to(NAME)
    (root / "other").symlink_to("folder")
    for name in ("link.tar", "other/deep/image.tar", f"{root}/{NAME}"):
        with open_below(root, name) as file:
            assert file.read() == (root / NAME).read_bytes()
