"""A cache for Python code: embeddings, keys and captions, in slices, chunks, or for other libraries."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..cache.format import Status
from ..cache.read.cache import Cache
from .errors import InputError

if TYPE_CHECKING:
    import pandas
    from torch.utils.data import Dataset


class ImageEmbeddings:
    """Image embeddings of a cache, `[N, D] float16`, of which only the rows that are asked for are read.

    Attributes:
        shape: (N, D).
        dtype: float16.
    """

    dtype = np.dtype(np.float16)

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self.shape = (len(cache), cache.info.encoder.dim)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: int | slice | NDArray[Any] | list[int]) -> NDArray[np.float16]:
        """One row `[D]`, or rows `[n, D]` of a slice, positions or a mask.

        Raises:
            IndexError: no such row.
        """
        if isinstance(rows, int | np.integer):
            index = int(rows) + (len(self) if rows < 0 else 0)
            row: NDArray[np.float16] = self._cache.emb_rows(np.array([index]))[0]
            return row
        chosen = np.arange(len(self))[rows]
        return self._cache.emb_rows(chosen)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        array = self._cache.image_emb()
        return array if dtype is None else array.astype(dtype)

    def __repr__(self) -> str:
        return f"ImageEmbeddings(shape={self.shape}, dtype=float16)"


class EmbeddedImages:
    """Map-style dataset of the embedded images of a cache; it may be sent to other processes.

    Attributes:
        emb: `[N, D] float16` of all images.
        captions: of each of the N images.
        keys: of each of the N images.
        rows: of those that are embedded.
    """

    def __init__(
        self, emb: NDArray[np.float16], captions: list[list[str]], keys: list[str], rows: NDArray[np.int64]
    ) -> None:
        self.emb, self.captions, self.keys, self.rows = emb, captions, keys, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """`image_emb [D] float32`, `captions`, `key` and `row` of an image."""
        import torch

        row = int(self.rows[index])
        vector = torch.from_numpy(self.emb[row].astype(np.float32))
        return {"image_emb": vector, "captions": self.captions[row], "key": self.keys[row], "row": row}


class OpenedCache:
    """A cache of N images with M captions, as `clipglot.open_cache` gives it.

    Rows of images that could not be embedded are zeros; `is_embedded` tells them.

    Attributes:
        cache: the reader underneath, with all arrays.
    """

    def __init__(self, path: str | Path) -> None:
        self.cache = Cache(path)
        self.cache.require_sealed()

    def __len__(self) -> int:
        return len(self.cache)

    def __repr__(self) -> str:
        return (
            f"OpenedCache({str(self.cache.path)!r}, images={len(self)}, captions={self.num_captions}, dim={self.dim})"
        )

    @property
    def dim(self) -> int:
        """D, the number of features."""
        return self.cache.info.encoder.dim

    @property
    def num_captions(self) -> int:
        """M."""
        return len(self.cache.caption_image())

    @property
    def image_emb(self) -> ImageEmbeddings:
        """Embeddings `[N, D] float16`, unit norm; index it to read rows."""
        return ImageEmbeddings(self.cache)

    @property
    def keys(self) -> list[str]:
        """The N keys: paths of the images as the source names them."""
        return self.cache.keys()

    @property
    def status(self) -> NDArray[np.uint8]:
        """`[N] uint8`, values of `clipglot.cache.format.Status`; 1 is embedded."""
        return self.cache.status()

    @property
    def is_embedded(self) -> NDArray[np.bool_]:
        """`[N] bool`."""
        result: NDArray[np.bool_] = self.status == Status.EMBEDDED
        return result

    @property
    def captions(self) -> list[list[str]]:
        """The captions of each image, N lists."""
        return self.cache.captions_by_image(slice(0, len(self)), self.cache.caption_image())

    def chunks(self) -> Iterator[tuple[slice, NDArray[np.float16]]]:
        """Rows and embeddings of each chunk, as it lies on the disk: the way to go through more than fits in memory."""
        for chunk in range(self.cache.num_chunks):
            rows = self.cache.chunk_slice(chunk)
            yield rows, self.cache.emb_rows(np.arange(rows.start, rows.stop))

    def to_numpy(self) -> NDArray[np.float16]:
        """All embeddings, `[N, D] float16`."""
        return self.cache.image_emb()

    def to_torch_dataset(self) -> "Dataset[dict[str, Any]]":
        """A map-style dataset of the embedded images: `image_emb [D] float32`, `captions`, `key`, `row`."""
        dataset: Any = EmbeddedImages(self.to_numpy(), self.captions, self.keys, np.flatnonzero(self.is_embedded))
        return dataset  # type: ignore[no-any-return]

    def to_pandas(self) -> "pandas.DataFrame":
        """A row an image: key, status, captions, and the embedding as an array.

        Raises:
            InputError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise InputError("to_pandas needs pandas: pip install pandas") from error
        return pandas.DataFrame(
            {
                "key": self.keys,
                "status": [Status(value).label for value in self.status.tolist()],
                "captions": self.captions,
                "image_emb": list(self.to_numpy()),
            }
        )

    def _repr_html_(self) -> str:
        from .clip import html_table

        info = self.cache.info
        weights = f", {info.encoder.pretrained}" if info.encoder.pretrained else ""
        failed = int((~self.is_embedded).sum())
        rows = [
            ("cache", str(self.cache.path)),
            ("images", f"{len(self):,}" + (f", of which {failed:,} could not be embedded" if failed else "")),
            ("captions", f"{self.num_captions:,}"),
            ("image tower", f"{info.encoder.model}{weights}, {self.dim} features"),
        ]
        return html_table(("", ""), rows)


def open_cache(path: str | Path) -> OpenedCache:
    """Open a cache for reading.

    Args:
        path: local folder, HDF5 file or URL.

    Raises:
        CacheError: no cache there, or one that is not complete.

    >>> cache = open_cache("train.zarr")
    >>> len(cache), cache.image_emb[:3].shape, cache.keys[0]
    (40, (3, 16), 'images/0000.png')
    """
    return OpenedCache(path)
