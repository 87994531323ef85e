"""Odd strings through exported tokenizers alone: what differs from open_clip's ids, by the kinds of docs/exports.md.

open_clip cleans a text in Python; an exported tokenizer does what of that a tokenizer.json can say.
"""

import html
import re
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import ftfy
import pytest
from clipglot.encoders.text_cleaning import clean
from clipglot.encoders.tokenizer import TextTokenizer, train_bpe, train_unigram
from clipglot.encoders.tokenizer_lm import LMTokenizer
from clipglot.exports.hf_tokenizer import write_tokenizer
from clipglot.exports.portable_tokenizer import portable_tokenizer
from support.exported_towers import captions
from support.odd_strings import odd_strings
from support.tiny_lms import save_tiny_lm
from tokenizers import Tokenizer
from transformers import AutoTokenizer

NUM, LENGTH = 3000, 64
DOCS = Path(__file__).parents[2] / "docs" / "exports.md"
Ids = list[list[int]]
DECODING = ("fix_encoding", "restore_byte_a0", "replace_lossy_sequences", "decode_inconsistent_utf8")
ONLY_DECODING = ftfy.TextFixerConfig(
    normalization=None,
    **{
        name: name in DECODING
        for name in ftfy.TextFixerConfig._fields
        if name not in ("normalization", "max_decode_length", "explain")
    },
)


def decoded(text: str) -> str:
    """Wrongly decoded text repaired, and nothing else."""
    return ftfy.fix_text(text, ONLY_DECODING)


def without_entities(text: str) -> str:
    """HTML entities replaced, as open_clip does, and nothing else."""
    return html.unescape(html.unescape(text))


KINDS: dict[str, Callable[[str], str]] = {
    "wrong encoding": decoded,
    "other entities": without_entities,
    "both": lambda text: without_entities(decoded(without_entities(text))),
    "wrong encoding beside controls": clean,
}


@cache
def odd() -> list[str]:
    return list(odd_strings(NUM))


def in_transformers(tokenizer: TextTokenizer, folder: Path) -> Callable[[list[str]], Ids]:
    write_tokenizer(folder, tokenizer, LENGTH)
    loaded = AutoTokenizer.from_pretrained(str(folder))
    return lambda texts: loaded(texts, truncation=True)["input_ids"]  # type: ignore[no-any-return]


def in_tokenizers(tokenizer: TextTokenizer, folder: Path) -> Callable[[list[str]], Ids]:
    folder.mkdir()
    (folder / "tokenizer.json").write_text(portable_tokenizer(tokenizer, LENGTH)[0])
    loaded = Tokenizer.from_file(str(folder / "tokenizer.json"))
    loaded.no_padding()
    return lambda texts: [each.ids for each in loaded.encode_batch(texts)]


def make_tokenizer(kind: str, folder: Path) -> TextTokenizer:
    if kind == "lm":
        return LMTokenizer.load_for_new(save_tiny_lm(folder / "lm"))
    return train_bpe(captions(), 500) if kind == "bpe" else train_unigram(captions(), 600)


@pytest.mark.parametrize("load", [in_transformers, in_tokenizers])
@pytest.mark.parametrize("kind", ["bpe", "unigram", "lm"])
def test_only_wrong_encodings_and_rare_entities_differ(kind: str, load: Any, tmp_path: Path) -> None:
    tokenizer = make_tokenizer(kind, tmp_path)
    expected = tokenizer.encode(odd(), LENGTH)
    encode = load(tokenizer, tmp_path / "exported")
    counts: Counter[str] = Counter()
    for text, ids, theirs in zip(odd(), expected, encode(odd()), strict=True):
        if ids != theirs:
            counts[next(name for name, repair in KINDS.items() if encode([repair(text)]) == [ids])] += 1
    listed = dict(re.findall(r"^\| ([a-z ]+) \| (\d+) \|", DOCS.read_text(encoding="utf-8"), re.MULTILINE))
    assert counts == {name: pytest.approx(int(listed[name]), rel=0.2) for name in KINDS}  # ftfy learns, too
    texts = captions()
    assert encode(texts) == tokenizer.encode(texts, LENGTH)
