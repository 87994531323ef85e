"""Settings of `clipglot convert`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from ...cache.location import Location
from ...distill.settings import require


@dataclass(frozen=True, kw_only=True)
class ConvertSettings:
    """`clipglot convert`: copy a sealed cache to a Zarr folder or an HDF5 file."""

    cache: Annotated[Location, "sealed cache to copy"]
    out: Annotated[Path, "the copy: an HDF5 file if it ends in .h5 or .hdf5, else a Zarr folder; must not exist"]

    def __post_init__(self) -> None:
        require(
            self.out.suffix.lower() in ("", ".zarr", ".h5", ".hdf5"),
            f"OUT: {self.out} ends in {self.out.suffix}: name a Zarr folder .zarr, or without a suffix, and an HDF5 "
            "file .h5 or .hdf5",
        )
