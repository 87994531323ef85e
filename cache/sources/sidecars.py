"""Folders of images with texts beside them, as `0.jpg` and `0.txt`: a WebDataset that was unpacked.

img2dataset writes them with `output_format="files"`, as do downloaders and tools that describe images.
"""

import hashlib
from collections.abc import Collection, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from ..errors import CacheError
from ..format import RejectedImageError
from ..location import Entry, Location, Url, entries, to_location
from .folder_walk import SPLITS, files_by_folder, is_image_file, is_text_file, kind_of_file, visible
from .image_names import has_image_extension
from .image_root import open_below
from .records import RecordParser, choose_split
from .samples import IMAGE_FIELD, MAX_TEXT_BYTES, TEXT_FIELDS, SampleFields
from .source import Source, SourceRow
from .tar_index import split_name

FOLDERS_LISTED = 20  # in each folder, in search of a text beside an image
LEVELS = 3  # of folders, the first included
LISTED, LISTED_AT_URL = 421, 21  # folders in all; each takes requests at a URL


class SidecarSample(NamedTuple):
    """Files of one name in a folder.

    Attributes:
        folder: that holds them.
        key: their path without extension, relative to the source.
        files: each after its extension in lower case, in the order of their names.
    """

    folder: Location
    key: str
    files: list[tuple[str, Entry]]


class SidecarSource(Source):
    """Images of a folder and of all folders below it, each with the texts that have its name.

    `--image-field` and `--text-field` name extensions, as of a WebDataset.
    """

    kind = "sidecars"
    image_field = IMAGE_FIELD
    text_fields = TEXT_FIELDS

    def rows(self) -> Iterator[SourceRow]:
        """Every image, also one without a text. Files that are neither image nor text of one are counted.

        Raises:
            CacheError: a text is not as promised, or nothing has a text.
        """
        self.left_out.clear()
        root, fields, found, line = to_location(self.info.image_root), SampleFields(self.info), set[str](), 0
        info = replace(self.info, split=None)  # splits are folders here
        parser, unseen = RecordParser(info, has_key=False, left_out=self.left_out), dict(fields.by_field)
        for sample in self._samples(fields):
            images = [entry for extension, entry in sample.files if self._is_image(extension, entry, sample, fields)]
            texts = self._texts(sample, fields) if images else {}
            self._pass_over(sample, [*images, *texts.values()], has_image=bool(images))
            # Also `en.txt` of `1.en.txt`, which a field may name.
            found |= {extension for extension, _ in sample.files}
            found |= {
                split[1] for _, entry in sample.files if (split := split_name(entry.name)) and is_text_file(entry.name)
            }
            for image in images:
                where = f"{sample.folder}/{image.name}"
                record = fields.record(texts, partial(_content, sample.folder, root), where)
                for field in [field for field in unseen if record.get(field) is not None]:
                    del unseen[field]
                line += 1
                key = where.removeprefix(f"{root}".rstrip("/") + "/")
                if row := parser.row(record, line, where, key=key):
                    yield row
        if line:
            fields.require_found(self.info.path, list(unseen), sorted(found))

    def sha256(self) -> str:
        """Digest of all names, and of the texts; the images themselves are not read."""
        digest, fields, root = hashlib.sha256(), SampleFields(self.info), to_location(self.info.image_root)
        texts = fields.extensions.difference(fields.images)
        for sample in self._samples(fields):
            files = sorted(sample.files, key=lambda file: file[0])
            digest.update(f"{sample.key}\0{[extension for extension, _ in files]}\0".encode())
            for extension, entry in files:
                if extension in texts:
                    digest.update(hashlib.sha256(_content(sample.folder, root, entry)).digest())
        return digest.hexdigest()

    def _samples(self, fields: SampleFields) -> Iterator[SidecarSample]:
        """Every sample, folder by folder, in the order of their names."""
        top, root = to_location(self.info.path), to_location(self.info.image_root)
        folders = [entry.name for entry in visible(top, folders=True)]
        splits = SPLITS.intersection(folders)
        if self.info.split is not None or len(splits) > 1:
            top = top / choose_split(splits or folders, self.info.split, top)
        for inside, files in files_by_folder(top, root):
            by_key: dict[str, list[tuple[str, Entry]]] = {}
            for file in files:
                key, extension = _split_name(file.name, fields.extensions)
                by_key.setdefault(key, []).append((extension, file))
            folder = to_location(f"{top}/{inside}".rstrip("/"))
            for key, named in sorted(by_key.items()):
                yield SidecarSample(folder, f"{inside}{key}", named)

    def _is_image(self, extension: str, entry: Entry, sample: SidecarSample, fields: SampleFields) -> bool:
        """Whether a file is an image that is asked for: by its extension, or else by its first bytes."""
        if extension in fields.extensions or has_image_extension(entry.name):
            return extension in fields.images
        return is_image_file(sample.folder, entry, to_location(self.info.image_root))

    def _texts(self, sample: SidecarSample, fields: SampleFields) -> dict[str, Entry]:
        """The texts of a sample that may be read, by extension; its JSON is one even where another text is read."""
        asked = fields.extensions.difference(fields.images)
        first = {extension: entry for extension, entry in reversed(sample.files) if extension in asked}
        if self.info.where is not None:
            return first  # a condition may name each
        named = [[name.lower() for name in names if name.lower() in first] for names in fields.by_field.values()]
        return {name: first[name] for name in [*(names[0] for names in named if names), "json"] if name in first}

    def _pass_over(self, sample: SidecarSample, taken: list[Entry], *, has_image: bool) -> None:
        """Count the files of a sample that are not taken."""
        for _, entry in sample.files:
            if entry in taken:
                continue
            if has_image_extension(entry.name):
                what = "images of other extensions"
            elif not is_text_file(entry.name):
                what = "files of other kinds"
            else:
                what = "further texts of an image" if has_image else "texts without an image"
            self.left_out[f"{what} ({kind_of_file(entry.name)})"] += 1


def holds_sidecars(path: Location) -> bool:
    """Whether a folder, or one of the first folders in it or in those, has a text beside an image of its name."""
    num_left, level = LISTED_AT_URL if isinstance(path, Url) else LISTED, [path]
    for _ in range(LEVELS):
        deeper = list[Location]()
        for folder in level[:num_left]:
            here = entries(folder)  # one listing tells both
            if _has_sidecars([entry.name for entry in here if entry.is_file and not entry.name.startswith(".")]):
                return True
            folders = [entry.name for entry in here if entry.is_dir and not entry.name.startswith(".")]
            deeper += [folder / name for name in folders[:FOLDERS_LISTED]]
        num_left, level = max(0, num_left - len(level)), deeper
    return False


def _has_sidecars(names: list[str]) -> bool:
    images = {_split_name(name)[0] for name in names if has_image_extension(name)}
    # `1.en.txt` stands beside `1.jpg`, for --text-field en.txt.
    return any(
        not images.isdisjoint({_split_name(name)[0], (split_name(name) or ("",))[0]})
        for name in names
        if is_text_file(name)
    )


def _split_name(name: str, extensions: Collection[str] = ()) -> tuple[str, str]:
    """Name without extension, and extension in lower case: after the last dot, or one with dots that is asked for.

    Unlike in a tar, a dot is part of the name, because names of files are often those of people and versions.

    >>> _split_name("J.Smith.JPG"), _split_name("1.en.txt", ["en.txt", "txt"]), _split_name("1")
    (('J.Smith', 'jpg'), ('1', 'en.txt'), ('1', ''))
    """
    dotted = [extension for extension in extensions if "." in extension and name.lower().endswith(f".{extension}")]
    if dotted:
        extension = max(dotted, key=len)
        return name[: -len(extension) - 1], extension
    stem, dot, extension = name.rpartition(".")
    return (stem, extension.lower()) if dot else (name, "")


def _content(folder: Location, root: Location, entry: Entry) -> bytes:
    """The bytes of a text."""
    file = folder / entry.name
    if not isinstance(file, Path) or not isinstance(root, Path):
        return bytes(file.open().read())  # type: ignore[arg-type]
    try:
        name = file.relative_to(root).as_posix()
        with open_below(root.resolve(), name, max_bytes=MAX_TEXT_BYTES) as opened:
            return opened.read()
    except RejectedImageError as rejected:
        reason = rejected.status.label
        raise CacheError(f"{file}: a text that cannot be read ({reason}): mend it, or move it away") from rejected
