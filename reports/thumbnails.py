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
    if not images:
        return {}, None
    sources: list[SourceInfo] = [
        replace(source, image_root=image_root) if image_root else source for source in cache.info.sources
    ]
    try:
        rows = [range(image.row, image.row + 1) for image in images]
        reader = reader_of(cache, SOURCES, sources=sources, rows=rows)
    except CacheError as error:
        return {}, str(error)
    geometry = replace(ResizeCrop.from_preprocess(cache.info.encoder.preprocess), height=SIDE, width=SIDE)
    made: dict[int, str] = {}
    failed: list[tuple[ShownImage, Status]] = []
    for done, image in enumerate(images, 1):
        locators = cache.locators(image.row, image.row + 1)
        try:
            (content,) = reader.read(image.row, [image.key], locators)
            if isinstance(content, Status):
                raise RejectedImageError(content)
            made[image.row] = _data_uri(content, geometry, cache.info.max_pixels)
        except RejectedImageError as rejected:
            failed.append((image, rejected.status))
        except CacheError as error:
            return made, str(error)
        on_progress(Progress("thumbnails", done, len(images)))
    if failed:
        image, status = failed[0]
        return made, f"{len(failed):,} of {len(images):,} could not be read, e.g. {image.key} ({status.label})"
    return made, None


def _data_uri(content: bytes, geometry: ResizeCrop, max_pixels: int) -> str:
    pixels = Image.fromarray(decode(BytesIO(content), geometry, max_pixels, scaled=True))
    for quality in (QUALITY, QUALITY // 2, 5):
        buffer = BytesIO()
        pixels.save(buffer, "WEBP", quality=quality, method=6)
        if buffer.tell() <= MOST_BYTES:
            break
    return f"data:image/webp;base64,{b64encode(buffer.getvalue()).decode()}"
