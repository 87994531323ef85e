"""Settings of `clipglot index`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from ...cache.location import Location
from ...distill.settings import require
from .cluster import NumLocal, Scheduler, require_cluster


@dataclass(frozen=True, kw_only=True)
class IndexSettings:
    """`clipglot index`: an index for search in a large cache."""

    cache: Annotated[Location, "cache of images to search"]
    output: Annotated[Path, "file to write"]
    clip: Annotated[
        Path | None,
        "merged CLIP that embeds the captions by which recall is measured (default: the cache's own translations)",
    ] = None
    queries: Annotated[Path | None, "file of queries to measure with instead of captions, one per line"] = None
    recall: Annotated[float, "share of the ten nearest images that a search should find"] = 0.95
    kind: Annotated[
        Literal["auto", "ivf-int8", "ivf-rabitq"],
        "codes of 8 bits a feature, or of 1 bit (RaBitQ): a sixth of the bytes; auto: 1 bit above 20 million images",
    ] = "auto"
    num_queries: Annotated[int, "texts to measure with; half of them tune how much a search reads"] = 1000
    seed: Annotated[int, "seed of the sample and of the texts"] = 0
    scheduler: Scheduler = None
    num_local: NumLocal = None

    def __post_init__(self) -> None:
        require(0 < self.recall <= 1, f"--recall {self.recall}: a share lies above 0, up to 1")
        require(self.num_queries >= 2, f"--num-queries {self.num_queries}: must be at least 2")
        require(self.seed >= 0, f"--seed {self.seed}: must be 0 or more")
        require(self.queries is None or self.clip is not None, "--queries needs --clip MERGED, which embeds them")
        require_cluster(self)
