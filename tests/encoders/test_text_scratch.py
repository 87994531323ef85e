"""The scratch text tower: our forward on packed captions, in every form, is open_clip's on padded ones."""

from pathlib import Path

import numpy as np
import pytest
import torch
from clipglot.encoders.errors import EncoderError
from clipglot.encoders.text_scratch import Attention, ScratchConfig, ScratchTower
from clipglot.encoders.tokenizer import CaptionTokenizer, open_clip_tokenizer, train_bpe, train_unigram
from support import text_tower_contract
from support.text_tower_contract import TextTowerContract
from support.tiny_towers import BOS, CAPTIONS, EOS, joined, make_tower, padded, upstream
from transformers import AutoTokenizer

FORMS: list[Attention] = ["lengths", "rows"]


class TestScratchTower(TextTowerContract):
    @pytest.fixture(params=FORMS)
    def tower(self, request: pytest.FixtureRequest, tokenizer: CaptionTokenizer) -> ScratchTower:
        tower = make_tower(vocab_size=tokenizer.vocab_size, embed_dim=16, context_length=24)
        tower.attention, tower.dropout = request.param, 0.1
        return tower

    @pytest.fixture
    def tokenizer(self) -> CaptionTokenizer:
        return train_bpe(text_tower_contract.CAPTIONS, 300)


@pytest.mark.parametrize("attention", FORMS)
@pytest.mark.parametrize("quick_gelu", [False, True])
@pytest.mark.parametrize(
    "captions",
    [CAPTIONS, CAPTIONS[:2], CAPTIONS[1:2], CAPTIONS[2:3], CAPTIONS * 6],
    ids=["mixed", "short", "empty", "longest", "two rows"],
)
def test_packed_captions_give_the_features_and_gradients_of_padded_ones(
    captions: list[list[int]], quick_gelu: bool, attention: Attention
) -> None:
    tower = make_tower(quick_gelu=quick_gelu)
    tower.attention = attention
    theirs = upstream(tower).encode_text(padded(captions))
    torch.testing.assert_close(tower.encode(captions), theirs, rtol=1e-5, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):  # 8 bits: 0.4 % an operation
        torch.testing.assert_close(tower.encode(captions).float(), theirs, rtol=0.05, atol=0.05)
    tower = tower.double()  # where rounding leaves no room for a real difference
    clip = upstream(tower)
    ours, theirs = tower.encode(captions), clip.encode_text(padded(captions))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    weights = torch.randn_like(ours)
    (ours * weights).sum().backward()
    (theirs * weights).sum().backward()
    for name, parameter in tower.named_parameters():
        torch.testing.assert_close(parameter.grad, clip.get_parameter(name).grad, rtol=1e-10, atol=1e-12)


def test_quick_gelu_changes_the_features() -> None:
    plain, quick = make_tower(), make_tower(quick_gelu=True)
    assert not torch.allclose(plain.encode(CAPTIONS), quick.encode(CAPTIONS), atol=1e-4)


def test_a_caption_does_not_see_its_neighbours_in_the_batch() -> None:
    tower = make_tower()
    torch.testing.assert_close(tower.encode(CAPTIONS)[0], tower.encode(CAPTIONS[:1])[0], rtol=1e-5, atol=1e-5)


def test_what_stands_after_eos_does_not_count() -> None:
    tower = make_tower()
    assert torch.equal(tower.encode([[BOS, 5, EOS, 6, 7, EOS]]), tower.encode([[BOS, 5, EOS, 8, 9, EOS]]))


def test_parameters_have_the_names_that_open_clip_loads() -> None:
    tower = make_tower()
    names = {name for name in upstream(tower).state_dict() if name.startswith("text.")}
    assert set(tower.state_dict()) == names


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(EncoderError, match="--width 10 is not a multiple of --heads 3"):
        ScratchConfig(
            embed_dim=6,
            vocab_size=20,
            context_length=8,
            width=10,
            heads=3,
            layers=1,
            pad_id=0,
            eos_id=2,
            quick_gelu=False,
        )


@pytest.mark.parametrize("attention", FORMS)
def test_packed_ahead_on_the_host_is_the_same(attention: Attention) -> None:
    tower = make_tower()
    tower.attention = attention
    ids, lengths = joined(CAPTIONS)
    packed = tower.pack(ids.astype(np.uint16), lengths)
    assert (packed.num_captions, packed.num_tokens) == (len(CAPTIONS), len(ids) - 3)  # three stood after an EOS
    assert torch.equal(tower(packed.to("cpu")), tower.encode(CAPTIONS))


@pytest.mark.parametrize("captions", [[[BOS, EOS], [BOS, 5], [BOS, EOS]], [[BOS, EOS], []]], ids=["cut", "nothing"])
def test_a_caption_without_eos_is_named(captions: list[list[int]]) -> None:
    with pytest.raises(EncoderError, match=r"caption 1 of \d has no end-of-text token \(2\)"):
        make_tower().encode(captions)


@pytest.mark.parametrize(
    "tokenizer",
    [
        train_bpe(text_tower_contract.CAPTIONS, 300),
        train_unigram(text_tower_contract.CAPTIONS, 450),
        open_clip_tokenizer(),
    ],
    ids=["bpe", "unigram", "open_clip"],
)
def test_an_exports_special_ids_are_those_of_its_tokenizer(tokenizer: CaptionTokenizer, tmp_path: Path) -> None:
    """open_clip 4 refuses to load others."""
    text_cfg = make_tower(pad_id=tokenizer.pad_id, eos_id=tokenizer.eos_id).config.to_open_clip()
    tokenizer.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert (text_cfg["pad_id"], text_cfg["eos_id"]) == (theirs.pad_token_id, theirs.eos_token_id)
    assert theirs.padding_side == "right"
