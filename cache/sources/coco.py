"""COCO's captions, and datasets of the same form (STAIR, COCO-CN): one JSON file of images and annotations.

The file is held in memory while the cache is planned.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from ..errors import CacheError
from ..storage.atomic import sha256_file
from .download import local_file
from .records import RecordParser, is_unicode
from .source import Source, SourceRow
from .text_files import encoding_remedy, open_utf8


class CocoSource(Source):
    """`images` with `id` and `file_name`, `annotations` with `image_id` and `caption`."""

    kind = "coco"
    begins_at_once = False
    image_field: ClassVar[str] = "file_name"
    text_fields: ClassVar[tuple[str, ...]] = ("caption",)

    def rows(self) -> Iterator[SourceRow]:
        """Each annotation of each image, in the order of the images.

        An image without annotation is a row, too, unless there is a condition.

        Raises:
            CacheError: the file does not have COCO's form.
        """
        path = self.info.path
        if self.info.split is not None:
            raise CacheError(f"{path}: one file is one split: leave out --split {self.info.split}")
        images, annotations = self._read(local_file(path), path, self.info.encoding)
        self.left_out.clear()
        parser, line = RecordParser(self.info, has_key=False, left_out=self.left_out), 0
        by_image = defaultdict(list)
        for i, annotation in enumerate(annotations):
            by_image[_field(annotation, "image_id", f"{path}: annotations[{i}]")].append((i, annotation))
        first_with_id: dict[int | str, int] = {}
        for i, image in enumerate(images):
            key = _field(image, self.info.image_field, f"{path}: images[{i}]", "; pass --image-field NAME")
            if not isinstance(key, str) or not key or not is_unicode(key):
                raise CacheError(f"{path}: images[{i}]: {self.info.image_field!r} must be a path, found {key!r:.100}")
            image_id = _field(image, "id", f"{path}: images[{i}]")
            if first_with_id.setdefault(image_id, i) != i:
                raise CacheError(
                    f"{path}: images[{i}] has the id {image_id!r} of images[{first_with_id[image_id]}]: give each its "
                    "own, or leave one out"
                )
            captions = by_image.pop(image_id, [])
            if not captions and self.info.where is not None:  # an absent record fulfils no condition
                self.left_out["--where"] += 1
            elif not captions:
                line += 1
                yield SourceRow(line, key, ())
            for number, annotation in captions:
                line += 1
                if row := parser.row(annotation, line, f"{path}: annotations[{number}]", key=key):
                    yield row
        if by_image:
            (number, _), *_ = next(iter(by_image.values()))
            raise CacheError(f"{path}: annotations[{number}] is of an image that is not among the images")

    def sha256(self) -> str:
        """Digest of the file's bytes."""
        return sha256_file(local_file(self.info.path))

    @staticmethod
    def _read(path: Path, name: str, encoding: str) -> tuple[list[Any], list[Any]]:
        try:
            with open_utf8(path, name, encoding) as file:
                content = json.loads((raw := file.read()).decode())
        except UnicodeDecodeError as error:
            raise CacheError(f"{name}: not readable as JSON in UTF-8 ({error}): {encoding_remedy(raw)}") from None
        except (OSError, ValueError, RecursionError) as error:
            is_jsonl = "Extra data: line 2" in str(error)  # of JSON that ends with the first line
            remedy = "it looks like a record a line: name it .jsonl" if is_jsonl else "export or fetch it again"
            raise CacheError(f"{name}: not readable as JSON in UTF-8 ({error}): {remedy}") from None
        images, annotations = (
            (content.get("images"), content.get("annotations")) if isinstance(content, dict) else (None, None)
        )
        if not isinstance(images, list) or not isinstance(annotations, list):
            keys = ", ".join(map(str, list(content)[:8])) if isinstance(content, dict) else type(content).__name__
            raise CacheError(f"{name}: expected lists 'images' and 'annotations' as in COCO, found {keys}")
        return images, annotations


def _field(record: Any, name: str, where: str, remedy: str = "") -> Any:
    if not isinstance(record, Mapping):
        raise CacheError(f"{where}: expected a JSON object, found {type(record).__name__}")
    if name not in record:
        raise CacheError(f"{where}: no field {name!r} (found: {', '.join(map(str, record))}){remedy}")
    value = record[name]
    if not isinstance(value, int | str):
        raise CacheError(f"{where}: {name!r} must be a number or a text, found {value!r:.100}")
    return value
