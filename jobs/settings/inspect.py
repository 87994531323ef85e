"""Settings of `clipglot inspect`."""

from dataclasses import dataclass
from typing import Annotated

from ...cache.location import Location
from ...distill.settings import require


@dataclass(frozen=True, kw_only=True)
class InspectSettings:
    """`clipglot inspect`: what a cache contains."""

    cache: Annotated[Location, "cache to show"]
    failures: Annotated[int, "failed images to list; without a number, or with -1, all"] = 10
    pairs: Annotated[int, "images to list with their first caption, spread evenly over the cache"] = 3

    def __post_init__(self) -> None:
        require(self.pairs >= 0, f"--pairs {self.pairs}: must be 0 or more")
