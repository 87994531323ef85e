"""Negatives beyond the batch: sampled uniformly; images that have the caption are masked."""

import numpy as np
from clipglot.distill.data.batch_sampler import BatchIndices
from clipglot.distill.data.negative_sampler import NegativeSampler, SharedCaptions
from hypothesis import given
from hypothesis import strategies as st

# For each image the groups of its captions, and whether it can be used.
images = st.lists(
    st.tuples(st.lists(st.integers(0, 12), min_size=1, max_size=3), st.booleans()), min_size=3, max_size=30
)


@given(images, st.integers(1, 40), st.integers(0, 2**32), st.integers(0, 5), st.integers(0, 9))
def test_exactly_the_images_with_the_caption_are_masked(
    images: list[tuple[list[int], bool]], size: int, seed: int, epoch: int, index: int
) -> None:
    image = np.array([i if usable else -1 for i, (groups, usable) in enumerate(images) for _ in groups])
    group = np.array([g for groups, _ in images for g in groups])
    rows = np.array([i for i, (_, usable) in enumerate(images) if usable], np.int64)
    if len(rows) < 2:
        return
    size = min(size, len(rows))
    captions = np.flatnonzero(np.isin(image, rows[:2]))[[0, -1]]
    batch = BatchIndices(image[captions], captions, np.zeros_like(captions))
    sampler = NegativeSampler(rows, SharedCaptions(group, image), size=size, seed=seed)
    draw = sampler.draw(epoch, index, batch, group[captions])

    assert len(draw.rows) == len(set(draw.rows.tolist())) == size
    assert set(draw.rows.tolist()) <= set(rows.tolist())
    assert set(draw.rows[draw.excluded].tolist()) == set(draw.rows.tolist()) & set(batch.rows.tolist())
    expected = {
        (i, row)
        for i, g in enumerate(group[captions].tolist())
        for row in draw.rows.tolist()
        if g in images[row][0] and len({r for r in rows.tolist() if g in images[r][0]}) > 1
    }
    assert set(zip(draw.masked[0].tolist(), draw.rows[draw.masked[1]].tolist(), strict=True)) == expected
    assert (np.diff(draw.masked[1]) >= 0).all()
    again = NegativeSampler(rows, SharedCaptions(group, image), size=size, seed=seed).draw(
        epoch, index, batch, group[captions]
    )
    assert np.array_equal(again.rows, draw.rows)


@given(st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=3), min_size=2, max_size=20))
def test_images_of_the_batch_with_an_equal_caption_are_masked(carried: list[list[int]]) -> None:
    image = np.array([i for i, groups in enumerate(carried) for _ in groups])
    group = np.array([g for groups in carried for g in groups])
    rows = np.random.default_rng(0).permutation(len(carried))
    mine = np.array([carried[row][0] for row in rows])
    found = SharedCaptions(group, image).within_batch(rows, mine)
    expected = [(i, j) for i, g in enumerate(mine) for j, row in enumerate(rows) if g in carried[row] and i != j]
    assert sorted(zip(*found.tolist(), strict=True)) == expected
    assert (np.diff(found[0]) >= 0).all()

    index = np.array([j for j, row in enumerate(rows) for _ in carried[row]])
    mine = np.array([g for row in rows for g in carried[row]])
    found = SharedCaptions(group, image).within_batch(rows, mine, index)
    expected = [(i, j) for i, g in enumerate(mine) for j, row in enumerate(rows) if g in carried[row] and index[i] != j]
    assert sorted(zip(*found.tolist(), strict=True)) == expected


def test_images_are_sampled_uniformly() -> None:
    rows = np.arange(50) * 2
    none = SharedCaptions(np.arange(50), rows)
    sampler = NegativeSampler(rows, none, size=20, seed=0)
    batch = BatchIndices(rows[:2], np.array([0, 1]), np.zeros(2, np.int64))
    counts = np.zeros(100)
    for epoch in range(20):
        for index in range(5):  # five windows of 20 go twice round 50 images
            counts[sampler.draw(epoch, index, batch, np.array([0, 1])).rows] += 1
    assert set(counts[::2].tolist()) == {40.0}
