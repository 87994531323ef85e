"""Table of export formats, and what each gives.

A new format is a module with a `write(folder, clip) -> Written`, a line in the table below, a row in docs/exports.md
and a test in `tests/exports`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from ..encoders.merged_clip import MergedClip

# Format: module beside this one, library of the card's front matter.
FORMATS = {
    "transformers": ("transformers_format", "transformers"),
    "sentence-transformers": ("sentence_transformers_format", "sentence-transformers"),
    "onnx": ("onnx_format", "onnx"),
}


@dataclass(frozen=True, kw_only=True)
class Written:
    """An export that its library has loaded again, with the features that were merged.

    Attributes:
        loaded_by: library and class, with the version.
        code: Python that loads the folder; `{folder}` stands for its path.
        text_difference: largest difference of a value of normalized text features.
        image_difference: likewise of image features.
        notes: differences and conditions for the model card, a sentence each.
        tags: further tags of the model card.
    """

    loaded_by: str
    code: str
    text_difference: float
    image_difference: float
    notes: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)


def write_format(name: str, folder: Path, clip: MergedClip, **options: Any) -> Written:
    """Write a CLIP into an empty folder in a format, and load it again with the format's library.

    Args:
        name: key of `FORMATS`.
        folder: exists and is empty.
        clip: on the CPU.
        **options: of that format.

    Raises:
        ExportError: the format cannot hold this CLIP, its library is absent, or it computes something else.
    """
    write: Callable[..., Written] = import_module(f".{FORMATS[name][0]}", __package__).write
    return write(folder, clip, **options)
