"""Walk over the files below a folder of images, on the disk or at a URL."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from ..errors import CacheError
from ..format import RejectedImageError
from ..location import Entry, Location, entries
from .image_names import SIGNATURE_BYTES, has_image_extension, is_image_signature
from .image_root import name_below, open_below
from .records import is_unicode

TEXT_SUFFIXES = (".txt", ".caption")
CACHE_MARK = "zarr.json"  # of a cache, perhaps the very one that is being made
SPLITS = frozenset({"train", "test", "val", "valid", "validation", "dev"})  # names of folders that are splits


def visible(folder: Location, *, folders: bool) -> list[Entry]:
    """The folders in a folder, or everything else, in the order of their names, without hidden ones.

    Raises:
        CacheError: a name that is not UTF-8.
    """
    return _visible(folder, entries(folder), folders=folders)


def _visible(folder: Location, listed: Iterable[Entry], *, folders: bool) -> list[Entry]:
    found = [entry for entry in listed if entry.is_dir == folders and not entry.name.startswith(".")]
    for entry in found:
        if not is_unicode(entry.name):
            raise CacheError(f"{folder}: the name {entry.name!r} is not UTF-8: rename it")
    return found


def files_by_folder(folder: Location, root: Location, inside: str = "") -> Iterator[tuple[str, list[Entry]]]:
    """The files of a folder and of all folders below it, but those of caches.

    Args:
        folder: to walk over.
        root: the image root.
        inside: prefix of the names of folders that are yielded.

    Yields:
        Name of each folder, relative to the first and with a slash at its end, and its files.

    Raises:
        CacheError: a folder is a link that leads out of the image root, or a name is not UTF-8.
    """
    name_below(root, folder)
    listed = entries(folder)  # once: at a URL it is a request
    files = _visible(folder, listed, folders=False)
    if any(file.name == CACHE_MARK for file in files):
        return
    yield inside, files
    for entry in _visible(folder, listed, folders=True):
        if not _leads_up(folder, entry.name):
            yield from files_by_folder(folder / entry.name, root, f"{inside}{entry.name}/")


def _leads_up(folder: Location, name: str) -> bool:
    """Whether a folder is a link to one above it, which would make the walk endless."""
    return isinstance(folder, Path) and folder.resolve().is_relative_to((folder / name).resolve())


def is_image_file(folder: Location, entry: Entry, root: Location) -> bool:
    """Whether a file is an image, by its name or, on the disk, by its first bytes."""
    if has_image_extension(entry.name):
        return True
    if isinstance(folder, Path) and isinstance(root, Path) and entry.is_file:
        name = (folder / entry.name).relative_to(root).as_posix()
        with suppress(RejectedImageError, OSError), open_below(root.resolve(), name, max_bytes=None) as file:
            return is_image_signature(file.read(SIGNATURE_BYTES))
    return False


def is_text_file(name: str) -> bool:
    """Whether a name is that of a file with captions beside an image, as of a WebDataset that was unpacked."""
    return name.lower().endswith(TEXT_SUFFIXES)


def kind_of_file(name: str) -> str:
    """A file's extension, for counts of files that are passed over."""
    return Path(name).suffix.lower() or "without extension"
