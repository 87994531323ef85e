"""Settings of `clipglot duplicates`."""

from dataclasses import dataclass
from typing import Annotated

from ...cache.location import Location
from ...distill.settings import Device, require


@dataclass(frozen=True, kw_only=True)
class DuplicatesSettings:
    """`clipglot duplicates`: find near-duplicate images."""

    cache: Annotated[Location, "cache of images, e.g. for training"]
    against: Annotated[
        Location | None, "a second cache, e.g. for validation: find its images that are also in CACHE"
    ] = None
    threshold: Annotated[float, "cosine at or above which two images count as duplicates"] = 0.97
    sample: Annotated[
        int | None, "images compared with all others, 0 for all (default: all up to 10^10 pairs, else 10,000)"
    ] = None
    seed: Annotated[int, "seed of the sample"] = 0
    pairs: Annotated[int, "pairs to list, nearest first; -1 lists all"] = 10
    device: Device = "auto"

    def __post_init__(self) -> None:
        require(-1 <= self.threshold <= 1, f"--threshold {self.threshold}: a cosine lies between -1 and 1")
        require(self.sample is None or self.sample >= 0, f"--sample {self.sample}: must be 0 or more")
        require(self.pairs >= -1, f"--pairs {self.pairs}: must be -1 or more")
        require(self.seed >= 0, f"--seed {self.seed}: must be 0 or more")
