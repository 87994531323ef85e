"""Fuzz targets of caches, run in a child process of bounded memory: metadata, ragged arrays, Parquet files."""

import json
import shutil
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zarr
from clipglot.cache.errors import CacheError
from clipglot.cache.format import SourceInfo
from clipglot.cache.metadata import with_checksum
from clipglot.cache.read.cache import Cache
from clipglot.cache.read.preview import sample_captioned_images
from clipglot.cache.read.verify import verify
from clipglot.cache.sources.parquet import ParquetSource
from clipglot.cache.storage.ragged import RaggedReader, RaggedWriter, WrongOffsetsError
from clipglot.cache.storage.ragged_bytes import RaggedBytes
from hypothesis import strategies as st
from zarr.storage import MemoryStore

from support.mutations import byte_mutations, json_mutations, search


def _values(cache: Cache) -> list[Any]:
    """All that a cache holds."""
    read = [cache.image_emb(), cache.norm(), cache.status(), cache.caption_image(), cache.hashes(0)]
    return [*(array.tolist() for array in read), cache.keys(), cache.captions(), list(cache.failures())]


def metadata(case: list[Any]) -> str:
    """Any zarr.json of a cache, mutated: the cache gives the values that it gave before, or a `CacheError`."""
    original, num = Path(case[0]), case[1]
    files = sorted(
        path.relative_to(original).as_posix() for path in original.rglob("zarr.json") if "tokens" not in path.parts
    )
    documents = {name: json.loads((original / name).read_bytes()) for name in files}
    expected, outcomes = _values(Cache(original)), {"read": 0, "refused": 0}
    strategy = st.sampled_from(["zarr.json", *files]).flatmap(
        lambda name: st.tuples(st.just(name), st.booleans(), json_mutations(documents[name]))
    )
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(shutil.copytree(original, Path(folder, "c.zarr")))

        def check(example: tuple[str, bool, Any]) -> None:
            name, checked, document = example
            attributes = document.get("attributes")
            if name == "zarr.json" and checked and isinstance(attributes, dict) and "clipglot" in attributes:
                attributes |= with_checksum(attributes["clipglot"])
            (cache / name).write_text(json.dumps(document))
            try:
                opened = Cache(cache)
                verify(opened)
                sample_captioned_images(opened, 3)
                found = _values(opened)
            except CacheError:
                outcomes["refused"] += 1
            else:
                assert found == expected, example
                outcomes["read"] += 1
            finally:
                (cache / name).write_text(json.dumps(documents[name]))

        search(strategy, check, num)
    return json.dumps(outcomes)


def ragged(case: list[Any]) -> str:
    """Any offsets: the texts that slices give, or a `WrongOffsetsError`."""
    texts = [f"{i} {'я' * (i % 5)}".encode() for i in range(40)]
    group = zarr.create_group(MemoryStore(), zarr_format=3)
    writer = RaggedWriter(group, "t")
    writer.append(RaggedBytes.of(texts))
    writer.close()
    right = np.asarray(group["t/offsets"][:])
    raw, end, outcomes = b"".join(texts), int(right[-1]), {"read": 0, "refused": 0}
    odd = st.integers(-3, end + 3) | st.sampled_from([-(2**63), 2**63 - 1, 2**62, -(2**40)])
    changes = st.lists(st.tuples(st.integers(0, len(texts)), odd), max_size=3)
    ranges = st.tuples(st.integers(0, len(texts)), st.integers(0, len(texts)))

    def check(example: tuple[list[tuple[int, int]], tuple[int, int]]) -> None:
        changed, (start, stop) = example
        offsets = right.copy()
        for at, value in changed:
            offsets[at] = value
        group["t/offsets"][:] = offsets
        reader = RaggedReader(group, "t")
        part = [int(value) for value in offsets[start : stop + 1]]
        is_right = start >= stop or (part[0] >= 0 and part == sorted(part) and part[-1] <= end)
        try:
            found = reader.texts(start, stop)
            backwards = found.take(np.arange(len(found))[::-1]).split()
        except WrongOffsetsError:
            assert not is_right, example
            outcomes["refused"] += 1
            return
        assert is_right, example
        expected = [raw[a:b] for a, b in pairwise(part)] if start < stop else []
        assert found.split() == expected == backwards[::-1], example
        outcomes["read"] += 1

    search(st.tuples(changes, ranges), check, case[1])
    return json.dumps(outcomes)


def parquet(case: list[Any]) -> str:
    """Any bytes of a Parquet file: its rows, or a `CacheError`."""
    outcomes = {"read": 0, "refused": 0}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "t.parquet")
        table = pa.table(
            {"text": [f"caption {i}" for i in range(50)], "image": [{"bytes": bytes([i]) * 9} for i in range(50)]}
        )
        pq.write_table(table, path, compression="zstd", row_group_size=20)
        content = path.read_bytes()

        def check(example: bytes) -> None:
            path.unlink()  # Arrow maps files: a new inode for each
            path.write_bytes(example)
            try:
                info = SourceInfo(path=folder, sha256="", image_root=folder, image_field="image", text_fields=["text"])
                num = sum(map(len, ParquetSource(info).batches()))
            except CacheError:
                outcomes["refused"] += 1
            else:
                assert num <= 50, example
                outcomes["read"] += 1

        search(byte_mutations(content), check, case[1])
    return json.dumps(outcomes)
