"""Tokenizers: every script round-trips, and open_clip and transformers read the same ids from the saved files."""

import json
import re
import unicodedata
from collections.abc import Callable
from functools import cache
from pathlib import Path

import clipglot
import open_clip
import pytest
from clipglot.demo.run import ENGLISH_CLIP
from clipglot.encoders.errors import EncoderError
from clipglot.encoders.text_cleaning import _PLAIN as PLAIN
from clipglot.encoders.text_cleaning import clean as clean_fast
from clipglot.encoders.tokenizer import BOS, EOS, FILES, PAD, CaptionTokenizer, takes_captions, train_bpe, train_unigram
from ftfy.badness import is_bad
from hypothesis import assume, example, given
from hypothesis import strategies as st
from open_clip.tokenizer import get_clean_fn
from support.odd_strings import odd_strings
from support.tokenizer_exports import save_as_export
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
def trained(kind: str) -> CaptionTokenizer:
    return train_bpe(CAPTIONS, 310) if kind == "bpe" else train_unigram(CAPTIONS, 450)


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def tokenizer(request: pytest.FixtureRequest) -> CaptionTokenizer:
    return trained(request.param)


@pytest.fixture(scope="module")
def folder(tokenizer: CaptionTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_as_export(tokenizer, tmp_path_factory.mktemp("tokenizer"), CONTEXT)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@given(text=st.text() | st.sampled_from(CAPTIONS))
@example(text="가 й 👩‍👩‍👧 \u200d 🇰🇷 \x00")
@example(text="<0x41><0xFF> हिन्दी ሰላም 𠀀 ❤️")
def test_every_text_round_trips_after_cleaning_and_nfc(kind: str, text: str) -> None:
    assume(not any(special in clean(text) for special in (PAD, BOS, EOS)))  # those read as themselves, as upstream
    text = text.replace("▁", "")  # reads as a space in a Unigram model
    tokenizer = trained(kind)
    ids = tokenizer.encode([text], 10**6)[0]
    assert tokenizer.decode(ids) == unicodedata.normalize("NFC", clean(text))
    assert not {tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id} & set(ids[1:-1])  # nothing is unknown
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
    assert clean_fast(text) == clean(text)


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
    assert tokenizer.vocab_size in (310, 384)
    assert train_bpe(["abc"], 5_000).vocab_size == 259  # nothing repeats: bytes and special tokens alone


@pytest.mark.parametrize(("train", "size"), [(train_bpe, 300), (train_unigram, 450)])
def test_training_shortens_what_it_saw(train: Callable[[list[str], int], CaptionTokenizer], size: int) -> None:
    seen, unseen = "рыжий кот", "жйирый ток"
    tokenizer = train([seen] * 5, size)
    assert len(tokenizer.encode([seen], 77)[0]) < len(tokenizer.encode([unseen], 77)[0])


def test_a_vowel_sign_stays_with_its_letter(tokenizer: CaptionTokenizer) -> None:
    words = tokenizer.backend.pre_tokenizer.pre_tokenize_str("हिन्दी में, ❤️!")
    assert [span for _, span in words] == [(0, 6), (6, 10), (10, 11), (11, 15)]


def test_unigram_training_gives_the_same_pieces_every_time() -> None:
    assert train_unigram(CAPTIONS, 450).fingerprint(CONTEXT) == trained("unigram").fingerprint(CONTEXT)


def test_characters_too_many_for_the_vocabulary_are_spelled_in_bytes() -> None:
    captions = [chr(0x4E00 + i) * 2 + " кот" for i in range(2_000)]
    tokenizer = train_unigram(captions, 500)
    assert tokenizer.vocab_size <= 500
    (ids,) = tokenizer.encode([captions[-1]], 77)
    assert tokenizer.decode(ids) == captions[-1]


def test_a_vocabulary_that_cannot_hold_the_bytes_is_refused() -> None:
    with pytest.raises(EncoderError, match="use 259 or more"):
        train_bpe(CAPTIONS, 258)
    with pytest.raises(EncoderError, match="use 447 or more"):
        train_unigram(CAPTIONS, 446)


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
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "<eos>"}, "bos_token": "<bos>"}')
    with pytest.raises(EncoderError, match="names no pad token"):
        CaptionTokenizer.load(tmp_path)


def test_special_tokens_may_have_other_names(tmp_path: Path) -> None:
    text = trained("bpe").backend.to_str()
    for ours_, theirs in ((PAD, "[PAD]"), (BOS, "[CLS]"), (EOS, "[SEP]")):
        text = text.replace(ours_, theirs)
    (tmp_path / "tokenizer.json").write_text(text)
    names = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": {"content": "[SEP]"}, "model_max_length": 16}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(names))
    loaded = CaptionTokenizer.load(tmp_path)
    assert (loaded.pad_id, loaded.bos_id, loaded.eos_id) == (0, 1, 2)
    assert loaded.encode(CAPTIONS, CONTEXT) == trained("bpe").encode(CAPTIONS, CONTEXT)
    loaded.save(tmp_path / "again")
    theirs_again = AutoTokenizer.from_pretrained(tmp_path / "again")
    assert (theirs_again.pad_token, theirs_again.bos_token, theirs_again.eos_token) == ("[PAD]", "[CLS]", "[SEP]")
    assert theirs_again.cls_token == "[CLS]"
    assert CaptionTokenizer.load(tmp_path / "again").special == loaded.special


def test_the_fingerprint_of_a_folder_made_before_stays() -> None:
    folder = Path(clipglot.__file__).parent / "demo" / "english_clip"
    found = CaptionTokenizer.load(folder).fingerprint(77)
    assert found == "19aef0a7fd41618722e22eaef36bfc049f27d324fba1f9d588ecd6611599caad"


def test_a_clip_of_others_has_its_tokenizer_read_only_where_the_ids_are_open_clips(tmp_path: Path) -> None:
    config = json.loads((ENGLISH_CLIP / "open_clip_config.json").read_text())["model_cfg"]["text_cfg"]
    assert takes_captions(ENGLISH_CLIP, config)
    texts, length = [*odd_strings(300), *ODD], config["context_length"]
    ours = CaptionTokenizer.load(ENGLISH_CLIP).encode(texts, length)
    theirs = open_clip.get_tokenizer(f"local-dir:{ENGLISH_CLIP}")(texts).tolist()
    assert [ids + [0] * (length - len(ids)) for ids in ours] == theirs
    for change in ({"tokenizer_kwargs": {"clean": "lower"}}, {"pool_type": "argmax"}, {"eos_id": 3}, {"vocab_size": 9}):
        assert not takes_captions(ENGLISH_CLIP, config | change), change
    for change in ({"truncation_side": "left"}, {"tokenizer_class": "BertTokenizer"}, {"mask_token": "<new>"}):
        for file in FILES[:2]:
            (tmp_path / file).write_bytes((ENGLISH_CLIP / file).read_bytes())
        described = json.loads((tmp_path / FILES[1]).read_text()) | change
        (tmp_path / FILES[1]).write_text(json.dumps(described))
        assert not takes_captions(tmp_path, config), change
    assert not takes_captions(tmp_path / "absent", config)
