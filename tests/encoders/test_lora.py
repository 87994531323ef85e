"""LoRA on the text tower of a CLIP: zero at first, merged without a trace; nothing else is trained but new tokens."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from clipglot.cache.read.cache import Cache
from clipglot.distill.errors import DistillError
from clipglot.distill.training.build_tower import build_tower
from clipglot.distill.training.final import load_final
from clipglot.distill.training.run_folder import RunFolder
from clipglot.distill.training.train import train
from clipglot.encoders.errors import EncoderError
from clipglot.encoders.text_scratch import Attention, ScratchOptions, ScratchTower
from clipglot.encoders.tokenizer import CaptionTokenizer, open_clip_tokenizer, train_bpe
from clipglot.encoders.tokenizer_extend import extend
from clipglot.jobs.export import export_run
from clipglot.jobs.settings.export import ExportSettings
from support import text_tower_contract
from support.run_comparison import assert_same_run, weights
from support.runs import settings, stop_at
from support.text_tower_contract import TextTowerContract
from support.tiny_clip import save_full_clip
from support.tiny_towers import make_tower, padded

CAPTIONS = ["a red circle", "", "красный круг над синим квадратом", "зелёный шум"]
CONTEXT = 12


def learn(tower: ScratchTower) -> None:
    """Give all that is trained random values."""
    with torch.no_grad():
        for name, parameter in tower.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)
            elif parameter.requires_grad:
                parameter[1:].normal_(std=0.3)  # the first of the new tokens stands for all others


class TestLoRA(TextTowerContract):
    @pytest.fixture(params=["lengths", "rows"])
    def attention(self, request: pytest.FixtureRequest) -> Attention:
        return request.param

    @pytest.fixture(params=[(), ("v", "q"), ("out",)], ids=["all", "v and q", "out"])
    def options(self, request: pytest.FixtureRequest) -> ScratchOptions:
        return ScratchOptions(lora_rank=2, lora_targets=request.param)

    @pytest.fixture
    def tower(self, attention: Attention, options: ScratchOptions, tokenizer: CaptionTokenizer) -> ScratchTower:
        tower = make_tower(vocab_size=tokenizer.vocab_size, embed_dim=16, context_length=24)
        tower.attention = attention
        tower.add_lora(options, kept=range(0, tokenizer.vocab_size, 2))
        learn(tower)
        return tower

    @pytest.fixture
    def tokenizer(self) -> CaptionTokenizer:
        return train_bpe(text_tower_contract.CAPTIONS, 300)

    def test_merged_weights_give_the_same_features(self, tower: ScratchTower, ids: list[list[int]]) -> None:
        tower = tower.double().eval()  # rounding leaves no room for a real difference
        merged = tower.plain()
        assert merged.state_dict().keys() == make_tower().state_dict().keys()
        torch.testing.assert_close(merged.encode(ids), tower.encode(ids), rtol=1e-10, atol=1e-12)
        assert any("lora_" in name for name in tower.state_dict()), "the tower itself goes on as it was"
        assert merged.plain() is merged

    def test_new_tokens_and_low_rank_updates_alone_get_gradients(
        self, tower: ScratchTower, ids: list[list[int]]
    ) -> None:
        tower.encode(ids).square().sum().backward()
        learned = {name for name, parameter in tower.named_parameters() if parameter.grad is not None}
        assert all("lora_" in name or name == "text.new_tokens.weight" for name in learned)
        assert learned == {name for name, parameter in tower.named_parameters() if parameter.requires_grad}
        gradient = tower.text.new_tokens.weight.grad
        seen = {id_ for caption in ids for id_ in caption if id_ % 2}
        assert len(gradient) == tower.config.vocab_size // 2 + 1
        assert {2 * int(row) - 1 for row in gradient.abs().sum(1).nonzero()} == seen

    def test_compiled_rows_are_the_plain_ones(self, tower: ScratchTower, ids: list[list[int]]) -> None:
        plain = tower.train().encode(ids)
        tower.attention = "rows"
        tower.compile_rows(backend="eager")
        torch.testing.assert_close(tower.encode(ids), plain, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def clip_name(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_full_clip(tmp_path_factory.mktemp("clips") / "clip", layers=2)


@pytest.fixture(scope="module")
def clip_cache(clip_name: str, manifest: Path, make_cache: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache made by the CLIP, and beside it its vocabulary extended by that of the captions."""
    folder = tmp_path_factory.mktemp("lora")
    make_cache(manifest, folder / "cache.zarr", model=clip_name)
    old = open_clip_tokenizer()
    extend(old, list(Cache(folder / "cache.zarr").captions()), old.vocab_size + 20).save(folder / "extended")
    old.save(folder / "own")
    return folder / "cache.zarr"


@pytest.fixture
def given(clip_cache: Path, tmp_path: Path) -> Any:
    shape = {"width": 512, "layers": 6, "heads": 8, "vocab_size": 16_384, "context_length": CONTEXT}
    base = settings(clip_cache, tmp_path / "run", text="clip", lora_rank=2, lr=1e-2, **shape)
    return replace(base, tokenizer=clip_cache.parent / "extended")


def test_a_run_begins_with_the_features_of_the_clip(given: Any, clip_name: str) -> None:
    clip, encoder = open_clip.create_model(clip_name).eval(), Cache(given.cache).info.encoder
    tokenizer = CaptionTokenizer.load(given.tokenizer)
    tower = build_tower(given, encoder, tokenizer).eval()
    plain = build_tower(replace(given, lora_rank=0), encoder, tokenizer).eval()
    with torch.inference_mode():
        ids = tokenizer.encode(CAPTIONS, CONTEXT)
        assert torch.equal(tower.encode(ids), plain.encode(ids))
        english = open_clip_tokenizer().encode(CAPTIONS[:2], CONTEXT)
        theirs = clip.encode_text(padded(english, CONTEXT))
        torch.testing.assert_close(tower.encode(english), theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("tokenizer", "targets"), [("extended", ()), ("own", ("q", "v"))], ids=["new tokens", "q and v"]
)
def test_only_targets_and_new_tokens_are_changed(given: Any, tokenizer: str, targets: tuple[str, ...]) -> None:
    folder = given.cache.parent / tokenizer
    given = replace(given, tokenizer=folder, lora_targets=targets, weight_decay=0.5)
    encoder, old_size = Cache(given.cache).info.encoder, open_clip_tokenizer().vocab_size
    before = build_tower(replace(given, lora_rank=0, lora_targets=()), encoder, CaptionTokenizer.load(folder))
    result = train(given)
    assert isinstance(before, ScratchTower)
    num_new = before.config.vocab_size - old_size
    assert num_new == (20 if tokenizer == "extended" else 0)
    matrices = len(targets) or 4
    of_new = num_new * 16
    assert result.num_trained == 2 * matrices * 2 * 2 * 16 + of_new
    after, changed = weights(given.output), {}
    for name, tensor in before.state_dict().items():
        rows = (after[name] != tensor).reshape(len(tensor), -1).any(1) if tensor.ndim else after[name] != tensor
        if rows.any():
            changed[name] = {int(row) for row in rows.nonzero()}
    blocks = [f"text.transformer.resblocks.{number}.attn." for number in range(2)]
    width = set(range(16))
    fused = width | {row + 32 for row in width} | (set() if targets else {row + 16 for row in width})
    expected = {f"{block}in_proj_weight": fused for block in blocks}
    if not targets:
        expected |= {f"{block}out_proj.weight": width for block in blocks}
        captions = CaptionTokenizer.load(folder).encode(Cache(given.cache).captions(), CONTEXT)
        seen = {id_ for ids in captions for id_ in ids if id_ >= old_size}
        assert changed.pop("text.token_embedding.weight") == seen != set()
    assert changed == expected


def test_a_tokenizer_of_its_own_has_all_its_tokens_trained(given: Any) -> None:
    given = replace(given, tokenizer=None, vocab_size=300)
    result = train(given)
    assert result.num_trained == 2 * 4 * 2 * 2 * 16 + (300 - 3) * 16  # padding, begin and end are the CLIP's


@pytest.mark.parametrize("changes", [{}, {"ema": 0.9, "dropout": 0.1}, {"precision": "bf16"}])
def test_resume_equals_the_uninterrupted_run(given: Any, tmp_path: Path, changes: dict[str, Any]) -> None:
    given = replace(given, epochs=2, val=given.cache, **changes)
    train(given)
    stopped = replace(given, output=tmp_path / "stopped")
    train(stopped, on_progress=stop_at(7))
    assert train(stopped, resume=True).complete
    assert_same_run(stopped.output, given.output)


def test_an_export_has_merged_weights_that_open_clip_loads(given: Any, tmp_path: Path) -> None:
    train(replace(given, ema=0.5, val=given.cache))
    folder = export_run(ExportSettings(run=given.output, output=tmp_path / "merged")).folder
    name = f"local-dir:{folder}"
    clip, tokenizer = open_clip.create_model(name).eval(), open_clip.get_tokenizer(name)
    with torch.inference_mode():
        theirs = clip.encode_text(tokenizer(CAPTIONS)).numpy()
    assert not [name for name in clip.state_dict() if "lora" in name or "new_tokens" in name]
    trained = load_final(RunFolder(given.output), "best").tower
    with torch.inference_mode():
        ours = trained.encode(CaptionTokenizer.load(given.tokenizer).encode(CAPTIONS, CONTEXT)).numpy()
    np.testing.assert_allclose(theirs, ours, rtol=1e-4, atol=1e-5)


def test_a_run_goes_on_from_an_earlier_one_with_lora(given: Any, tmp_path: Path) -> None:
    train(replace(given, epochs=1))
    following = replace(given, text=str(given.output), tokenizer=None, output=tmp_path / "next", epochs=1)
    result = train(following)
    assert result.num_trained == 2 * 4 * 2 * 2 * 16, "its tokens are no new ones"
    before, after = weights(given.output), weights(following.output)
    assert {name for name in before if not torch.equal(before[name], after[name])} == {
        name for name in before if name.endswith(("attn.in_proj_weight", "attn.out_proj.weight"))
    }
    described = json.loads((following.output / "run.json").read_text())
    assert described["settings"]["lora_rank"] == 2


def test_a_projection_to_another_number_of_features_is_trained(given: Any) -> None:
    encoder, tokenizer = Cache(given.cache).info.encoder, CaptionTokenizer.load(given.tokenizer)
    tower = build_tower(given, encoder, tokenizer)
    train(replace(given, epochs=1))
    wider = replace(encoder, dim=encoder.dim + 4)
    following = build_tower(replace(given, text=str(given.output), tokenizer=None), wider, tokenizer)
    trained = [{n for n, p in each.named_parameters() if p.requires_grad} for each in (tower, following)]
    assert trained[1] - trained[0] == {"text.text_projection"}


def test_what_lora_cannot_do_is_refused(given: Any, clip_cache: Path, tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match=r"--lora-targets query: .* there are q, k, v, out"):
        train(replace(given, lora_targets=("query",)))
    with pytest.raises(DistillError, match=r"--lora-rank 2: a scratch tower .*--text clip"):
        settings(clip_cache, tmp_path / "run", lora_rank=2)
    with pytest.raises(DistillError, match=r"--train-layers belongs to a language model"):
        replace(given, train_layers=1)
    with pytest.raises(DistillError, match=r"--lora-targets describe LoRA"):
        replace(given, lora_rank=0, lora_targets=("q",))
    assert not given.output.exists()
