"""Settings of `clipglot convert`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from ...cache.location import Location
from ...distill.settings import require

EMBEDDINGS = (".npy", ".parquet", ".safetensors")


@dataclass(frozen=True, kw_only=True)
class ConvertSettings:
    """`clipglot convert`: copy a sealed cache to another store, or its embeddings to a file of another tool."""

    cache: Annotated[Location, "sealed cache to copy"]
    out: Annotated[
        Path,
        "the copy, which must not exist: an HDF5 file (.h5, .hdf5), a Zarr folder, or the embeddings alone as .npy, "
        ".parquet or .safetensors",
    ]

    def __post_init__(self) -> None:
        require(
            self.out.suffix.lower() in ("", ".zarr", ".h5", ".hdf5", *EMBEDDINGS),
            f"OUT: {self.out} ends in {self.out.suffix}: name a Zarr folder .zarr, or without a suffix, an HDF5 "
            "file .h5 or .hdf5, and embeddings .npy, .parquet or .safetensors",
        )
