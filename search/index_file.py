"""Index file: an inverted file (IVF) of coded rows as faiss reads it, and behind it what clipglot knows about it.

::

    faiss     header, centroids [L, D] float32, sizes of the L lists, and of each list its codes and rows
    ours      the coding (`codings.py`), `IndexInfo` as JSON
    end       bytes of the faiss part and of the JSON, crc32c of the JSON, MAGIC

faiss believes the bytes that it reads, so it gets none before they are known to be of this form: the header is compared
byte for byte with the one that dimension, lists and rows ask for, the sizes must add up to the size of the file, and
all of it must match its checksums. Then every read of faiss lies inside the file.
"""

import json
import mmap
import os
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from ..cache.storage.regular import open_regular
from ..cache.typed import require_types
from .codings import CODINGS, INNER_PRODUCT, Coding
from .errors import SearchError

FORMAT_VERSION = 1
MAGIC = b"clipgidx"
END = struct.Struct("<QQI8s")
PART_BYTES = 64 * 2**20  # that have one checksum
READ_THREADS = 4
MAX_JSON_BYTES = 16 * 2**20
MAX_DIM, MAX_LISTS = 2**16, 2**20


@dataclass(frozen=True, kw_only=True)
class IndexInfo:
    """What an index file says about itself.

    Attributes:
        kind: of index.
        cache: identity of the embeddings, see `embedding_identity`.
        num_images: N, of the cache.
        num_rows: images in the index, those that were embedded.
        dim: D.
        num_lists: L.
        num_probes: lists that a search reads.
        depth: of each ten images to find, rows that are scored again with the cache's own embeddings.
        target: recall@10 that the two were chosen for.
        recall: recall@10 against exact search, of queries that the two were not chosen by.
        num_queries: of these.
        queries: what they are: "captions", "translations" or "texts".
        checksums: crc32c of each 64 MiB of what lies before this in the file.
        format_version: of the file.
    """

    kind: str
    cache: str
    num_images: int
    num_rows: int
    dim: int
    num_lists: int
    num_probes: int
    depth: int
    target: float
    recall: float
    num_queries: int
    queries: str
    checksums: list[int]
    format_version: int = FORMAT_VERSION


def faiss_header(coding: type[Coding], dim: int, num_rows: int, num_lists: int) -> tuple[bytes, bytes]:
    """The bytes before the centroids, and those between them and the sizes of the lists.

    Those of an `IndexIVFScalarQuantizer` or `IndexIVFRaBitQ` with an `IndexFlatIP`, as faiss stores them.

    Args:
        coding: of the rows.
        dim: D.
        num_rows: of all lists.
        num_lists: L.
    """

    def index(num: int) -> bytes:
        return struct.pack("<iqqq?i", dim, num, 2**20, 2**20, True, INNER_PRODUCT)

    probes, no_map = 1, struct.pack("<bQ", 0, 0)
    before = coding.four_letters + index(num_rows) + struct.pack("<QQ", num_lists, probes)
    before += b"IxFI" + index(num_lists) + struct.pack("<Q", num_lists * dim)
    behind = no_map + coding.faiss_fields(dim)
    behind += b"ilar" + struct.pack("<QQ", num_lists, coding.code_bytes(dim)) + b"full" + struct.pack("<Q", num_lists)
    return before, behind


class IndexWriter:
    """A new index file, whose lists are filled in any order. L lists, D features."""

    def __init__(
        self, path: Path, coding: type[Coding], centroids: NDArray[np.float32], sizes: NDArray[np.int64]
    ) -> None:
        """Write all but the rows.

        Args:
            path: empty file.
            coding: of the rows.
            centroids: `[L, D]`, in the space of the codes.
            sizes: `[L]`, rows of each list.
        """
        dim = centroids.shape[1]
        self._code_bytes = coding.code_bytes(dim)
        before, behind = faiss_header(coding, dim, int(sizes.sum()), len(sizes))
        head = b"".join((before, centroids.astype("<f4").tobytes(), behind, sizes.astype("<u8").tobytes()))
        row_bytes = self._code_bytes + 8
        self._starts = len(head) + np.concatenate([[0], np.cumsum(sizes)[:-1]]) * row_bytes
        self._sizes, self._filled = sizes, np.zeros(len(sizes), np.int64)
        self.faiss_bytes = len(head) + int(sizes.sum()) * row_bytes
        with open(path, "r+b") as file:
            # Allocated before it is mapped: to write to a mapped file on a full disk would end the process.
            os.posix_fallocate(file.fileno(), 0, self.faiss_bytes)
            self._map = mmap.mmap(file.fileno(), self.faiss_bytes)
        self._map[: len(head)] = head

    def add(self, lists: NDArray[np.int64], codes: NDArray[np.uint8], rows: NDArray[np.int64]) -> None:
        """Add rows to their lists.

        Args:
            lists: `[n]`, of each row.
            codes: `[n, code_bytes]`.
            rows: `[n]`, of the cache.
        """
        order, size = np.argsort(lists, kind="stable"), self._code_bytes
        stored = codes[order].tobytes()
        named = rows[order].astype("<i8").tobytes()
        present, firsts = np.unique(lists[order], return_index=True)
        ends = [*firsts[1:].tolist(), len(rows)]
        for each, first, end in zip(present.tolist(), firsts.tolist(), ends, strict=True):
            start, done = int(self._starts[each]), int(self._filled[each])
            at = start + done * size
            self._map[at : at + (end - first) * size] = stored[first * size : end * size]
            at = start + int(self._sizes[each]) * size + done * 8
            self._map[at : at + (end - first) * 8] = named[first * 8 : end * 8]
            self._filled[each] += end - first

    def __enter__(self) -> "IndexWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        assert kind or (self._filled == self._sizes).all()
        self._map.close()


def seal_index(path: Path, coding: Coding, info: Callable[[list[int]], IndexInfo]) -> IndexInfo:
    """Write what lies behind the part of faiss.

    Args:
        path: that `IndexWriter` wrote.
        coding: of the rows.
        info: takes the checksums.
    """
    faiss_bytes = path.stat().st_size
    with open(path, "ab") as file:
        file.write(coding.content())
    with open(path, "rb") as read:
        sealed = info(list(_checksums(read.fileno(), path.stat().st_size)))
    text = json.dumps(asdict(sealed)).encode()
    with open(path, "ab") as file:
        file.write(text + END.pack(faiss_bytes, len(text), google_crc32c.value(text), MAGIC))
    return sealed


@dataclass(frozen=True)
class OpenedFile:
    """An index file that was checked.

    Attributes:
        info: what it says about itself.
        coding: of its rows.
    """

    info: IndexInfo
    coding: Coding


def read_index_file(path: Path) -> OpenedFile:
    """Check an index file whole, so that faiss can read it.

    Raises:
        SearchError: no index file, a damaged one, or one of another version; says what to do.
    """
    again = "build it again with `clipglot index`"
    try:
        descriptor = open_regular(path)
    except FileNotFoundError:
        raise SearchError(f"{path}: no such index: build it with `clipglot index CACHE -o {path}`") from None
    except OSError as error:
        raise SearchError(
            f"{path} is no index ({error.strerror or error}): pass a file that `clipglot index` wrote"
        ) from error
    try:
        size = os.fstat(descriptor).st_size
        end = os.pread(descriptor, END.size, max(0, size - END.size))
        if len(end) < END.size or end[-len(MAGIC) :] != MAGIC:
            raise SearchError(
                f"{path} is no index, or is cut off at its end: pass a file that `clipglot index` wrote, or {again}"
            )
        return _checked(descriptor, size, *END.unpack(end)[:3])
    except (ValueError, TypeError, KeyError, OverflowError, OSError, RecursionError) as error:
        raise SearchError(f"{path} is damaged ({error}): {again}") from error
    finally:
        os.close(descriptor)


def _checked(descriptor: int, size: int, faiss_bytes: int, json_bytes: int, json_crc: int) -> OpenedFile:
    """What a file of `size` bytes holds.

    Raises:
        ValueError: says what is wrong.
    """
    json_start = size - END.size - json_bytes
    if json_bytes > MAX_JSON_BYTES or not 0 <= faiss_bytes <= json_start:
        raise ValueError("its parts are larger than the file")
    text = os.pread(descriptor, json_bytes, json_start)
    if google_crc32c.value(text) != json_crc:
        raise ValueError("its description does not match its checksum")
    fields = json.loads(text)
    version = fields.get("format_version") if isinstance(fields, dict) else None
    if version != FORMAT_VERSION:
        raise ValueError(f"format {version}, this clipglot reads format {FORMAT_VERSION}")
    info = IndexInfo(**fields)
    require_types(info)
    coding = CODINGS.get(info.kind)
    if coding is None:
        raise ValueError(f"kind {info.kind!r}, this clipglot reads {', '.join(CODINGS)}")
    positive = (info.num_rows, info.dim, info.num_lists, info.num_probes, info.depth)
    if min(positive) < 1 or info.dim > MAX_DIM or info.num_lists > MAX_LISTS or info.num_rows > info.num_images:
        raise ValueError(f"sizes {positive} of {info.num_images:,} images")
    before, behind = faiss_header(coding, info.dim, info.num_rows, info.num_lists)
    sizes_at = len(before) + info.num_lists * info.dim * 4 + len(behind)
    rows_at = sizes_at + info.num_lists * 8
    row_bytes, coding_bytes = coding.code_bytes(info.dim) + 8, coding.stored_bytes(info.dim)
    if rows_at + info.num_rows * row_bytes != faiss_bytes or json_start - faiss_bytes != coding_bytes:
        raise ValueError("its size is not that of its rows")
    if os.pread(descriptor, len(before), 0) != before:
        raise ValueError("its header is not that of its sizes")
    if os.pread(descriptor, len(behind), sizes_at - len(behind)) != behind:
        raise ValueError("its second header is not that of its sizes")
    sizes = np.frombuffer(os.pread(descriptor, info.num_lists * 8, sizes_at), "<u8")
    if sizes.max() > info.num_rows or int(sizes.astype(np.int64).sum()) != info.num_rows:
        raise ValueError("the sizes of its lists do not add up")
    if list(_checksums(descriptor, json_start)) != info.checksums:
        raise ValueError("its contents do not match their checksums")
    return OpenedFile(info, coding.stored(os.pread(descriptor, coding_bytes, faiss_bytes), info.dim))


def _checksums(descriptor: int, size: int) -> Iterator[int]:
    """crc32c of each part of the first `size` bytes of a file."""

    def checksum(start: int) -> int:
        part = os.pread(descriptor, min(PART_BYTES, size - start), start)
        return int(google_crc32c.value(part))

    with ThreadPoolExecutor(READ_THREADS) as threads:
        yield from threads.map(checksum, range(0, size, PART_BYTES))


def load_faiss() -> Any:
    """The faiss module.

    Raises:
        SearchError: it is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise SearchError(f"an index needs faiss ({error}): pip install '.[search]' in a clone of clipglot") from error
    return faiss


def open_faiss(path: Path) -> Any:
    """The faiss index of a file that `read_index_file` found in order, or that is being built; memory-mapped.

    Raises:
        SearchError: this version of faiss does not read it.
    """
    faiss = load_faiss()
    try:
        return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    except (RuntimeError, AttributeError) as error:
        reason = str(error).splitlines()[0]
        raise SearchError(
            f"{path}: this faiss does not read it ({reason}): pip install -U '.[search]' in a clone of clipglot"
        ) from error
