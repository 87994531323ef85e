"""Settings of `clipglot export`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """`clipglot export`: merge the frozen image tower and the trained text tower into one CLIP."""

    run: Annotated[Path, "folder of a finished run"]
    output: Annotated[Path, "folder of the merged CLIP; must not exist"]
    step: Annotated[
        Literal["best", "last"] | None,
        "weights of the best validation, or those after the last step (default: best, where the run had a --val)",
    ] = None
    model: Annotated[str | None, "where the image tower is now, if it moved since caching"] = None
    pretrained: Annotated[str | None, "where its weights are now, if they moved since caching"] = None
