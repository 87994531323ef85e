"""Image files by their names, and by their first bytes where a name does not tell."""

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "jp2")
FURTHER_EXTENSIONS = ("jfif", "jpe", "ppm", "pgm", "pbm", "j2k", "heic", "heif")
SIGNATURE_BYTES = 12
_SUFFIXES = tuple(f".{extension}" for extension in IMAGE_EXTENSIONS + FURTHER_EXTENSIONS)
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP  ")
_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")


def has_image_extension(name: str) -> bool:
    """Whether a name is that of an image file.

    >>> has_image_extension("cats/1.JPG"), has_image_extension("notes.txt")
    (True, False)
    """
    return name.lower().endswith(_SUFFIXES)


def is_image_signature(start: bytes) -> bool:
    """Whether the first `SIGNATURE_BYTES` of a file are those of an image, of the formats that they tell surely."""
    is_webp = start[:4] == b"RIFF" and start[8:12] == b"WEBP"
    is_heif = start[4:8] == b"ftyp" and start[8:12] in _BRANDS
    return start.startswith(_SIGNATURES) or is_webp or is_heif
