"""Text files in any encoding, compressed with gzip or not, as UTF-8 without a byte order mark."""

import codecs
import gzip
import io
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ..errors import CacheError

UTF_8 = "utf-8"
GZIP_SIGNATURE = b"\x1f\x8b"
SAMPLE_BYTES = 2**16  # of a file, by which its encoding is guessed
SHOWN = 20  # characters of a guess, by which the user can judge it
_LINE_END = re.compile(r"\r\n|\n|\r")  # not as of splitlines, for which U+2028 and others inside a text end a line
_MARK = "\ufeff"
_MARKS = {codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32", codecs.BOM_UTF16_LE: "utf-16"}
_MARKS |= {codecs.BOM_UTF16_BE: "utf-16"}
_GBK_PAIR = re.compile(rb"[\x81-\xfe][\x40-\x7e\x80-\xfe]")
_COMMON_PAIR = re.compile(rb"[\xb0-\xd7][\xa1-\xfe]")  # the 3,755 most frequent Chinese characters


def split_lines(text: str) -> list[str]:
    r"""Lines of a text, blank ones too, without the empty one after the last line end.

    >>> split_lines("a\u2028b\r\n\nc\n"), split_lines("")
    (['a\u2028b', '', 'c'], [])
    """
    lines = _LINE_END.split(text)
    return lines if lines[-1] else lines[:-1]


def decode_text(content: bytes, encoding: str = UTF_8) -> str:
    """Decode all of a text, without its byte order mark.

    Raises:
        UnicodeDecodeError: it is not in that encoding.
    """
    return content.decode(encoding).removeprefix(_MARK)


def decode_caption(content: bytes, encoding: str = UTF_8) -> str:
    """Decode a caption; one in another encoding gets surrogates, by which it is dropped."""
    try:
        return decode_text(content, encoding)
    except UnicodeDecodeError:
        return content.decode("ascii", "surrogateescape")


def is_text_encoding(name: str) -> bool:
    """Whether a name is that of an encoding in which a text can be read piece by piece.

    Python also knows codecs of domain names and ciphers by such names.

    >>> is_text_encoding("gb18030"), is_text_encoding("punycode"), is_text_encoding("rot13"), is_text_encoding("none")
    (True, False, False, False)
    """
    sample = "1.jpg, " + "a-b " * 32 + "\n"  # longer than a part of a domain name
    try:
        content = sample.encode(name)
        decoder = codecs.getincrementaldecoder(name)()
        pieces = [decoder.decode(bytes([byte])) for byte in content]
        return "".join([*pieces, decoder.decode(b"", final=True)]) == sample
    except (LookupError, ValueError, TypeError):
        return False


def is_same_encoding(name: str, other: str) -> bool:
    """Whether two names are those of one encoding.

    >>> is_same_encoding("UTF8", "utf-8"), is_same_encoding("gbk", "gb18030")
    (True, False)
    """
    return codecs.lookup(name).name == codecs.lookup(other).name


def encoding_remedy(content: bytes, encoding: str = UTF_8) -> str:
    """What to do about text that is not in its encoding, for messages; it names the encoding if that can be guessed.

    Args:
        content: the beginning of the text, or all of it.
        encoding: in which it could not be read.

    >>> encoding_remedy("一只猫睡在沙发上".encode("gbk"))
    "as gb18030 it reads '一只猫睡在沙发上': if that is right, pass --encoding gb18030, or save it as UTF-8"
    """
    guess = _guess(content)
    if guess is None or is_same_encoding(guess, encoding):
        return "save it as UTF-8, or pass its --encoding, e.g. gb18030, utf-16 or cp1252"
    text = content.decode(guess, "ignore").removeprefix(_MARK)
    start = next((i for i, char in enumerate(text) if not char.isascii()), 0)
    shown = text[start : start + SHOWN]
    return f"as {guess} it reads {shown!r}: if that is right, pass --encoding {guess}, or save it as UTF-8"


def _guess(content: bytes) -> str | None:
    """The encoding of a text that is not UTF-8, where its bytes show it."""
    for mark, name in _MARKS.items():
        if content.startswith(mark):
            return name
    even, odd = content[::2].count(0), content[1::2].count(0)
    if max(even, odd) * 8 > len(content) and min(even, odd) * 8 < max(even, odd):  # ASCII characters have a byte of 0
        return "utf-16-le" if odd > even else "utf-16-be"
    pairs = _GBK_PAIR.findall(content)
    return "gb18030" if pairs and 2 * len(_COMMON_PAIR.findall(b" ".join(pairs))) > len(pairs) else None


@contextmanager
def open_utf8(path: Path, name: str, encoding: str = UTF_8) -> Iterator[BinaryIO]:
    """Open a text file as bytes of UTF-8, without a byte order mark; gzip is recognised by its first bytes.

    Bytes of a file in UTF-8 are not checked.

    Args:
        path: of the file.
        name: of the file, for messages.
        encoding: of the text.

    Raises:
        CacheError: while it is read: it is not in that encoding, or is damaged gzip.
    """
    with open(path, "rb") as file:
        is_gzip = file.read(len(GZIP_SIGNATURE)) == GZIP_SIGNATURE
        file.seek(0)
        content: BinaryIO = gzip.GzipFile(fileobj=file) if is_gzip else file  # type: ignore[assignment]
        if not is_same_encoding(encoding, UTF_8):
            content = io.BufferedReader(_Transcoder(content, name, encoding), SAMPLE_BYTES)
        try:
            if content.read(3) != codecs.BOM_UTF8:
                content.seek(0)
            yield content
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise CacheError(f"{name}: damaged gzip ({error}): fetch or write it again") from None


class _Transcoder(io.RawIOBase):
    """Text in another encoding, read as UTF-8."""

    def __init__(self, file: BinaryIO, name: str, encoding: str) -> None:
        self._file, self._name, self._encoding = file, name, encoding
        self._restart()

    def _restart(self) -> None:
        self._decoder = codecs.getincrementaldecoder(self._encoding)()
        self._line, self._rest, self._has_begun = 1, b"", False

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if (offset, whence) != (0, io.SEEK_SET):
            raise io.UnsupportedOperation("only back to the beginning")
        self._file.seek(0)
        self._restart()
        return 0

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._rest:
            content = self._file.read(SAMPLE_BYTES)
            try:
                text = self._decoder.decode(content, final=not content)
            except UnicodeDecodeError as error:
                line = self._line + _num_lines(error)
                raise CacheError(
                    f"{self._name}:{line}: not text in {self._encoding}: {encoding_remedy(content, self._encoding)}"
                ) from None
            if not self._has_begun and text:
                text, self._has_begun = text.removeprefix(_MARK), True
            self._line += text.count("\n")
            self._rest = text.encode("utf-8", "surrogatepass")
            if not content:
                break
        taken = self._rest[: len(buffer)]
        buffer[: len(taken)] = taken
        self._rest = self._rest[len(taken) :]
        return len(taken)


def _num_lines(error: UnicodeDecodeError) -> int:
    """The number of line breaks before the fault."""
    return error.object[: error.start].decode(error.encoding, "replace").count("\n")
