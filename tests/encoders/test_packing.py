"""Rows of whole captions: what goes where, nothing leaks, and one compiled shape or two serve a run."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from clipglot.encoders.packing import PackedRows, next_fit, round_up_rows, row_length
from clipglot.encoders.text_scratch import Attention, ScratchTower
from hypothesis import given
from hypothesis import strategies as st
from support.tiny_towers import CAPTIONS, EOS, PAD, joined, make_tower, random_captions
from torch._dynamo.testing import CompileCounterWithBackend


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    """The compiler counts the shapes of all towers together, up to a limit."""
    yield
    torch._dynamo.reset()


LENGTHS = st.lists(st.integers(1, 128), min_size=1, max_size=300)


@given(LENGTHS)
def test_next_fit_keeps_order_and_captions_whole(lengths: list[int]) -> None:
    starts, rows = next_fit(np.array(lengths), 128)
    free, row = 0, 0
    for start, in_row, length in zip(starts.tolist(), rows.tolist(), lengths, strict=True):
        if free + length > 128:
            free, row = 0, row + 1
        assert (in_row, start) == (row, row * 128 + free)
        free += length


@given(st.integers(1, 100_000))
def test_few_numbers_of_rows_waste_little(num_rows: int) -> None:
    rounded = round_up_rows(num_rows)
    assert num_rows <= rounded <= max(num_rows * 9 / 8, num_rows + 7)
    assert round_up_rows(rounded) == rounded


def test_rows_are_as_long_as_the_longest_caption_needs() -> None:
    assert [row_length(n) for n in (12, 77, 128, 129, 256)] == [128, 128, 128, 256, 256]


@given(LENGTHS, st.booleans())
def test_every_token_has_one_slot(lengths: list[int], few_shapes: bool) -> None:
    ids = np.arange(3, 3 + sum(lengths))
    ids[np.cumsum(lengths) - 1] = EOS
    rows = PackedRows.of(ids, np.array(lengths), EOS, pad_id=PAD, few_shapes=few_shapes)
    used = rows.caption >= 0
    assert rows.ids[used].tolist() == ids.tolist()
    assert rows.caption[used].tolist() == np.repeat(np.arange(len(lengths)), lengths).tolist()
    assert rows.positions[used].tolist() == [i for length in lengths for i in range(length)]
    assert (rows.ids.flatten()[rows.last] == EOS).all()
    assert (rows.caption.flatten()[rows.last] == torch.arange(len(lengths))).all()
    assert not rows.positions[~used].any()
    assert (rows.ids[~used] == PAD).all()


def test_unused_slots_reach_no_feature_and_no_gradient() -> None:
    tower = make_tower()
    packed = PackedRows.of(*joined(CAPTIONS * 4), EOS, pad_id=PAD, few_shapes=True)
    assert (packed.caption < 0).any()
    features = tower(packed)
    features.square().sum().backward()
    gradient = tower.text.token_embedding.weight.grad
    assert gradient is not None
    assert gradient.isfinite().all()
    assert not gradient[PAD].any()
    packed.ids[packed.caption < 0] = 19
    assert torch.equal(tower(packed), features)


def test_captions_longer_than_a_tile_take_longer_rows() -> None:
    rng = np.random.default_rng(0)
    captions = [[1, *rng.integers(3, 20, length).tolist(), 2] for length in (180, 3, 198, 20)]
    tower = make_tower(context_length=200).double()
    by_length = tower.encode(captions)
    tower.attention = "rows"
    torch.testing.assert_close(tower.encode(captions), by_length, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("context_length", [77, 200])
def test_flex_attention_is_the_masked_one(context_length: int) -> None:
    masked, flex = (make_tower(context_length=context_length, width=32) for _ in range(2))
    masked.attention, flex.attention = "rows", "flex"
    flex.compile_rows(backend="eager")
    captions = random_captions(np.random.default_rng(0), 40, context_length, 20)
    captions.append([1, *[5] * (context_length - 2), 2])
    with torch.no_grad():  # on the CPU it has no backward
        torch.testing.assert_close(flex.encode(captions), masked.encode(captions), rtol=1e-5, atol=1e-5)


def real_batches(num: int, tower: ScratchTower) -> list[PackedRows]:
    rng = np.random.default_rng(0)
    config = tower.config
    batches = [tower.pack(*joined(random_captions(rng, 512, 77, config.vocab_size))) for _ in range(num)]
    assert all(isinstance(batch, PackedRows) for batch in batches)
    return [batch for batch in batches if isinstance(batch, PackedRows)]


@pytest.mark.parametrize("grad_checkpointing", [False, True])
def test_one_or_two_graphs_serve_a_run(grad_checkpointing: bool) -> None:
    eager, compiled = make_tower(context_length=77), make_tower(context_length=77)
    eager.attention = compiled.attention = "rows"
    compiled.grad_checkpointing = grad_checkpointing
    counter = CompileCounterWithBackend("aot_eager")
    compiled.compile_rows(backend=counter)
    batches = real_batches(30, compiled)
    sizes = {batch.ids.shape: batch for batch in batches}
    for batch in [*batches[:8], *sizes.values()]:
        compiled(batch).square().sum().backward()
    assert counter.frame_count == len(sizes) <= 2
    compiled.zero_grad()
    features = compiled(batches[0])
    assert counter.frame_count == len(sizes)
    torch.testing.assert_close(features, eager(batches[0]), rtol=1e-5, atol=1e-5)
    features.square().sum().backward()
    eager(batches[0]).square().sum().backward()
    for name, parameter in eager.named_parameters():
        torch.testing.assert_close(compiled.get_parameter(name).grad, parameter.grad, rtol=1e-4, atol=1e-5)


def test_validation_compiles_nothing() -> None:
    tower = make_tower()
    tower.attention = "rows"
    counter = CompileCounterWithBackend("eager")
    tower.compile_rows(backend=counter)
    tower.eval().encode(CAPTIONS)
    assert not counter.frame_count


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores")
@pytest.mark.filterwarnings("ignore:\\s*Online softmax is disabled")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("attention", ["rows", "flex", "auto", "varlen"])
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("context_length", [77, 200])
def test_on_cuda_every_form_is_the_plain_one(attention: Attention, bf16: bool, context_length: int) -> None:
    if attention == "varlen" and not bf16:
        pytest.skip("varlen takes 16 bits")
    plain, fast = (make_tower(context_length=context_length, width=64).cuda() for _ in range(2))
    plain.attention, fast.attention = "lengths", attention
    if attention in ("flex", "auto"):
        fast.compile_rows()
    captions = [*random_captions(np.random.default_rng(0), 300, 77, 20), [1, *[5] * (context_length - 2), 2]]
    expected = plain.encode(captions)
    with torch.autocast("cuda", torch.bfloat16, enabled=bf16):
        packed = fast.pack(*joined(captions)).pin_memory()
        features = fast(packed.to("cuda", non_blocking=True)).float()
    # bf16: 0.4 % an operation, three layers; fp32: sums in another order.
    rtol, atol = (0.05, 0.05) if bf16 else (1e-4, 1e-4)
    torch.testing.assert_close(features, expected, rtol=rtol, atol=atol)
    features.sum().backward()
    expected.sum().backward()
    for name, parameter in plain.named_parameters():
        ours, theirs = fast.get_parameter(name).grad, parameter.grad
        assert ours is not None
        assert theirs is not None
        assert (ours - theirs).norm() <= rtol * theirs.norm() + atol, name
