"""Small pictures of images of a cache, read from where the cache read them, as data URIs of WebP."""

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO

from PIL import Image

from ..cache.errors import CacheError
from ..cache.format import RejectedImageError, SourceInfo, Status
from ..cache.progress import OnProgress, Progress
from ..cache.read.cache import Cache
from ..cache.sources.kinds import SOURCES
from ..cache.sources.reader import ImageReader
from ..cache.write.image_decode import ResizeCrop, decode
from ..cache.write.image_reader import reader_of
from .figures import ShownImage

SIDE = 176  # pixels, shown at half of that or more
QUALITY = 70
MOST_BYTES = 40_000  # of one; a picture of noise is made again at less quality


def thumbnails(
    cache: Cache, images: Sequence[ShownImage], image_root: str | None, on_progress: OnProgress
) -> tuple[dict[int, str], str | None]:
    """Data URI of each image by its row, and why there is none for some.

    Args:
        cache: that has the images.
        images: to show.
        image_root: folder or URL that has the images now; None for where the cache read them.
        on_progress: called with the images of stage `thumbnails`.
    """
    sources: list[SourceInfo] = [
        replace(source, image_root=image_root) if image_root else source for source in cache.info.sources
    ]
    geometry = replace(ResizeCrop.from_preprocess(cache.info.encoder.preprocess), height=SIDE, width=SIDE)
    made: dict[int, str] = {}
    failed: list[tuple[ShownImage, Status]] = []
    problem, done = None, 0
    ends = [*(source.first_row for source in sources[1:]), len(cache)]
    for source, end in zip(sources, ends, strict=True):
        own = [image for image in images if source.first_row <= image.row < end]
        if not own:
            continue
        try:
            rows = [range(image.row, image.row + 1) for image in own]
            reader = reader_of(cache, SOURCES, sources=sources, rows=rows)
            for image in own:
                try:
                    made[image.row] = _thumbnail(cache, reader, image, geometry)
                except RejectedImageError as rejected:
                    failed.append((image, rejected.status))
                done += 1
                on_progress(Progress("thumbnails", done, len(images)))
        except CacheError as error:  # the source is not there, or no longer
            problem = str(error)
    if failed and problem is None:
        image, status = failed[0]
        problem = f"{len(failed):,} of {len(images):,} could not be read, e.g. {image.key} ({status.label})"
    return made, problem


def _thumbnail(cache: Cache, reader: ImageReader, image: ShownImage, geometry: ResizeCrop) -> str:
    """Data URI of an image.

    Raises:
        RejectedImageError: it cannot be read or decoded.
        CacheError: its source cannot be read.
    """
    (content,) = reader.read(image.row, [image.key], cache.locators(image.row, image.row + 1))
    if isinstance(content, Status):
        raise RejectedImageError(content)
    pixels = Image.fromarray(decode(BytesIO(content), geometry, cache.info.max_pixels, scaled=True))
    for quality in (QUALITY, QUALITY // 2, 5):
        buffer = BytesIO()
        pixels.save(buffer, "WEBP", quality=quality, method=6)
        if buffer.tell() <= MOST_BYTES:
            break
    return f"data:image/webp;base64,{b64encode(buffer.getvalue()).decode()}"
