"""WebDataset tars. Planning reads headers and texts, and keeps the place of each image.

A tar that has img2dataset's table beside it is planned from that alone; its images are then found by name, in the
process that needs them.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
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
from .samples import IMAGE_FIELD, MAX_TEXT_BYTES, TEXT_FIELDS, SampleFields, image_extensions
from .source import Source, SourceRow
from .tar_index import Member, read_bytes, readable, samples
from .tar_reader import BY_NAME, NO_BYTES, TarReader
from .tar_shards import TarShard, find_shards

END_BYTES = 2**16  # by which a changed tar is recognised, beside its size; all of it would take as long as the pass
_Record = tuple[str, Mapping[str, Any], Locator]  # key in the tar, fields, place of the image


class WebDatasetSource(Source):
    """A folder of tars, one tar, or a pattern of them, on the disk or at a URL.

    `--image-field` and `--text-field` name extensions, several of which may stand in for each other, as in webdataset:
    `jpg;png`. Where no member has such an extension, the name is a field of the sample's `.json`.
    """

    kind = "webdataset"
    image_field = IMAGE_FIELD
    text_fields = TEXT_FIELDS

    def __init__(self, info: SourceInfo) -> None:
        super().__init__(info)
        self._shards = find_shards(info.path, to_location(info.image_root))
        self._files: list[str] = []
        self._fields = SampleFields(info)

    @classmethod
    def reader(cls, root: Location, files: Sequence[str], info: SourceInfo) -> Reader:
        """The reader of byte ranges; it finds images by their names where their places are not known."""
        return TarReader(root, files, image_extensions(info.image_field))

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
            field: next((name for name in names if name in columns), None)
            for field, names in self._fields.by_field.items()
        }
        self._fields.require_found(where, [field for field, name in column_of.items() if name is None], columns)
        return self._read_table(shard, opener, {field: name for field, name in column_of.items() if name})

    def _read_table(self, shard: TarShard, opener: "_Opener", column_of: Mapping[str, str]) -> Iterator[_Record]:
        assert shard.sidecar is not None
        number = len(self._files) - 1
        with opener.open(shard.sidecar) as file:
            columns = columns_of(file, str(shard.sidecar)) if self._fields.needs_all else list(column_of.values())
            for record in records_of(file, str(shard.sidecar), columns):
                values = record | {field: record[name] for field, name in column_of.items()}
                yield record[KEY], values, Locator(number, BY_NAME, 0)

    def _header_records(self, shard: TarShard, opener: "_Opener") -> Iterator[_Record]:
        """The samples of a tar."""
        number, where = len(self._files) - 1, str(shard.location)
        fields, extensions = self._fields, set[str]()
        unseen = {"": fields.images} | fields.by_field
        with opener.open(shard.location) as file:
            for sample in samples(file.fileno(), where, fields.extensions):
                extensions.update(sample.members)
                name = f"{where}: {readable(sample.key)}"
                record = fields.record(sample.members, partial(_content, descriptor=file.fileno(), where=where), name)
                image = next((sample.members[name] for name in fields.images if name in sample.members), None)
                if image:
                    unseen.pop("", None)
                for field in [field for field in unseen if record.get(field) is not None]:
                    del unseen[field]
                yield sample.key, record, _locator(number, image)
        if extensions:
            fields.require_found(where, list(unseen), sorted(extensions))


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
