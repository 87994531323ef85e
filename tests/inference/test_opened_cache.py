"""A cache opened for Python code gives the rows that were stored, in slices, chunks and for other libraries."""

import pickle
from pathlib import Path

import clipglot
import numpy as np
import pytest
from clipglot.cache.errors import CacheError
from clipglot.cache.read.cache import Cache
from torch.utils.data import DataLoader


def test_embeddings_are_read_in_slices_chunks_and_at_once(tiny_cache: Path) -> None:
    cache, emb = clipglot.open_cache(tiny_cache), Cache(tiny_cache).image_emb()
    assert (len(cache), cache.dim, cache.image_emb.shape) == (len(emb), emb.shape[1], emb.shape)
    mask = np.arange(len(emb)) % 3 == 0
    for rows in (3, -1, slice(2, 9), slice(None, None, -2), [5, 1, 5], mask):
        np.testing.assert_array_equal(cache.image_emb[rows], emb[rows])
    np.testing.assert_array_equal(np.asarray(cache.image_emb), emb)
    np.testing.assert_array_equal(np.concatenate([block for _, block in cache.chunks()]), emb)
    with pytest.raises(IndexError):
        cache.image_emb[len(emb)]


def test_captions_and_keys_belong_to_their_images(tiny_cache: Path) -> None:
    cache, raw = clipglot.open_cache(tiny_cache), Cache(tiny_cache)
    assert cache.keys == raw.keys()
    assert [text for texts in cache.captions for text in texts] == raw.captions()
    assert sum(map(len, cache.captions)) == cache.num_captions
    for row, text in zip(raw.caption_image().tolist(), raw.captions(), strict=True):
        assert text in cache.captions[row]


def test_datasets_of_torch_and_pandas_hold_the_same_rows(tiny_cache: Path) -> None:
    cache = clipglot.open_cache(tiny_cache)
    dataset = pickle.loads(pickle.dumps(cache.to_torch_dataset()))  # as workers that are spawned get it
    batch = next(iter(DataLoader(dataset, batch_size=4, collate_fn=list)))
    rows = np.flatnonzero(cache.is_embedded)
    assert [item["row"] for item in batch] == rows[:4].tolist()
    np.testing.assert_array_equal(batch[2]["image_emb"].numpy(), cache.image_emb[int(rows[2])].astype(np.float32))
    assert batch[1]["captions"] == cache.captions[rows[1]]
    frame = cache.to_pandas()
    assert frame["key"].tolist() == cache.keys
    assert frame["status"].value_counts()["embedded"] == cache.is_embedded.sum()
    np.testing.assert_array_equal(np.stack(frame["image_emb"]), cache.to_numpy())
    assert f"{len(cache):,}" in cache._repr_html_()


def test_what_is_no_cache_is_refused(tiny_run: Path) -> None:
    with pytest.raises(CacheError):
        clipglot.open_cache(tiny_run)
