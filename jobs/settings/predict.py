"""Settings of `clipglot predict`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated


@dataclass(frozen=True, kw_only=True)
class PredictSettings:
    """`clipglot predict`: which text describes each image best."""

    merged: Annotated[Path, "folder of a merged CLIP"]
    images: Annotated[tuple[Path, ...], "image files, and folders of them"]
    text: Annotated[tuple[str, ...], "a description to choose from; repeat for several"] = ()
    texts: Annotated[Path | None, "text file of descriptions, one per line"] = None
    top: Annotated[int | None, "number of best descriptions to show for each image (default: all)"] = None
