"""Which scripts a text is written in, and its words: what a tokenizer is judged by.

Scripts as Unicode has them (UAX #24), but Hiragana and Katakana are one, "Kana", and pictographs are "emoji". All that
belongs to no language alone, digits and punctuation, is "other".
"""

from collections.abc import Iterator

import regex

SPACELESS = frozenset({"Han", "Kana", "Bopomofo", "Yi", "Thai", "Lao", "Khmer", "Myanmar", "Tibetan", "emoji", "other"})
"""Written without spaces between words: counted by the character."""
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
            # The long-vowel mark belongs to both Kana.
            rf"(?P<Kana>(?:[\p{{Script=Hiragana}}\p{{Script=Katakana}}ー]{_TAIL})+)",
            rf"(?P<emoji>(?:{_EMOJI})+)",
            rf"(?P<unlisted>(?:\p{{L}}{_TAIL})+)",
            r"(?P<other>(?:[^\s\p{L}\p{Extended_Pictographic}]\p{M}*)+?)",
        )
    )
)


def script_runs(text: str) -> Iterator[tuple[str, int, int]]:
    """The words of a text, or its runs in scripts without spaces: script, start, end. White space is in none.

    >>> list(script_runs("кот и 2 猫ねこ 🐈"))
    [('Cyrillic', 0, 3), ('Cyrillic', 4, 5), ('other', 6, 7), ('Han', 8, 9), ('Kana', 9, 11), ('emoji', 12, 13)]
    """
    for match in _RUNS.finditer(text):
        assert match.lastgroup is not None
        yield match.lastgroup, match.start(), match.end()


def is_base(character: str) -> bool:
    """Whether a character stands by itself: it is no mark, joiner or selector.

    >>> [is_base(character) for character in "दि"]
    [True, False]
    """
    return _TAIL_CHARACTER.match(character) is None
