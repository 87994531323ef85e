"""Folders of class folders, as in image classification: the caption of an image is the name of its folder."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from ..errors import CacheError
from ..location import Location, entries, to_location
from .folder_walk import SPLITS, files_by_folder, is_image_file, is_text_file, kind_of_file, visible
from .image_names import has_image_extension
from .image_root import name_below
from .records import RecordParser, choose_split
from .source import Source, SourceRow
from .table import SUFFIXES

SHOWN = 5  # folders in a message


class ImageFolderSource(Source):
    """`class name/image.jpg`, or `train/class name/image.jpg` with a split; sorted, underscores read as spaces.

    Images in deeper folders belong to the class that these are in, if it has images of its own.
    """

    kind = "class folders"

    def rows(self) -> Iterator[SourceRow]:
        """Every image. Other files in the class folders, and images beside these, are left out and counted.

        Raises:
            CacheError: splits to choose from, or a name that is not UTF-8.
        """
        self.left_out.clear()
        info = replace(self.info, split=None)  # splits are folders here
        parser = RecordParser(info, has_key=False, left_out=self.left_out)
        for line, (name, key) in enumerate(self._images(self.left_out), 1):
            if row := parser.row({"text": name.replace("_", " ")}, line, key, key=key):
                yield row

    def sha256(self) -> str:
        """Digest of the names; the images themselves are not read."""
        digest = hashlib.sha256()
        for _, key in self._images(Counter()):
            digest.update(key.encode() + b"\0")
        return digest.hexdigest()

    def _images(self, passed_over: Counter[str]) -> Iterator[tuple[str, str]]:
        """Class and key of each image, a folder at a time; counts other files by reason."""
        top, root = to_location(self.info.path), to_location(self.info.image_root)
        above = str(root).rstrip("/") + "/"
        if not f"{top}/".startswith(above):
            raise CacheError(f"{top} lies outside {root}: pass --image-root, a folder or URL that holds it")
        folder, names = top, _folders(top, root)
        classes = [name for name in names if _has_images(top / name)]
        # Beside class folders only known names tell splits; others are a run, or the very cache that is being made.
        splits = [name for name in names if (not classes or name in SPLITS) and _has_classes(top / name, root)]
        if classes and self.info.split is None and (len(splits) < 2 or set(splits) <= set(classes)):
            splits = []  # a folder of that name may be anything, and classes of those names may have deeper folders
        if classes and splits and self.info.split is None:
            raise CacheError(
                f"{top}: {', '.join(splits)} hold class folders, as splits do, beside folders of images "
                f"({', '.join(classes[:SHOWN])}): pass --split NAME, one of {', '.join(splits)}, or move them apart"
            )
        if splits or self.info.split is not None:
            folder = top / choose_split(splits, self.info.split, top)
        for location in dict.fromkeys((top, folder)):
            _require_no_table(location)
        if num_beside := sum(has_image_extension(file.name) for file in visible(folder, folders=False)):
            passed_over["images beside the class folders"] += num_beside
        for name in _folders(folder, root):
            walked = files_by_folder(folder / name, root)
            if not _has_images(folder / name):  # no class: a run, the cache, or figures of a document
                if num := sum(has_image_extension(file.name) for _, files in walked for file in files):
                    passed_over[f"images deeper in {name}, which has none itself"] += num
                continue
            for inside, files in walked:
                here = to_location(f"{folder}/{name}/{inside}".rstrip("/"))
                are_images = [is_image_file(here, file, root) for file in files]
                _require_no_captions(
                    here, [file.name for file, is_one in zip(files, are_images, strict=True) if is_one]
                )
                for file, is_one in zip(files, are_images, strict=True):
                    if is_one:
                        yield name, str(here / file.name).removeprefix(above)
                    else:
                        passed_over[f"files that are no images ({kind_of_file(file.name)})"] += 1


def holds_class_folders(path: Location) -> bool:
    """Whether a folder has folders of images, perhaps in folders of splits."""
    folders = [path / entry.name for entry in visible(path, folders=True)]
    return any(map(_has_images, folders)) or any(
        _has_images(folder / entry.name) for folder in folders for entry in visible(folder, folders=True)
    )


def _folders(folder: Location, root: Location) -> list[str]:
    """Names of the folders in a folder.

    Raises:
        CacheError: one is a link that leads out of the image root.
    """
    names = [entry.name for entry in visible(folder, folders=True)]
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
        if is_text_file(entry.name) and entry.name.rpartition(".")[0] in stems:
            raise CacheError(
                f"{folder / entry.name} lies beside the image of its name, but the captions of class folders are the "
                "names of the folders: write a table of images and texts, or put all of them into tars"
            )


def _has_classes(folder: Location, root: Location) -> bool:
    return any(_has_images(folder / name) for name in _folders(folder, root))


def _has_images(folder: Location) -> bool:
    return any(has_image_extension(entry.name) for entry in visible(folder, folders=False))
