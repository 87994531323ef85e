"""Sources of every kind, as the contract makes them on the disk. Tests inherit them, at URLs together with `AtUrl`."""

import base64
import csv
import json
import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq

from support.source_contract import CAPTIONS, HOSTILE, Captions, Made, SourceContract, as_table, without, write_images
from support.tars import write_img2dataset, write_shards, write_tar

ONE_EACH = [captions[:1] for captions in CAPTIONS if captions]
IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})  # as `datasets` writes images


class JsonLines(SourceContract):
    def make(self, folder: Path, images: Sequence[bytes], captions: Captions) -> Made:
        return Made(as_table(folder, images, captions))


class Csv(SourceContract):
    """A line for each caption."""

    hostile = without(HOSTILE, "not unicode")  # UTF-8 cannot hold it

    def make(self, folder: Path, images: Sequence[bytes], captions: Captions) -> Made:
        names = write_images(folder / "pictures", images)
        with open(folder / "pairs.csv", "w", encoding="utf-8", newline="") as file:
            table = csv.writer(file)
            table.writerow(["file", "caption"])
            for name, texts in zip(names, captions, strict=True):
                table.writerows([name, text] for text in texts or [""])
        options = {"image_root": folder / "pictures", "image_field": "file", "text_field": ("caption",)}
        return Made(folder / "pairs.csv", options)


class FolderOfTars(SourceContract):
    def make(self, folder: Path, images: Sequence[bytes], captions: Captions) -> Made:
        write_shards(folder / "tars", images, captions)
        return Made(folder / "tars")


class OneTarWithTexts(SourceContract):
    captions = ONE_EACH

    def make(self, folder: Path, images: Sequence[bytes], captions: Captions) -> Made:
        members = []
        for i, (image, texts) in enumerate(zip(images, captions, strict=True)):
            text = texts[0].encode("utf-8", "surrogatepass")
            members += [(f"./deep/{i}.PNG", image), (f"./deep/{i}.txt", text)]
        return Made(write_tar(folder / "pairs.tar", members))


class Img2dataset(SourceContract):
    captions = ONE_EACH
    hostile = without(HOSTILE, "not unicode")

    def make(self, folder: Path, images: Sequence[bytes], captions: Captions) -> Made:
        write_img2dataset(folder / "tars", images, [texts[0] for texts in captions])
        (folder / "tars").mkdir(exist_ok=True)
        return Made(folder / "tars")


def column_table(images: Any, captions: Captions, image_type: pa.DataType) -> pa.Table:
    """Columns `image`, `text` with lists of captions, and `width`."""
    fields = {"image": image_type, "text": pa.list_(pa.string()), "width": pa.int64()}
    columns = [images, captions, range(len(captions))]
    return pa.table([pa.array(c, t) for c, t in zip(columns, fields.values(), strict=True)], list(fields))


def save_to_disk(folder: Path, table: pa.Table, shards: int) -> None:
    """What `datasets` 5.2 writes, with the state that it needs to read it."""
    folder.mkdir(parents=True, exist_ok=True)
    rows, names = -(-len(table) // shards), [f"data-{i:05}-of-{shards:05}.arrow" for i in range(shards)]
    for i, name in enumerate(names):
        with pa.ipc.new_stream(folder / name, table.schema) as writer:
            writer.write_table(table.slice(i * rows, rows), max_chunksize=3)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text("{}")


class ColumnContract(SourceContract):
    """Captions as lists of strings, in UTF-8, which has no half of a surrogate pair."""

    hostile = without(HOSTILE, "not unicode")


class ParquetOfBytes(ColumnContract):
    def make(self, folder: Path, images: Sequence[bytes], captions: Captions) -> Made:
        pq.write_table(column_table(images, captions, pa.binary()), folder / "pairs.parquet", row_group_size=4)
        return Made(folder / "pairs.parquet")


class ParquetFolderOfASplit(ColumnContract):
    """As on the Hub, beside another split, with names of columns of its own."""

    def make(self, folder: Path, images: Sequence[bytes], captions: Captions) -> Made:
        shutil.rmtree(folder / "data", ignore_errors=True)
        (folder / "data").mkdir()
        structs = [{"bytes": image, "path": f"{i}.png"} for i, image in enumerate(images)]
        table = column_table(structs, captions, IMAGE).rename_columns(["picture", "captions", "width"])
        for shard, start in enumerate(range(0, len(captions), 5)):
            pq.write_table(table.slice(start, 5), folder / "data" / f"train-{shard:05}-of-00003-0a1b.parquet")
        pq.write_table(table.slice(0, 1), folder / "data" / "test-00000-of-00001.parquet")
        if not len(table):
            pq.write_table(table, folder / "data" / "train-00000-of-00001.parquet")
        return Made(folder / "data", {"split": "train", "image_field": "picture", "text_field": ("captions",)})


class ParquetOfPaths(ColumnContract):
    def make(self, folder: Path, images: Sequence[bytes], captions: Captions) -> Made:
        names = write_images(folder / "images", images)
        pq.write_table(column_table(names, captions, pa.string()), folder / "pairs.parquet")
        return Made(folder / "pairs.parquet", {"image_root": folder / "images"})


class Feather(ColumnContract):
    """Compressed, in batches."""

    def make(self, folder: Path, images: Sequence[bytes], captions: Captions) -> Made:
        table = column_table(images, captions, pa.large_binary())
        pyarrow.feather.write_feather(table, folder / "pairs.feather", compression="zstd", chunksize=3)
        return Made(folder / "pairs.feather")


class SavedDataset(ColumnContract):
    def make(self, folder: Path, images: Sequence[bytes], captions: Captions) -> Made:
        structs = [{"bytes": image, "path": None} for image in images]
        save_to_disk(folder / "saved", column_table(structs, captions, IMAGE), 2)
        return Made(folder / "saved")


class SavedSplits(ColumnContract):
    def make(self, folder: Path, images: Sequence[bytes], captions: Captions) -> Made:
        table = column_table(images, captions, pa.binary())
        save_to_disk(folder / "saved" / "train", table, 1)
        save_to_disk(folder / "saved" / "test", table.slice(0, 1), 1)
        (folder / "saved" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
        return Made(folder / "saved", {"split": "train"})


class ClassFolders(SourceContract):
    """One caption an image, and what a file system takes for a name."""

    captions: ClassVar[Captions] = sorted(
        [text] for text in ("a tabby cat", "кот", "猫", "고양이", "e\u0301", "é", "🐈‍⬛", "zz")
    )
    hostile: ClassVar[dict[str, str]] = {"empty": "_"}

    def make(self, folder: Path, images: Sequence[bytes], captions: Captions) -> Made:
        shutil.rmtree(folder / "pictures", ignore_errors=True)
        (folder / "pictures").mkdir()
        for (caption,), image in zip(captions, images, strict=True):
            write_images(folder / "pictures" / caption.replace(" ", "_"), [image])
        return Made(folder / "pictures")


class ClassFoldersOfASplit(ClassFolders):
    def make(self, folder: Path, images: Sequence[bytes], captions: Captions) -> Made:
        made = super().make(folder, images, captions).path
        shutil.rmtree(folder / "splits", ignore_errors=True)
        made.rename(made.parent / "train")
        (folder / "splits").mkdir()
        (made.parent / "train").rename(folder / "splits" / "train")
        write_images(folder / "splits" / "val" / "dog", images[:1])
        return Made(folder / "splits", {"split": "train"})


class Coco(SourceContract):
    def make(self, folder: Path, images: Sequence[bytes], captions: Captions) -> Made:
        names = write_images(folder / "train2017", images)
        records = [{"id": 100 - i, "file_name": name, "height": 40} for i, name in enumerate(names)]
        annotations = [
            {"image_id": 100 - i, "id": i, "caption": text} for i, texts in enumerate(captions) for text in texts
        ]
        (folder / "annotations").mkdir(exist_ok=True)
        path = folder / "annotations" / "captions_train2017.json"
        path.write_text(json.dumps({"info": {}, "images": records, "annotations": annotations}))
        return Made(path, {"image_root": folder / "train2017"})


class Muge(SourceContract):
    """Images without text come last."""

    captions: ClassVar[Captions] = sorted(CAPTIONS, key=lambda texts: not texts)

    def make(self, folder: Path, images: Sequence[bytes], captions: Captions) -> Made:
        lines = [f"{1000 + i}\t{base64.urlsafe_b64encode(image).decode()}\n" for i, image in enumerate(images)]
        (folder / "train_imgs.tsv").write_text("".join(lines))
        texts = [
            {"text_id": i, "text": text, "image_ids": [1000 + i]} for i, texts in enumerate(captions) for text in texts
        ]
        (folder / "train_texts.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
        return Made(folder)


class MugeOfASplit(Muge):
    """With a list of texts for an image, other line ends and the other alphabet."""

    def make(self, folder: Path, images: Sequence[bytes], captions: Captions) -> Made:
        made = super().make(folder, images, captions).path
        for name in ("train_imgs.tsv", "train_texts.jsonl"):
            shutil.copy(made / name, made / name.replace("train", "valid"))
        lines = [f"{1000 + i}\t{base64.b64encode(image).decode()}\r\n" for i, image in enumerate(images)]
        (folder / "train_imgs.tsv").write_text("".join(lines), newline="")
        texts = [{"image_id": f"{1000 + i}", "text": list(texts)} for i, texts in enumerate(captions) if texts]
        (folder / "train_texts.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
        return Made(folder, {"split": "train"})


class Sidecars(SourceContract):
    """Images and texts in folders, with dots in their names."""

    captions = ONE_EACH

    def make(self, folder: Path, images: Sequence[bytes], captions: Captions) -> Made:
        shutil.rmtree(folder / "unpacked", ignore_errors=True)
        (folder / "unpacked").mkdir()
        for i, (image, texts) in enumerate(zip(images, captions, strict=True)):
            stem = folder / "unpacked" / f"{i // 4:05}" / f"photo {i:04}.0 (clean)"
            stem.parent.mkdir(exist_ok=True)
            stem.with_name(f"{stem.name}.PNG").write_bytes(image)
            stem.with_name(f"{stem.name}.txt").write_bytes(texts[0].encode("utf-8", "surrogatepass"))
        return Made(folder / "unpacked")


class Img2datasetFiles(SourceContract):
    """As img2dataset writes with `output_format="files"`: also JSON, tables and statistics."""

    captions = ONE_EACH
    hostile = without(HOSTILE, "not unicode")

    def make(self, folder: Path, images: Sequence[bytes], captions: Captions) -> Made:
        shutil.rmtree(folder / "files", ignore_errors=True)
        tars = write_img2dataset(folder / "files", images, [texts[0] for texts in captions])
        (folder / "files").mkdir(exist_ok=True)
        for path in tars:
            with tarfile.open(path) as tar:
                tar.extractall(path.with_suffix(""), filter="data")
            path.unlink()
        return Made(folder / "files")
