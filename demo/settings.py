"""What the demo does by default; sizes chosen so that two cores finish within three minutes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from ..distill.errors import DistillError

BATCH_SIZE = 256


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """`clipglot demo`: the whole job, offline, on images that it draws itself."""

    output: Annotated[Path | None, "folder to keep everything in (default: a temporary one, deleted at the end)"] = None
    language: Annotated[Literal["ru", "zh", "ko", "en"], "language that the text tower learns"] = "ru"
    pictures: Annotated[int, "images to train on"] = 8_000
    epochs: Annotated[int, "times that every image is shown"] = 14
    seed: Annotated[int, "of drawings, captions and training"] = 0

    def __post_init__(self) -> None:
        if self.pictures < BATCH_SIZE:
            raise DistillError(f"--pictures {self.pictures}: must be at least one batch of {BATCH_SIZE}")
        if self.epochs < 1:
            raise DistillError(f"--epochs {self.epochs}: must be at least 1")
        if not 0 <= self.seed < 2**63:
            raise DistillError(f"--seed {self.seed}: must lie between 0 and 2^63")
