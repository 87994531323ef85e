"""Thumbnails of a report, as data URIs of WebP."""

from base64 import b64encode
from collections.abc import Sequence

from ..cache.errors import CacheError
from ..cache.format import RejectedImageError, Status
from ..cache.progress import OnProgress, Progress
from ..cache.read.cache import Cache
from ..inference.thumbnails import ThumbnailReader
from .figures import ShownImage

SIDE = 176  # pixels, shown at half of that or more


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
    reader = ThumbnailReader(cache, image_root)
    made: dict[int, str] = {}
    failed: list[tuple[ShownImage, Status]] = []
    problem = None
    for done, image in enumerate(images, 1):
        try:
            content = reader.webp(image.row, image.key, SIDE)
            made[image.row] = f"data:image/webp;base64,{b64encode(content).decode()}"
        except RejectedImageError as rejected:
            failed.append((image, rejected.status))
        except CacheError as error:  # the source is not there, or no longer
            problem = str(error)
        on_progress(Progress("thumbnails", done, len(images)))
    if failed and problem is None:
        image, status = failed[0]
        problem = f"{len(failed):,} of {len(images):,} could not be read, e.g. {image.key} ({status.label})"
    return made, problem
