"""Folders of images with texts beside them, as `0.jpg` and `0.txt`: a WebDataset that was unpacked.

img2dataset writes them with `output_format="files"`, as do downloaders and tools that describe images.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

from ..errors import CacheError
from ..format import RejectedImageError
from ..location import Entry, Location, entries, to_location
from .folder_walk import files_by_folder, is_image_file, kind_of_file, visible
from .image_names import has_image_extension
from .image_root import open_below
from .records import RecordParser, choose_split
from .samples import IMAGE_FIELD, MAX_TEXT_BYTES, TEXT_FIELDS, SampleFields
from .source import Source, SourceRow
from .tar_index import split_name

TEXTS = (".txt", ".caption")
SPLITS = frozenset({"train", "test", "val", "valid", "validation", "dev"})
FOLDERS_LISTED = 20  # in search of a text beside an image


class SidecarSample(NamedTuple):
    """Files of one name in a folder.

    Attributes:
        folder: that holds them.
        key: their path without extension, relative to the source.
        members: the files, by extension in lower case.
    """

    folder: Location
    key: str
    members: dict[str, Entry]


class SidecarSource(Source):
    """Images of a folder and of all folders below it, each with the texts that have its name.

    `--image-field` and `--text-field` name extensions, as of a WebDataset.
    """

    kind = "sidecars"
    image_field = IMAGE_FIELD
    text_fields = TEXT_FIELDS

    def rows(self) -> Iterator[SourceRow]:
        """Every image, also one without a text. Texts without an image are left out and counted.

        Raises:
            CacheError: a text is not as promised, or nothing has a text.
        """
        self.left_out.clear()
        root, fields, found, line = to_location(self.info.image_root), SampleFields(self.info), set[str](), 0
        info = replace(self.info, split=None)  # splits are folders here
        parser, unseen = RecordParser(info, has_key=False, left_out=self.left_out), dict(fields.by_field)
        for sample in self._samples(fields):
            image = self._image(sample, fields, root)
            if image is None:
                self._pass_over(sample)
                continue
            found |= sample.members.keys()
            where = f"{sample.folder}/{image}"
            record = fields.record(sample.members, partial(_content, sample.folder, root), where)
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
            digest.update(f"{sample.key}\0{sorted(sample.members)}\0".encode())
            for extension in sorted(texts & sample.members.keys()):
                content = _content(sample.folder, root, sample.members[extension])
                digest.update(hashlib.sha256(content).digest())
        return digest.hexdigest()

    def _samples(self, fields: SampleFields) -> Iterator[SidecarSample]:
        """Every sample, folder by folder, in the order of their names."""
        top, root = to_location(self.info.path), to_location(self.info.image_root)
        folders = [entry.name for entry in visible(top, folders=True)]
        splits = SPLITS.intersection(folders)
        if self.info.split is not None or len(splits) > 1:
            top = top / choose_split(splits or folders, self.info.split, top)
        for inside, files in files_by_folder(top, root):
            by_key: dict[str, dict[str, Entry]] = {}
            for file in files:
                key, extension = split_name(file.name, fields.extensions) or (file.name, "")
                by_key.setdefault(key, {}).setdefault(extension, file)
            folder = to_location(f"{top}/{inside}".rstrip("/"))
            for key, members in sorted(by_key.items()):
                yield SidecarSample(folder, f"{inside}{key}", members)

    @staticmethod
    def _image(sample: SidecarSample, fields: SampleFields, root: Location) -> str | None:
        """Name of the image of a sample: by its extension, or else by its first bytes; None if it has none."""
        known = [sample.members[extension].name for extension in fields.images if extension in sample.members]
        others = (entry for extension, entry in sample.members.items() if extension not in fields.extensions)
        by_content = (entry.name for entry in others if is_image_file(sample.folder, entry, root))
        return next(chain(known, by_content), None)

    def _pass_over(self, sample: SidecarSample) -> None:
        for entry in sample.members.values():
            what = "texts without an image" if entry.name.lower().endswith(TEXTS) else "files of other kinds"
            self.left_out[f"{what} ({kind_of_file(entry.name)})"] += 1


def holds_sidecars(path: Location) -> bool:
    """Whether a folder, or one of the first folders in it or in those, has a text beside an image of its name."""
    folders = [path / entry.name for entry in islice(visible(path, folders=True), FOLDERS_LISTED)]
    deeper = (
        folder / entry.name for folder in folders for entry in islice(visible(folder, folders=True), FOLDERS_LISTED)
    )
    return any(map(_has_sidecars, chain([path], folders, deeper)))


def _has_sidecars(folder: Location) -> bool:
    names = [entry.name for entry in entries(folder) if entry.is_file and not entry.name.startswith(".")]
    images = {(split_name(name) or (name,))[0] for name in names if has_image_extension(name)}
    texts = (name for name in names if name.lower().endswith(TEXTS))
    return any((split_name(name) or (name,))[0] in images for name in texts)


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
