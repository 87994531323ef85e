"""Cleaning of captions, as open_clip cleans them ahead of its tokenizers, without importing torch."""

import html
import re

import ftfy

# Characters of texts that ftfy and html.unescape do not change: an HTML entity needs `&`; ftfy and NFC rewrite none of
# these characters; every pattern of ftfy.badness needs a character that is not here. Cleaning costs as much as
# tokenizing, so such texts skip it.
_PLAIN = re.compile(
    "["
    " -%'-~"  # ASCII without `&`
    "ß-öø-ÿ"  # western European lower case; upper case can be mojibake
    "ЁЄІЇА-яёєіїў"  # Cyrillic without Ђ and ґ, which occur in mojibake
    "\u05d0-\u05ea"  # Hebrew
    "\u0621-\u063a\u0641-\u064a"  # Arabic without marks
    "、。ぁ-ゖゝ-ゟァ-ヿ"  # Kana
    "\u4e00-\u9fff"  # Han
    "가-힣"  # Hangul syllables
    "]*"
)


def clean(caption: str) -> str:
    """Clean a caption as open_clip's HFTokenizer does: ftfy, HTML entities and whitespace.

    >>> clean("  ¡hola &amp;amp;   adiÃ³s! ")
    '¡hola & adiós!'
    """
    if not _PLAIN.fullmatch(caption):
        caption = html.unescape(html.unescape(ftfy.fix_text(caption)))
    return " ".join(caption.split())
