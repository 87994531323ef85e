"""WebDataset tars. Planning reads headers and texts, and keeps the place of each image.

A tar that has img2dataset's table beside it is planned from that alone; its images are then found by name, in the
process that needs them.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import CacheError
from ..format import SourceInfo, Status
from ..location import Location, Url, to_location
from ..storage.atomic import sha256_file
from .download import DownloadCache
from .img2dataset import KEY, STATUS, columns_of, records_of
from .reader import Locator, Reader
from .records import RecordParser
from .source import Source, SourceRow
from .tar_index import Member, Sample, read_bytes, readable, samples
from .tar_reader import BY_NAME, NO_BYTES, TarReader
from .tar_shards import TarShard, find_shards
from .text_files import decode_caption, decode_text, encoding_remedy

MAX_TEXT_BYTES = 2**24  # of a member with texts
END_BYTES = 2**16  # by which a changed tar is recognised, beside its size; all of it would take as long as the pass
_Record = tuple[str, Mapping[str, Any], Locator]  # key in the tar, fields, place of the image


class WebDatasetSource(Source):
    """A folder of tars, one tar, or a pattern of them, on the disk or at a URL.

    `--image-field` and `--text-field` name extensions, several of which may stand in for each other, as in webdataset:
    `jpg;png`. Where no member has such an extension, the name is a field of the sample's `.json`.
    """

    kind = "webdataset"
    image_field = "jpg;jpeg;png;webp;gif;bmp;tif;tiff;avif;jp2"
    text_fields = ("txt;caption",)

    def __init__(self, info: SourceInfo) -> None:
        super().__init__(info)
        self._shards = find_shards(info.path, to_location(info.image_root))
        self._files: list[str] = []
        fields = [*info.text_fields, *info.teacher_fields, *([info.language_field] if info.language_field else [])]
        self._fields = {field: _alternatives(field) for field in fields}
        self._extensions = _alternatives(info.image_field.lower())
        single = {name: [name] for names in self._fields.values() for name in names} if info.where is not None else {}
        self._of_record = self._fields | single  # each by itself, for a condition cannot name `txt;caption`
        self._needs_all = info.where is not None or info.split is not None  # of a record, to filter by

    @classmethod
    def reader(cls, root: Location, files: Sequence[str], info: SourceInfo) -> Reader:
        """The reader of byte ranges; it finds images by their names where their places are not known."""
        return TarReader(root, files, _alternatives(info.image_field.lower()))

    def files(self) -> list[str]:
        """The tars, below the image root."""
        return list(self._files)

    def rows(self) -> Iterator[SourceRow]:
        """Every sample of every tar.

        Raises:
            CacheError: a tar or a table is damaged, a text is not as promised, or nothing has images or texts.
        """
        self._files = []
        self.left_out.clear()
        parser, line = RecordParser(self.info, has_key=False, left_out=self.left_out), 0
        with _Opener(self._shards) as opener:
            for shard in self._shards:
                self._files.append(shard.name)
                from_table = self._table_records(shard, opener) if shard.sidecar else None
                for key, record, locator in from_table or self._header_records(shard, opener):
                    line += 1
                    name = readable(key)
                    row = parser.row(
                        record, line, f"{shard.location}: {name}", key=f"{shard.name}/{name}", locator=locator
                    )
                    if row is not None:
                        yield row

    def sha256(self) -> str:
        """Digest of names and sizes, and of tables or else both ends of each tar; at a URL, of names and states."""
        digest = hashlib.sha256()
        for shard in self._shards:
            digest.update(f"{shard.name}\n{shard.state}\n{shard.sidecar_state}\n".encode(errors="surrogateescape"))
            if isinstance(shard.sidecar, Path):
                digest.update(sha256_file(shard.sidecar).encode())
            elif isinstance(shard.location, Path):
                digest.update(_ends(shard.location))
        return digest.hexdigest()

    def _table_records(self, shard: TarShard, opener: "_Opener") -> Iterator[_Record] | None:
        """The records of img2dataset's table; None if the table is another's."""
        assert shard.sidecar is not None
        where = str(shard.sidecar)
        with opener.open(shard.sidecar) as file:
            columns = columns_of(file, where)
        if not {KEY, STATUS} <= set(columns):
            return None
        column_of = {
            field: next((name for name in names if name in columns), None) for field, names in self._fields.items()
        }
        self._require_found(where, [field for field, name in column_of.items() if name is None], columns)
        return self._read_table(shard, opener, {field: name for field, name in column_of.items() if name})

    def _read_table(self, shard: TarShard, opener: "_Opener", column_of: Mapping[str, str]) -> Iterator[_Record]:
        assert shard.sidecar is not None
        number = len(self._files) - 1
        with opener.open(shard.sidecar) as file:
            columns = columns_of(file, str(shard.sidecar)) if self._needs_all else list(column_of.values())
            for record in records_of(file, str(shard.sidecar), columns):
                values = record | {field: record[name] for field, name in column_of.items()}
                yield record[KEY], values, Locator(number, BY_NAME, 0)

    def _header_records(self, shard: TarShard, opener: "_Opener") -> Iterator[_Record]:
        """The samples of a tar."""
        number, where = len(self._files) - 1, str(shard.location)
        unseen, extensions = {"": self._extensions} | self._fields, set[str]()
        with opener.open(shard.location) as file:
            for sample in samples(file.fileno(), where):
                extensions.update(sample.members)
                record = self._record(sample, file.fileno(), f"{where}: {readable(sample.key)}")
                image = next((sample.members[name] for name in self._extensions if name in sample.members), None)
                if image:
                    unseen.pop("", None)
                for field in [field for field in unseen if record.get(field) is not None]:
                    del unseen[field]
                yield sample.key, record, _locator(number, image)
        if extensions:
            self._require_found(where, list(unseen), sorted(extensions))

    def _record(self, sample: Sample, descriptor: int, where: str) -> dict[str, Any]:
        """The values of all fields asked for, None where absent, and all of the sample's JSON if it is read."""
        values: dict[str, Any] = {}
        encoding = self.info.encoding
        for field, names in self._of_record.items():
            name = next((name.lower() for name in names if name.lower() in sample.members), None)
            values[field] = (
                decode_caption(_content(sample.members[name], descriptor, where), encoding) if name else None
            )
        json_member = sample.members.get("json")
        if json_member is None or (None not in values.values() and not self._needs_all):
            return values
        content = _content(json_member, descriptor, where)
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

    def _require_found(self, where: str, unseen: Sequence[str], names: Sequence[str]) -> None:
        """Stop early if a field is nowhere in a tar.

        Args:
            where: the tar or table, for messages.
            unseen: fields of which nothing was found; "" for images.
            names: found instead.
        """
        for field in unseen:
            flag = {"": "--image-field", **dict.fromkeys(self.info.teacher_fields, "--teacher-field")}
            raise CacheError(
                f"{where}: nowhere in it is any of {field or self.info.image_field!r} "
                f"(found: {', '.join(map(readable, names[:40]))}): pass {flag.get(field, '--text-field')} NAME"
            )


class _Opener:
    """Opens local files where they lie, and those at URLs once they are downloaded, the next one ahead."""

    def __init__(self, shards: Sequence[TarShard]) -> None:
        locations = [shard.sidecar or shard.location for shard in shards]
        self._next = dict(pairwise(locations))
        self._downloads = DownloadCache.create() if any(isinstance(each, Url) for each in locations) else None

    def __enter__(self) -> "_Opener":
        return self

    def __exit__(self, *error: object) -> None:
        if self._downloads:
            self._downloads.close()

    def open(self, location: Location) -> BinaryIO:
        if isinstance(location, Path):
            return open(location, "rb")
        assert self._downloads is not None
        file = self._downloads.open(location)
        if isinstance(following := self._next.get(location), Url):
            self._downloads.prefetch(following)
        return file


def _alternatives(field: str) -> list[str]:
    return [name for name in field.split(";") if name]


def _locator(number: int, image: Member | None) -> Locator:
    if image is None:
        return Locator(number, NO_BYTES, Status.MISSING)
    if not image.is_file:
        return Locator(number, NO_BYTES, Status.UNREADABLE)
    return Locator(number, image.start, image.size)


def _content(member: Member, descriptor: int, where: str) -> bytes:
    """The bytes of a member with text."""
    if member.size > MAX_TEXT_BYTES:
        raise CacheError(
            f"{where}: {readable(member.name)!r} has {member.size:,} bytes, a text at most {MAX_TEXT_BYTES:,}"
        )
    return read_bytes(descriptor, member.start, member.size if member.is_file else 0)


def _ends(tar: Path) -> bytes:
    """The first and last bytes of a tar: a tar that is written anew has other dates there, at least."""
    with open(tar, "rb") as file:
        first = file.read(END_BYTES)
        file.seek(max(0, file.seek(0, 2) - END_BYTES))
        return first + file.read(END_BYTES)
