"""Parquet, Arrow files and saved datasets keep the contract of sources; and what is particular to them."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from clipglot.cache.errors import CacheError
from clipglot.cache.format import Status
from clipglot.distill.errors import DistillError
from clipglot.jobs.export import export_run
from clipglot.jobs.settings.export import ExportSettings
from support.source_contract import HOSTILE, Made, Planned, SourceContract, encoded_images, without, write_images

Captions = Sequence[Sequence[str]]
IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})  # as `datasets` writes images


class ColumnContract(SourceContract):
    """Captions as lists of strings, in UTF-8, which has no half of a surrogate pair."""

    hostile = without(HOSTILE, "not unicode")

    @staticmethod
    def table(images: Any, captions: Captions, kind: pa.DataType) -> pa.Table:
        fields = {"image": kind, "text": pa.list_(pa.string()), "width": pa.int64()}
        columns = [images, captions, range(len(captions))]
        return pa.table([pa.array(c, t) for c, t in zip(columns, fields.values(), strict=True)], list(fields))


class TestParquetOfBytes(ColumnContract):
    def make(self, folder: Path, images: Sequence[bytes], captions: Captions) -> Made:
        pq.write_table(self.table(images, captions, pa.binary()), folder / "pairs.parquet", row_group_size=4)
        return Made(folder / "pairs.parquet")


class TestParquetFolderOfASplit(ColumnContract):
    """As on the Hub, beside another split, with names of columns of its own."""

    def make(self, folder: Path, images: Sequence[bytes], captions: Captions) -> Made:
        shutil.rmtree(folder / "data", ignore_errors=True)
        (folder / "data").mkdir()
        structs = [{"bytes": image, "path": f"{i}.png"} for i, image in enumerate(images)]
        table = self.table(structs, captions, IMAGE).rename_columns(["picture", "captions", "width"])
        for shard, start in enumerate(range(0, len(captions), 5)):
            pq.write_table(table.slice(start, 5), folder / "data" / f"train-{shard:05}-of-00003-0a1b.parquet")
        pq.write_table(table.slice(0, 1), folder / "data" / "test-00000-of-00001.parquet")
        if not len(table):
            pq.write_table(table, folder / "data" / "train-00000-of-00001.parquet")
        return Made(folder / "data", {"split": "train", "image_field": "picture", "text_field": ("captions",)})


class TestParquetOfPaths(ColumnContract):
    def make(self, folder: Path, images: Sequence[bytes], captions: Captions) -> Made:
        names = write_images(folder / "images", images)
        pq.write_table(self.table(names, captions, pa.string()), folder / "pairs.parquet")
        return Made(folder / "pairs.parquet", {"image_root": folder / "images"})


class TestFeather(ColumnContract):
    """Compressed, in batches."""

    def make(self, folder: Path, images: Sequence[bytes], captions: Captions) -> Made:
        table = self.table(images, captions, pa.large_binary())
        pyarrow.feather.write_feather(table, folder / "pairs.feather", compression="zstd", chunksize=3)
        return Made(folder / "pairs.feather")


def save_to_disk(folder: Path, table: pa.Table, shards: int) -> None:
    """What `datasets` 5.2 writes, with the state that it needs to read it."""
    folder.mkdir(parents=True, exist_ok=True)
    rows, names = -(-len(table) // shards), [f"data-{i:05}-of-{shards:05}.arrow" for i in range(shards)]
    for i, name in enumerate(names):
        with pa.ipc.new_stream(folder / name, table.schema) as writer:
            writer.write_table(table.slice(i * rows, rows), max_chunksize=3)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text("{}")


class TestSavedDataset(ColumnContract):
    def make(self, folder: Path, images: Sequence[bytes], captions: Captions) -> Made:
        structs = [{"bytes": image, "path": None} for image in images]
        save_to_disk(folder / "saved", self.table(structs, captions, IMAGE), 2)
        return Made(folder / "saved")


class TestSavedSplits(ColumnContract):
    def make(self, folder: Path, images: Sequence[bytes], captions: Captions) -> Made:
        table = self.table(images, captions, pa.binary())
        save_to_disk(folder / "saved" / "train", table, 1)
        save_to_disk(folder / "saved" / "test", table.slice(0, 1), 1)
        (folder / "saved" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
        return Made(folder / "saved", {"split": "train"})


class Columns:
    """Files of the tests below."""

    images: ClassVar[list[bytes]] = encoded_images(3)

    @classmethod
    def write(cls, path: Path, **columns: Any) -> Made:
        pq.write_table(pa.table({"image": pa.array(cls.images, pa.binary()), "text": ["a", "b", "c"]} | columns), path)
        return Made(path)


def test_planning_reads_no_image(tmp_path: Path) -> None:
    """The bytes of the column are destroyed, and the rows are the same."""
    path = Columns.write(tmp_path / "pairs.parquet").path
    rows = list(SourceContract.open(Made(path)).rows())
    chunk = pq.ParquetFile(path).metadata.row_group(0).column(0)
    content = bytearray(path.read_bytes())
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    content[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    path.write_bytes(content)
    source = SourceContract.open(Made(path))
    assert list(source.rows()) == rows
    assert Planned.of(source).read(slice(None)) == [Status.UNREADABLE] * 3


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_an_image_that_is_null_is_missing_and_one_by_its_path_is_read(suffix: str, tmp_path: Path) -> None:
    write_images(tmp_path / "images", Columns.images)
    structs = [
        {"bytes": Columns.images[0], "path": "ignored.png"},
        {"bytes": None, "path": "images/0001.png"},
        {"bytes": None, "path": None},
        None,
        {"bytes": b"", "path": "images/0001.png"},
        {"bytes": None, "path": "/etc/hostname"},
    ]
    table = ColumnContract.table(structs, [["a"]] * 6, IMAGE)
    path = tmp_path / f"pairs.{suffix}"
    if suffix == "parquet":
        pq.write_table(table, path)
    else:
        pyarrow.feather.write_feather(table, path)
    expected = [*Columns.images[:2], *[Status.MISSING] * 3, Status.OUTSIDE_ROOT]
    assert Planned.of(SourceContract.open(Made(path))).read(slice(None)) == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "dataset_dict.json",
            '{"splits": ["../other"]}',
            r"expected the names of folders here, found \['\.\./other'\]",
        ),
        ("dataset_dict.json", '{"splits": [1, []]}', r"expected the names of folders here, found \[1, \[\]\]"),
        ("dataset_dict.json", "[]", r"expected a JSON object, found list"),
        ("state.json", "{", r"state\.json: not readable as JSON"),
        ("state.json", '{"_data_files": [3]}', r"state\.json: names no data files"),
        ("state.json", '{"_indices_data_files": [{}]}', r"by an index beside the data: .* flatten_indices"),
        ("state.json", '{"_data_files": [{"filename": "../../x.arrow"}]}', r"saved/x\.arrow: not readable"),
    ],
)
def test_a_dataset_that_was_saved_otherwise_is_refused(name: str, content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / name).write_text(content)
    with pytest.raises(CacheError, match=message):
        list(SourceContract.open(Made(tmp_path / "saved")).rows())


def test_a_link_out_of_the_folder_names_the_remedy(tmp_path: Path) -> None:
    """As the Hub's folder of downloads has them."""
    for folder in ("blobs", "snapshot"):
        (tmp_path / folder).mkdir()
    Columns.write(tmp_path / "blobs" / "0a1b")
    link = tmp_path / "snapshot" / "train-00000-of-00001.parquet"
    link.symlink_to(Path("..", "blobs", "0a1b"))
    with pytest.raises(CacheError, match=r"leads to .*0a1b, outside .*snapshot: pass --image-root DIR"):
        list(SourceContract.open(Made(link.parent)).rows())
    planned = Planned.of(SourceContract.open(Made(link.parent, {"image_root": tmp_path})))
    assert planned.read(slice(None)) == Columns.images


def test_a_condition_asks_columns_that_are_not_taken(tmp_path: Path, make_cache: Callable[..., Any]) -> None:
    made = Columns.write(tmp_path / "pairs.parquet", width=[1, 2, 3])
    cache = make_cache(made.path, tmp_path / "cache.zarr", where="width >= 2").cache
    assert cache.keys() == ["pairs.parquet#1", "pairs.parquet#2"]
    assert cache.captions() == ["b", "c"]
    assert cache.info.left_out == {"--where": 1}
    assert cache.info.counts == {"embedded": 2}
    with pytest.raises(DistillError, match=r"other settings: where was 'width >= 2', now None; give the same"):
        make_cache(made.path, tmp_path / "cache.zarr")


def test_a_path_that_is_no_utf8_costs_its_row_alone(tmp_path: Path) -> None:
    images = pa.array([Columns.images[0], None, Columns.images[2]])
    paths = pa.array([b"\xff"] * 3).view(pa.string())
    made = Columns.write(
        tmp_path / "pairs.parquet", image=pa.StructArray.from_arrays([images, paths], fields=list(IMAGE))
    )
    found = Planned.of(SourceContract.open(made)).read(slice(None))
    assert found == [Columns.images[0], Status.UNREADABLE, Columns.images[2]]


def test_a_folder_of_the_hub_has_the_splits_of_its_files(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / "data").mkdir(exist_ok=True)
        Columns.write(tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    with pytest.raises(CacheError, match=r"has several splits \(test, train\): pass --split NAME"):
        list(SourceContract.open(Made(tmp_path)).rows())
    keys = Planned.of(SourceContract.open(Made(tmp_path, {"split": "test"}))).keys
    assert keys == [f"data/test-00000-of-00001.parquet#{i}" for i in range(3)]


@pytest.mark.parametrize("values", [pa.array([1] * 3, pa.timestamp("ns")), pa.array([2**62] * 3, pa.timestamp("us"))])
def test_dates_that_python_has_not_are_refused_by_name(values: pa.Array, tmp_path: Path) -> None:
    made = Columns.write(tmp_path / "pairs.parquet", date=values)
    with pytest.raises(CacheError, match=r"pairs\.parquet: a value that cannot be read \(.*\): cast its column"):
        list(SourceContract.open(Made(made.path, {"where": "date != 3"})).rows())


@pytest.mark.parametrize("suffix", ["parquet", "feather", "arrow"])
def test_a_damaged_file_is_read_or_refused_by_name(suffix: str, tmp_path: Path) -> None:
    """Any bytes of it changed, or its end cut off."""
    structs = [{"bytes": bytes([i]) * 20, "path": f"{i}.png"} for i in range(40)]
    table, path = ColumnContract.table(structs, [["猫", "a cat"]] * 40, IMAGE), tmp_path / f"pairs.{suffix}"
    if suffix == "parquet":
        pq.write_table(table, path, row_group_size=15)
    elif suffix == "feather":
        pyarrow.feather.write_feather(table, path, chunksize=15)
    else:
        with pa.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=15)
    whole, rng, outcomes = path.read_bytes(), np.random.default_rng(0), set()
    for _ in range(400):
        damaged = bytearray(whole)
        for place in rng.integers(len(damaged), size=rng.integers(1, 5)):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged[: rng.integers(len(damaged)) if rng.random() < 0.1 else len(damaged)])
        try:
            source = SourceContract.open(Made(path))
            assert len(source.sha256()) == 64
            Planned.of(source).read(slice(None))
            outcomes.add("read")
        except CacheError as error:
            outcomes.add("refused")
            assert str(error).startswith(str(path))  # noqa: PT017
    assert outcomes == {"read", "refused"}


def test_captions_that_are_no_utf8_are_dropped_and_counted(tmp_path: Path, make_cache: Callable[..., Any]) -> None:
    text = pa.array([b"\xff", b"half \xed\xa0\xbd", "猫".encode()]).view(pa.string())
    made = Columns.write(tmp_path / "pairs.parquet", text=text)
    cache = make_cache(made.path, tmp_path / "cache.zarr").cache
    assert cache.captions() == ["猫"]
    assert cache.info.dropped_captions == {"not unicode": 2}


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({}, {"image_field": "img"}, r"no column 'img' \(found: image, text\): pass --image-field"),
        ({}, {"text_field": ("zh",)}, r"no column 'zh' \(found: image, text\): pass --text-field"),
        ({}, {"teacher_field": ("en",)}, r"no column 'en' .*: pass --teacher-field"),
        ({}, {"split": "train"}, r"--split train chooses files of a folder"),
        ({"image": [1, 2, 3]}, {}, r"column 'image' is of type int64, expected images as binary"),
        ({"image": pa.array([{"path": "a"}] * 3)}, {}, r"is of type struct<path: string>, expected"),
        ({"text": [1, 2, 3]}, {}, r"record 1: 'text' must be a string or a list of strings, found 1"),
        ({"image": ["a", "", "b"]}, {}, r"record 2: 'image' must be the path of an image, found ''"),
    ],
)
def test_a_column_that_does_not_fit_is_named(
    columns: dict[str, Any], options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    made = Columns.write(tmp_path / "pairs.parquet", **columns)
    with pytest.raises(CacheError, match=message) as error:
        list(SourceContract.open(Made(made.path, options)).rows())
    assert str(made.path) in str(error.value)


def test_export_embeds_images_in_a_column_again(
    make_cache: Callable[..., Any], make_run: Callable[..., Path], tmp_path: Path
) -> None:
    images = encoded_images(10)
    pq.write_table(ColumnContract.table(images, [["кот"]] * 10, pa.binary()), tmp_path / "pairs.parquet")
    make_cache(tmp_path / "pairs.parquet", tmp_path / "cache.zarr")
    run = make_run(tmp_path / "cache.zarr", tmp_path / "run", epochs=1)
    assert export_run(ExportSettings(run=run, output=tmp_path / "merged")).num_probes == 8
