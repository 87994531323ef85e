"""Language models as text towers: features and tokens are open_clip's, exports load, what does not fit is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from clipglot.distill.errors import DistillError
from clipglot.distill.training.final import load_final
from clipglot.distill.training.run_folder import RunFolder
from clipglot.distill.training.train import train
from clipglot.encoders.errors import EncoderError
from clipglot.encoders.merged_clip import load_merged
from clipglot.encoders.text_lm import LMOptions, LMTower
from clipglot.encoders.text_tower import TowerSpec
from clipglot.encoders.tokenizer_lm import LMTokenizer
from clipglot.jobs.export import export_run
from clipglot.jobs.settings.export import ExportSettings
from open_clip.hf_model import HFTextEncoder
from open_clip.tokenizer import HFTokenizer
from support.launcher import Launcher
from support.model_cards import cosine, run_card
from support.runs import settings
from support.text_tower_contract import TextTowerContract
from support.tiny_lms import CAPTIONS, CONTEXT, FAMILIES

POOLERS = {"mean": "mean_pooler", "cls": "cls_last_hidden_state_pooler"}


class TestLMTower(TextTowerContract):
    @pytest.fixture(
        params=[
            ("bert", "mean", "linear", ()),
            ("xlm-roberta", "cls", "mlp", ()),
            ("mt5", "mean", "linear", ()),
            ("m2m_100", "cls", "linear", ()),
            ("distilbert", "mean", "linear", ()),
            ("gpt2", "eos", "linear", ()),
            ("bert", "mean", "glu", (1, 3)),
            ("mt5", "cls", "deep", (2, 3)),
            ("gpt2", "eos", "linear + mlp", (1,)),
            ("roberta", "mean", "linear + deep", ()),
        ],
        ids=lambda how: "-".join(map(str, how)),
    )
    def tower(self, request: pytest.FixtureRequest, lms: dict[str, Path]) -> LMTower:
        family, pooler, form, layers = request.param
        *linear, head = form.split(" + ")
        how = {"pooler": pooler, "head": head, "layers": layers, "residual": bool(linear)}
        return LMTower.from_pretrained(str(lms[family]), 16, **how, context_length=CONTEXT)

    @pytest.fixture
    def tokenizer(self, lms: dict[str, Path]) -> LMTokenizer:
        return LMTokenizer.load(lms["bert"])  # all families have the same


class TestTrainedInPart(TextTowerContract):
    @pytest.fixture(params=[{"train_layers": 0}, {"train_layers": 1, "freeze_embeddings": True}], ids=["head", "layer"])
    def options(self, request: pytest.FixtureRequest) -> LMOptions:
        return LMOptions(**request.param)

    @pytest.fixture
    def tower(self, options: LMOptions, lms: dict[str, Path], tokenizer: LMTokenizer) -> LMTower:
        return LMTower.create(
            TowerSpec(text=str(lms["bert"]), embed_dim=16, context_length=CONTEXT), options, tokenizer
        )

    @pytest.fixture
    def tokenizer(self, lms: dict[str, Path]) -> LMTokenizer:
        return LMTokenizer.load(lms["bert"])


class TestLoRA(TestTrainedInPart):
    @pytest.fixture
    def options(self) -> LMOptions:
        return LMOptions(lora_rank=2, lora_targets=("query", "value"))

    @pytest.fixture
    def tower(self, options: LMOptions, lms: dict[str, Path], tokenizer: LMTokenizer) -> LMTower:
        spec = TowerSpec(text=str(lms["bert"]), embed_dim=16, context_length=CONTEXT)
        tower = LMTower.create(spec, options, tokenizer)
        with torch.no_grad():
            for name, parameter in tower.named_parameters():
                if "lora_B" in name:  # zero at first
                    parameter.normal_(std=0.1)
        return tower


@pytest.mark.parametrize("head", ["linear", "mlp"])
@pytest.mark.parametrize("pooler", ["mean", "cls"])
@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta", "mt5", "m2m_100"])
def test_features_are_those_of_open_clip_with_padding(
    lms: dict[str, Path], family: str, pooler: Any, head: Any
) -> None:
    folder = str(lms[family])
    tower = LMTower.from_pretrained(folder, 6, pooler=pooler, head=head, context_length=CONTEXT).eval()
    theirs = HFTextEncoder(folder, 6, pooler_type=POOLERS[pooler], proj_type=head, pretrained=False).eval()
    theirs.load_state_dict(tower.text.state_dict())
    ids = HFTokenizer(folder, context_length=CONTEXT)(CAPTIONS)
    with torch.inference_mode():
        expected = theirs(ids)
        encoded = LMTokenizer.load(folder).encode(CAPTIONS, CONTEXT)
        features = tower.encode(encoded)
        alone = torch.cat([tower.encode([ids]) for ids in encoded])
    torch.testing.assert_close(features, expected, rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(alone, expected, rtol=1e-5, atol=2e-6)


def test_training_from_scratch_settings_do_not_mix_with_a_language_model(
    tmp_path: Path, lm_settings: Any, merged: Path
) -> None:
    with pytest.raises(DistillError, match=r"--pooler belongs to a language model"):
        settings(tmp_path, tmp_path / "run", pooler="cls")
    with pytest.raises(DistillError, match=r"has a tokenizer of its own"):
        train(replace(lm_settings, tokenizer=tmp_path))
    with pytest.raises(EncoderError, match=r"nothing: no tokenizer that transformers loads"):
        train(replace(lm_settings, text=str(tmp_path / "nothing")))
    broken = shutil.copytree(lm_settings.text, tmp_path / "broken")
    (broken / "model.safetensors").unlink()
    with pytest.raises(EncoderError, match=r"--text .*broken: no language model that transformers loads"):
        train(replace(lm_settings, text=str(broken)))
    with pytest.raises(EncoderError, match=r"--context-length 60: .* takes at most 40 tokens"):
        train(replace(lm_settings, context_length=60))
    with pytest.raises(EncoderError, match=r"--train-layers 9: .* has 3 layers"):
        train(replace(lm_settings, train_layers=9))
    with pytest.raises(EncoderError, match=r"--lora-targets queri: .*there are .*query"):
        train(replace(lm_settings, lora_rank=2, lora_targets=("queri",)))
    for text, message in {
        str(lm_settings.cache): "is a cache: pass the folder of a run or of a language model",
        str(merged): "is a merged CLIP: pass the folder of the run that it was exported from",
        str(merged / "README.md"): "expected scratch, clip, the folder of a run or a language model",
        "": "--text '': expected scratch, clip",
    }.items():
        with pytest.raises(DistillError, match=message):
            train(replace(lm_settings, text=text))
    assert not lm_settings.output.exists()


def variant(lm: Path, folder: Path, **config: Any) -> str:
    """A copy of a language model with other values in its config.json."""
    shutil.copytree(lm, folder)
    described = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(described))
    return str(folder)


def test_files_that_do_not_belong_together_are_refused(lms: dict[str, Path], lm_settings: Any, tmp_path: Path) -> None:
    def refused(text: str, message: str, **changes: Any) -> None:
        with pytest.raises(EncoderError, match=message):
            train(replace(lm_settings, text=text, **changes))

    bert = lms["bert"]
    refused(variant(bert, tmp_path / "five", num_hidden_layers=5), r"lack 32 tensors of its config.json, such as enc")
    refused(variant(bert, tmp_path / "pad", pad_token_id=5), r"pads with 0, its config.json has pad_token_id 5")
    refused(variant(bert, tmp_path / "none", pad_token_id=None), r"pads with 0, its config.json has pad_token_id None")
    larger = Path(variant(bert, tmp_path / "larger"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(larger)
    tokenizer.add_tokens(["шум", "noise"])
    tokenizer.save_pretrained(larger)
    refused(str(larger), r"its tokenizer knows 302 tokens, its word embeddings have 300 rows")
    custom = variant(bert, tmp_path / "custom", model_type="own", auto_map={"AutoConfig": "a.B", "AutoModel": "a.C"})
    refused(custom, r"no language model that transformers loads from safetensors \(.*never runs code")
    shared = transformers.AlbertConfig(vocab_size=300, embedding_size=8, **FAMILIES["bert"][1])
    for kind, model in {
        "albert": transformers.AlbertModel(shared),
        "wav2vec2": transformers.Wav2Vec2Model(
            transformers.Wav2Vec2Config(
                hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, conv_dim=(8,) * 7
            )
        ),
    }.items():
        folder = shutil.copytree(bert, tmp_path / kind)
        model.save_pretrained(folder)
        refused(str(folder), rf"a model of type {kind} that does not embed 24 tokens \(")
    assert not lm_settings.output.exists()


def test_a_bert_without_pad_that_open_clip_never_sees_is_trained(
    lms: dict[str, Path], lm_settings: Any, tmp_path: Path
) -> None:
    train(replace(lm_settings, text=variant(lms["bert"], tmp_path / "lm", pad_token_id=None), pooler="eos", epochs=1))


def test_no_layer_is_left_out_whole(lms: dict[str, Path]) -> None:
    assert transformers.AutoConfig.from_pretrained(lms["m2m_100"]).encoder_layerdrop > 0
    for dropout in (None, 0.3):
        model = LMTower.from_pretrained(str(lms["m2m_100"]), 6, context_length=CONTEXT, dropout=dropout).transformer
        assert (model.layerdrop, model.config.dropout) == (0, dropout or 0.1)


def test_simcse_needs_something_that_is_dropped(lms: dict[str, Path], lm_settings: Any, tmp_path: Path) -> None:
    dry = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    for changes in (
        {"dropout": 0.0},
        {"train_layers": 0},
        {"text": variant(lms["bert"], tmp_path / "dry", **dry)},
    ):
        with pytest.raises(DistillError, match=r"--simcse 0.5: both passes of a caption would be the same"):
            train(replace(lm_settings, simcse=0.5, **changes))
    train(replace(lm_settings, simcse=0.5, epochs=1))


OPEN_CLIP_SCRIPT = """
import json, sys
import numpy as np, open_clip, torch

folder, *captions = sys.argv[1:]
name = "local-dir:" + folder
text_cfg = open_clip.get_model_config(name)["text_cfg"] | {"hf_model_name": folder}
model, _, preprocess = open_clip.create_model_and_transforms(name, text_cfg=text_cfg)
with torch.inference_mode():
    np.save("text.npy", model.eval().encode_text(open_clip.get_tokenizer(name)(captions)))
assert not [module for module in sys.modules if module.startswith("clipglot")]
"""


@pytest.mark.parametrize(
    ("family", "changes"), [("bert", {"lora_rank": 2}), ("xlm-roberta", {}), ("mt5", {"head": "mlp"})]
)
def test_an_export_loads_offline_in_open_clip_as_its_card_says(
    lms: dict[str, Path],
    lm_settings: Any,
    launcher: Launcher,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    changes: dict[str, Any],
) -> None:
    lm = shutil.copytree(lms[family], tmp_path / "lm")
    given = replace(lm_settings, text=str(lm), epochs=1, **changes)
    train(given)
    shutil.rmtree(lm)  # nothing of it is needed any more
    folder = export_run(ExportSettings(run=given.output, output=tmp_path / "merged")).folder
    card = (folder / "README.md").read_text()
    assert 'text_cfg = open_clip.get_model_config(name)["text_cfg"] | {"hf_model_name": "merged"}' in card
    assert str(tmp_path) not in card + (folder / "open_clip_config.json").read_text()
    monkeypatch.chdir(tmp_path)
    encode = run_card(card)
    assert cosine(encode(CAPTIONS[0]), encode(CAPTIONS[0])) == 1
    launcher.run(OPEN_CLIP_SCRIPT, folder, *CAPTIONS, folder=tmp_path)
    with torch.inference_mode():
        ids = LMTokenizer.load(folder).encode(CAPTIONS, CONTEXT)
        expected = load_final(RunFolder(given.output)).tower.encode(ids).numpy()
    np.testing.assert_allclose(np.load(tmp_path / "text.npy"), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(load_merged(folder).encode_texts(CAPTIONS, raw=True), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("family", "pooler"), [("distilbert", "mean"), ("gpt2", "eos"), ("bert", "eos")])
def test_other_families_and_poolers_load_with_our_loader(
    lms: dict[str, Path],
    lm_settings: Any,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    pooler: Any,
) -> None:
    given = replace(lm_settings, text=str(lms[family]), pooler=pooler, epochs=1)
    train(given)
    result = export_run(ExportSettings(run=given.output, output=tmp_path / "merged"))
    folder = result.folder
    assert "open_clip has no text tower of this kind" in (folder / "README.md").read_text()
    assert result.loaded_by == "clipglot"
    assert "open_clip" not in result.code
    tower = load_final(RunFolder(given.output)).tower
    with torch.inference_mode():
        expected = tower.encode(LMTokenizer.load(folder).encode(CAPTIONS, CONTEXT)).numpy()
    np.testing.assert_allclose(load_merged(folder).encode_texts(CAPTIONS, raw=True), expected, rtol=1e-5, atol=1e-6)
    assert not caplog.records, "open_clip need not warn of what we do after it"
    names = {}
    exec(result.code, names)
    assert names["clip"].encode_texts(["a"]).shape == (1, 16)
    monkeypatch.chdir(tmp_path)
    encode = run_card((folder / "README.md").read_text())
    assert cosine(encode(CAPTIONS[0]), encode(CAPTIONS[0])) == 1


def test_a_damaged_export_is_named(lms: dict[str, Path], lm_settings: Any, tmp_path: Path) -> None:
    given = replace(lm_settings, text=str(lms["gpt2"]), pooler="eos", epochs=1)
    train(given)
    folder = export_run(ExportSettings(run=given.output, output=tmp_path / "merged")).folder
    weights = folder / "open_clip_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(EncoderError, match=r"merged: does not load .*: export it again"):
        load_merged(folder)


def test_the_token_cache_holds_what_open_clip_tokenizes(lms: dict[str, Path], tmp_path: Path) -> None:
    ours = LMTokenizer.load(lms["roberta"])
    plain = [*CAPTIONS, "  ½ &amp; &lt;b&gt; 🐈 x\n", "ＡＢＣ\u00a0\u2003d", "a\x00b"]
    odd = [*plain, "&lt;sep&gt; <sep> x", "a <pad> red <pad>", "<pad>", "<unk> a <cls>"]
    ours.save(tmp_path / "saved")

    def padded(captions: list[str]) -> list[list[int]]:
        return [[*ids, *[0] * (CONTEXT - len(ids))] for ids in ours.encode(captions, CONTEXT)]

    theirs, original = (HFTokenizer(str(f), context_length=CONTEXT) for f in (tmp_path / "saved", lms["roberta"]))
    assert padded(odd) == theirs(odd).tolist()
    assert padded(plain) == original(plain).tolist()
    assert not {0, 1, 2, 3} & set(ours.encode(odd[-2:], CONTEXT)[0][1:-1]), "spelled out, they are text"
    fingerprint = ours.fingerprint(CONTEXT)
    ours.encode(["a b c d"], 3)
    assert ours.fingerprint(CONTEXT) == fingerprint != ours.fingerprint(CONTEXT + 1)
