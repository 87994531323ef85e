"""Samples of WebDataset: files of one name, which are told apart by their extensions.

An extension begins at the first dot after which a letter comes, or where a field of that name was asked for. So
`0001.seg.png` has the extension `seg.png`, as in webdataset, but `photo 2.0 (clean).jpg` has `jpg`.
"""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

from ..errors import CacheError
from ..format import SourceInfo
from .image_names import FURTHER_EXTENSIONS, IMAGE_EXTENSIONS
from .tar_index import readable
from .text_files import decode_caption, decode_text, encoding_remedy

MAX_TEXT_BYTES = 2**24  # of a file with texts
IMAGE_FIELD, TEXT_FIELDS = ";".join(IMAGE_EXTENSIONS), ("txt;caption",)
_Member = TypeVar("_Member")


def image_extensions(image_field: str) -> list[str]:
    """Extensions of images, the first of a sample's in this order; the default has further ones at its end."""
    extensions = alternatives(image_field.lower())
    return [*extensions, *FURTHER_EXTENSIONS] if image_field == IMAGE_FIELD else extensions


def alternatives(field: str) -> list[str]:
    """The names that may stand in for each other."""
    return [name for name in field.split(";") if name]


class SampleFields:
    """The fields that are asked for, of samples: a text by its extension, or else a field of the sample's `.json`.

    Attributes:
        by_field: the names that may stand in for each field.
        images: extensions of images.
        needs_all: whether all of a record is needed, to filter by.
    """

    def __init__(self, info: SourceInfo) -> None:
        self._info = info
        fields = [*info.text_fields, *info.teacher_fields, *([info.language_field] if info.language_field else [])]
        self.by_field = {field: alternatives(field) for field in fields}
        self.images = image_extensions(info.image_field)
        self.needs_all = info.where is not None or info.split is not None
        single = {name: [name] for names in self.by_field.values() for name in names} if info.where is not None else {}
        self._of_record = self.by_field | single  # each by itself, for a condition cannot name `txt;caption`

    @property
    def extensions(self) -> set[str]:
        """All extensions that are asked for."""
        return {name.lower() for names in self.by_field.values() for name in names} | {*self.images, "json"}

    def record(self, members: Mapping[str, _Member], read: Callable[[_Member], bytes], where: str) -> dict[str, Any]:
        """The values of all fields asked for, None where absent, and all of the sample's JSON if it is read.

        Args:
            members: of the sample, by extension.
            read: gives the bytes of one.
            where: the sample, for messages.

        Raises:
            CacheError: its JSON is not an object.
        """
        values: dict[str, Any] = {}
        encoding = self._info.encoding
        for field, names in self._of_record.items():
            name = next((name.lower() for name in names if name.lower() in members), None)
            values[field] = decode_caption(read(members[name]), encoding) if name else None
        if "json" not in members or (None not in values.values() and not self.needs_all):
            return values
        content = read(members["json"])
        try:
            record = json.loads(decode_text(content, encoding) or "{}")
        except UnicodeDecodeError as error:
            remedy = encoding_remedy(content, encoding)
            raise CacheError(f"{where}.json is not JSON in {encoding} ({error}): {remedy}") from None
        except (ValueError, RecursionError) as error:
            raise CacheError(f"{where}.json is not JSON in UTF-8 ({error}): mend it, or leave the sample out") from None
        if not isinstance(record, dict):
            raise CacheError(f"{where}.json: expected a JSON object, found {type(record).__name__}")
        for field, names in self._of_record.items():
            if values[field] is None:
                values[field] = next((record[name] for name in names if record.get(name) is not None), None)
        return record | values

    def require_found(self, where: str, unseen: Sequence[str], names: Collection[str]) -> None:
        """Stop early if a field is nowhere in a source.

        Args:
            where: the tar, table or folder, for messages.
            unseen: fields of which nothing was found; "" for images.
            names: found instead.
        """
        for field in unseen:
            flag = {"": "--image-field", **dict.fromkeys(self._info.teacher_fields, "--teacher-field")}
            raise CacheError(
                f"{where}: nowhere in it is any of {field or self._info.image_field!r} "
                f"(found: {', '.join(map(readable, list(names)[:40]))}): pass {flag.get(field, '--text-field')} NAME"
            )
