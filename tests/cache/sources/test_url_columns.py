"""Parquet and Arrow files, MUGE, COCO and class folders at URLs: the contract of sources, and requests."""

import os
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from clipglot.cache.errors import CacheError
from clipglot.cache.location import RangeFile, Url
from clipglot.cache.sources.download import local_file
from clipglot.cache.sources.parquet_files import ParquetFile
from support import source_makers as makers
from support import url_sources as urls
from support.s3_server import NAME, Bucket
from support.source_contract import Made, Planned, SourceContract, as_table, encoded_images
from support.web_server import web_server

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("bucket")]

temporary = urls.temporary


class TestParquet(urls.AtUrl, makers.ParquetOfBytes):
    pass


class TestParquetFolderOfASplit(urls.AtUrl, makers.ParquetFolderOfASplit):
    pass


class TestParquetOfPaths(urls.AtUrl, makers.ParquetOfPaths):
    pass


class TestFeather(urls.AtUrl, makers.Feather):
    pass


class TestSavedDataset(urls.AtUrl, makers.SavedDataset):
    pass


class TestSavedSplits(urls.AtUrl, makers.SavedSplits):
    pass


class TestMuge(urls.AtUrl, makers.Muge):
    pass


class TestMugeOfASplit(urls.AtUrl, makers.MugeOfASplit):
    pass


class TestCoco(urls.AtUrl, makers.Coco):
    pass


class TestClassFolders(urls.AtUrl, makers.ClassFolders):
    pass


class TestClassFoldersOfASplit(urls.AtUrl, makers.ClassFoldersOfASplit):
    pass


def test_planning_fetches_only_the_columns_it_needs(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, groups = 120, 3
    images = [os.urandom(20_000) for _ in range(rows)]
    table = makers.column_table(images, [[f"подпись {i}"] for i in range(rows)], pa.binary())
    pq.write_table(table, content := BytesIO(), row_group_size=rows // groups)
    bucket.put("ranges/pairs.parquet", content.getvalue())
    sizes: list[int] = []
    read = RangeFile.read

    def counted(file: RangeFile, size: int | None = -1) -> bytes:
        data = read(file, size)
        sizes.append(len(data))
        return data

    monkeypatch.setattr(RangeFile, "read", counted)
    source = SourceContract.open(Made(Url(f"s3://{NAME}/ranges/pairs.parquet")))  # type: ignore[arg-type]
    assert len(list(source.rows())) == rows
    assert source.sha256()
    assert len(sizes) == bucket.num_gets("ranges/").total() == 1 + 2 * groups  # the dictionary's size, too
    assert sum(sizes) < 100_000 < 20_000 * rows


def test_each_file_is_fetched_once(bucket: Bucket, tmp_path: Path, make_cache: Callable[..., Any]) -> None:
    images, captions = encoded_images(12), [[f"подпись {i}"] for i in range(12)]
    expected = make_cache(as_table(tmp_path, images, captions), tmp_path / "expected.zarr").cache.image_emb()
    # Ranges of each Parquet file: its footer, and of two row groups the size of the dictionary and the columns.
    planning = {"data": 5, "feather": 0, "muge": 0}
    for name in planning:
        (tmp_path / name).mkdir()
    for i in range(3):
        part = slice(4 * i, 4 * i + 4)
        table = makers.column_table(images[part], captions[part], pa.binary())
        pq.write_table(table, tmp_path / "data" / f"{i}.parquet", row_group_size=2)
    makers.Feather().make(tmp_path / "feather", images, captions)
    makers.Muge().make(tmp_path / "muge", images, captions)
    for name, ranges in planning.items():
        url = Url(bucket.upload(tmp_path / name, f"fetched/{name}"))
        cache = make_cache(url, tmp_path / f"{name}.zarr", num_workers=3).cache
        assert np.array_equal(cache.image_emb(), expected)
        gets = bucket.num_gets(f"fetched/{name}/")
        assert gets == {f"fetched/{name}/{path.name}": ranges + 1 for path in (tmp_path / name).iterdir()}


def test_a_file_deleted_during_planning_is_named(bucket: Bucket) -> None:
    table = makers.column_table(encoded_images(3), [["a"]] * 3, pa.binary())
    pq.write_table(table, content := BytesIO())
    bucket.put("goes/pairs.parquet", content.getvalue())
    file = ParquetFile.at(Url(f"s3://{NAME}/goes/pairs.parquet"))
    bucket.delete("goes/pairs.parquet")
    with pytest.raises(CacheError, match=r"s3://bucket/goes/pairs\.parquet: no such object: check the URL"):
        list(file.records(["text"]))
    with pytest.raises(CacheError, match="no such object"):
        ParquetFile.at(Url(f"s3://{NAME}/goes/pairs.parquet"))


def test_a_damaged_file_is_named(bucket: Bucket) -> None:
    for name in ("pairs.parquet", "pairs.arrow", "captions.json"):
        bucket.put(f"damaged/{name}", b"PAR1 is how a Parquet file begins and ends, but this is none PAR1")
        with pytest.raises(CacheError, match=rf"s3://bucket/damaged/{name}: not readable"):
            list(SourceContract.open(Made(Url(f"s3://{NAME}/damaged/{name}"))).rows())  # type: ignore[arg-type]


def test_a_reader_reads_on_in_an_evicted_file(bucket: Bucket, tmp_path: Path) -> None:
    """Backwards, too, in a stream, which is then begun anew."""
    images = encoded_images(9)
    makers.save_to_disk(tmp_path, makers.column_table(images, [["a"]] * 9, pa.binary()), 1)
    source = SourceContract.open(Made(Url(bucket.upload(tmp_path, "stream"))))  # type: ignore[arg-type]
    planned = Planned.of(source)
    assert planned.read(slice(8, 9)) == images[8:]
    name = "stream/data-00000-of-00001.arrow"
    local_file(f"s3://{NAME}/{name}").unlink()
    bucket.delete(name)
    assert planned.read(slice(0, 9)) == images


def test_a_folder_on_a_web_server_is_refused_and_a_file_read(tmp_path: Path, make_cache: Callable[..., Any]) -> None:
    images, captions = encoded_images(6), [[f"подпись {i}"] for i in range(6)]
    expected = make_cache(as_table(tmp_path / "table", images, captions), tmp_path / "t.zarr").cache.image_emb()
    (tmp_path / "site").mkdir()
    makers.ParquetOfBytes().make(tmp_path / "site", images, captions)
    makers.Feather().make(tmp_path / "site", images, captions)
    with web_server(tmp_path / "site") as url:
        for name in ("pairs.parquet", "pairs.feather"):
            cache = make_cache(Url(f"{url}/{name}"), tmp_path / f"{name}.zarr").cache
            assert np.array_equal(cache.image_emb(), expected)
        with pytest.raises(CacheError, match=rf"{url} is on a web server, where files are read but no folders"):
            make_cache(Url(url), tmp_path / "none.zarr")
