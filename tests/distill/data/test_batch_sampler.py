"""Batches depend on (seed, epoch, batch) alone and contain an image at most once per epoch."""

import numpy as np
import pytest
from clipglot.distill.data import tokens
from clipglot.distill.data.batch_sampler import BatchSampler
from clipglot.distill.data.shuffle import ChunkShuffle, ChunkShuffledOrder
from clipglot.distill.data.tokens import TokenTable, group_equal_captions
from clipglot.distill.errors import DistillError
from hypothesis import given
from hypothesis import strategies as st

# Captions an image, and whether it was embedded.
images = st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=2, max_size=40)


def caption_image_of(images: list[tuple[int, bool]]) -> np.ndarray:
    rows = [row if embedded else -1 for row, (count, embedded) in enumerate(images) for _ in range(count)]
    return np.asarray(rows, np.int64)


@given(images, st.integers(2, 8), st.integers(0, 2**32), st.integers(0, 1000))
def test_an_epoch_shows_each_usable_image_at_most_once_with_a_caption_of_its_own(
    images: list[tuple[int, bool]], batch_size: int, seed: int, epoch: int
) -> None:
    caption_image = caption_image_of(images)
    usable = {row for row, (count, embedded) in enumerate(images) if count and embedded}
    if len(usable) < batch_size:
        with pytest.raises(
            DistillError,
            match=f"--batch-size {batch_size} exceeds the {len(usable)} " if usable else "no embedded image",
        ):
            BatchSampler(caption_image, batch_size=batch_size, seed=seed)
        return
    sampler = BatchSampler(caption_image, batch_size=batch_size, seed=seed)
    assert len(sampler) == len(usable) // batch_size
    batches = [sampler.batch(epoch, index) for index in range(len(sampler))]
    rows = np.concatenate([batch.rows for batch in batches])
    assert len(set(rows.tolist())) == len(rows) == len(sampler) * batch_size
    assert set(rows.tolist()) <= usable
    assert (caption_image[np.concatenate([batch.captions for batch in batches])] == rows).all()


def test_a_batch_does_not_depend_on_earlier_batches() -> None:
    caption_image = np.repeat(np.arange(100), 3)
    straight = BatchSampler(caption_image, batch_size=7, seed=5)
    expected = [straight.batch(epoch, index) for epoch in range(3) for index in range(len(straight))]
    backwards = BatchSampler(caption_image, batch_size=7, seed=5)
    found = [backwards.batch(epoch, index) for epoch in (2, 1, 0) for index in reversed(range(len(backwards)))][::-1]
    for a, b in zip(expected, found, strict=True):
        assert (a.rows == b.rows).all()
        assert (a.captions == b.captions).all()


def test_seeds_and_epochs_give_different_orders_and_cover_every_caption() -> None:
    caption_image = np.repeat(np.arange(64), 5)
    sampler = BatchSampler(caption_image, batch_size=64, seed=0)
    orders = {tuple(sampler.batch(epoch, 0).rows.tolist()) for epoch in range(20)}
    orders |= {tuple(BatchSampler(caption_image, batch_size=64, seed=1).batch(0, 0).rows.tolist())}
    assert len(orders) == 21
    seen = {caption for epoch in range(60) for caption in sampler.batch(epoch, 0).captions.tolist()}
    assert seen == set(range(320))


@given(st.lists(st.integers(1, 5), min_size=4, max_size=20), st.integers(1, 4), st.integers(0, 2**32))
def test_several_captions_of_an_image_are_distinct_and_belong_to_it(counts: list[int], most: int, seed: int) -> None:
    caption_image = np.repeat(np.arange(len(counts)), counts)
    sampler = BatchSampler(caption_image, batch_size=4, seed=seed, captions_per_image=most)
    alone = BatchSampler(caption_image, batch_size=4, seed=seed)
    for index in range(len(sampler)):
        batch = sampler.batch(3, index)
        image = np.arange(4) if batch.image is None else batch.image
        assert len(set(batch.captions.tolist())) == len(batch.captions)
        assert (caption_image[batch.captions] == batch.rows[image]).all()
        assert np.bincount(image).tolist() == [min(counts[row], most) for row in batch.rows]
        assert (np.diff(image) >= 0).all()
        assert (batch.rows == alone.batch(3, index).rows).all()
        halves = [batch.captions_of(slice(0, 2)), batch.captions_of(slice(2, 4))]
        assert [set(image[half].tolist()) for half in halves] == [{0, 1}, {2, 3}]
        assert sum(half.stop - half.start for half in halves) == len(image)


def test_several_captions_are_sampled_uniformly() -> None:
    sampler = BatchSampler(np.repeat(np.arange(40), 5), batch_size=40, seed=0, captions_per_image=2)
    shown = np.bincount(np.concatenate([sampler.batch(epoch, 0).captions for epoch in range(200)]), minlength=200)
    assert np.abs(shown / 80 - 1).max() < 0.4  # 80 times each: four standard deviations of a binomial are 28
    assert shown.reshape(40, 5).sum(0) / 3200 == pytest.approx(1, abs=0.05)


@given(st.lists(st.lists(st.integers(0, 3), max_size=4), max_size=60), st.integers(1, 7))
def test_captions_of_equal_tokens_share_a_group(rows: list[list[int]], block: int) -> None:
    ids, lengths = np.array([i for row in rows for i in row], np.uint16), [len(row) for row in rows]
    table = TokenTable(ids, np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens, "CAPTIONS_PER_BLOCK", block)
        assert group_equal_captions(table).tolist() == [rows.index(row) for row in rows]


chunk_shuffles = st.builds(ChunkShuffle, chunk_rows=st.integers(1, 9), pool_chunks=st.integers(1, 4))


@given(st.sets(st.integers(0, 60), min_size=1), chunk_shuffles, st.integers(0, 2**32), st.integers(0, 9))
def test_an_order_by_chunks_has_each_row_once_and_few_chunks_at_a_time(
    rows: set[int], sizes: ChunkShuffle, seed: int, epoch: int
) -> None:
    usable = np.array(sorted(rows))
    order = ChunkShuffledOrder(usable, sizes, seed, epoch)
    whole = order(np.arange(len(usable)))
    assert np.array_equal(np.sort(whole), np.arange(len(usable)))
    assert np.array_equal(order(np.arange(len(usable))[::3]), whole[::3])
    # Chunks come and go: in between, no more are under way than a pool has.
    chunks = usable[whole] // sizes.chunk_rows
    firsts, lasts = ({c: np.flatnonzero(chunks == c)[i] for c in set(chunks.tolist())} for i in (0, -1))
    for position in range(len(chunks)):
        assert sum(firsts[c] <= position <= lasts[c] for c in firsts) <= sizes.pool_chunks


def test_a_sampler_by_chunks_covers_an_epoch() -> None:
    caption_image = np.where(np.arange(300) % 7 == 0, -1, np.arange(300))
    sampler = BatchSampler(
        caption_image, batch_size=8, seed=1, chunk_shuffle=ChunkShuffle(chunk_rows=32, pool_chunks=2)
    )
    rows = np.concatenate([sampler.batch(0, index).rows for index in range(len(sampler))])
    assert len(set(rows.tolist())) == len(rows) == len(sampler) * 8
    assert (rows % 7 != 0).all()
