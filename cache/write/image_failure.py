"""Why an image could not be decoded: no image at all, damaged, or of a kind that Pillow does not read."""

import re
from collections.abc import Sequence
from io import BytesIO

from PIL import Image, UnidentifiedImageError

from ..format import Status
from .image_metadata import TiffDirectory

# What Pillow's readers of headers say. Their words may change: then the status is the plainer `damaged`.
_OTHER_FORMAT = re.compile(r"^not an? |BMP header type|Invalid AVIF|no 'ftyp'")
_OTHER_KIND = re.compile(
    r"unsupported|not (yet )?supported|cannot handle|unknown (pixel mode|raw mode|data organization)"
    r"|unable to determine|samples per pixel|KeyError",
    re.IGNORECASE,
)


def failure_status(error: Exception, content: bytes, formats: Sequence[str]) -> Status:
    """The reason to record for an image on which Pillow failed.

    Args:
        error: of opening or decoding it.
        content: of the file.
        formats: by Pillow's names, that were tried.
    """
    if isinstance(error, UnidentifiedImageError):  # which tells no reason
        return _header_status(content, formats)
    return _status_of(error, content)


def _header_status(content: bytes, formats: Sequence[str]) -> Status:
    """Ask the one reader that takes the file for its own why it gave up."""
    for name in formats:
        factory, accept = Image.OPEN[name]
        if accept is not None and accept(content[:16]) is not True:
            continue
        if name == "TIFF" and TiffDirectory.read(content).is_whole:
            return Status.UNSUPPORTED
        try:
            factory(BytesIO(content), "")
        except Exception as error:
            return _status_of(error, content)
    return Status.NOT_A_PICTURE


def _status_of(error: Exception, content: bytes) -> Status:
    said = f"{error} {type(error.__cause__).__name__}"
    if _OTHER_FORMAT.search(said):
        return Status.NOT_A_PICTURE
    if content.startswith(b"MM\0+"):  # Pillow takes a big-endian BigTIFF for a damaged TIFF
        return Status.UNSUPPORTED
    if not _OTHER_KIND.search(said):
        return Status.DAMAGED
    is_cut = content[:2] in (b"II", b"MM") and not TiffDirectory.read(content).is_whole
    return Status.DAMAGED if is_cut else Status.UNSUPPORTED
