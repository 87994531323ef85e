"""WebDataset tars. Planning reads headers and texts, and keeps where each image lies.

A tar that has img2dataset's table beside it is planned from that alone; its images are then found by name, in the
process that needs them.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import CacheError
from ..format import SourceInfo, Status
from ..location import Location, Url, to_location
from ..storage.atomic import sha256_file
from .download import DownloadCache
from .records import RecordParser
from .source import Locator, Reader, Source, SourceRow
from .tar_index import Member, Sample, read_bytes, readable, samples
from .tar_reader import BY_NAME, NO_BYTES, TarReader
from .tar_urls import Shard, find_shards

MAX_TEXT_BYTES = 2**24  # of a member with texts
END_BYTES = 2**16  # by which a changed tar is recognised, beside its size; all of it would take as long as the pass


class WebDatasetSource(Source):
    """A folder of tars, one tar, or a pattern of them, on the disk or at a URL.

    `--image-field` and `--text-field` name extensions, several of which may stand in for each other, as in webdataset:
    `jpg;png`. What is no member's extension is a field of the sample's `.json`.
    """

    kind = "webdataset"
    image_field = "jpg;jpeg;png;webp;gif;bmp;tif;tiff;avif;jp2"
    text_fields = ("txt;caption",)

    def __init__(self, info: SourceInfo) -> None:
        super().__init__(info)
        self._root = to_location(info.image_root)
        self._shards = find_shards(info.path, self._root)
        self._files: list[str] = []
        wanted = [*info.text_fields, *info.teacher_fields, *([info.language_field] if info.language_field else [])]
        self._fields = {field: _alternatives(field) for field in wanted}
        self._extensions = _alternatives(info.image_field.lower())
        alone = {name: [name] for names in self._fields.values() for name in names} if info.where is not None else {}
        self._of_record = self._fields | alone  # each by itself, for a condition cannot name `txt;caption`
        self._needs_all = info.where is not None or info.split is not None  # of a record, to choose by

    @classmethod
    def reader(cls, root: Location, files: Sequence[str], info: SourceInfo) -> Reader:
        """Reads byte ranges, or finds images by their names."""
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
        records, line = RecordParser(self.info, has_key=False, left_out=self.left_out), 0
        with _Opener(self._shards) as opener:
            for shard in self._shards:
                self._files.append(shard.name)
                located = self._of_table(shard, opener) if shard.sidecar else None
                for key, record, locator in located or self._of_headers(shard, opener):
                    line += 1
                    name = readable(key)
                    row = records.row(
                        record, line, f"{shard.place}: {name}", key=f"{shard.name}/{name}", locator=locator
                    )
                    if row is not None:
                        yield row

    def sha256(self) -> str:
        """Of names and sizes, and of tables or else both ends of each tar; at a URL of what the store tells of them."""
        digest = hashlib.sha256()
        for shard in self._shards:
            digest.update(f"{shard.name}\n{shard.state}\n{shard.sidecar_state}\n".encode(errors="surrogateescape"))
            if isinstance(shard.sidecar, Path):
                digest.update(sha256_file(shard.sidecar).encode())
            elif isinstance(shard.place, Path):
                digest.update(_ends(shard.place))
        return digest.hexdigest()

    def _of_table(self, shard: Shard, opener: "_Opener") -> "Iterator[_Located] | None":
        """The records of img2dataset's table; None if the table is another's."""
        assert shard.sidecar is not None
        where = str(shard.sidecar)
        with opener.open(shard.sidecar) as file:
            columns = columns_of(file, where)
        if not {KEY, STATUS} <= set(columns):
            return None
        found = {
            field: next((name for name in names if name in columns), None) for field, names in self._fields.items()
        }
        self._require(where, [field for field, name in found.items() if name is None], columns)
        return self._table_records(shard, opener, {field: name for field, name in found.items() if name})

    def _table_records(self, shard: Shard, opener: "_Opener", found: Mapping[str, str]) -> "Iterator[_Located]":
        assert shard.sidecar is not None
        number = len(self._files) - 1
        with opener.open(shard.sidecar) as file:
            columns = columns_of(file, str(shard.sidecar)) if self._needs_all else list(found.values())
            for record in records_of(file, str(shard.sidecar), columns):
                resolved = record | {field: record[name] for field, name in found.items()}
                yield record[KEY], resolved, Locator(number, BY_NAME, 0)

    def _of_headers(self, shard: Shard, opener: "_Opener") -> "Iterator[_Located]":
        """The samples of a tar."""
        number, where = len(self._files) - 1, str(shard.place)
        unseen, extensions = {"": self._extensions} | self._fields, set[str]()
        with opener.open(shard.place) as file:
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
            self._require(where, list(unseen), sorted(extensions))

    def _record(self, sample: Sample, descriptor: int, where: str) -> dict[str, Any]:
        """The values of all wanted fields, None where there is none, and all of the sample's JSON if it is read."""
        found: dict[str, Any] = {}
        for field, names in self._of_record.items():
            name = next((name.lower() for name in names if name.lower() in sample.members), None)
            found[field] = _text(sample.members[name], descriptor, where) if name else None
        described = sample.members.get("json")
        if described is None or (None not in found.values() and not self._needs_all):
            return found
        try:
            record = json.loads(_text(described, descriptor, where) or "{}")
        except (ValueError, RecursionError) as error:
            raise CacheError(f"{where}.json is not JSON in UTF-8 ({error}): mend it, or leave the sample out") from None
        if not isinstance(record, dict):
            raise CacheError(f"{where}.json: expected a JSON object, found {type(record).__name__}")
        for field, names in self._of_record.items():
            if found[field] is None:
                found[field] = next((record[name] for name in names if record.get(name) is not None), None)
        return record | found

    def _require(self, where: str, unseen: Sequence[str], names: Sequence[str]) -> None:
        """Stop early if what is asked for is nowhere in a tar."""
        for field in unseen:
            option = {"": "--image-field", **dict.fromkeys(self.info.teacher_fields, "--teacher-field")}
            wanted = field or self.info.image_field
            raise CacheError(
                f"{where}: nowhere in it is any of {wanted!r} (found: {', '.join(map(readable, names[:40]))}): pass "
                f"{option.get(field, '--text-field')} NAME"
            )


_Located = tuple[str, Mapping[str, Any], Locator]


class _Opener:
    """Opens local files as they are, and those at URLs once they are fetched; the next one is fetched ahead."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        places = [place for shard in shards for place in ((shard.sidecar,) if shard.sidecar else (shard.place,))]
        self._next = dict(pairwise(places))
        self._spool = DownloadCache.create() if any(isinstance(place, Url) for place in places) else None

    def __enter__(self) -> "_Opener":
        return self

    def __exit__(self, *error: object) -> None:
        if self._spool:
            self._spool.close()

    def open(self, place: Location) -> BinaryIO:
        if isinstance(place, Path):
            return open(place, "rb")
        assert self._spool is not None
        file = self._spool.open(place)
        if isinstance(following := self._next.get(place), Url):
            self._spool.fetch_ahead(following)
        return file


def _alternatives(field: str) -> list[str]:
    return [name for name in field.split(";") if name]


def _locator(number: int, image: Member | None) -> Locator:
    if image is None:
        return Locator(number, NO_BYTES, Status.MISSING)
    if not image.is_file:
        return Locator(number, NO_BYTES, Status.UNREADABLE)
    return Locator(number, image.start, image.size)


def _text(member: Member, descriptor: int, where: str) -> str:
    """A member's text; bytes that are no UTF-8 become surrogates, which are dropped as captions and counted."""
    if member.size > MAX_TEXT_BYTES:
        raise CacheError(
            f"{where}: {readable(member.name)!r} has {member.size:,} bytes, a text at most {MAX_TEXT_BYTES:,}"
        )
    return read_bytes(descriptor, member.start, member.size if member.is_file else 0).decode("utf-8", "surrogateescape")


def _ends(tar: Path) -> bytes:
    """The first and last bytes of a tar: who writes it anew changes dates there, at least."""
    with open(tar, "rb") as file:
        first = file.read(END_BYTES)
        file.seek(max(0, file.seek(0, 2) - END_BYTES))
        return first + file.read(END_BYTES)


KEY, STATUS, SUCCESS = "key", "status", "success"
_DAMAGED = (pa.ArrowException, OSError, UnicodeDecodeError)


def columns_of(file: BinaryIO, where: str) -> list[str]:
    """The columns of a table.

    Raises:
        CacheError: it is not readable as Parquet.
    """
    try:
        return list(pq.read_schema(file).names)
    except _DAMAGED as error:
        raise _unreadable(where, error) from error


def records_of(file: BinaryIO, where: str, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The records of the images that img2dataset could download, in order.

    Args:
        file: the table.
        where: its name, for messages.
        columns: those wanted besides the key.

    Raises:
        CacheError: it is not readable as Parquet, or an image has no key.
    """
    try:
        for batch in pq.ParquetFile(file).iter_batches(columns=list({KEY: 0, STATUS: 0} | dict.fromkeys(columns))):
            for record in batch.to_pylist():
                if record[STATUS] == SUCCESS:
                    if not isinstance(record[KEY], str) or not record[KEY]:
                        raise CacheError(f"{where}: {KEY!r} must be the name of an image, found {record[KEY]!r}")
                    yield record
    except _DAMAGED as error:
        raise _unreadable(where, error) from error
    except (ValueError, OverflowError) as error:  # Python's dates end with the year 9999, and have no nanoseconds
        raise CacheError(
            f"{where}: a value that cannot be read ({error}): cast its column, or leave it out of the table"
        ) from error


def _unreadable(where: str, error: Exception) -> CacheError:
    return CacheError(
        f"{where} is not readable as Parquet ({error}): fetch it again, or delete it: its tar is then read instead"
    )
