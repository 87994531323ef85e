"""HEIC images, as phones take them, by the extra `pillow-heif`."""

from io import BytesIO

from PIL import Image

from ..format import RejectedImageError, Status

START_BYTES = 256
_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}


def is_heif(start: bytes) -> bool:
    """Whether a file is HEIC and not AVIF, by the brands that its first box names, in its first `START_BYTES`."""
    if start[4:8] != b"ftyp":
        return False
    end = min(int.from_bytes(start[:4], "big"), len(start))
    brands = {start[8:12], *(start[at : at + 4] for at in range(16, end, 4))}
    return not brands.isdisjoint(_BRANDS) and brands.isdisjoint({b"avif", b"avis"})


def open_heif(content: bytes) -> Image.Image:
    """Open an image without decoding it; its size is known then. Decoded, it is upright.

    Raises:
        RejectedImageError: pillow-heif is not installed.
    """
    try:
        from pillow_heif import HeifImageFile  # here: few datasets need it, and every worker would load it
    except ImportError:
        raise RejectedImageError(Status.UNSUPPORTED) from None
    image: Image.Image = HeifImageFile(BytesIO(content))
    return image
