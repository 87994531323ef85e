r"""What may reach a terminal: text. Controls in keys, captions, paths and messages are shown, not obeyed.

Escape sequences can rename a window, write into its clipboard, colour or hide what follows; a carriage return writes
over a line, and marks of direction turn it round. `main` puts a `SafeStream` before both outputs, so whatever is
written there, a traceback and a warning of a library too, has no controls but line ends and tabs. Only rich, which
colours and draws, writes past it, and its consoles (`SafeConsole`) clean each piece of text that they draw.

>>> visible("a\x1b[31m red \u202egnp.exe\n")
'a\\x1b[31m red \\u202egnp.exe\n'
"""

import re
import sys
from typing import Any, TextIO

# C0 but tab and line feed, delete, C1; separators of lines; marks that change the direction; halves of a character.
_CONTROLS = "\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_UNSAFE = re.compile(f"[{_CONTROLS}]")
_UNSAFE_IN_A_LINE = re.compile(f"[{_CONTROLS}\t\n]")
_SHORT = {"\n": r"\n", "\t": r"\t", "\r": r"\r"}


def visible(text: str) -> str:
    """A text with its controls written out; line ends and tabs stay."""
    return _UNSAFE.sub(_written_out, text)


def visible_line(text: str) -> str:
    """A text on one line: as `visible`, line ends and tabs written out, too."""
    return _UNSAFE_IN_A_LINE.sub(_written_out, text)


def json_safe(document: str) -> str:
    r"""A JSON document whose strings hold no controls as they are, but as JSON's escapes: the same values.

    >>> json_safe('["\x9b31m\u202e"]')
    '["\\u009b31m\\u202e"]'
    """
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", document)


class SafeStream:
    """A text stream whose text is made visible; all else is that of the stream behind it, but for its bytes.

    Attributes:
        rich_proxied_file: the stream behind it, by the name under which rich looks for one.
    """

    def __init__(self, stream: TextIO) -> None:
        self.rich_proxied_file = stream

    def write(self, text: str) -> int:
        """Write a text; a progress bar of a library on a terminal may go back to the beginning of its line."""
        begin = "\r" if text[:1] == "\r" and self.rich_proxied_file.isatty() else ""
        self.rich_proxied_file.write(begin + visible(text[len(begin) :]))
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        """Write texts."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        if name == "buffer":  # which would let bytes past
            raise AttributeError(name)
        return getattr(self.rich_proxied_file, name)


def guard_outputs() -> None:
    """Put a `SafeStream` before standard output and standard error, once."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, SafeStream):
            setattr(sys, name, SafeStream(stream))


def _written_out(found: re.Match[str]) -> str:
    character = found[0]
    code = ord(character)
    return _SHORT.get(character, f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}")
