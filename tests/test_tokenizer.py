"""Tokenizers: every script round-trips, and open_clip and transformers read the same ids from the saved files."""

import json
import re
import unicodedata
from functools import cache
from pathlib import Path

import open_clip
import pytest
from clipglot.encoders.errors import EncoderError
from clipglot.encoders.tokenizer import _PLAIN as PLAIN
from clipglot.encoders.tokenizer import BOS, EOS, FILES, PAD, CaptionTokenizer, train_bpe
from clipglot.encoders.tokenizer import clean as fast_clean
from ftfy.badness import is_bad
from hypothesis import assume, example, given
from hypothesis import strategies as st
from open_clip.tokenizer import get_clean_fn
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import AutoTokenizer

CONTEXT = 16
CAPTIONS = [
    "рыжий кот спит на столе",
    "рыжий кот и чёрная собака",
    "桌上有一只橘猫",
    "桌上有一只黑狗",
    "책상 위의 고양이",
    "책상 위의 강아지",
    "a ginger cat sleeps on the table",
    "a black dog on the table",
    "🐈 кот 👩‍👩‍👧 family 🇰🇷",
]
ODD = [
    "",
    " ",
    "  два   пробела\n",
    "й",
    "가",
    "&amp;lt;b&gt;",
    "конец<eos>нет",
    "<pad><bos>",
    "dœs n’t",
    "ﬁ",
    "x" * 99,
]
clean = get_clean_fn("whitespace")


@cache
def trained() -> CaptionTokenizer:
    return train_bpe(CAPTIONS, 310)


@pytest.fixture
def tokenizer() -> CaptionTokenizer:
    return trained()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tokenizer as an export holds it: beside the config that makes open_clip read it."""
    folder = tmp_path_factory.mktemp("tokenizer")
    trained().save(folder)
    text = {"context_length": CONTEXT, "vocab_size": trained().vocab_size, "hf_tokenizer_name": "clipglot"}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"text_cfg": text}}))
    return folder


@given(st.text() | st.sampled_from(CAPTIONS))
@example("가 й 👩‍👩‍👧 \u200d 🇰🇷 \x00")
def test_every_text_round_trips_after_cleaning_and_nfc(text: str) -> None:
    assume(not any(special in clean(text) for special in (PAD, BOS, EOS)))  # those read as themselves, as upstream
    tokenizer = trained()
    ids = tokenizer.encode([text], 10**6)[0]
    assert tokenizer.decode(ids) == unicodedata.normalize("NFC", clean(text))
    assert (ids[0], ids[-1]) == (tokenizer.bos_id, tokenizer.eos_id)


@cache
def plain_characters() -> str:
    return "".join(c for c in map(chr, range(0x11000)) if PLAIN.fullmatch(c))


def test_characters_that_skip_cleaning_are_left_alone_by_it_one_by_one_and_in_pairs() -> None:
    plain = plain_characters()
    assert "cat кошка 猫 ねこ 고양이 Straße قط".translate(str.maketrans("", "", plain)) == ""
    assert unicodedata.normalize("NFC", plain) == plain
    assert not any(map(unicodedata.combining, plain))
    assert [c for c in plain.replace(" ", "") if clean(c) != c] == []
    letters = [c for c in plain if not "\u4e00" <= c <= "\ud7a3"]  # beside Han and Hangul, which no pattern knows
    pairs = "".join(a + b for a in letters for b in letters)
    assert not is_bad(pairs)
    assert unicodedata.normalize("NFC", pairs) == pairs


MOJIBAKE = ["ГўВЂВ™ a", "вЂ", "Ã©", "&amp;lt;", "，", "“", "\u3000", "\x1b[0m", "Ґ", "e\u0301", "\n", "Â "]
plain_texts = st.deferred(lambda: st.text(st.sampled_from(plain_characters())))


@given(st.lists(plain_texts | st.sampled_from(MOJIBAKE) | st.text(), max_size=5))
def test_cleaning_is_that_of_open_clip(parts: list[str]) -> None:
    text = "".join(parts)
    assert fast_clean(text) == clean(text)


def test_the_fingerprint_changes_with_all_that_decides_the_ids(tokenizer: CaptionTokenizer, folder: Path) -> None:
    found = tokenizer.fingerprint(CONTEXT)
    tokenizer.encode(CAPTIONS, 5)
    assert tokenizer.fingerprint(CONTEXT) == found == CaptionTokenizer.load(folder).fingerprint(CONTEXT)
    assert re.fullmatch("[0-9a-f]{64}", found)
    assert len({found, tokenizer.fingerprint(CONTEXT + 1), train_bpe(CAPTIONS, 290).fingerprint(CONTEXT)}) == 3


def test_ids_are_those_of_open_clip_less_padding(tokenizer: CaptionTokenizer, folder: Path) -> None:
    captions = [*CAPTIONS, *ODD]
    theirs = open_clip.get_tokenizer(f"local-dir:{folder}")(captions)
    for caption, ours, row in zip(captions, tokenizer.encode(captions, CONTEXT), theirs.tolist(), strict=True):
        assert ours + [tokenizer.pad_id] * (CONTEXT - len(ours)) == row, caption


def test_a_cut_caption_keeps_its_end(tokenizer: CaptionTokenizer) -> None:
    (ids,) = tokenizer.encode(["x" * 99], CONTEXT)
    assert len(ids) == CONTEXT
    assert ids[-1] == tokenizer.eos_id
    assert len(tokenizer.encode(["x" * 99], 200)[0]) > CONTEXT  # the cut is not remembered


def test_transformers_loads_the_folder(tokenizer: CaptionTokenizer, folder: Path) -> None:
    theirs = AutoTokenizer.from_pretrained(folder)
    assert theirs(CAPTIONS)["input_ids"] == tokenizer.encode(CAPTIONS, 10**6)
    assert (theirs.pad_token, theirs.bos_token, theirs.eos_token) == (PAD, BOS, EOS)
    assert theirs.decode(tokenizer.encode(CAPTIONS[:1], 77)[0], skip_special_tokens=True) == CAPTIONS[0]


def test_save_and_load_give_the_same_ids_and_bytes(tokenizer: CaptionTokenizer, folder: Path, tmp_path: Path) -> None:
    loaded = CaptionTokenizer.load(folder)
    assert loaded.encode(CAPTIONS, CONTEXT) == tokenizer.encode(CAPTIONS, CONTEXT)
    loaded.save(tmp_path)
    assert all((tmp_path / name).read_bytes() == (folder / name).read_bytes() for name in FILES)


def test_special_tokens_come_first_and_the_vocabulary_is_no_larger_than_asked(tokenizer: CaptionTokenizer) -> None:
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2)
    assert tokenizer.vocab_size == 310
    assert train_bpe(["abc"], 5_000).vocab_size == 259  # nothing repeats: bytes and special tokens alone


def test_training_shortens_what_it_saw() -> None:
    seen, unseen = "рыжий кот", "жйирый ток"
    tokenizer = train_bpe([seen] * 5, 300)
    assert len(tokenizer.encode([seen], 77)[0]) < len(tokenizer.encode([unseen], 77)[0])


def test_a_vocabulary_that_cannot_hold_the_bytes_is_refused() -> None:
    with pytest.raises(EncoderError, match="use 259 or more"):
        train_bpe(CAPTIONS, 258)


def test_what_is_no_tokenizer_of_ours_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match=r"no tokenizer\.json in it: make a tokenizer with"):
        CaptionTokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(EncoderError, match="not a tokenizer"):
        CaptionTokenizer.load(tmp_path)
    foreign = Tokenizer(BPE())
    foreign.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(EncoderError, match="has no <pad> token"):
        CaptionTokenizer.load(tmp_path)
    foreign.add_special_tokens([PAD, BOS, EOS])  # but nothing puts them around a caption
    foreign.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(EncoderError, match="does not end captions with <eos>"):
        CaptionTokenizer.load(tmp_path)
