"""Status of an image that could not be decoded: not an image, damaged, or of an unsupported kind."""

import re
from collections.abc import Sequence
from io import BytesIO

from PIL import Image, UnidentifiedImageError

from ..format import Status
from .image_metadata import TiffDirectory

# Messages of Pillow's readers of headers. If these words change, the status becomes `damaged`.
_OTHER_FORMAT = re.compile(r"Invalid ftyp")
_PNM = re.compile(rb"P[1-6f]\s*(#|\d|$)")
_BMP_HEADER_BYTES = (12, 40, 52, 56, 64, 108, 124)
_OTHER_KIND = re.compile(
    r"unsupported|not (yet )?supported|cannot handle|unknown (pixel mode|raw mode|data organization)"
    r"|unable to determine|samples per pixel|KeyError",
    re.IGNORECASE,
)


def failure_status(error: Exception, content: bytes, formats: Sequence[str]) -> Status:
    """Status to record for an image on which Pillow failed.

    Args:
        error: raised when it was opened or decoded.
        content: the file.
        formats: Pillow's names of the formats that were tried.
    """
    if isinstance(error, UnidentifiedImageError):  # without a reason
        return _header_status(content, formats)
    return _status_of(error, content)


def _header_status(content: bytes, formats: Sequence[str]) -> Status:
    """Run the reader that accepts the first bytes of the file again, for its own error."""
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
    message = f"{error} {type(error.__cause__).__name__}"
    if _OTHER_FORMAT.search(message) or _is_text(content):
        return Status.NOT_A_PICTURE
    if content.startswith(b"MM\0+"):  # Pillow takes a big-endian BigTIFF for a damaged TIFF
        return Status.UNSUPPORTED
    if not _OTHER_KIND.search(message):
        return Status.DAMAGED
    is_cut = content[:2] in (b"II", b"MM") and not TiffDirectory.read(content).is_whole
    return Status.DAMAGED if is_cut else Status.UNSUPPORTED


def _is_text(content: bytes) -> bool:
    """Whether the file only begins with the two letters of a PNM or BMP."""
    if content.startswith(b"BM"):
        return len(content) >= 18 and int.from_bytes(content[14:18], "little") not in _BMP_HEADER_BYTES
    return content.startswith(b"P") and not _PNM.match(content)
