"""The scratch text tower: our forward on short, ragged captions is open_clip's on padded ones."""

import numpy as np
import open_clip
import pytest
import torch
from clipglot.encoders.errors import EncoderError
from clipglot.encoders.text import TextConfig, TextTower

PAD, BOS, EOS = 0, 1, 2
CONTEXT = 12
CAPTIONS = [
    [BOS, 7, 8, 9, EOS],
    [BOS, EOS],  # an empty caption
    [BOS, *range(3, 13), EOS],  # cut by the context length
    [BOS, 5, EOS, 6, 7, EOS],  # spells the token out: the first EOS pools
    [BOS, 11, EOS],
]


def make_tower(*, quick_gelu: bool = False) -> TextTower:
    torch.manual_seed(0)
    return TextTower(
        TextConfig(
            embed_dim=6,
            vocab_size=20,
            context_length=CONTEXT,
            width=16,
            heads=2,
            layers=3,
            pad_id=PAD,
            eos_id=EOS,
            quick_gelu=quick_gelu,
        )
    )


def padded(captions: list[list[int]]) -> torch.Tensor:
    return torch.tensor([caption + [PAD] * (CONTEXT - len(caption)) for caption in captions])


def upstream(tower: TextTower) -> torch.nn.Module:
    """The same text tower as open_clip builds it from the config that the export writes."""
    clip = open_clip.model.CustomTextCLIP(
        embed_dim=tower.config.embed_dim,
        vision_cfg={"image_size": 8, "patch_size": 8, "width": 8, "head_width": 8, "layers": 1},
        text_cfg=tower.config.to_open_clip(),
        quick_gelu=tower.config.quick_gelu,
    )
    clip.load_state_dict(clip.state_dict() | tower.state_dict())
    return clip


@pytest.mark.parametrize("quick_gelu", [False, True])
@pytest.mark.parametrize("captions", [CAPTIONS, CAPTIONS[:2], CAPTIONS[1:2]], ids=["mixed", "short", "empty"])
def test_short_captions_give_the_features_and_gradients_of_padded_ones(
    captions: list[list[int]], quick_gelu: bool
) -> None:
    tower = make_tower(quick_gelu=quick_gelu)
    clip = upstream(tower)
    torch.testing.assert_close(tower.encode(captions), clip.encode_text(padded(captions)), rtol=1e-5, atol=1e-5)
    tower, clip = tower.double(), clip.double()  # where rounding leaves no room for a real difference
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
        TextConfig(
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


def test_packed_ahead_on_the_host_is_the_same() -> None:
    tower = make_tower()
    lengths = np.array([len(caption) for caption in CAPTIONS])
    packed = tower.pack(np.concatenate(CAPTIONS).astype(np.uint16), lengths)
    assert (packed.num_captions, packed.num_tokens) == (len(CAPTIONS), sum(lengths) - 3)  # three stood after an EOS
    assert torch.equal(tower(packed.to("cpu")), tower.encode(CAPTIONS))


@pytest.mark.parametrize("captions", [[[BOS, EOS], [BOS, 5], [BOS, EOS]], [[BOS, EOS], []]], ids=["cut", "nothing"])
def test_a_caption_without_eos_is_named(captions: list[list[int]]) -> None:
    with pytest.raises(EncoderError, match=r"caption 1 of \d has no end-of-text token \(2\)"):
        make_tower().encode(captions)


def test_checkpointed_gradients_are_the_plain_ones() -> None:
    plain, checkpointed = make_tower(), make_tower()
    checkpointed.grad_checkpointing = True
    for tower in (plain, checkpointed):
        tower.encode(CAPTIONS).square().sum().backward()
    for name, parameter in plain.named_parameters():
        assert torch.equal(parameter.grad, checkpointed.get_parameter(name).grad), name
