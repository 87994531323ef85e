"""Tables keep the contract of sources: jsonl, and CSV with a line for each caption."""

import csv
from collections.abc import Sequence
from pathlib import Path

from support.source_contract import HOSTILE, Made, SourceContract, as_table, without, write_images


class TestJsonLines(SourceContract):
    def make(self, folder: Path, images: Sequence[bytes], captions: Sequence[Sequence[str]]) -> Made:
        return Made(as_table(folder, images, captions))


class TestCsv(SourceContract):
    hostile = without(HOSTILE, "not unicode")  # UTF-8 cannot hold it

    def make(self, folder: Path, images: Sequence[bytes], captions: Sequence[Sequence[str]]) -> Made:
        names = write_images(folder / "pictures", images)
        with open(folder / "pairs.csv", "w", encoding="utf-8", newline="") as file:
            table = csv.writer(file)
            table.writerow(["file", "caption"])
            for name, texts in zip(names, captions, strict=True):
                table.writerows([name, text] for text in texts or [""])
        options = {"image_root": folder / "pictures", "image_field": "file", "text_field": ("caption",)}
        return Made(folder / "pairs.csv", options)
