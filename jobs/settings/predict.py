"""Settings of `clipglot predict`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated


@dataclass(frozen=True, kw_only=True)
class PredictSettings:
    """`clipglot predict`: which text describes each image best."""

    merged: Annotated[Path, "folder of a merged CLIP"]
    images: Annotated[tuple[Path, ...], "image files"]
    text: Annotated[tuple[str, ...], "a description to choose from; repeat it"]
