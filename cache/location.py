"""Location of a cache or a source: a local path or a URL, distinguished once, where the user names it."""

from pathlib import Path, PurePosixPath


class Url(str):
    """A file or folder as fsspec names it, e.g. `s3://bucket/train.zarr`, with parts of a `Path`.

    >>> url = Url("s3://bucket/data") / "train.parquet"
    >>> str(url), url.name, url.stem, url.suffix
    ('s3://bucket/data/train.parquet', 'train.parquet', 'train', '.parquet')
    """

    __slots__ = ()

    @property
    def scheme(self) -> str:
        """What stands before `://`; the last of a chain such as `simplecache::s3://`."""
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
        """How the last part ends, with a dot."""
        return PurePosixPath(self.name).suffix

    def __truediv__(self, name: str) -> "Url":
        return Url(f"{self}/{name}")

    def absolute(self) -> "Url":
        """Itself: it holds in every working directory."""
        return self


Location = Path | Url


def to_location(named: str | Path) -> Location:
    """The location that a user, a file of settings or a run's description names.

    >>> to_location("s3://bucket/train.zarr/")
    's3://bucket/train.zarr'
    >>> to_location("file:///data/train.zarr").as_posix()
    '/data/train.zarr'
    """
    scheme, mark, rest = str(named).partition("://")
    if not mark:
        return Path(named)
    return Path(rest) if scheme in ("file", "local") else Url(str(named).rstrip("/"))


def is_hdf5(path: Path) -> bool:
    """Whether a name is that of an HDF5 file, which may hold a cache."""
    return path.suffix.lower() in (".h5", ".hdf5")
