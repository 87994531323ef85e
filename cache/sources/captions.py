"""Rules for captions: which are kept, and which translation belongs to each."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..storage.ragged_bytes import RaggedBytes

MAX_CAPTION_BYTES = 65_536  # longer ones are pages or broken quotes; a text tower reads some hundred bytes
SEPARATOR = "\n"  # between several texts of a teacher for one caption, none of which holds it
# First two bytes of characters of white space that are not ASCII; `str.strip` decides about the caption.
_BLANK_STARTS = np.array([0xE19A, 0xE280, 0xE281, 0xE380], np.uint16)


def encode_caption(caption: str) -> bytes:
    r"""UTF-8, in which half of a surrogate pair (JSON's `\ud83d`) becomes three bytes, for `keep_captions` to find."""
    return caption.encode("utf-8", "surrogatepass")


def keep_captions(captions: RaggedBytes) -> tuple[NDArray[np.int64], dict[str, NDArray[np.int64]]]:
    r"""Decide which captions are kept.

    Args:
        captions: m of them, as `encode_caption` gives them.

    Returns:
        The indices of those that are kept, and of those that are dropped by the first reason that fits: "empty" (also
        white space alone), "holds NUL", "not unicode" (half of a surrogate pair) or "too long".

    >>> kept, dropped = keep_captions(RaggedBytes.of([b"a cat", b"\t ", b"a\0b", b"\xed\xa0\xbd"]))
    >>> kept.tolist(), {reason: indices.tolist() for reason, indices in dropped.items()}
    ([0], {'empty': [1], 'holds NUL': [2], 'not unicode': [3]})
    """
    raw, lengths = captions.raw, np.diff(captions.offsets)
    by_reason = {
        "empty": _blank(captions),
        "holds NUL": _holds(captions, np.flatnonzero(raw == 0)),
        "not unicode": _holds(captions, _surrogates(raw)),
        "too long": lengths > MAX_CAPTION_BYTES,
    }
    keep, dropped = np.ones(len(captions), bool), {}
    for reason, fits in by_reason.items():
        if (fits & keep).any():
            dropped[reason] = np.flatnonzero(fits & keep)
            keep &= ~fits
    return np.flatnonzero(keep), dropped


def _blank(captions: RaggedBytes) -> NDArray[np.bool_]:
    raw, starts, lengths = captions.raw, captions.offsets[:-1], np.diff(captions.offsets)
    blank: NDArray[np.bool_] = lengths == 0
    if not len(raw):
        return blank
    first, second = raw.take(starts, mode="clip"), raw.take(starts + 1, mode="clip")
    may_be_blank = (first <= 0x20) | (first == 0xC2) | np.isin(first.astype(np.uint16) << 8 | second, _BLANK_STARTS)
    for i in np.flatnonzero(may_be_blank & ~blank).tolist():
        text = raw[starts[i] : starts[i] + lengths[i]].tobytes().decode("utf-8", "surrogatepass")
        blank[i] = not text.strip()
    return blank


def _surrogates(raw: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The places of halves of surrogate pairs, whose three bytes begin as no character of UTF-8 does."""
    places = np.flatnonzero(raw == 0xED)
    surrogates: NDArray[np.int64] = places[raw[places + 1] >= 0xA0]
    return surrogates


def _holds(captions: RaggedBytes, places: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether each caption holds one of these places in the bytes of all."""
    holds = np.zeros(len(captions), bool)
    holds[np.searchsorted(captions.offsets, places, side="right") - 1] = True
    return holds


def align(captions: Sequence[str], translations: Sequence[str]) -> list[str]:
    """The translation of each caption of a row; empty where there is none.

    Lists of the same length belong together one by one. Otherwise nobody can say which belongs to which, and every
    caption gets all: its target is the direction of their mean.

    >>> align(["кот", "рыжий кот"], ["a cat", "a ginger cat"])
    ['a cat', 'a ginger cat']
    >>> align(["кот", "рыжий кот"], ["a cat"])
    ['a cat', 'a cat']
    """
    lines = [" ".join(text.split()) for text in translations]
    if len(lines) == len(captions):
        return lines
    return [SEPARATOR.join(filter(None, lines))] * len(captions)
