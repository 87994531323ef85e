"""Parquet, Arrow files and saved datasets: the contract of sources, and their own rules."""

from collections.abc import Callable
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
from support import source_makers as makers
from support.fresh_files import write_fresh
from support.source_contract import Made, Planned, SourceContract, encoded_images, write_images
from support.source_makers import column_table


class TestParquetOfBytes(makers.ParquetOfBytes):
    pass


class TestParquetFolderOfASplit(makers.ParquetFolderOfASplit):
    pass


class TestParquetOfPaths(makers.ParquetOfPaths):
    pass


class TestFeather(makers.Feather):
    pass


class TestSavedDataset(makers.SavedDataset):
    pass


class TestSavedSplits(makers.SavedSplits):
    pass


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
def test_a_null_image_is_missing_and_a_path_is_read(suffix: str, tmp_path: Path) -> None:
    write_images(tmp_path / "images", Columns.images)
    structs = [
        {"bytes": Columns.images[0], "path": "ignored.png"},
        {"bytes": None, "path": "images/0001.png"},
        {"bytes": None, "path": None},
        None,
        {"bytes": b"", "path": "images/0001.png"},
        {"bytes": None, "path": "/etc/hostname"},
    ]
    table = column_table(structs, [["a"]] * 6, makers.IMAGE)
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
def test_a_saved_dataset_of_unknown_form_is_refused(name: str, content: str, message: str, tmp_path: Path) -> None:
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


def test_a_condition_may_name_columns_without_captions(tmp_path: Path, make_cache: Callable[..., Any]) -> None:
    made = Columns.write(tmp_path / "pairs.parquet", width=[1, 2, 3])
    cache = make_cache(made.path, tmp_path / "cache.zarr", where="width >= 2").cache
    assert cache.keys() == ["pairs.parquet#1", "pairs.parquet#2"]
    assert cache.captions() == ["b", "c"]
    assert cache.info.left_out == {"--where": 1}
    assert cache.info.counts == {"embedded": 2}
    with pytest.raises(DistillError, match=r"other settings: where was 'width >= 2', now None; give the same"):
        make_cache(made.path, tmp_path / "cache.zarr")


def test_a_path_that_is_not_utf8_costs_its_row_alone(tmp_path: Path) -> None:
    images = pa.array([Columns.images[0], None, Columns.images[2]])
    paths = pa.array([b"\xff"] * 3).view(pa.string())
    made = Columns.write(
        tmp_path / "pairs.parquet", image=pa.StructArray.from_arrays([images, paths], fields=list(makers.IMAGE))
    )
    images = Planned.of(SourceContract.open(made)).read(slice(None))
    assert images == [Columns.images[0], Status.UNREADABLE, Columns.images[2]]


def test_file_names_of_the_hub_tell_splits(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / "data").mkdir(exist_ok=True)
        Columns.write(tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    with pytest.raises(CacheError, match=r"has several splits \(test, train\): pass --split NAME"):
        list(SourceContract.open(Made(tmp_path)).rows())
    keys = Planned.of(SourceContract.open(Made(tmp_path, {"split": "test"}))).keys
    assert keys == [f"data/test-00000-of-00001.parquet#{i}" for i in range(3)]


@pytest.mark.parametrize("values", [pa.array([1] * 3, pa.timestamp("ns")), pa.array([2**62] * 3, pa.timestamp("us"))])
def test_dates_beyond_pythons_are_refused_by_name(values: pa.Array, tmp_path: Path) -> None:
    made = Columns.write(tmp_path / "pairs.parquet", date=values)
    with pytest.raises(CacheError, match=r"pairs\.parquet: a value that cannot be read \(.*\): cast its column"):
        list(SourceContract.open(Made(made.path, {"where": "date != 3"})).rows())


@pytest.mark.parametrize("suffix", ["parquet", "feather", "arrow"])
def test_a_damaged_file_is_read_or_refused_by_name(suffix: str, tmp_path: Path) -> None:
    """Any bytes of it changed, or its end cut off."""
    structs = [{"bytes": bytes([i]) * 20, "path": f"{i}.png"} for i in range(40)]
    table, path = column_table(structs, [["猫", "a cat"]] * 40, makers.IMAGE), tmp_path / f"pairs.{suffix}"
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
        write_fresh(path, damaged[: rng.integers(len(damaged)) if rng.random() < 0.1 else len(damaged)])
        try:
            source = SourceContract.open(Made(path))
            assert len(source.sha256()) == 64
            Planned.of(source).read(slice(None))
            outcomes.add("read")
        except CacheError as error:
            outcomes.add("refused")
            assert str(error).startswith(str(path))  # noqa: PT017
    assert outcomes == {"read", "refused"}


def test_captions_that_are_not_utf8_are_dropped_and_counted(tmp_path: Path, make_cache: Callable[..., Any]) -> None:
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
def test_an_unsuitable_column_is_named(
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
    pq.write_table(column_table(images, [["кот"]] * 10, pa.binary()), tmp_path / "pairs.parquet")
    make_cache(tmp_path / "pairs.parquet", tmp_path / "cache.zarr")
    run = make_run(tmp_path / "cache.zarr", tmp_path / "run", epochs=1)
    assert export_run(ExportSettings(run=run, output=tmp_path / "merged")).num_probes == 8
