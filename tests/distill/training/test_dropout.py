"""Dropout of activations and tokens: masks depend on seed and step, so that runs resume exactly."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from clipglot.distill.data.token_dropout import drop_tokens
from clipglot.distill.errors import DistillError
from clipglot.distill.training.run_folder import RunFolder
from clipglot.distill.training.setup import build_run
from clipglot.distill.training.train import train
from clipglot.encoders.text_scratch import Attention
from hypothesis import given
from hypothesis import strategies as st
from support.run_logs import logged
from support.runs import settings, stop_at
from support.tiny_towers import CAPTIONS, make_tower
from torch import Tensor

CPU = torch.device("cpu")
FORMS: list[Attention] = ["lengths", "rows"]


def encode(tower: Any, seed: int, *, grad: bool = True) -> Tensor:
    torch.manual_seed(seed)
    with torch.set_grad_enabled(grad):
        features: Tensor = tower.encode(CAPTIONS)
    return features


@pytest.mark.parametrize("attention", FORMS)
def test_dropout_depends_on_the_seed_and_is_off_in_evaluation(attention: Attention) -> None:
    plain, tower = make_tower(), make_tower()
    plain.attention = tower.attention = attention
    tower.dropout = 0.3
    assert torch.equal(tower.eval().encode(CAPTIONS), plain.encode(CAPTIONS))
    tower.train()
    assert torch.equal(encode(tower, 1), encode(tower, 1))
    assert not torch.allclose(encode(tower, 1), encode(tower, 2), atol=0.01)
    assert not torch.allclose(encode(tower, 1), plain.encode(CAPTIONS), atol=0.01)


def test_embeddings_can_be_excluded_from_dropout() -> None:
    tower = make_tower().train()
    with torch.no_grad():
        for block in tower.text.transformer.resblocks:  # which then add nothing that could be dropped
            for added in (block.attn.out_proj, block.mlp.c_proj):
                added.weight.zero_()
                added.bias.zero_()
    plain = tower.encode(CAPTIONS)
    tower.dropout = 0.3
    assert not torch.equal(tower.encode(CAPTIONS), plain)
    tower.drop_embeddings = False
    assert torch.equal(tower.encode(CAPTIONS), plain)


def test_dropout_keeps_the_mean_and_zeroes_the_given_fraction() -> None:
    """If the blocks add nothing, a feature is linear in the last token's embedding after dropout."""
    tower = make_tower(layers=1).double()
    text = tower.text
    with torch.no_grad():
        for block in text.transformer.resblocks:
            for last in (block.attn.out_proj, block.mlp.c_proj):
                last.weight.zero_()
                last.bias.zero_()
    text.ln_final = torch.nn.Identity()
    expected = tower.encode([CAPTIONS[0]])
    tower.dropout = 0.25
    torch.manual_seed(0)
    drawn = torch.cat([tower.encode([CAPTIONS[0]]) for _ in range(4000)])
    spread = drawn.std(0) / 4000**0.5
    assert ((drawn.mean(0) - expected).abs() < 4 * spread).all()
    # Each of W values is v / 0.75 or 0: a sum of them varies by the sum of v² · 0.25 / 0.75.
    value = text.token_embedding.weight[CAPTIONS[0][-1]] + text.positional_embedding[len(CAPTIONS[0]) - 1]
    variance = (value[:, None] * text.text_projection).square().sum(0) / 3
    torch.testing.assert_close(drawn.var(0), variance, rtol=0.15, atol=0)


@pytest.mark.parametrize("how", ["plain", "checkpointed", "compiled"])
@pytest.mark.parametrize("attention", FORMS)
def test_recomputation_has_the_same_dropout_mask(attention: Attention, how: str) -> None:
    """Without gradient, with gradient, and in the backward pass, which is compared with a difference quotient."""
    tower = make_tower().double()
    tower.attention, tower.dropout, tower.grad_checkpointing = attention, 0.3, how == "checkpointed"
    if how == "compiled":
        tower.compile_rows(backend="aot_eager")
    features = encode(tower, 3)
    assert torch.equal(encode(tower, 3, grad=False), features)
    features.square().sum().backward()
    for name in ("token_embedding.weight", "transformer.resblocks.0.mlp.c_fc.weight", "text_projection"):
        parameter, step = tower.text.get_parameter(name), 1e-6
        direction = torch.randn_like(parameter)
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter += sign * step * direction
                values.append(encode(tower, 3, grad=False).square().sum())
                parameter -= sign * step * direction
        assert parameter.grad is not None
        slope = (values[0] - values[1]) / (2 * step)
        torch.testing.assert_close((parameter.grad * direction).sum(), slope, rtol=1e-5, atol=1e-6)
    torch._dynamo.reset()


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores")
@pytest.mark.filterwarnings("ignore:\\s*Online softmax is disabled")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("grad_checkpointing", [False, True])
def test_on_cuda_a_compiled_tower_has_the_same_dropout_mask_with_and_without_gradient(grad_checkpointing: bool) -> None:
    tower = make_tower(context_length=77, width=64).cuda()
    tower.dropout, tower.grad_checkpointing = 0.3, grad_checkpointing
    tower.compile_rows()
    with torch.autocast("cuda", torch.bfloat16):
        features = encode(tower, 3)
        torch.testing.assert_close(encode(tower, 3, grad=False), features, rtol=0.02, atol=0.02)
        assert not torch.allclose(encode(tower, 4), features, atol=0.1)
    torch._dynamo.reset()


@given(
    st.lists(st.lists(st.integers(3, 9), max_size=6), min_size=1, max_size=12),
    st.sampled_from([0.0, 0.3, 0.9, 0.999]),
    st.integers(0, 2**63),
)
def test_token_dropout_keeps_first_and_last_token(texts: list[list[int]], share: float, key: int) -> None:
    captions = [[1, *text, 2] for text in texts]
    numbers = np.arange(len(captions)) * 7 + 3
    lengths = np.array([len(caption) for caption in captions])

    def drop(which: list[int]) -> list[list[int]]:
        chosen = np.concatenate([captions[i] for i in which])
        ids, left = drop_tokens(chosen, lengths[which], numbers[which], share=share, key=np.uint64(key))
        return [part.tolist() for part in np.split(ids, np.cumsum(left)[:-1])]

    every = list(range(len(captions)))
    dropped = drop(every)
    for caption, left in zip(captions, dropped, strict=True):
        assert (left[0], left[-1]) == (1, 2)
        assert min(3, len(caption)) <= len(left) <= len(caption)
        rest = iter(caption)
        assert all(token in rest for token in left)  # in the order that they had
    assert share or dropped == captions
    assert drop(every[::2]) == dropped[::2]  # whoever is beside it


def test_token_dropout_has_the_given_rate() -> None:
    captions, lengths = np.arange(500), np.full(500, 42)
    _, left = drop_tokens(np.zeros(500 * 42), lengths, captions, share=0.2, key=np.uint64(5))
    assert (left - 2).mean() / 40 == pytest.approx(0.8, abs=0.01)  # 20,000 draws: 3.5 standard deviations


def test_micro_batches_have_the_gradient_of_the_same_dropout_masks(tiny_cache: Path, tmp_path: Path) -> None:
    setup = build_run(settings(tiny_cache, tmp_path, dropout=0.3, micro_batch=3, grad_clip=0.0), CPU)
    student, loader = setup.student, setup.loader
    (host_batch,) = loader.batches(4, 5)
    batch, before = host_batch.to(CPU), deepcopy(student.state())
    student.step(batch, 1e-3, number=4)
    cached = {name: parameter.grad for name, parameter in student.tower.named_parameters()}

    student.load(before)
    student.optimizer.zero_grad(set_to_none=True)
    features = torch.cat([student._embed(student.tower, part, (4, i)) for i, part in enumerate(batch.packed)])
    student.loss(features, batch.targets).backward()
    for name, parameter in student.tower.named_parameters():
        torch.testing.assert_close(cached[name], parameter.grad, rtol=1e-4, atol=1e-6)
    assert not torch.equal(student._embed(student.tower, batch.packed[0], (5, 0)), features[:3])
    loader.close()


@pytest.mark.parametrize("dropped", [{"dropout": 0.3}, {"token_dropout": 0.5}], ids=str)
def test_the_two_simcse_passes_of_a_caption_differ(tiny_cache: Path, tmp_path: Path, dropped: dict[str, float]) -> None:
    setup = build_run(settings(tiny_cache, tmp_path, simcse=1.0, micro_batch=5, **dropped), CPU)
    student, loader = setup.student, setup.loader
    for batch in loader.batches(0, 3):
        assert [part.num_captions for part in batch.packed] == [5, 5, 5, 1]
        features = torch.cat([student._embed(student.tower, part, (0, i)) for i, part in enumerate(batch.packed)])
        first, second = F.normalize(features, dim=-1).chunk(2)
        cosine = first @ second.T
        assert (cosine.diagonal() < 0.999).any()
        assert cosine.diagonal().mean() > cosine.mean()
    loader.close()


@pytest.mark.parametrize("changes", [{}, {"micro_batch": 3, "ema": 0.5}, {"simcse": 0.2}], ids=str)
def test_resume_with_dropout_equals_the_uninterrupted_run(
    tiny_cache: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    straight = settings(tiny_cache, tmp_path / "straight", dropout=0.2, token_dropout=0.3, val=tiny_cache, **changes)
    train(straight)
    broken = replace(straight, output=tmp_path / "broken")
    assert not train(broken, on_progress=stop_at(9)).complete
    with pytest.raises(DistillError, match="begun with dropout"):
        train(replace(broken, dropout=0.1), resume=True)
    assert train(broken, resume=True).complete
    assert logged(tmp_path / "broken") == logged(tmp_path / "straight")
    ours, theirs = (RunFolder(tmp_path / name).load_checkpoint() for name in ("broken", "straight"))
    assert ours is not None
    assert theirs is not None
    assert all(torch.equal(tensor, theirs["tower"][name]) for name, tensor in ours["tower"].items())
    plain = replace(straight, output=tmp_path / "plain", dropout=0.0)
    train(plain)
    assert logged(tmp_path / "plain") != logged(tmp_path / "straight")
