"""Folders of class folders, as in image classification: the caption of an image is the name of its folder."""

import hashlib
from collections.abc import Iterator
from dataclasses import replace

from ..errors import CacheError
from ..location import Entry, Location, entries, to_location
from .image_root import name_below
from .records import RecordParser, choose_split, is_unicode
from .source import Source, SourceRow
from .table import SUFFIXES

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".avif", ".jp2")
CAPTIONS = ("txt", "caption")  # as of a WebDataset that was unpacked


class ImageFolderSource(Source):
    """`class name/image.jpg`, or `train/class name/image.jpg` with a split; sorted, underscores read as spaces."""

    kind = "class folders"

    def rows(self) -> Iterator[SourceRow]:
        """Every image.

        Raises:
            CacheError: splits to choose from, or a name that is not UTF-8.
        """
        self.left_out.clear()
        info = replace(self.info, split=None)  # splits are folders here
        parser = RecordParser(info, has_key=False, left_out=self.left_out)
        for line, (name, key) in enumerate(self._images(), 1):
            if row := parser.row({"text": name.replace("_", " ")}, line, key, key=key):
                yield row

    def sha256(self) -> str:
        """Digest of the names; the images themselves are not read."""
        digest = hashlib.sha256()
        for _, key in self._images():
            digest.update(key.encode() + b"\0")
        return digest.hexdigest()

    def _images(self) -> Iterator[tuple[str, str]]:
        """Class and key of each image, a folder at a time."""
        top, root = to_location(self.info.path), to_location(self.info.image_root)
        above = str(root).rstrip("/") + "/"
        if not f"{top}/".startswith(above):
            raise CacheError(f"{top} lies outside {root}: pass --image-root, a folder or URL that holds it")
        folder, names = top, _folders(top, root)
        has_classes = any(_has_images(top / name) for name in names)
        # Other folders are no splits: a run, or the very cache that is being made.
        splits = [] if has_classes else [name for name in names if _has_classes(top / name, root)]
        if splits or self.info.split is not None:
            folder = top / choose_split(splits, self.info.split, top)
        for location in dict.fromkeys((top, folder)):
            _require_no_table(location)
        for name in _folders(folder, root):
            files = _names(folder / name)
            _require_no_captions(folder / name, files)
            for file in files:
                yield name, str(folder / name / file).removeprefix(above)


def holds_class_folders(path: Location) -> bool:
    """Whether a folder has folders of images, perhaps in folders of splits."""
    folders = [path / name for name in _names(path, folders=True)]
    return any(map(_has_images, folders)) or any(
        _has_images(folder / name) for folder in folders for name in _names(folder, folders=True)
    )


def _folders(folder: Location, root: Location) -> list[str]:
    """Names of the folders in a folder.

    Raises:
        CacheError: one is a link that leads out of the image root.
    """
    names = _names(folder, folders=True)
    for name in names:
        name_below(root, folder / name)
    return names


def _require_no_table(folder: Location) -> None:
    """Refuse a table beside the class folders, whose names would replace the captions that it has.

    Raises:
        CacheError: there is one; the message names it.
    """
    for entry in entries(folder):
        if entry.is_file and entry.name.lower().endswith(SUFFIXES) and not entry.name.startswith("."):
            raise CacheError(
                f"{folder} has folders of images, and the table {entry.name} too: pass {folder / entry.name}, or "
                "put it elsewhere to have the names of the folders as captions"
            )


def _require_no_captions(folder: Location, images: list[str]) -> None:
    """Refuse a text beside an image, for the same reason.

    Raises:
        CacheError: there is one that has the name of an image.
    """
    stems = {name.rpartition(".")[0] for name in images}
    for entry in entries(folder):
        stem, _, extension = entry.name.rpartition(".")
        if extension.lower() in CAPTIONS and stem in stems:
            raise CacheError(
                f"{folder / entry.name} lies beside the image of its name, but the captions of class folders are the "
                "names of the folders: write a table of images and texts, or put all of them into tars"
            )


def _has_classes(folder: Location, root: Location) -> bool:
    return any(_has_images(folder / name) for name in _folders(folder, root))


def _has_images(folder: Location) -> bool:
    return any(map(_is_image, entries(folder)))


def _is_image(entry: Entry) -> bool:
    return entry.name.lower().endswith(IMAGES) and not entry.name.startswith(".") and not entry.is_dir


def _names(folder: Location, *, folders: bool = False) -> list[str]:
    """Names of the images, or of the folders, in a folder, without hidden ones."""
    names = [
        entry.name
        for entry in entries(folder)
        if (entry.is_dir and not entry.name.startswith(".") if folders else _is_image(entry))
    ]
    for name in names:
        if not is_unicode(name):
            raise CacheError(f"{folder}: the name {name!r} is not UTF-8: rename it")
    return names
