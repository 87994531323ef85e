"""Tars are sources like any other: with captions in JSON, in text members, with img2dataset's tables, at URLs."""

from collections.abc import Sequence
from pathlib import Path

from support.source_contract import CAPTIONS, HOSTILE, Made, SourceContract, without
from support.tars import write_img2dataset, write_shards, write_tar

ONE_EACH = [captions[:1] for captions in CAPTIONS if captions]


class TestFolderOfTars(SourceContract):
    def make(self, folder: Path, images: Sequence[bytes], captions: Sequence[Sequence[str]]) -> Made:
        write_shards(folder / "tars", images, captions)
        return Made(folder / "tars")


class TestOneTarWithTexts(SourceContract):
    captions = ONE_EACH

    def make(self, folder: Path, images: Sequence[bytes], captions: Sequence[Sequence[str]]) -> Made:
        members = [
            member
            for i, (image, texts) in enumerate(zip(images, captions, strict=True))
            for member in (
                (f"./deep/{i}.PNG", image),
                (f"./deep/{i}.txt", texts[0].encode("utf-8", "surrogatepass")),
            )
        ]
        return Made(write_tar(folder / "pairs.tar", members))


class TestImg2dataset(SourceContract):
    captions = ONE_EACH
    hostile = without(HOSTILE, "not unicode")

    def make(self, folder: Path, images: Sequence[bytes], captions: Sequence[Sequence[str]]) -> Made:
        write_img2dataset(folder / "tars", images, [texts[0] for texts in captions])
        (folder / "tars").mkdir(exist_ok=True)
        return Made(folder / "tars")
