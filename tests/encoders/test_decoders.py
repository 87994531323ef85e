"""Decoders as text towers, a contract that each family keeps: last token, causal, packed, frozen, by LoRA, exported."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from clipglot.cache.read.cache import Cache
from clipglot.distill.training.build_tower import build_tower, open_tokenizer
from clipglot.distill.training.final import load_final
from clipglot.distill.training.run_folder import RunFolder
from clipglot.distill.training.train import train
from clipglot.encoders.errors import EncoderError
from clipglot.encoders.merged_clip import load_merged
from clipglot.encoders.text_lm import LMOptions, LMTower
from clipglot.encoders.text_tower import TowerSpec
from clipglot.encoders.tokenizer_lm import LMTokenizer
from clipglot.exports.errors import ExportError
from clipglot.exports.formats import write_format
from clipglot.jobs.export import export_run
from clipglot.jobs.settings.export import ExportSettings
from support.run_comparison import weights
from support.text_tower_contract import TextTowerContract
from support.tiny_lms import CAPTIONS, CONTEXT, DECODERS, save_tiny_lm
from tokenizers import Tokenizer, models, processors

END = 2


@pytest.fixture(scope="module", params=DECODERS)
def decoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of each family: config, weights, tokenizer. Read only."""
    return save_tiny_lm(tmp_path_factory.mktemp("lm") / request.param, request.param, as_decoder=True)


@pytest.fixture
def decoder_settings(lm_settings: Any, decoder: Path) -> Any:
    return replace(lm_settings, text=str(decoder), pooler="eos", epochs=1)


class TestDecoder(TextTowerContract):
    """By LoRA, with learned updates: what holds of them holds of the plain model."""

    @pytest.fixture
    def options(self) -> LMOptions:
        return LMOptions(pooler="eos", lora_rank=2)

    @pytest.fixture
    def tower(self, options: LMOptions, decoder: Path, tokenizer: LMTokenizer) -> LMTower:
        spec = TowerSpec(text=str(decoder), embed_dim=16, context_length=CONTEXT)
        tower = LMTower.create(spec, options, tokenizer)
        with torch.no_grad():
            for name, parameter in tower.named_parameters():
                if "lora_B" in name:  # zero at first
                    parameter.normal_(std=0.1)
        return tower

    @pytest.fixture
    def tokenizer(self, decoder: Path) -> LMTokenizer:
        return LMTokenizer.load_for_new(decoder).with_end()

    def test_lora_is_on_every_matrix_of_every_block(self, tower: LMTower) -> None:
        matrices = {"gpt2": 4}.get(tower.config.family, 7)  # fused queries, keys and values; no gate
        updated = [name for name, _ in tower.named_parameters() if "lora_A" in name]
        assert len(updated) == 3 * matrices
        merged = tower.plain().state_dict()
        assert merged.keys() == LMTower(tower.config).state_dict().keys()


@pytest.mark.parametrize("side", ["left", "right"])
def test_features_are_those_of_transformers_with_padding_on_either_side(decoder: Path, side: str) -> None:
    tower = LMTower.from_pretrained(str(decoder), 16, pooler="eos", context_length=CONTEXT).eval()
    tokenizer = LMTokenizer.load_for_new(decoder).with_end()
    encoded = tokenizer.encode(CAPTIONS, CONTEXT)
    assert all(ids[-1] == END for ids in encoded)
    longest = max(map(len, encoded))
    ids, mask = torch.zeros(2, len(encoded), longest, dtype=torch.long)
    for row, caption in enumerate(encoded):
        there = slice(longest - len(caption), None) if side == "left" else slice(len(caption))
        ids[row, there], mask[row, there] = torch.tensor(caption), 1
    model = transformers.AutoModel.from_pretrained(decoder).eval()
    with torch.inference_mode():
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        states = model(input_ids=ids, attention_mask=mask, position_ids=positions).last_hidden_state
        last = mask.shape[1] - 1 - mask.flip(1).argmax(1)
        expected = tower.text["proj"](states[torch.arange(len(last)), last])
        torch.testing.assert_close(tower.encode(encoded), expected, rtol=1e-4, atol=1e-5)


def test_the_last_token_sees_all_and_each_other_only_those_before_it(decoder: Path) -> None:
    tower = LMTower.from_pretrained(str(decoder), 16, pooler="eos", context_length=CONTEXT).eval()
    with torch.inference_mode():
        features = tower.encode([[10, 11, 12, END], [20, 11, 12, END], [10, 11, 12, 13, END], [10, 11, 12]])
    for other in features[1:]:
        assert not torch.allclose(features[0], other, atol=1e-4)


def test_the_first_token_of_a_causal_model_is_not_pooled(decoder_settings: Any) -> None:
    with pytest.raises(EncoderError, match=r"--pooler cls: .*: pass --pooler eos or mean"):
        train(replace(decoder_settings, pooler="cls"))
    assert not decoder_settings.output.exists()


@pytest.mark.slow
def test_features_computed_once_train_as_live_ones(decoder_settings: Any, tiny_cache: Path, tmp_path: Path) -> None:
    cache = Path(shutil.copytree(tiny_cache, tmp_path / "cache.zarr", ignore=shutil.ignore_patterns("tokens")))
    given = replace(decoder_settings, cache=cache, train_layers=0, lr=1e-2)
    assert train(given).text_features == "stored"
    live = replace(given, text_features="live", output=tmp_path / "live")
    assert train(live).text_features == "live"
    lines = [[line for line in RunFolder(run).metrics() if "loss" in line] for run in (given.output, live.output)]
    assert [line["loss"] for line in lines[0]] == pytest.approx([line["loss"] for line in lines[1]], rel=2e-3)
    ours, theirs = weights(given.output), weights(live.output)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if name.startswith("text.transformer"))
    difference = (ours["text.proj.weight"] - theirs["text.proj.weight"]).square().mean().sqrt()
    assert 0 < difference < 2e-3  # stored as float16


@pytest.mark.slow
def test_an_export_gives_the_trained_features_or_says_why_not(decoder_settings: Any, tmp_path: Path) -> None:
    train(replace(decoder_settings, lora_rank=2, lr=1e-2))
    result = export_run(ExportSettings(run=decoder_settings.output, output=tmp_path / "merged"))
    assert result.loaded_by == "clipglot"
    described = json.loads((result.folder / "open_clip_config.json").read_text())["model_cfg"]["text_cfg"]
    assert described["hf_pooler_type"] == "eos"
    assert not [name for name in LMTokenizer.load(result.folder).encode(CAPTIONS, CONTEXT) if name[-1] != END]
    trained = load_final(RunFolder(decoder_settings.output)).tower
    tokenizer = LMTokenizer.load(RunFolder(decoder_settings.output).tokenizer)
    with torch.inference_mode():
        expected = trained.encode(tokenizer.encode(CAPTIONS, CONTEXT)).numpy()
    merged = load_merged(result.folder)
    np.testing.assert_allclose(merged.encode_texts(CAPTIONS, raw=True), expected, rtol=1e-5, atol=1e-6)
    folders = {name: tmp_path / name for name in ("sentence-transformers", "onnx", "transformers")}
    for folder in folders.values():
        folder.mkdir()
    refused = {"transformers": "transformers"}
    if merged.text_tower.config.family == "qwen2":
        refused["sentence-transformers"] = "replaces the normalizer of every qwen2 tokenizer.*--format onnx"
    for name, folder in folders.items():
        if name in refused:
            with pytest.raises(ExportError, match=refused[name]):
                write_format(name, folder, merged)
        else:
            assert write_format(name, folder, merged).text_difference < 1e-5  # by its own tokenizer


def test_resume_and_a_following_run_keep_the_end_of_captions(decoder_settings: Any, tmp_path: Path) -> None:
    captions = Cache(decoder_settings.cache).captions
    new = open_tokenizer(decoder_settings, tmp_path / "none", captions)
    train(decoder_settings)
    kept = open_tokenizer(decoder_settings, RunFolder(decoder_settings.output).tokenizer, captions)
    following = replace(decoder_settings, text=str(decoder_settings.output), output=tmp_path / "next")
    again = open_tokenizer(following, tmp_path / "none", captions)
    assert new.encode(CAPTIONS, CONTEXT) == kept.encode(CAPTIONS, CONTEXT) == again.encode(CAPTIONS, CONTEXT)
    assert new.fingerprint(CONTEXT) == kept.fingerprint(CONTEXT) == again.fingerprint(CONTEXT)
    tower = build_tower(following, Cache(decoder_settings.cache).info.encoder, again)
    assert isinstance(tower, LMTower)
    assert tower.config.pooler == "eos"


class TestEnd:
    """The end-of-text token, by kinds of tokenizers."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        return save_tiny_lm(tmp_path / "lm", "qwen2", as_decoder=True)

    @pytest.mark.parametrize("name", ["Qwen2TokenizerFast", "GPT2TokenizerFast", "GPTNeoXTokenizerFast", "PreTrained"])
    @pytest.mark.parametrize("begin", [False, True], ids=["plain", "with a begin"])
    def test_every_caption_ends_in_one_that_is_kept(self, folder: Path, tmp_path: Path, name: str, begin: bool) -> None:
        described = json.loads((folder / "tokenizer_config.json").read_text())
        if name != "PreTrained":
            (folder / "tokenizer_config.json").write_text(json.dumps(described | {"tokenizer_class": name}))
        plain = LMTokenizer.load_for_new(folder)
        if begin:
            template = processors.TemplateProcessing(single="<cls> $A", special_tokens=[("<cls>", 1)])
            plain.backend.post_processor = template
        before = plain.encode(CAPTIONS, CONTEXT)
        ended = plain.with_end()
        first = [1] if begin else []
        for ids, old in zip(ended.encode(CAPTIONS, CONTEXT), before, strict=True):
            assert ids == [*(old if old != [END] else first)[: CONTEXT - 1], END]
        assert ended.with_end() is ended
        ended.save(tmp_path / "saved")
        loaded = LMTokenizer.load(tmp_path / "saved")
        assert loaded.fingerprint(CONTEXT) == ended.fingerprint(CONTEXT)
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
        assert theirs(CAPTIONS[:5])["input_ids"] == ended.encode(CAPTIONS[:5], 100)

    def test_a_prompt_is_kept_beside_the_config_of_a_model(self, folder: Path) -> None:
        """Of Qwen2, for which transformers 5 replaces the normalizer that holds the prompt."""
        prompted = LMTokenizer.load_for_new(folder).with_end().with_prompt("query: ", "lm")
        prompted.save(folder)
        loaded = LMTokenizer.load(folder)
        assert loaded.prompt == "query: "
        assert loaded.encode(CAPTIONS, CONTEXT) == prompted.encode(CAPTIONS, CONTEXT)

    def test_a_prompt_and_pruning_keep_it(self, folder: Path) -> None:
        ended = LMTokenizer.load_for_new(folder).with_end().with_prompt("query: ", "lm")
        pruned = ended.pruned([CAPTIONS])
        rows = ended.rows_of(pruned)
        for ids, small in zip(ended.encode(CAPTIONS, 40), pruned.encode(CAPTIONS, 40), strict=True):
            assert ids == [rows[id_] for id_ in small]
            assert ids[-1] == END

    def test_captions_that_end_in_a_special_token_are_left(self, tmp_path: Path) -> None:
        tokenizer = LMTokenizer.load_for_new(save_tiny_lm(tmp_path / "bert"))
        assert tokenizer.with_end() is tokenizer

    def test_a_tokenizer_without_latin_letters_ends_its_captions(self) -> None:
        backend = Tokenizer(models.BPE(vocab={"猫": 0, "狗": 1, "<sep>": 2}, merges=[]))
        plain = LMTokenizer(transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<sep>"))
        assert plain.encode(["猫狗"], CONTEXT) == [[0, 1]]
        assert plain.with_end().encode(["猫狗"], CONTEXT) == [[0, 1, 2]]
