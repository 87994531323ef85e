"""Small pictures of the images of a cache, read from where the cache read them."""

import time
from collections.abc import Sequence
from dataclasses import replace
from hashlib import blake2b
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..cache.errors import CacheError
from ..cache.format import HASH, RejectedImageError, Status
from ..cache.read.cache import Cache
from ..cache.sources.kinds import SOURCES
from ..cache.sources.reader import ImageReader
from ..cache.write.image_decode import ResizeCrop, decode_views
from ..cache.write.image_reader import reader_of

QUALITY = 70
RETRY_S = 10.0  # after which a source that could not be opened is tried again
MOST_BYTES = 40_000  # of one; a picture of noise is made again at less quality


class ThumbnailReader:
    """Reads images of a cache by row, from every kind of source, in one size.

    A source that is absent takes away only its own images. One object must not be used by several threads at a time.
    """

    def __init__(self, cache: Cache, image_root: str | None = None, *, effort: int = 6) -> None:
        """Read images of a cache.

        Args:
            cache: sealed.
            image_root: folder or URL that has the images now; None for where the cache read them.
            effort: of compressing, 0 (fast) to 6 (small).
        """
        self._cache, self._effort = cache, effort
        self._sources = [
            replace(source, image_root=image_root) if image_root else source for source in cache.info.sources
        ]
        self._geometry = ResizeCrop.from_preprocess(cache.info.encoder.preprocess)
        self._readers: dict[int, ImageReader] = {}
        self._absent: dict[int, tuple[float, CacheError]] = {}
        self._has_hashes = cache.arrays.has(HASH)
        self._hashes: tuple[int, NDArray[np.uint64]] | None = None

    def webp(self, row: int, key: str, side: int, *, whole: bool = False) -> bytes:
        """An image as a WebP file.

        Args:
            row: of the cache.
            key: of the image in that row.
            side: width and height in pixels; what exceeds the square is cut as the image tower cuts it.
            whole: cut nothing; `side` is the longer side.

        Raises:
            RejectedImageError: it cannot be read or decoded.
            CacheError: its source cannot be read, or has another image there now.
        """
        pixels = self.image(row, key, side, whole=whole)
        for quality in (QUALITY, QUALITY // 2, 5):
            buffer = BytesIO()
            pixels.save(buffer, "WEBP", quality=quality, method=self._effort)
            if buffer.tell() <= MOST_BYTES:
                break
        return buffer.getvalue()

    def image(self, row: int, key: str, side: int, *, whole: bool = False) -> Image.Image:
        """An image in RGB.

        Args:
            row: as of `webp`.
            key: likewise.
            side: likewise.
            whole: likewise.

        Raises:
            RejectedImageError, CacheError: as of `webp`.
        """
        content = self.content(row, key)
        geometry = replace(self._geometry, height=side, width=side)
        if whole:
            geometry = replace(geometry, resize_mode="longest")
        view = geometry.resize if whole else geometry.apply
        limit = self._cache.info.max_pixels
        return Image.fromarray(decode_views(BytesIO(content), geometry, [view], limit, scaled=True)[0])

    def content(self, row: int, key: str) -> bytes:
        """The encoded bytes of an image, as its source has them.

        Raises:
            RejectedImageError, CacheError: as of `webp`.
        """
        (content,) = self._reader(row).read(row, [key], self._cache.locators(row, row + 1))
        if isinstance(content, Status):
            raise RejectedImageError(content)
        if self._has_hashes:
            expected = self._hashes_of(row // self._cache.info.chunk_rows)[row % self._cache.info.chunk_rows].tobytes()
            if any(expected) and blake2b(content, digest_size=len(expected)).digest() != expected:
                raise CacheError(f"{key} is another image than the one that was cached: cache the images again")
        return content

    def _hashes_of(self, chunk: int) -> NDArray[np.uint64]:
        """Hashes of the images of a chunk; those of the last one are kept."""
        if self._hashes is None or self._hashes[0] != chunk:
            self._hashes = (chunk, self._cache.hashes(chunk))
        return self._hashes[1]

    def _reader(self, row: int) -> ImageReader:
        """The reader of a row's source, opened at its first image, or again some time after that failed.

        Raises:
            CacheError: the source cannot be read.
        """
        number = max(i for i, source in enumerate(self._sources) if source.first_row <= row)
        if number not in self._readers:
            since, absent = self._absent.get(number, (0.0, None))
            if absent and time.monotonic() < since + RETRY_S:
                raise absent
            try:
                rows: Sequence[range] = [range(row, row + 1)]
                self._readers[number] = reader_of(self._cache, SOURCES, sources=self._sources, rows=rows)
            except CacheError as error:
                self._absent[number] = (time.monotonic(), error)
                raise
        return self._readers[number]
