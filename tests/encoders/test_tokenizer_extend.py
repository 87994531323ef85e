"""More tokens for an old tokenizer: its ids stay, old texts read as before, and what is new is used."""

import json
from collections import Counter
from functools import cache
from itertools import pairwise
from pathlib import Path

import open_clip
import pytest
from clipglot.encoders.errors import EncoderError
from clipglot.encoders.text_cleaning import clean
from clipglot.encoders.tokenizer import CaptionTokenizer, open_clip_tokenizer, train_bpe, train_unigram
from clipglot.encoders.tokenizer_coverage import script_coverage
from clipglot.encoders.tokenizer_extend import extend, learn_merges
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import SimpleTokenizer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer

ENGLISH = ["a ginger cat sleeps on the table", "a black dog on the table", "two dogs run, a cat sits", "the dogs sleep"]
OTHER = [
    "рыжий кот спит на столе",
    "рыжая кошка на столе",
    "桌上有一只橘猫",
    "桌上有一只黑狗",
    "कुत्ता मेज़ पर",
    "कुत्ता और मेज़",
] * 3
BERT = {"pad_token": "[PAD]", "bos_token": "[CLS]", "eos_token": "[SEP]", "unk_token": "[UNK]", "mask_token": "[MASK]"}
ALL = 10**6


def wordpiece() -> CaptionTokenizer:
    """As of BERT: lower case, Han characters apart, the mask token known to the tokenizer but not to its model."""
    characters = sorted(set("".join(ENGLISH)) - {" "})
    words = [*characters, *(f"##{c}" for c in characters), "cat", "dog", "##gs", "##s", "table"]
    vocab = {token: id_ for id_, token in enumerate([*list(BERT.values())[:4], *dict.fromkeys(words)])}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    tokenizer.add_special_tokens(list(BERT.values()))
    assert tokenizer.token_to_id("[MASK]") == len(vocab)
    return CaptionTokenizer(tokenizer, BERT)


def unigram_with_unknown() -> CaptionTokenizer:
    """As of XLM-R: no bytes, a mark before every word."""
    state = json.loads(train_unigram(ENGLISH, 450).backend.to_str())
    kept = [*state["model"]["vocab"][:3], ["<unk>", 0.0], *state["model"]["vocab"][259:]]
    state["model"] |= {"vocab": kept, "unk_id": 3, "byte_fallback": False}
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    return CaptionTokenizer(tokenizer)


OLD = {
    "ours": train_bpe(ENGLISH, 330),
    "open_clip": open_clip_tokenizer(),
    "unigram": train_unigram(ENGLISH, 460),
    "unigram with unknown": unigram_with_unknown(),
    "wordpiece": wordpiece(),
}


@pytest.fixture(scope="module", params=OLD)
def old(request: pytest.FixtureRequest) -> CaptionTokenizer:
    return OLD[request.param]


@pytest.fixture(scope="module")
def new(old: CaptionTokenizer) -> CaptionTokenizer:
    return extend(old, OTHER, old.vocab_size + 60)


def test_old_ids_stay_and_new_ones_follow(old: CaptionTokenizer, new: CaptionTokenizer) -> None:
    before, after = (t.backend.get_vocab(with_added_tokens=True) for t in (old, new))
    assert after.items() > before.items()
    assert sorted(after.values()) == list(range(new.vocab_size))
    assert old.vocab_size < new.vocab_size <= old.vocab_size + 60
    assert (old.pad_id, old.bos_id, old.eos_id) == (new.pad_id, new.bos_id, new.eos_id)
    assert new.encode(ENGLISH, ALL) == old.encode(ENGLISH, ALL)


def test_every_new_token_shortens_captions_and_nothing_of_them_is_unknown(
    old: CaptionTokenizer, new: CaptionTokenizer
) -> None:
    used = Counter(id_ for ids in new.encode(OTHER, ALL) for id_ in ids)
    assert len([id_ for id_ in used if id_ >= old.vocab_size]) > 15
    splits = {split.script: split for split in script_coverage(new.backend, OTHER)}
    before = {split.script: split for split in script_coverage(old.backend, OTHER)}
    for script in ("Cyrillic", "Devanagari"):
        assert splits[script].unknown == 0
        assert before[script].unknown == 1 or splits[script].tokens_per_unit < before[script].tokens_per_unit
    assert splits["Han"].tokens_per_unit <= 2
    for token, id_ in new.backend.get_vocab().items():  # no phrases
        if id_ >= old.vocab_size:
            assert sum("\u4e00" <= c <= "\u9fff" for c in new.decode([id_]) or token) <= 1


def test_extending_gives_the_same_every_time_and_loads_everywhere(
    old: CaptionTokenizer, new: CaptionTokenizer, tmp_path: Path
) -> None:
    assert extend(old, OTHER, old.vocab_size + 60).fingerprint(77) == new.fingerprint(77)
    new.save(tmp_path)
    assert CaptionTokenizer.load(tmp_path).fingerprint(77) == new.fingerprint(77)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs([*ENGLISH, *OTHER])["input_ids"] == new.encode([*ENGLISH, *OTHER], ALL)
    text = {"context_length": 40, "vocab_size": new.vocab_size, "hf_tokenizer_name": "clipglot"}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"text_cfg": text}}))
    rows = open_clip.get_tokenizer(f"local-dir:{tmp_path}")(OTHER).tolist()
    assert rows == [ids + [new.pad_id] * (40 - len(ids)) for ids in new.encode(OTHER, 40)]


@cache
def extended(name: str) -> tuple[Tokenizer, CaptionTokenizer, dict[str, int], list[list[str]]]:
    """An old tokenizer, the new one, its vocabulary and its new merges."""
    old, new = OLD[name].backend, extend(OLD[name], OTHER, OLD[name].vocab_size + 30)
    vocab, num_old = new.backend.get_vocab(with_added_tokens=True), old.get_vocab_size()
    merges = json.loads(new.backend.to_str())["model"]["merges"][-(new.vocab_size - num_old) :]
    assert [vocab["".join(pair)] for pair in merges] == list(range(num_old, new.vocab_size))
    return old, new, vocab, merges


@pytest.mark.parametrize("name", ["ours", "open_clip"])
@settings(max_examples=30, deadline=None)
@given(text=st.text(st.sampled_from("котстлерыжийня abcdogs桌上猫कुत्ता,. "), max_size=40))
def test_new_merges_come_after_all_old_ones(name: str, text: str) -> None:
    """The plain form: what the old tokenizer gives, then the new merges one by one."""
    old, new, vocab, merges = extended(name)
    expected = []
    for word, _ in old.pre_tokenizer.pre_tokenize_str(old.normalizer.normalize_str(clean(text))):
        tokens = [token.value for token in old.model.tokenize(word)]
        for pair in merges:
            while tuple(pair) in list(pairwise(tokens)):
                place = list(pairwise(tokens)).index(tuple(pair))
                tokens[place : place + 2] = ["".join(pair)]
        expected += [vocab[token] for token in tokens]
    (ids,) = new.encode([text], ALL)
    assert ids[1:-1] == expected


def test_merges_are_those_of_counting_anew_each_time() -> None:
    found = Counter(["banana", "bandana", "ananas", "nab", "aaaa", "cabana"] * 2)
    words = {tuple(word): count for word, count in found.items()}
    known, plain = set("abndsc"), list[tuple[str, str]]()
    spelled = {word: list(word) for word in words}
    while True:
        pairs = Counter(pair for word, count in words.items() for pair in list(pairwise(spelled[word])) * count)
        open_ = [(-count, pair) for pair, count in pairs.items() if count > 1 and "".join(pair) not in known]
        if not open_:
            break
        _, best = min(open_)
        known.add("".join(best))
        plain.append(best)
        for tokens in spelled.values():
            place = 0
            while place < len(tokens) - 1:
                if (tokens[place], tokens[place + 1]) == best:
                    tokens[place : place + 2] = ["".join(best)]
                place += 1
    assert [pair for pair, _, _ in learn_merges(words, set("abndsc"), 99)] == plain
    assert len(plain) > 8


ASSIGNED = st.text(st.characters(max_codepoint=0x1FFFF, exclude_categories=["Cn", "Cs", "Co"]))
FINAL_SIGMA = "ΟΔΟΣ ΣΑΣ, 猫Σ Σ I'LL Don'T <START_OF_TEXT> <end_of_text>"


# What Unicode has not assigned is a letter to one of the libraries and none to another.
@given(ASSIGNED | st.text(st.sampled_from("aAÉéΣσΟİıß'’стЖ12½²_-! \u0301\u200d猫🐈が"), max_size=20))
@example(FINAL_SIGMA)
def test_open_clips_bpe_gives_the_ids_of_open_clip(text: str) -> None:
    assume("Σ" not in text or text == FINAL_SIGMA)  # beside marks and apostrophes Python looks farther for a letter
    simple, ours = SIMPLE, OLD["open_clip"]
    expected = [simple.sot_token_id, *simple.encode(text), simple.eot_token_id]
    assert ours.encode([text], ALL)[0] == expected


SIMPLE = SimpleTokenizer()


def test_open_clips_bpe_is_read_back() -> None:
    new = extend(OLD["open_clip"], OTHER, 49_480)
    for tokenizer in (OLD["open_clip"], new):
        assert tokenizer.decode(tokenizer.encode(["Рыжий кот 12"], 77)[0]) == "рыжий кот 1 2"


def test_what_cannot_be_extended_is_refused() -> None:
    with pytest.raises(EncoderError, match=r"--vocab-size 259: the tokenizer has \d+ tokens already"):
        extend(OLD["ours"], OTHER, 259)
    special = {"<pad>": 0, "<bos>": 1, "<eos>": 2}
    with pytest.raises(EncoderError, match="a WordLevel tokenizer cannot be extended"):
        extend(CaptionTokenizer(Tokenizer(models.WordLevel(special, "<pad>"))), OTHER, 400)
    with pytest.raises(EncoderError, match="this BPE is not byte-level"):
        extend(CaptionTokenizer(Tokenizer(models.BPE(special, []))), OTHER, 400)
    with pytest.raises(EncoderError, match="its ids have gaps"):
        extend(CaptionTokenizer(Tokenizer(models.BPE(special | {"a": 9}, []))), OTHER, 400)


def test_a_tokenizer_without_a_map_of_its_special_tokens_learns_real_captions(
    tmp_path: Path, shared_data: Path
) -> None:
    wordpiece().save(tmp_path)
    (tmp_path / "special_tokens_map.json").unlink()
    lines = (shared_data / "flickr8k" / "val.jsonl").read_text(encoding="utf-8").splitlines()[:200]
    captions = [caption for line in lines for caption in json.loads(line)["zh"]]
    old = CaptionTokenizer.load(tmp_path)
    (before, *_), (after, *_) = (script_coverage(t.backend, captions) for t in (old, extend(old, captions, 3_000)))
    assert (before.unknown, after.unknown) == (1, 0)
