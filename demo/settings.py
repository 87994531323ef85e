"""Settings of `clipglot demo`; by default two cores finish within two minutes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from ..distill.settings import require, require_at_least_one

BATCH_SIZE = 256


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """`clipglot demo`: the whole workflow, offline, on drawn images."""

    output: Annotated[Path | None, "folder to keep everything in (default: a temporary one, deleted at the end)"] = None
    language: Annotated[Literal["ru", "zh", "ko", "en"], "language that the text tower learns"] = "ru"
    pictures: Annotated[int, "images to train on"] = 8_000
    epochs: Annotated[int, "passes over the images"] = 14
    seed: Annotated[int, "seed of drawings, captions and training"] = 0
    serve: Annotated[bool, "search the drawings from a browser at the end"] = False
    port: Annotated[int, "port of that page; 0 takes any free one"] = 8000

    def __post_init__(self) -> None:
        require(self.pictures >= BATCH_SIZE, f"--pictures {self.pictures}: must be at least one batch of {BATCH_SIZE}")
        require_at_least_one(self, "epochs")
        require(0 <= self.port < 65_536, f"--port {self.port}: must lie between 0 and 65535")
        require(0 <= self.seed < 2**63, f"--seed {self.seed}: must lie between 0 and 2^63")
