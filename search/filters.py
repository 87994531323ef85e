"""Filters of a search: images that have a caption with a text in it, or in a language. N images, M captions."""

import unicodedata

import numpy as np
from numpy.typing import NDArray

from ..cache.read.cache import Cache
from .errors import SearchError

CAPTIONS_AT_A_TIME = 2**17


def caption_mask(cache: Cache, text: str | None = None, language: str | None = None) -> NDArray[np.bool_]:
    """Images with a caption that holds a text, is in a language, or both, `[N] bool`.

    Upper and lower case are equal, and so are a letter with its accent and the two characters that make it up.

    Args:
        cache: of N images.
        text: anywhere in the caption; None for any caption.
        language: the caption's tag; None for any.

    Raises:
        SearchError: the cache has no such language.
        CacheError: captions are absent or damaged.
    """
    rows = cache.caption_image()  # [M]
    chosen = np.ones(len(rows), np.bool_) if language is None else _in_language(cache, language)
    if text is not None:
        needle = folded(text)
        for start in range(0, len(rows), CAPTIONS_AT_A_TIME):
            block = slice(start, start + CAPTIONS_AT_A_TIME)
            if chosen[block].any():
                # Faster than Arrow's kernels, whose normalisation takes twice as long as all of this.
                captions = cache.captions(block.start, block.stop)
                chosen[block] &= np.fromiter((needle in folded(each) for each in captions), np.bool_, len(captions))
    mask = np.zeros(len(cache), np.bool_)
    mask[rows[chosen]] = True
    return mask


def folded(text: str) -> str:
    r"""A text without case, and in Unicode's composed form (NFC): what `caption_mask` compares.

    >>> folded("CAFE\u0301 Straße") == "caf\u00e9 strasse"
    True
    """
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


def _in_language(cache: Cache, language: str) -> NDArray[np.bool_]:
    """Captions with a tag, `[M] bool`.

    Raises:
        SearchError: no caption has it.
    """
    num_by_tag = {tag: num for tag, num in cache.count_languages().items() if tag}
    tags = {tag for tag in num_by_tag if tag.casefold() == language.casefold()}
    if not tags:
        known = ", ".join(num_by_tag)
        raise SearchError(
            f"{cache.path} has no caption in {language!r}: "
            + (f"its languages are {known}" if known else "none of its captions has a language")
        )
    codes = [code for code, tag in enumerate(cache.info.languages) if tag in tags]
    result: NDArray[np.bool_] = np.isin(cache.language_codes(), codes)
    return result
