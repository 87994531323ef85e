"""Settings of `clipglot merge`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from ...cache.location import Location
from ...distill.settings import require


@dataclass(frozen=True, kw_only=True)
class MergeSettings:
    """`clipglot merge`: concatenate caches of one image tower."""

    caches: Annotated[tuple[Location, ...], "sealed caches, in the order of their rows"]
    output: Annotated[Path, "cache to write; must not exist"]
    prefix: Annotated[bool, "prefix keys with the name of their cache; image files are no longer found then"] = False

    def __post_init__(self) -> None:
        require(len(self.caches) >= 2, "CACHES: give two or more")
