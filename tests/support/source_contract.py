"""The contract of sources of images and captions. Tests of a source inherit it and say how to make one."""

import json
import pickle
import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from clipglot.cache.errors import CacheError
from clipglot.cache.format import Status
from clipglot.cache.location import to_location
from clipglot.cache.processes import worker_pool
from clipglot.cache.read.cache import Cache
from clipglot.cache.sources.image_files import PathReader
from clipglot.cache.sources.kinds import open_source
from clipglot.cache.sources.reader import Reader
from clipglot.cache.sources.source import RowBatch, Source, batched
from clipglot.distill.errors import DistillError
from clipglot.jobs.settings.cache import CacheSettings
from numpy.typing import NDArray
from PIL import Image

from support.drawings import WORDS
from support.read_rows import read_rows

Captions = Sequence[Sequence[str]]
CAPTIONS: Captions = (
    ("кот спит на диване", "рыжий кот"),
    ("一只猫睡在沙发上",),
    ("고양이", "a cat", "eine Katze 🐈‍⬛"),
    (),
    ("שלום וברכה",),
    ("नमस्ते दुनिया", "สวัสดีชาวโลก"),
    ('ein "Zitat", mit Komma; und \\ Strich',),
    ("e\u0301 is not \u00e9", "\ufeffa mark", " spaces around "),
    ("أهلا وسهلا",),
    ("a cat",),
    ("猫" * 500,),
)
HOSTILE: Mapping[str, str] = {
    "holds NUL": "a\0b",
    "not unicode": "half \ud83d a pair",
    "too long": "м" * 1_500_000,
    "empty": " \t ",
}


def without(hostile: Mapping[str, str], *reasons: str) -> Mapping[str, str]:
    """The captions that a format can hold."""
    return {reason: text for reason, text in hostile.items() if reason not in reasons}


@dataclass(frozen=True)
class Made:
    """A source on disk, and the settings that it is read with; paths among them lie in the source's folder."""

    path: Path
    options: Mapping[str, Any] = field(default_factory=dict)

    def below(self, old: Path, new: Path) -> "Made":
        """The same, after its folder was moved."""

        def moved(value: Any) -> Any:
            if not isinstance(value, Path):
                return value
            return new / value.relative_to(old) if value != old else new

        return Made(moved(self.path), {name: moved(value) for name, value in self.options.items()})


def encoded_images(count: int) -> list[bytes]:
    """PNG files of coloured noise in memory, no two the same."""
    rng, images = np.random.default_rng(0), []
    for i in range(count):
        noise = rng.normal(list(WORDS.values())[i % len(WORDS)], 25, (40, 48, 3)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noise).save(file := BytesIO(), "PNG")
        images.append(file.getvalue())
    return images


def write_images(folder: Path, images: Sequence[bytes]) -> list[str]:
    """A file for each image; returns their names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{i:04}.png" for i in range(len(images))]
    for name, image in zip(names, images, strict=True):
        (folder / name).write_bytes(image)
    return names


def as_table(folder: Path, images: Sequence[bytes], captions: Captions) -> Path:
    """Write images as files and captions as a table of JSON lines; returns the table."""
    names = write_images(folder / "images", images)
    records = [{"image": f"images/{name}", "text": list(texts)} for name, texts in zip(names, captions, strict=True)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder / "pairs.jsonl"


@dataclass(frozen=True)
class Planned:
    """The images of a source as a cache plans them: records of one image are brought together."""

    keys: list[str]
    captions: list[list[str]]
    locators: NDArray[np.int64] | None
    reader: Reader

    @classmethod
    def of(cls, source: Source) -> "Planned":
        captions: dict[str, list[str]] = {}
        locators: dict[str, Any] = {}
        for row in source.rows():
            captions.setdefault(row.key, []).extend(filter(None, row.captions))
            locators.setdefault(row.key, row.locator)
        root = to_location(source.info.image_root)
        if None in locators.values():
            assert set(locators.values()) == {None}
            return cls(list(captions), list(captions.values()), None, PathReader.below(root))
        reader = type(source).reader(root, source.files(), source.info)
        return cls(list(captions), list(captions.values()), np.array(list(locators.values()), np.int64), reader)

    def read(self, rows: slice) -> list[bytes | Status]:
        return read_rows(self.reader, self.keys[rows], None if self.locators is None else self.locators[rows])


class SourceContract(ABC):
    """The tests. A source that cannot hold some of the captions has its own `captions` and `hostile`."""

    captions: ClassVar[Captions] = CAPTIONS
    hostile: ClassVar[Mapping[str, str]] = HOSTILE

    @abstractmethod
    def make(self, folder: Path, images: Sequence[bytes], captions: Captions) -> Made:
        """Write a source into a folder, which is empty or holds an earlier one to be replaced.

        Args:
            folder: exists.
            images: encoded, in the order that rows must have.
            captions: of each image.
        """

    def made(self, folder: Path, captions: Captions | None = None) -> Made:
        captions = self.captions if captions is None else captions
        folder.mkdir(parents=True, exist_ok=True)
        return self.make(folder, encoded_images(len(captions)), captions)

    @staticmethod
    def open(made: Made) -> Source:
        settings = CacheSettings(source=made.path, output=Path("unused"), model="unused", **made.options)
        return open_source(settings.source_info)

    def test_rows_are_the_same_on_every_reading(self, tmp_path: Path) -> None:
        made = self.made(tmp_path)
        source = self.open(made)
        first = list(source.rows())
        assert first == list(source.rows()) == list(self.open(made).rows())
        assert source.sha256() == self.open(made).sha256()
        lines = [row.line for row in first]
        assert lines == sorted(lines)

    def test_keys_are_unique_and_unicode(self, tmp_path: Path) -> None:
        keys = Planned.of(self.open(self.made(tmp_path))).keys
        assert len(keys) == len(self.captions)
        assert all(key.encode() and "\0" not in key for key in keys)

    def test_captions_survive_to_the_byte(self, tmp_path: Path) -> None:
        planned = Planned.of(self.open(self.made(tmp_path)))
        assert planned.captions == [list(captions) for captions in self.captions]

    def test_batches_are_the_rows_as_columns(self, tmp_path: Path) -> None:
        source = self.open(self.made(tmp_path))

        def joined(batches: Sequence[RowBatch]) -> dict[str, Any]:
            keys = [key for batch in batches for key in batch.keys.split()]
            starts = np.cumsum([0, *map(len, batches)]).tolist()
            locators = [batch.locators.tolist() for batch in batches if batch.locators is not None]
            return {
                "keys": keys,
                "captions": [text for batch in batches for text in batch.captions.split()],
                "image_index": [
                    a + i for a, batch in zip(starts, batches, strict=False) for i in batch.image_index.tolist()
                ],
                "locators": [locator for some in locators for locator in some],
                "languages": [tag for batch in batches for tag in batch.languages or ()],
            }

        assert joined(list(source.batches())) == joined(list(batched(source.rows(), rows_at_a_time=2**30)))

    def test_the_reader_gives_the_images_in_any_order(self, tmp_path: Path) -> None:
        images = encoded_images(len(self.captions))
        planned = Planned.of(self.open(self.made(tmp_path)))
        assert planned.read(slice(None)) == images
        for reader in (planned.reader, pickle.loads(pickle.dumps(planned.reader))):
            again = Planned(planned.keys, planned.captions, planned.locators, reader)
            for rows in [*(slice(i, i + 1) for i in reversed(range(len(images)))), slice(5, 9), slice(0, 3)]:
                assert again.read(rows) == images[rows]

    def test_the_reader_works_in_another_process(self, tmp_path: Path) -> None:
        planned = Planned.of(self.open(self.made(tmp_path)))
        with worker_pool(1, "clipglot.cache.write.decode_pool", int) as pool:
            images = pool.submit(read_rows, planned.reader, planned.keys, planned.locators).result()
        assert images == encoded_images(len(self.captions))

    def test_an_empty_source_is_refused(self, tmp_path: Path, make_cache: Callable[..., Any]) -> None:
        made = self.made(tmp_path / "source", [])
        with pytest.raises(CacheError, match=re.escape(str(made.path))):
            make_cache(made.path, tmp_path / "cache.zarr", **made.options)
        assert not (tmp_path / "cache.zarr").exists()

    def test_an_absent_source_is_named(self, tmp_path: Path) -> None:
        made = self.made(tmp_path / "source")
        shutil.rmtree(made.path) if made.path.is_dir() else made.path.unlink()
        with pytest.raises(CacheError, match=re.escape(str(made.path))):
            list(self.open(made).rows())

    def test_a_changed_source_is_recognised(self, tmp_path: Path, make_cache: Callable[..., Any]) -> None:
        folder, cache = tmp_path / "source", tmp_path / "cache.zarr"
        made = self.made(folder)
        make_cache(made.path, cache, **made.options)
        captions = [list(texts) for texts in self.captions]
        last = [texts for texts in captions if texts][-1]
        last[-1] = last[-1][:-1] + "x"
        changed = self.made(folder, captions)
        with pytest.raises(DistillError, match="has changed"):
            make_cache(changed.path, cache, **changed.options)

    def test_a_source_that_moved_is_resumed(self, tmp_path: Path, make_cache: Callable[..., Any]) -> None:
        here, there, cache = tmp_path / "here", tmp_path / "there" / "deeper", tmp_path / "cache.zarr"
        made = self.made(here)
        whole = make_cache(made.path, cache, **made.options).cache.image_emb()
        for name in ("emb/c/0/0/0", "norm/c/0/0", "status/c/0"):
            (cache / "images" / name).unlink()
        moved = made.below(here, Path(shutil.copytree(here, there)))
        shutil.rmtree(here)
        result = make_cache(moved.path, cache, **moved.options)
        assert result.resumed
        assert result.report.num_pictures == result.cache.info.chunk_rows
        assert np.array_equal(result.cache.image_emb(), whole)

    def test_embeddings_are_those_of_the_same_images_in_a_table(
        self, tmp_path: Path, make_cache: Callable[..., Any], cache_of_table: Callable[[Captions], Cache]
    ) -> None:
        made = self.made(tmp_path / "source")
        cache: Cache = make_cache(made.path, tmp_path / "cache.zarr", num_workers=2, **made.options).cache
        expected = cache_of_table(self.captions)
        assert (cache.status() == Status.EMBEDDED).all()
        assert np.array_equal(cache.image_emb(), expected.image_emb())
        assert np.array_equal(cache.norm(), expected.norm())
        assert cache.captions() == expected.captions()
        assert np.array_equal(cache.caption_image(), expected.caption_image())

    def test_hostile_captions_are_dropped_and_counted(self, tmp_path: Path, make_cache: Callable[..., Any]) -> None:
        captions = [[text] for text in self.hostile.values()] + [["good"]]
        made = self.made(tmp_path / "source", captions)
        cache: Cache = make_cache(made.path, tmp_path / "cache.zarr", **made.options).cache
        assert cache.info.dropped_captions == dict.fromkeys(self.hostile, 1)
        assert cache.captions() == ["good"]
        assert cache.info.num_images == len(captions)

    def test_a_limit_takes_the_first_images(self, tmp_path: Path, make_cache: Callable[..., Any]) -> None:
        made = self.made(tmp_path / "source")
        cache: Cache = make_cache(made.path, tmp_path / "cache.zarr", limit=3, **made.options).cache
        assert len(cache) == 3
        assert cache.captions() == [text for captions in self.captions[:3] for text in captions]
        assert (cache.status() == Status.EMBEDDED).all()

    def test_nothing_outside_the_root_is_read(self, tmp_path: Path) -> None:
        """What a source reads images from becomes a link to the same file elsewhere."""
        source = self.open(self.made(tmp_path / "source"))
        planned = Planned.of(source)
        assert isinstance(planned.read(slice(0, 1))[0], bytes)
        for name in source.files() or planned.keys:
            file = Path(source.info.image_root, name)
            outside = tmp_path / "outside" / name
            outside.parent.mkdir(parents=True, exist_ok=True)
            file.rename(outside)
            file.symlink_to(outside)
        again = pickle.loads(pickle.dumps(planned.reader))  # nothing is open yet
        images = read_rows(again, planned.keys, planned.locators)
        assert images == [Status.OUTSIDE_ROOT] * len(planned.keys)
