"""Special tokens that a caption spells out: text in new tokenizers, here, in open_clip and in transformers alike."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
from clipglot.cache.read.cache import Cache
from clipglot.distill.data.tokens import open_tokens
from clipglot.distill.train_settings import TrainSettings
from clipglot.distill.training.run_folder import RunFolder
from clipglot.encoders.tokenizer import (
    FILES,
    CaptionTokenizer,
    clean,
    open_clip_tokenizer,
    spell_special_pieces,
    train_bpe,
    train_unigram,
)
from clipglot.encoders.tokenizer_extend import extend
from clipglot.encoders.tokenizer_lm import LMTokenizer
from support.odd_strings import SPECIAL, odd_strings
from support.tokenizer_exports import save_as_export
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer

CONTEXT = 32
FEW, MANY = 3_000, 100_000
TRAINED_ON = [*odd_strings(2_000, seed=1), *(["a <eos> red <pad> square </s>"] * 50)]


def like_xlm_roberta() -> CaptionTokenizer:
    """A Unigram model that has its special tokens among its pieces, and takes words whole."""
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), ("▁a", -3.0)]
    pieces += [(chr(code), -5.0) for code in range(33, 127)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=3))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in ("<s>", "<pad>", "</s>", "<unk>")])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names: dict[str, str | None] = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    spell_special_pieces(tokenizer)
    return CaptionTokenizer(tokenizer, names)


def like_t5(spelled: bool = True) -> CaptionTokenizer:
    """A Unigram model without the characters of its special tokens."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("<s>", 0.0), ("▁", -2.0), ("▁a", -3.0), ("ab", -4.0)]
    pieces += [(letter, -5.0) for letter in "abs/redquo0123456789_xti"]
    pieces += [(f"<extra_id_{number}>", 0.0) for number in range(100)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    tokenizer.add_special_tokens(
        [AddedToken(piece, special=True) for piece, _ in pieces if piece[0] == "<" and piece[-1] == ">"]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 3), ("</s>", 1)]
    )
    names: dict[str, str | None] = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    if spelled:
        spell_special_pieces(tokenizer)
    return CaptionTokenizer(tokenizer, names)


KINDS: dict[str, Callable[[], CaptionTokenizer]] = {
    "bpe": lambda: train_bpe(TRAINED_ON, 700),
    "unigram": lambda: train_unigram(TRAINED_ON, 900),
    "extended": lambda: extend(open_clip_tokenizer(), TRAINED_ON, 49_408 + 200),
    "xlm-roberta": lambda: extend(like_xlm_roberta(), TRAINED_ON, 200),
    "t5": like_t5,
}


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> CaptionTokenizer:
    return KINDS[request.param]()


@pytest.fixture(scope="module")
def folder(tokenizer: CaptionTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_as_export(tokenizer, tmp_path_factory.mktemp("tokenizer"), CONTEXT)


def test_special_tokens_in_captions_are_text(tokenizer: CaptionTokenizer) -> None:
    special = {tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id}
    captions = [f"a {token} red" for token in SPECIAL] + [*SPECIAL, *(t for t in tokenizer.special.values() if t)]
    for caption, ids in zip(captions, tokenizer.encode(captions, 200), strict=True):
        assert not special & set(ids[1:-1]), caption
        assert len(ids) > 2, caption
    cut, ended = tokenizer.encode(["a <eos> red square", "a"], 200)
    assert len(cut) > len(ended)


def test_a_spelling_with_unknown_characters_is_a_spelling_and_other_texts_stay() -> None:
    spelled, plain = like_t5(), like_t5(spelled=False)
    captions = ["a </s> a", "<extra_id_7>", "a<s>a</s></s>", "<</s>"]
    for found, whole in zip(spelled.encode(captions, 99), plain.encode(captions, 99), strict=True):
        assert {0, 1, 3}.isdisjoint(found[1:-1])
        assert max(found) < 31, "an extra id"
        assert found != whole
    special = [piece for piece in plain.backend.get_vocab() if piece.endswith(">")]
    others = [text for text in map(clean, odd_strings(2_000)) if not any(token in text for token in special)]
    others += ["a < b > a", "</s", "<extra_id_", "ab <<>> ab", "猫 ab 猫猫"]
    assert spelled.encode(others, 99) == plain.encode(others, 99)
    before = spelled.backend.to_str()
    spell_special_pieces(spelled._tokenizer)
    assert spelled.backend.to_str() == before, "once is enough"


def test_a_language_model_of_the_t5_kind_spells_in_its_export_too(tmp_path: Path) -> None:
    like_t5(spelled=False).backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer", "extra_ids": 100}')
    (tmp_path / "config.json").write_text('{"model_type": "mt5"}')
    ours = LMTokenizer.load_for_new(tmp_path)
    captions = ["a </s> a", "a <extra_id_7>", "ab 猫 ab"]
    found = ours.encode(captions, 99)
    assert all({0, 1, 3}.isdisjoint(ids[:-1]) and ids[-1] == 1 for ids in found), found
    folder = tmp_path / "saved"
    ours.save(folder)
    (folder / "config.json").write_text('{"model_type": "mt5"}')
    assert LMTokenizer.load(folder).encode(captions, 99) == found
    assert LMTokenizer.load_for_new(folder).fingerprint(9) == ours.fingerprint(9)
    assert AutoTokenizer.from_pretrained(folder)(captions)["input_ids"] == found
    text = {"context_length": CONTEXT, "hf_tokenizer_name": "lm"}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"text_cfg": text}}))
    padded = open_clip.get_tokenizer(f"local-dir:{folder}")(captions).tolist()
    assert [row[: len(ids)] for row, ids in zip(padded, found, strict=True)] == found


def require_equal(tokenizer: CaptionTokenizer, folder: Path, num: int) -> None:
    theirs, transformers_ = open_clip.get_tokenizer(f"local-dir:{folder}"), AutoTokenizer.from_pretrained(folder)
    strings = list(odd_strings(num))
    for start in range(0, num, 5_000):
        block = strings[start : start + 5_000]
        ours = tokenizer.encode(block, CONTEXT)
        padded = np.full((len(block), CONTEXT), tokenizer.pad_id)
        for row, ids in zip(padded, ours, strict=True):
            row[: len(ids)] = ids
        differs = np.flatnonzero((padded != theirs(block).numpy()).any(1))
        assert not len(differs), [block[i] for i in differs[:5]]
        cleaned = [theirs.clean_fn(text) for text in block]
        assert transformers_(cleaned, max_length=CONTEXT, truncation=True)["input_ids"] == ours


def test_ids_of_odd_strings_are_those_of_open_clip_and_transformers(tokenizer: CaptionTokenizer, folder: Path) -> None:
    require_equal(tokenizer, folder, FEW)


@pytest.mark.slow
def test_ids_of_many_odd_strings_are_those_of_open_clip_and_transformers(
    tokenizer: CaptionTokenizer, folder: Path
) -> None:
    require_equal(tokenizer, folder, MANY)


def test_processes_tokenize_alike(tokenizer: CaptionTokenizer) -> None:
    captions = [*SPECIAL, "a <eos> b"]
    assert pickle.loads(pickle.dumps(tokenizer)).encode(captions, CONTEXT) == tokenizer.encode(captions, CONTEXT)
    backend = tokenizer.backend
    assert [e.ids for e in backend.encode_batch([clean(caption) for caption in captions])] == tokenizer.encode(
        captions, 10**6
    )


def as_before(folder: Path, copy: Path) -> Path:
    """A tokenizer as clipglot wrote it before special tokens were text."""
    shutil.copytree(folder, copy)
    config = json.loads((copy / FILES[1]).read_text())
    del config["split_special_tokens"]
    (copy / FILES[1]).write_text(json.dumps(config))
    return copy


def test_an_earlier_folder_keeps_its_ids(tokenizer: CaptionTokenizer, folder: Path, tmp_path: Path) -> None:
    before = as_before(folder, tmp_path / "before")
    old = CaptionTokenizer.load(before)
    eos = tokenizer.special["eos_token"]
    (ids,) = old.encode([f"a {eos} red"], CONTEXT)
    assert ids.count(old.eos_id) == 2, "it ends the caption, as it did"
    assert old.fingerprint(CONTEXT) != tokenizer.fingerprint(CONTEXT)
    old.save(tmp_path / "again")
    assert CaptionTokenizer.load(tmp_path / "again").fingerprint(CONTEXT) == old.fingerprint(CONTEXT)
    require_equal(old, before, 500)
    new = CaptionTokenizer.load_for_new(before)
    assert new.fingerprint(CONTEXT) == tokenizer.fingerprint(CONTEXT)


def test_a_resumed_run_keeps_its_tokens_and_a_new_one_reads_text(
    tiny_cache: Path, make_run: Callable[..., Path], tmp_path: Path
) -> None:
    from clipglot.distill.training.build_tower import open_tokenizer

    begun = RunFolder(make_run(tiny_cache, tmp_path / "run", epochs=1))
    before = as_before(begun.tokenizer, tmp_path / "before")
    shutil.rmtree(begun.tokenizer)
    shutil.copytree(before, begun.tokenizer)

    def none() -> list[str]:
        raise AssertionError

    def opened(kept: Path, **given: Any) -> Any:
        return open_tokenizer(TrainSettings(cache=tiny_cache, output=tmp_path / "new", **given), kept, none)

    resumed = opened(begun.tokenizer)
    assert not resumed.special_as_text
    open_tokens(Cache(tiny_cache), resumed, 24, tmp_path / "tokens")
    for given in ({"tokenizer": before}, {"text": str(begun.path)}):
        assert opened(tmp_path / "none", **given).special_as_text
