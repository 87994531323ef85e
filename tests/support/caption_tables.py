"""Tables of captions in further languages, for the images of `draw_images`."""

import csv
from collections.abc import Sequence
from pathlib import Path

ENGLISH = ("red noise", "green noise", "blue noise", "yellow noise")
GERMAN = ("rotes Rauschen", "grünes Rauschen", "blaues Rauschen", "gelbes Rauschen")


def write_table(path: Path, rows: Sequence[tuple[str, str]]) -> Path:
    """A CSV or TSV of keys and captions."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writerows([("image", "text"), *rows])
    return path


def key(number: int) -> str:
    """The key of an image of `draw_images`."""
    return f"images/{number:04}.png"


def english(path: Path, numbers: Sequence[int]) -> Path:
    """A table with two English captions of each of some images, in descending order of images."""
    rows = [(key(i), caption) for i in reversed(numbers) for caption in (f"{ENGLISH[i % 4]} {i}", ENGLISH[i % 4])]
    return write_table(path, rows)


def german(path: Path, numbers: Sequence[int]) -> Path:
    """A table with a German caption of each of some images."""
    return write_table(path, [(key(i), f"{GERMAN[i % 4]} {i}") for i in numbers])
