"""Settings of `clipglot verify`."""

from dataclasses import dataclass
from typing import Annotated

from ...cache.location import Location
from ...distill.settings import Device, require
from .cluster import NumLocal, Scheduler, require_cluster


@dataclass(frozen=True, kw_only=True)
class VerifySettings:
    """`clipglot verify`: check that a cache is undamaged, and that its tower still gives its embeddings."""

    cache: Annotated[Location, "cache to check"]
    sample: Annotated[
        int | None, "images to embed again, 0 for none; fails if they cannot be read (default: 16 if possible)"
    ] = None
    seed: Annotated[int, "seed of the sample"] = 0
    model: Annotated[str | None, "where the image tower is now, if it moved since caching"] = None
    pretrained: Annotated[str | None, "where its weights are now, if they moved since caching"] = None
    image_root: Annotated[Location | None, "folder or URL where the images are now, if they moved since caching"] = None
    repair: Annotated[bool, "mark damaged chunks, so that the next `clipglot cache` embeds them again"] = False
    device: Device = "auto"
    scheduler: Scheduler = None
    num_local: NumLocal = None

    def __post_init__(self) -> None:
        require(self.sample is None or self.sample >= 0, f"--sample {self.sample}: must be 0 or more")
        require(self.seed >= 0, f"--seed {self.seed}: must be 0 or more")
        require_cluster(self)

    @property
    def names_a_sample(self) -> bool:
        """Whether the user explicitly asked for images to be embedded again."""
        return bool(self.sample or ((self.model or self.pretrained or self.image_root) and self.sample is None))
