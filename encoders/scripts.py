"""Scripts and words of a text, for the report on tokenizers.

Scripts are those of Unicode (UAX #24), except that Hiragana and Katakana are one script, "Kana", and pictographs are
"emoji". Digits and punctuation, which belong to no single script, are "other".
"""

from collections.abc import Iterator

import regex

SPACELESS = frozenset({"Han", "Kana", "Bopomofo", "Yi", "Thai", "Lao", "Khmer", "Myanmar", "Tibetan", "emoji", "other"})
"""Scripts without spaces between words; their unit is the character."""
_NAMES = (
    *("Latin", "Cyrillic", "Greek", "Armenian", "Georgian", "Hebrew", "Arabic", "Syriac", "Thaana", "Ethiopic"),
    *("Devanagari", "Bengali", "Gurmukhi", "Gujarati", "Oriya", "Tamil", "Telugu", "Kannada", "Malayalam", "Sinhala"),
    *("Thai", "Lao", "Tibetan", "Myanmar", "Khmer", "Mongolian", "Han", "Hangul", "Bopomofo", "Yi", "Cherokee"),
)
_EMOJI = (
    r"(?:\p{Extended_Pictographic}|\p{Regional_Indicator}|[\U0001F3FB-\U0001F3FF])[\p{M}\u200d\U000E0020-\U000E007F]*"
)
# A mark, or a joiner inside a word, belongs to the letter before it.
_TAIL = r"[\p{M}\u200c\u200d]*"
_TAIL_CHARACTER = regex.compile(r"[\p{M}\u200c\u200d\U000E0020-\U000E007F]")
_RUNS = regex.compile(
    "|".join(
        (
            *(rf"(?P<{name}>(?:(?=\p{{L}})\p{{Script={name}}}{_TAIL})+)" for name in _NAMES),
            # The long vowel mark ー belongs to both Hiragana and Katakana.
            rf"(?P<Kana>(?:[\p{{Script=Hiragana}}\p{{Script=Katakana}}ー]{_TAIL})+)",
            rf"(?P<emoji>(?:{_EMOJI})+)",
            rf"(?P<unlisted>(?:\p{{L}}{_TAIL})+)",
            r"(?P<other>(?:[^\s\p{L}\p{Extended_Pictographic}]\p{M}*)+?)",
        )
    )
)


def script_runs(text: str) -> Iterator[tuple[str, int, int]]:
    """Words of a text (runs in scripts without spaces) as script, start, end; white space is skipped.

    >>> list(script_runs("кот и 2 猫ねこ 🐈"))
    [('Cyrillic', 0, 3), ('Cyrillic', 4, 5), ('other', 6, 7), ('Han', 8, 9), ('Kana', 9, 11), ('emoji', 12, 13)]
    """
    for match in _RUNS.finditer(text):
        assert match.lastgroup is not None
        yield match.lastgroup, match.start(), match.end()


def is_base(character: str) -> bool:
    """Whether a character is a base character: not a mark, joiner or selector.

    >>> [is_base(character) for character in "दि"]
    [True, False]
    """
    return _TAIL_CHARACTER.match(character) is None
