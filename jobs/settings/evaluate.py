"""Settings of `clipglot eval`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from ...cache.location import Location


@dataclass(frozen=True, kw_only=True)
class RetrievalSettings:
    """`clipglot eval retrieval`: recall of a merged CLIP on a cache."""

    merged: Annotated[Path, "folder of a merged CLIP"]
    cache: Annotated[Location, "cache of images and captions, made by the same image tower"]
