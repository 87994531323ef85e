"""Pruned vocabularies: kept texts have the same features, bit for bit; new texts still have tokens."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import clipglot
import numpy as np
import pytest
import torch
from clipglot.cache.read.cache import Cache
from clipglot.distill.errors import DistillError
from clipglot.distill.training.final import load_final
from clipglot.distill.training.run_folder import RunFolder
from clipglot.distill.training.train import train
from clipglot.encoders.errors import EncoderError
from clipglot.encoders.text_lm import LMTower
from clipglot.encoders.tokenizer_lm import LMTokenizer
from clipglot.encoders.tokenizer_prune import prune_vocabulary
from clipglot.jobs.export import export_run
from clipglot.jobs.settings.export import ExportSettings
from support.exported_towers import captions
from support.runs import stop_at
from support.tiny_lms import CONTEXT
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

MANY = captions()
KEPT = [text for number, text in enumerate(MANY) if number % 9 == 0]
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]


def tokenizer_of(kind: str) -> LMTokenizer:
    """A tokenizer of each kind, trained on captions in four languages, with a mask token after all others."""
    trainer: Any
    if kind == "Unigram":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=600, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
        )
    elif kind == "BPE":
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        options = {"special_tokens": SPECIAL, "initial_alphabet": sorted(alphabet), "show_progress": False}
        trainer = trainers.BpeTrainer(vocab_size=700, **options)
    else:
        tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=600, special_tokens=SPECIAL, show_progress=False)
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.train_from_iterator(MANY, trainer)
    tokenizer.add_special_tokens(["<mask>"])
    if kind == "BPE":
        tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    else:
        ids = [(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")]
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ids)
    names = {
        "bos_token": "<s>",
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
    }
    return LMTokenizer(PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names))


@pytest.mark.parametrize("kind", ["Unigram", "BPE", "WordPiece"])
def test_kept_texts_have_the_same_tokens(kind: str, tmp_path: Path) -> None:
    whole = tokenizer_of(kind)
    pruned = whole.pruned([KEPT])
    assert pruned.vocab_size < 0.9 * whole.vocab_size
    rows = np.array(whole.rows_of(pruned))
    assert (np.diff(rows) > 0).all()
    assert pruned.pad_id == whole.pad_id == 1
    for ours, theirs in zip(pruned.encode(KEPT, 10**4), whole.encode(KEPT, 10**4), strict=True):
        assert rows[ours].tolist() == theirs
    if kind != "WordPiece":  # which has no characters inside words that no caption has
        unk = whole.backend.token_to_id("<unk>")
        for ours, theirs in zip(pruned.encode(MANY, 10**4), whole.encode(MANY, 10**4), strict=True):
            assert rows[ours].tolist().count(unk) == theirs.count(unk)
    pruned.save(tmp_path)
    assert LMTokenizer.load(tmp_path).encode(MANY, 20) == pruned.encode(MANY, 20)


def special_in_pairs(tokenizer: Tokenizer) -> None:
    """Name a token in the post-processor that no added token and no single text has."""
    id_ = tokenizer.token_to_id("circle") or tokenizer.token_to_id("re")
    assert id_ is not None
    name = tokenizer.id_to_token(id_)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<pad> $A", pair=f"$A {name} $B:1", special_tokens=[("<pad>", 0), (name, id_)]
    )


@pytest.mark.parametrize("affixes", [{"continuing_subword_prefix": "##"}, {"end_of_word_suffix": "</w>"}, {}], ids=str)
def test_merges_of_every_form_stay(affixes: dict[str, str]) -> None:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", **affixes))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=["<pad>", "<unk>"], show_progress=False, **affixes)
    tokenizer.train_from_iterator(MANY, trainer)
    special_in_pairs(tokenizer)
    whole = LMTokenizer(PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>"))
    pruned = whole.pruned([KEPT, []])
    assert pruned.vocab_size < 0.9 * whole.vocab_size
    rows = np.array(whole.rows_of(pruned))
    for ours, theirs in zip(pruned.encode(KEPT, 10**4), whole.encode(KEPT, 10**4), strict=True):
        assert rows[ours].tolist() == theirs


def test_pruning_that_would_change_a_text_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tokenizer_of("BPE")

    def careless(tokenizer: Tokenizer, used: Any) -> Tokenizer:
        return prune_vocabulary(tokenizer, [])

    monkeypatch.setattr("clipglot.encoders.tokenizer_lm.prune_vocabulary", careless)
    with pytest.raises(EncoderError, match=r"--prune-vocab: .* other tokens"):
        whole.pruned([KEPT])


def test_a_word_model_is_refused() -> None:
    with pytest.raises(EncoderError, match="WordLevel"):
        prune_vocabulary(Tokenizer(models.WordLevel({"a": 0}, unk_token="a")), [0])


@pytest.mark.parametrize("family", ["bert", "roberta", "mt5", "m2m_100", "gpt2"])
def test_features_of_kept_texts_are_bit_identical(family: str, lms: dict[str, Path]) -> None:
    whole = LMTokenizer.load_for_new(lms[family])
    kept = ["a red circle", "шум"]
    pruned = whole.pruned([kept])
    assert pruned.vocab_size < whole.vocab_size
    towers = [LMTower.from_pretrained(str(lms[family]), 16, context_length=CONTEXT).eval() for _ in range(2)]
    towers[1].prune_words(whole.rows_of(pruned))
    towers[1].text["proj"].load_state_dict(towers[0].text["proj"].state_dict())
    with torch.inference_mode():
        ours, theirs = (t.encode(k.encode(kept, CONTEXT)) for t, k in zip(towers, (whole, pruned), strict=True))
    assert torch.equal(ours, theirs)
    again = LMTower.from_plain(towers[1].config.to_plain())
    again.load_state_dict(towers[1].state_dict())
    assert again.num_rows == pruned.vocab_size


@pytest.mark.parametrize("frozen", [True, False], ids=["features", "whole"])
def test_a_pruned_run_resumes_and_exports(
    frozen: bool, lm_settings: Any, make_cache: Any, manifest: Path, tmp_path: Path
) -> None:
    make_cache(manifest, tmp_path / "cache.zarr")
    queries = tmp_path / "queries.txt"
    queries.write_text("\ufeffзелёный шум\r\n\nyellow\u2028noise\0\n", encoding="utf-8")
    given = replace(
        lm_settings,
        cache=tmp_path / "cache.zarr",
        prune_vocab=True,
        vocab_text=(queries,),
        text_prompt="query: ",
        train_layers=0 if frozen else None,
    )
    with pytest.raises(DistillError, match=r"--vocab-text .*queries\.gz"):
        train(replace(given, vocab_text=(tmp_path / "queries.gz",)))
    (tmp_path / "queries.gz").write_bytes(b"\x1f\x8b\xff\xfe")
    for wrong in (tmp_path / "queries.gz", tmp_path):
        with pytest.raises(DistillError, match=r"--vocab-text .*(UTF-8|text file)"):
            train(replace(given, vocab_text=(wrong,)))
    train(given, on_progress=stop_at(3))
    queries.unlink()  # the run keeps its tokenizer
    again = RunFolder(given.output).settings_to_resume()
    assert again["vocab_text"] == (queries,)
    assert train(given, resume=True).complete
    tower, tokenizer = load_final(RunFolder(given.output)).tower, LMTokenizer.load(RunFolder(given.output).tokenizer)
    whole = LMTokenizer.load_for_new(given.text)
    assert isinstance(tower, LMTower)
    assert tower.num_rows == tokenizer.vocab_size < whole.vocab_size
    export_run(ExportSettings(run=given.output, output=tmp_path / "out"))
    texts = Cache(given.cache).captions()
    expected = tower.eval().encode(tokenizer.encode(texts, CONTEXT))
    embedded = clipglot.load(tmp_path / "out").encode_text(texts)
    np.testing.assert_allclose(embedded, torch.nn.functional.normalize(expected, dim=-1).detach().numpy(), atol=1e-5)
    with pytest.raises(DistillError, match="--prune-vocab"):
        train(replace(given, text=str(given.output), output=tmp_path / "next", vocab_text=()))
