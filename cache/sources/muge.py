"""Folders of Chinese-CLIP and MUGE: images in base64 in a TSV, captions in JSON lines beside it.

`train_imgs.tsv` has `id<TAB>base64` lines; `train_texts.jsonl` has `{"text": …, "image_ids": […]}` or
`{"text": […], "image_id": …}` lines (https://github.com/OFA-Sys/Chinese-CLIP, "Data Preparation").
"""

import base64
import binascii
import hashlib
import mmap
from array import array
from codecs import BOM_UTF8
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..errors import CacheError
from ..format import RejectedImageError, SourceInfo, Status
from ..location import Location, entries, to_location
from ..storage.atomic import sha256_file
from .download import SourceFiles, local_file
from .image_root import MAX_FILE_BYTES, name_below
from .jsonl import blocks, records
from .reader import Locator, Reader
from .records import RecordParser, choose_split, is_unicode
from .source import Source, SourceRow

IMAGES, TEXTS = "_imgs.tsv", "_texts.jsonl"
IDS = ("image_ids", "image_id")
ABSENT = -1  # the size of an image that the TSV does not have
FROM_URLSAFE, BLANKS = bytes.maketrans(b"-_", b"+/"), b" \t\r\v\f"
SAMPLES, SAMPLE_BYTES = 256, 4096


class MugeSource(Source):
    """Texts and images of one split: images in the order in which texts name them, then those without text.

    With a condition, images without text are left out.
    """

    kind = "muge"
    begins_at_once = False
    image_field: ClassVar[str] = ""

    def rows(self) -> Iterator[SourceRow]:
        """Every text with each of its images. An image that the TSV lacks is missing.

        Raises:
            CacheError: a line is not as promised.
        """
        images, texts = self._paths()
        line, index = 0, ImageIndex.scan(local_file(str(images)), str(images))
        with_text: set[str] = set()
        self.left_out.clear()
        info = replace(self.info, split=None)  # splits are files here
        parser = RecordParser(info, has_key=False, left_out=self.left_out)
        for block in blocks(local_file(str(texts)), str(texts), self.info.encoding):
            for number, record in records(texts, block):
                where = f"{texts}:{number}"
                row = parser.row(record, number, where)
                for key in _keys(record, where):
                    line += 1
                    with_text.add(key)
                    if row:
                        yield row._replace(line=line, key=key, locator=index.locator(key))
        for key in index:
            if key in with_text:
                continue
            if self.info.where is not None:  # an absent record fulfils no condition
                self.left_out["--where"] += 1
            else:
                line += 1
                yield SourceRow(line, key, (), locator=index.locator(key))

    def files(self) -> list[str]:
        """The TSV."""
        return [name_below(to_location(self.info.image_root), self._paths()[0])]

    def sha256(self) -> str:
        """Digest of the texts, and of the size and evenly spaced samples of the TSV."""
        images, texts = self._paths()
        digests = f"{_sample_digest(local_file(str(images)))} {sha256_file(local_file(str(texts)))}"
        return hashlib.sha256(f"{images.name} {digests}".encode()).hexdigest()

    @classmethod
    def reader(cls, root: Location, files: Sequence[str], info: SourceInfo) -> Reader:
        """The reader of base64 by its place."""
        return Base64Reader(SourceFiles(root, files))

    def _paths(self) -> tuple[Location, Location]:
        folder = to_location(self.info.path)
        names = [entry.name for entry in entries(folder)]
        splits = [name.removesuffix(IMAGES) for name in names if name.endswith(IMAGES)]
        split = choose_split(splits, self.info.split, folder) if splits else ""
        images, texts = folder / f"{split}{IMAGES}", folder / f"{split}{TEXTS}"
        for path in (images, texts):
            if not path.is_file():
                raise CacheError(f"{path}: no such file: images and texts of a split lie side by side")
        return images, texts


def holds_muge(path: Location) -> bool:
    """Whether a folder has images in base64 as Chinese-CLIP does."""
    return any(entry.name.endswith(IMAGES) for entry in entries(path))


class ImageIndex:
    """Index of a TSV: the place of each image, by its id; some 150 bytes an image. Of a repeated id, the first."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._starts, self._sizes = array("q"), array("q")

    @classmethod
    def scan(cls, path: Path, name: str) -> "ImageIndex":
        """Find the line breaks and tabs of a file, which is mapped, not read into memory.

        Args:
            path: of the file.
            name: of the file, for messages.

        Raises:
            CacheError: a line without tab, or an id that is not UTF-8.
        """
        index = cls()
        if not path.stat().st_size:
            return index
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            start, number = len(BOM_UTF8) if content[: len(BOM_UTF8)] == BOM_UTF8 else 0, 0
            while start < len(content):
                number += 1
                end = content.find(b"\n", start)
                end = len(content) if end < 0 else end
                following = end + 1
                if content[end - 1 : end] == b"\r":
                    end -= 1
                if end > start:
                    tab = content.find(b"\t", start, end)
                    key = (
                        content[start : max(tab, start)].decode(errors="surrogateescape") if tab - start < 4096 else ""
                    )
                    if not key or not is_unicode(key):
                        raise CacheError(
                            f"{name}:{number}: expected an id, a tab and base64, found {content[start : start + 40]!r}"
                        )
                    if key not in index._numbers:
                        index._numbers[key] = len(index._numbers)
                        index._starts.append(tab + 1)
                        index._sizes.append(end - tab - 1)
                start = following
        return index

    def __iter__(self) -> Iterator[str]:
        return iter(self._numbers)

    def locator(self, key: str) -> Locator:
        """The place of an image."""
        i = self._numbers.get(key)
        return Locator(0, 0, ABSENT) if i is None else Locator(0, self._starts[i], self._sizes[i])


class Base64Reader(Reader):
    """Reads images from lines of base64, in the standard or the URL-safe alphabet, whatever blanks it has."""

    def __init__(self, files: SourceFiles) -> None:
        self._files = files

    def read(self, keys: Sequence[str], locators: NDArray[np.int64] | None) -> Iterator[bytes | Status]:
        """The images; an image that is not base64 is damaged."""
        assert locators is not None
        for file, start, size in locators.tolist():
            if size == ABSENT:
                yield Status.MISSING
            elif size > MAX_FILE_BYTES:
                yield Status.TOO_LARGE
            else:
                yield self._decoded(file, start, size)

    def _decoded(self, file: int, start: int, size: int) -> bytes | Status:
        try:
            with self._files.open(file) as lines:
                lines.seek(start)
                encoded = lines.read(size)
            return base64.b64decode(encoded.translate(FROM_URLSAFE, BLANKS), validate=True)
        except RejectedImageError as rejected:
            return rejected.status
        except binascii.Error:
            return Status.DAMAGED
        except OSError:
            return Status.UNREADABLE


def _sample_digest(path: Path) -> str:
    """Digest of a file's size and of evenly spaced samples, which cover a small file."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with open(path, "rb") as file:
        for i in range(SAMPLES):
            file.seek(max(0, size - SAMPLE_BYTES) * i // (SAMPLES - 1))
            digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()


def _keys(record: dict[str, Any], where: str) -> list[str]:
    """The ids of the images that a text belongs to: in MUGE none for the texts of the test split."""
    field = next((name for name in IDS if name in record), None)
    if field is None:
        raise CacheError(f"{where}: no field {' or '.join(map(repr, IDS))} (found: {', '.join(map(str, record))})")
    value = record[field]
    ids = value if isinstance(value, list) else [value]
    if not all(_is_id(key) for key in ids):
        raise CacheError(f"{where}: {field!r} must be the id of an image, or a list of them, found {value!r:.100}")
    return list(dict.fromkeys(map(str, ids)))  # a text belongs once to an image that it names twice


def _is_id(key: object) -> bool:
    return isinstance(key, int | str) and not isinstance(key, bool) and key != "" and is_unicode(str(key))
