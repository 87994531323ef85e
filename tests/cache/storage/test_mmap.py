"""Memory-mapped rows: equal to those that zarr reads, with the checks of its codec."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from clipglot.cache.errors import CacheError
from clipglot.cache.progress import Progress
from clipglot.cache.read.cache import Cache
from clipglot.cache.storage.encoding import create_array
from clipglot.cache.storage.mmap import MmapRows
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zarr.codecs import BytesCodec, Crc32cCodec
from zarr.storage import LocalStore

# Rows that do not divide a page, one chunk, a last chunk that is not full, one-dimensional.
SHAPES = [
    ((2, 40, 16), (1, 8, 16), "float16"),
    ((1, 37, 7), (1, 5, 7), "float16"),
    ((1, 10, 1001), (1, 4, 1001), "float32"),
    ((3, 20), (1, 6), "float32"),
    ((50,), (50,), "uint16"),
    ((5_000,), (1_024,), "int64"),
    ((9,), (2,), "uint8"),
    ((0,), (1,), "int64"),
]


def remedy(index: tuple[int, ...]) -> str:
    return f"mend {index}"


def stored(folder: Path, shape: tuple[int, ...], chunks: tuple[int, ...], dtype: str) -> zarr.Array[Any]:
    array = create_array(zarr.create_group(LocalStore(folder)), "rows", shape, chunks, dtype)
    array[...] = np.random.default_rng(0).integers(0, 200, shape).astype(dtype)
    return array


@pytest.mark.parametrize(("shape", "chunks", "dtype"), SHAPES)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mapped_rows_equal_those_that_zarr_reads(
    shape: tuple[int, ...], chunks: tuple[int, ...], dtype: str, data: st.DataObject, tmp_path: Path
) -> None:
    folder = tmp_path / str(len(list(tmp_path.iterdir())))
    array = stored(folder, shape, chunks, dtype)
    view = data.draw(st.integers(0, shape[0] - 1)) if len(shape) > 1 else 0
    expected = np.asarray(array[view]) if len(shape) > 1 else np.asarray(array[:])
    rows = MmapRows(array, folder / "rows", remedy=remedy, view=view).check()
    assert (len(rows), rows.shape, rows.dtype) == (len(expected), expected.shape, expected.dtype)
    wanted = np.array(data.draw(st.lists(st.integers(0, len(expected) - 1), max_size=60)) if len(expected) else [], int)
    start, stop = data.draw(st.integers(-3, len(expected) + 3)), data.draw(st.integers(-3, len(expected) + 3))
    for found, right in [
        (rows.take(wanted), expected[wanted]),
        (rows.read(), expected),
        (rows.read(start, stop), expected[start:stop]),
    ]:
        assert found.dtype == right.dtype
        assert np.array_equal(found, right)


@pytest.mark.parametrize("row", [-1, 40])
def test_mapped_rows_out_of_range_raise_an_index_error(row: int, tmp_path: Path) -> None:
    rows = MmapRows(stored(tmp_path, *SHAPES[0]), tmp_path / "rows", remedy=remedy)
    with pytest.raises(IndexError, match=f"rows {min(row, 3)} to {max(row, 3)} requested, .*rows has 40"):
        rows.take(np.array([3, row]))


def test_no_file_stays_open_and_the_address_range_is_released(tmp_path: Path) -> None:
    def in_use() -> tuple[int, int]:
        mappings = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(tmp_path) in line]
        return len(list(Path("/proc/self/fd").iterdir())), len(mappings)

    array = stored(tmp_path, (5_000,), (100,), "int64")
    descriptors, _ = in_use()
    rows = MmapRows(array, tmp_path / "rows", remedy=remedy)
    assert in_use() == (descriptors, 50)
    assert rows.take(np.array([4_999])) == array[4_999]
    del rows
    assert in_use() == (descriptors, 0)


def test_check_finds_a_flipped_byte(tmp_path: Path) -> None:
    array, chunk = stored(tmp_path, *SHAPES[0]), tmp_path / "rows/c/1/3/0"
    content = bytearray(chunk.read_bytes())
    content[7] ^= 1
    chunk.write_bytes(content)
    MmapRows(array, tmp_path / "rows", remedy=remedy, view=0).check()
    rows = MmapRows(array, tmp_path / "rows", remedy=remedy, view=1)
    with pytest.raises(CacheError, match=r"damaged chunk .*rows/c/1/3/0 \(crc32c .*, expected .*\): mend \(1, 3, 0\)"):
        rows.check()
    assert len(list(rows.faults())) == 1


def test_check_reports_progress(tmp_path: Path) -> None:
    calls: list[Progress] = []
    MmapRows(stored(tmp_path, *SHAPES[0]), tmp_path / "rows", remedy=remedy).check(calls.append)
    assert calls == [("check", done, 5) for done in range(1, 6)]


def test_absent_and_truncated_chunks_are_named_before_mapping(tiny_cache: Path, tmp_path: Path) -> None:
    array, chunk = stored(tmp_path, *SHAPES[0]), tmp_path / "rows/c/0/2/0"
    chunk.write_bytes(chunk.read_bytes()[:-1])
    with pytest.raises(CacheError, match=r"damaged chunk .*c/0/2/0 \(259 bytes, expected 260\): mend \(0, 2, 0\)"):
        MmapRows(array, tmp_path / "rows", remedy=remedy)
    chunk.unlink()
    with pytest.raises(CacheError, match=r"c/0/2/0 is absent: mend \(0, 2, 0\)"):
        MmapRows(array, tmp_path / "rows", remedy=remedy)


@pytest.mark.parametrize(
    ("codecs", "chunks"),
    [
        ({"compressors": None}, (1, 8, 16)),
        ({"serializer": BytesCodec(endian="big"), "compressors": [Crc32cCodec()]}, (1, 8, 16)),
        ({"compressors": "auto"}, (1, 8, 16)),
        ({"compressors": [Crc32cCodec()]}, (1, 8, 8)),
        ({"compressors": [Crc32cCodec()]}, (2, 8, 16)),
        ({"compressors": [Crc32cCodec()], "shards": (1, 16, 16)}, (1, 8, 16)),
    ],
)
def test_other_encodings_are_refused(codecs: dict[str, Any], chunks: tuple[int, ...], tmp_path: Path) -> None:
    group = zarr.create_group(LocalStore(tmp_path))
    array = group.create_array("rows", shape=(2, 40, 16), chunks=chunks, dtype="float16", **codecs)
    with pytest.raises(CacheError, match=r"rows: .*stored .*expected .*(whole rows|raw little-endian bytes \+ crc32c)"):
        MmapRows(array, tmp_path / "rows", remedy=remedy)


def test_mapped_arrays_of_a_cache_equal_the_read_ones(tiny_cache: Path) -> None:
    cache = Cache(tiny_cache)
    some = np.array([39, 0, 39, 7])
    assert np.array_equal(cache.mapped("images/emb").check().take(some), cache.emb_rows(some))
    assert np.array_equal(cache.mapped("captions/image").check().read(), cache.caption_image())
    assert np.array_equal(cache.mapped("images/norm").check().read(), cache.norm())


def test_a_pipe_in_place_of_a_chunk_is_refused_without_blocking(tmp_path: Path) -> None:
    array, chunk = stored(tmp_path, *SHAPES[0]), tmp_path / "rows/c/0/2/0"
    chunk.unlink()
    os.mkfifo(chunk)
    with pytest.raises(CacheError, match=r"c/0/2/0 \(not a regular file\): mend \(0, 2, 0\)"):
        MmapRows(array, tmp_path / "rows", remedy=remedy)
