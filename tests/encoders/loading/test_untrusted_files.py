"""Folders of models that would hang, fill memory or compute without end: each is refused, at once."""

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from clipglot.encoders.errors import EncoderError
from clipglot.encoders.image_tower import load_image_tower
from clipglot.encoders.loading import untrusted_files
from clipglot.encoders.loading.untrusted_regex import is_tame, panics_named, require_tame_expressions
from clipglot.encoders.merged_clip import load_merged
from clipglot.encoders.text_lm import LMTower
from clipglot.encoders.tokenizer import CaptionTokenizer, open_clip_tokenizer, read_tokenizer, train_bpe, train_unigram
from clipglot.encoders.tokenizer_lm import LMTokenizer
from support.hostile_models import edit_json
from support.tiny_lms import FAMILIES
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

WORDS = r"'(?:s|t|re|ve|m|ll|d)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
TAME = [
    WORDS,
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r" ?[^(\s|[.,!?…。，、।۔،])]+",
    " {2,}",
    r"[ ]{2,}",
    r"\s+",
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
    r"[]a]+[^]b]*",
    r"(?<=[\p{Lu}\p{Ll}\p{Lt}])Σ(?![\p{Lu}\p{Ll}\p{Lt}])",
    r"\p{Han}",
]
WILD = [
    r"(a+)+$",
    r"(a|a)*$",
    r"(a|aa)+$",
    r"(.*a){20}$",
    r"(?:(?:a?){30})a{30}",
    r"((a{100}){100}){100}",
    r"(a)\1",
    r"(?<x>a\g<x>?)",
    r"(a*)*",
    r"(?:a|b+)+c",
    r"a*a*a*a*a*a*a*b",
    r"(?>a+)+",
    r"(?~abc)",
    r"(?(1)a|b)",
    "(a",
    "a)",
    "[a",
    "a" * 10_000,
]


@pytest.mark.parametrize("pattern", TAME)
def test_expressions_of_known_tokenizers_are_tame(pattern: str) -> None:
    assert is_tame(pattern)
    Regex(pattern)


@pytest.mark.parametrize("pattern", WILD)
def test_expressions_that_could_compute_without_end_are_not(pattern: str) -> None:
    assert not is_tame(pattern)


def split_by(pattern: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    return tokenizer


def test_our_own_tokenizers_are_tame(tmp_path: Path) -> None:
    for number, made in enumerate((train_bpe(["a"], 300), train_unigram(["a cat"] * 9, 450), open_clip_tokenizer())):
        made.save(tmp_path / str(number))
        require_tame_expressions(tmp_path / str(number) / "tokenizer.json")


def test_a_tokenizer_with_a_wild_expression_is_refused_before_it_computes(lms: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(lms["bert"], tmp_path / "lm")
    state = json.loads((folder / "tokenizer.json").read_text())
    wild = {"type": "Split", "pattern": {"Regex": "(a|a)*$"}, "behavior": "Isolated", "invert": False}
    state["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [wild, state["pre_tokenizer"]]}
    edit_json(folder / "tokenizer.json", **state)
    for load in (LMTokenizer.load, read_tokenizer, CaptionTokenizer.load):
        with pytest.raises(EncoderError, match=r"regular expression '\(a\|a\)\*\$' could compute without end"):
            load(folder)


def test_a_panic_of_the_library_is_a_users_error(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(EncoderError, match="the tokenizer gives up on a caption"), panics_named():
        split_by("(a|a)*$").encode("a" * 40 + "!")
    capfd.readouterr()  # the library has written of it


def fifo(file: Path) -> None:
    os.mkfifo(file)


def device(file: Path) -> None:
    file.symlink_to("/dev/zero")


def gone(file: Path) -> None:
    file.symlink_to("nowhere")


def folder(file: Path) -> None:
    file.mkdir()


def huge(file: Path) -> None:
    with open(file, "wb") as made:
        made.truncate(2**40)  # a hole


def deep(file: Path) -> None:
    file.write_text('{"a":' * 200_000)


def listed(file: Path) -> None:
    file.write_text("[1]")


def long_number(file: Path) -> None:
    file.write_text('{"vocab_size": ' + "9" * 5_000 + "}")


ODD = [fifo, device, gone, folder, huge, deep, listed, long_number]


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"])
def test_odd_files_of_a_language_model_are_refused(name: str, odd: Any, lms: dict[str, Path], tmp_path: Path) -> None:
    lm = shutil.copytree(lms["bert"], tmp_path / "lm")
    (lm / name).unlink()
    odd(lm / name)
    loads = [lambda: LMTokenizer.load(lm), lambda: LMTower.from_pretrained(str(lm), 6, context_length=24)]
    if name == "model.safetensors" and odd is not gone:
        del loads[0]
    elif name == "model.safetensors" or "tokenizer" not in name:
        loads = loads[1:]
    else:
        del loads[1]
    if odd is gone and name == "tokenizer_config.json":
        return  # as if there were none
    begun = time.process_time()
    for load in loads:
        with pytest.raises(EncoderError, match=str(lm)):
            load()
    assert time.process_time() - begun < 60


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("name", ["open_clip_config.json", "open_clip_model.safetensors", "tokenizer.json"])
def test_odd_files_of_a_merged_clip_are_refused(name: str, odd: Any, merged: Path, tmp_path: Path) -> None:
    clip = shutil.copytree(merged, tmp_path / "clip")
    (clip / name).unlink()
    odd(clip / name)
    with pytest.raises(EncoderError, match=str(clip)):
        load_merged(clip)
    if name != "tokenizer.json":
        with pytest.raises(EncoderError, match=str(clip)):
            load_image_tower(f"local-dir:{clip}", None)


@pytest.mark.parametrize(
    "changes",
    [
        {"vocab_size": 10**12},
        {"num_hidden_layers": 10**6},
        {"max_position_embeddings": 10**9},
        {"hidden_size": "many"},
        {"hidden_size": None},
        {"model_type": ["bert"]},
        {"model_type": "encoder-decoder"},
    ],
)
def test_a_config_that_no_model_has_is_refused(changes: dict[str, Any], lms: dict[str, Path], tmp_path: Path) -> None:
    lm = shutil.copytree(lms["bert"], tmp_path / "lm")
    edit_json(lm / "config.json", **changes)
    with pytest.raises(EncoderError, match=str(lm)):
        LMTower.from_pretrained(str(lm), 6, context_length=24)


def test_tokens_are_not_made_up_by_the_billion(lms: dict[str, Path], tmp_path: Path) -> None:
    lm = shutil.copytree(lms["bert"], tmp_path / "lm")
    edit_json(lm / "tokenizer_config.json", tokenizer_class="T5Tokenizer", extra_ids=10**10)
    with pytest.raises(EncoderError, match="extra_ids is 10000000000, expected at most 65,536"):
        LMTokenizer.load(lm)


def test_a_giant_vocabulary_is_refused(lms: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("clipglot.encoders.loading.untrusted", "clipglot.encoders.loading.untrusted_regex"):
        monkeypatch.setattr(f"{name}.MAX_VOCABULARY", 1_000)
    with pytest.raises(EncoderError, match="expected at most 1,000"):
        LMTokenizer.load(lms["bert"])
    with pytest.raises(EncoderError, match="expected at most 1,000"):
        read_tokenizer(lms["bert"])
    assert untrusted_files.MAX_JSON == 64 * 2**20
    assert "bert" in FAMILIES
