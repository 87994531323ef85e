"""Odd captions, seeded: what people, scrapers and attackers write, and what each library treats in its own way."""

import random
from collections.abc import Iterator

SPECIAL = ["<pad>", "<bos>", "<eos>", "<unk>", "<s>", "</s>", "<mask>", "[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]"]
SPECIAL += [
    "<|startoftext|>",
    "<|endoftext|>",
    "<start_of_text>",
    "<end_of_text>",
    "<cls>",
    "<sep>",
    "<0x41>",
    "<0xFF>",
]
SPECIAL += [
    "&lt;eos&gt;",
    "&amp;lt;eos&amp;gt;",
    "<EOS>",
    "< eos >",
    "<eos",
    "eos>",
    "<<eos>>",
    "<eos><eos>",
    "</w>",
    "##s",
]
ENTITIES = ["&amp;", "&amp;amp;", "&lt;b&gt;", "&#128512;", "&#x41;", "&nbsp;", "&bogus;", "&#0;", "&", "&#xD800;"]
SPACES = [
    " ",
    "  ",
    "\t",
    "\n",
    "\r\n",
    "\u00a0",
    "\u2003",
    "\u3000",
    "\u200b",
    "\ufeff",
    "\u2028",
    "\x0b",
    "\x85",
    "▁",
    "Ġ",
]
CONTROLS = ["\x01", "\x1b[31m", "\x7f", "\x9b", "\u202e", "\u2066", "\u00ad", "\u034f", "\u061c"]
MOJIBAKE = ["â€™", "Ã©", "ГўВЂВ™", "вЂ", "ðŸ˜€", "æ—¥", "Â ", "\ufffd", "Ð¡Ð°"]
MARKS = [
    "e\u0301",
    "\u0301",
    "n\u0303\u0323",
    "i\u0307",
    "İ",
    "ΣΑΣ",
    "ß",
    "ǅ",
    "ﬁ",
    "½",
    "①",
    "Å",
    "\u212b",
    "o\u0308" * 9,
]
SCRIPTS = [
    "кошка",
    "猫在桌上",
    "고양이",
    "각",
    "\u1100\u1161\u11a8",
    "हिन्दी",
    "ไทย",
    "עִבְרִית",
    "العربيّة",
    "ሰላም",
    "ქართული",
]
SCRIPTS += ["𠀀", "𝔘𝔫𝔦", "ｗｉｄｅ", "ねこ", "ﾈｺ", "Ελλάδα", "tiếng Việt", "မြန်မာ", "ᠮᠣᠩ"]
EMOJI = ["🐈", "👩‍👩‍👧", "🇰🇷", "❤️", "👍🏽", "1️⃣", "🏴\U000e0067\U000e0062\U000e007f", "\ufe0f", "\u200d"]
WORDS = [
    "a",
    "red",
    "square",
    "Cat",
    "CAT",
    "it's",
    "'s",
    "don’t",
    "3.14",
    "2024",
    "x" * 40,
    "#tag",
    "@me",
    "http://a.b/c?d=e",
]
WORDS += ["<b>bold</b>", "```", "\\n", "%s", "{}", "--", "…", "“quoted”", "‘", "—", "!!!", "ab" * 60]
POOLS = [SPECIAL, SPECIAL, ENTITIES, SPACES, CONTROLS, MOJIBAKE, MARKS, SCRIPTS, EMOJI, WORDS, WORDS]


def odd_strings(num: int, seed: int = 0) -> Iterator[str]:
    """So many captions that a cache could hold: valid Unicode without NUL."""
    rng = random.Random(seed)
    for _ in range(num):
        parts = []
        for _ in range(rng.choice([0, 1, 1, 2, 3, 5, 8, 13])):
            if rng.random() < 0.12:
                parts.append("".join(_character(rng) for _ in range(rng.randint(1, 6))))
            else:
                parts.append(rng.choice(rng.choice(POOLS)))
            if rng.random() < 0.6:
                parts.append(rng.choice(SPACES) if rng.random() < 0.2 else " ")
        yield "".join(parts)


def _character(rng: random.Random) -> str:
    """Any character but NUL and halves of surrogate pairs, those of the first plane more often."""
    while True:
        code = rng.randrange(1, rng.choice([0x80, 0x3000, 0x10000, 0x110000]))
        if not 0xD800 <= code < 0xE000:
            return chr(code)
