"""Data to measure with: captions as long as real ones, caches of random embeddings, and their rows as one file."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from ..cache.format import EMB, NORM, STATUS, CacheInfo, EncoderInfo, SourceInfo, Status
from ..cache.read.cache import Cache
from ..cache.sources.source import SourceRow, batched
from ..cache.storage.encoding import open_array
from ..cache.storage.mmap import MmapRows
from ..cache.write.plan import plan_cache
from ..cache.write.seal import seal
from ..distill.data.tokens import TokenTable

# What people type: four words of 1.5 tokens, as in languages that a vocabulary splits: 4 × 1.5 + 2 = 8.
QUERIES = (4.0, 2.0, 1.5)
NUM_WORDS = 8192
SYLLABLES = [consonant + vowel for consonant, vowel in product("bdfgklmnprstvz", "aeiou")]


def draw_lengths(
    num: int, rng: np.random.Generator, *, mean: float, deviation: float, tokens_a_word: float, most: int
) -> NDArray[np.int64]:
    """Tokens of captions whose number of words is log-normal, BOS and EOS included.

    Args:
        num: of captions.
        rng: source of chance.
        mean: words of a caption.
        deviation: of that number.
        tokens_a_word: how a vocabulary splits them.
        most: tokens of a caption, where longer ones are cut.
    """
    sigma = np.sqrt(np.log1p((deviation / mean) ** 2))
    words = np.maximum(rng.lognormal(np.log(mean) - sigma**2 / 2, sigma, num), 1)
    return np.minimum(np.rint(words * tokens_a_word).astype(np.int64) + 2, most)


def query_lengths(num: int, rng: np.random.Generator, most: int) -> NDArray[np.int64]:
    """Tokens of search queries, BOS and EOS included: 8 on average.

    >>> float(query_lengths(100_000, np.random.default_rng(0), 77).mean().round())
    8.0
    """
    mean, deviation, tokens_a_word = QUERIES
    return draw_lengths(num, rng, mean=mean, deviation=deviation, tokens_a_word=tokens_a_word, most=most)


def query_tokens(num: int, vocab_size: int, most: int, rng: np.random.Generator) -> TokenTable:
    """Search queries of random tokens; BOS and EOS are the last two ids, and 0 is the pad's."""
    offsets = np.concatenate([[0], np.cumsum(query_lengths(num, rng, most))])
    ids = rng.integers(1, vocab_size - 2, offsets[-1])
    ids[offsets[:-1]], ids[offsets[1:] - 1] = vocab_size - 2, vocab_size - 1
    return TokenTable(ids, offsets)


def query_texts(num: int, rng: np.random.Generator) -> Iterator[str]:
    """Search queries of made-up words, which a BPE of them takes for a token each."""
    words = np.array(["".join(parts) for parts in islice(product(SYLLABLES, repeat=3), 0, None, 41)][:NUM_WORDS])
    counts = query_lengths(num, rng, 10**6) - 2
    chosen = words[rng.integers(0, len(words), counts.sum())]
    for caption in np.split(chosen, np.cumsum(counts)[:-1]):
        yield " ".join(caption)


def draw_normal(rows: slice, dim: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Features in all directions alike, `[len(rows), dim]`."""
    return rng.standard_normal((rows.stop - rows.start, dim), np.float32)


def write_random_cache(
    path: Path,
    captions: Iterable[list[str]],
    dim: int,
    draw: Callable[[slice, int, np.random.Generator], NDArray[np.float32]] = draw_normal,
) -> Cache:
    """A sealed cache of random unit embeddings, written chunk by chunk as a pass writes it.

    Args:
        path: where it goes; absent.
        captions: of each image; they say how many there are.
        dim: features of an embedding.
        draw: gives the features of some rows, of any norm; images whose features are all zero were not embedded.
    """
    encoder = EncoderInfo(
        model="random", pretrained=None, weights_sha256="", preprocess={}, dim=dim, precision="fp32", quick_gelu=False
    )
    source = SourceInfo(
        path="random", sha256="", image_root=str(path.parent), image_field="image", text_fields=["text"]
    )
    rows = (SourceRow(i, f"{i}.jpg", texts) for i, texts in enumerate(captions))
    plan_cache(path, batched(rows), CacheInfo(state="planned", encoder=encoder, source=source, batch_size=64))
    cache = Cache(path, read_only=False)
    rng = np.random.default_rng(0)
    arrays: dict[str, zarr.Array[Any]] = {name: open_array(cache.arrays.root, name) for name in (EMB, NORM, STATUS)}
    for chunk in range(cache.num_chunks):
        held = cache.chunk_slice(chunk)
        raw = draw(held, dim, rng)
        norm = np.linalg.norm(raw, axis=1)
        status = np.where(norm > 0, Status.EMBEDDED, Status.DAMAGED).astype(np.uint8)
        with zarr.config.set({"array.write_empty_chunks": True}):
            arrays[EMB][0, held] = (raw / np.maximum(norm, 1e-12)[:, None]).astype(np.float16)
            arrays[NORM][0, held] = norm
            arrays[STATUS][held] = status
    seal(cache)
    return cache


def copy_to_npy(rows: MmapRows, file: Path, num_rows: int, at_a_time: int) -> None:
    """Write the first rows of an array as one .npy."""
    flat = np.lib.format.open_memmap(file, "w+", rows.dtype, (num_rows, *rows.shape[1:]))
    for start in range(0, num_rows, at_a_time):
        flat[start : start + at_a_time] = rows.read(start, min(start + at_a_time, num_rows))
    flat.flush()
