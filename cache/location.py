"""Location of a cache or a source: a local path or a URL, parsed once from what the user passes."""

from pathlib import Path, PurePosixPath


class Url(str):
    """URL of a file or folder for fsspec, e.g. `s3://bucket/train.zarr`, with some methods of `Path`.

    >>> url = Url("s3://bucket/data") / "train.parquet"
    >>> str(url), url.name, url.stem, url.suffix
    ('s3://bucket/data/train.parquet', 'train.parquet', 'train', '.parquet')
    """

    __slots__ = ()

    @property
    def scheme(self) -> str:
        """The part before `://`; the last one of a chain such as `simplecache::s3://`."""
        return self.partition("://")[0].rpartition("::")[2]

    @property
    def name(self) -> str:
        """The last part."""
        return self.rpartition("/")[2]

    @property
    def stem(self) -> str:
        """The last part without its suffix."""
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        """Suffix of the last part, with the dot."""
        return PurePosixPath(self.name).suffix

    def __truediv__(self, name: str) -> "Url":
        return Url(f"{self}/{name}")

    def absolute(self) -> "Url":
        """Itself: a URL does not depend on the working directory."""
        return self


Location = Path | Url


def to_location(text: str | Path) -> Location:
    """Parse a location from the command line, a settings file or a run's `run.json`.

    >>> to_location("s3://bucket/train.zarr/")
    's3://bucket/train.zarr'
    >>> to_location("file:///data/train.zarr").as_posix()
    '/data/train.zarr'
    """
    scheme, separator, path = str(text).partition("://")
    if not separator:
        return Path(text)
    return Path(path) if scheme in ("file", "local") else Url(str(text).rstrip("/"))


def is_hdf5(path: Path) -> bool:
    """Whether a path has the suffix of an HDF5 file."""
    return path.suffix.lower() in (".h5", ".hdf5")
