"""Search of large caches: exact search beside one reading of the rows, and an index: build, memory, recall and latency.

    scripts/bench search [--rows 1000000] [--dim 512] [--folder /tmp] [--parts exact,index] [--kinds ivf-int8]

The cache is synthetic: images and texts lie around centres of their own (a modality gap), share 20,000 concepts in a
space whose spectrum falls as that of real embeddings does, and each has a part of its own. No query is an image of it.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line sets it, before torch is imported
import torch
from clipglot.cache.progress import Progress
from clipglot.cache.read.cache import Cache
from clipglot.jobs.bench_data import write_random_cache
from clipglot.search.build import write_index_file
from clipglot.search.exact import ExactIndex
from clipglot.search.ivf import IvfIndex
from numpy.typing import NDArray

Floats = NDArray[np.float32]


class Space:
    """Images and texts of D features about shared concepts."""

    def __init__(self, dim: int, num_concepts: int = 20_000, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        spectrum = np.arange(1, dim + 1) ** -0.5
        turned = np.linalg.qr(rng.standard_normal((dim, dim)))[0]
        self._spread = (spectrum / np.linalg.norm(spectrum))[:, None].astype(np.float32) * turned.astype(np.float32)
        self._concepts = rng.standard_normal((num_concepts, dim), np.float32) @ self._spread
        self._image, self._text = self._unit(rng.standard_normal((2, dim), np.float32))

    def images(self, rows: slice, dim: int, rng: np.random.Generator) -> Floats:
        """Unit embeddings of some images."""
        return self._drawn(rows.stop - rows.start, dim, rng, 0.7, self._image)

    def texts(self, num: int, dim: int, rng: np.random.Generator) -> Floats:
        """Unit embeddings of texts: half of each lies where no image differs from another."""
        noise = rng.standard_normal((num, dim), np.float32) * np.float32(0.5 * dim**-0.5)
        return self._unit(self._drawn(num, dim, rng, 0.6, self._text, noise))

    def _drawn(
        self, num: int, dim: int, rng: np.random.Generator, scale: float, centre: Floats, noise: Floats | float = 0
    ) -> Floats:
        own = rng.standard_normal((num, dim), np.float32) @ self._spread
        own += self._concepts[rng.integers(0, len(self._concepts), num)]
        own *= np.float32(scale)
        own += centre + noise
        return self._unit(own)

    @staticmethod
    def _unit(emb: Floats) -> Floats:
        result: Floats = emb / np.linalg.norm(emb, axis=1, keepdims=True)
        return result


def seconds(work: Callable[[], Any]) -> float:
    """Seconds of a call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def both(work: Callable[[], Any]) -> tuple[float, float, Any]:
    """Seconds of a call on the clock, seconds of the processor, which other programs delay less, and what it gives."""
    used, started = time.process_time(), time.perf_counter()
    result = work()
    return time.perf_counter() - started, time.process_time() - used, result


def memory() -> tuple[float, float]:
    """Gigabytes of this process: its own, and mapped from files."""
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines() if "Rss" in line)
    own, mapped = (int(fields[name].split()[0]) / 2**20 for name in ("RssAnon", "RssFile"))
    return own, mapped


def recall(found: NDArray[np.int64], right: NDArray[np.int64]) -> float:
    """Share of the right rows that were found."""
    return float(np.mean([len(np.intersect1d(a, b)) / len(b) for a, b in zip(found, right, strict=True)]))


def reader(emb: NDArray[np.float16]) -> Callable[[], Any]:
    """Reads all bytes of embeddings in two threads, and nothing else."""
    flat = emb.reshape(-1)
    words = flat[: len(flat) // 8 * 8].view(np.uint64)
    halves = words[: len(words) // 2], words[len(words) // 2 :]
    threads = ThreadPoolExecutor(2)
    return lambda: list(threads.map(np.max, halves))


def measure_exact(cache: Cache, queries: Floats, rounds: int) -> None:
    """Time exact search beside reading the same bytes, in turn."""
    index = ExactIndex(cache, resident=True)
    made_s, before = seconds(lambda: index.search(queries[:1], 10)), memory()[0]
    read = reader(cache.image_emb())
    read()
    for num, times in ((1, rounds), (64, 1)):
        ours, theirs = [], []
        for i in range(times):
            ours.append(both(partial(index.search, queries[i : i + num], 10)))
            theirs.append(both(read))
        for clock, name in enumerate(("clock", "processor")):
            a, b = ([each[clock] for each in times] for times in (ours, theirs))
            ratio = statistics.median(x / y for x, y in zip(a, b, strict=True))
            shown = (f"{statistics.median(each) * 1e3:.0f} ms (least {min(each) * 1e3:.0f})" for each in (a, b))
            least = min(a) / min(b)
            print(
                f"exact, {num} at once, {name}: {', reading '.join(shown)}; ratio {ratio:.2f}, of the least {least:.2f}"
            )
    print(f"  first search, with the int8 copy: {made_s:.1f} s; own memory of the process {before:.2f} GB")
    once_s = seconds(lambda: ExactIndex(cache).search(queries[:1], 10))
    print(f"exact, opened for one query: {once_s * 1e3:.0f} ms", flush=True)


class Questions:
    """Queries, and the rows that exact search finds for them."""

    def __init__(self, cache: Cache, space: Space, rng: np.random.Generator, num: int) -> None:
        dim, exact = cache.info.encoder.dim, ExactIndex(cache)
        self.tuning = space.texts(num, dim, rng)
        texts, images = space.texts(num, dim, rng), space.images(slice(0, num), dim, rng)
        some = rng.random(len(cache)) < 0.2
        asked = (("texts", texts, None), ("images", images, None), ("texts, a fifth allowed", texts, some))
        self.all = [(name, given, allowed, exact.search(given, 10, allowed)[1]) for name, given, allowed in asked]


def measure_index(cache: Cache, questions: Questions, folder: Path, kind: str, target: float) -> None:
    """Build an index and compare its answers with those of exact search."""
    file, began = folder / f"{kind}.index", dict[str, float]()

    def note(progress: Progress) -> None:
        began.setdefault(progress.stage, time.perf_counter())

    info, build_s = write_index_file(
        cache, file, questions.tuning, kind_of_queries="texts", kind=kind, target=target, on_progress=note
    )
    ended = [*list(began.values())[1:], time.perf_counter()]
    stages = ", ".join(f"{name} {end - start:.1f} s" for (name, start), end in zip(began.items(), ended, strict=True))
    size = file.stat().st_size / 1e9
    print(f"{kind} of {info.num_lists:,} lists: {len(cache) / build_s:,.0f} rows/s ({stages}), {size:.2f} GB")
    print(f"  reads {info.num_probes} lists, depth {info.depth}; recall@10 in the file {info.recall:.3f}", flush=True)
    before = memory()[0]
    opened_s = seconds(lambda: IvfIndex(cache, file))
    index = IvfIndex(cache, file)
    for name, queries, allowed, right in questions.all:
        for i in range(min(len(queries), 200)):  # so that the pages are in memory
            index.search(queries[i : i + 1], 10, allowed)
        done = [both(partial(index.search, queries[i : i + 1], 10, allowed)) for i in range(len(queries))]
        p50, processor = (float(np.median([each[clock] for each in done])) * 1e3 for clock in (0, 1))
        share = recall(np.concatenate([rows for _, _, (_, rows) in done]), right)
        print(f"  {name}: recall@10 {share:.3f}, p50 {p50:.1f} ms, of the processor {processor:.1f} ms", flush=True)
    own, mapped = memory()
    print(f"  opened and checked in {opened_s:.2f} s; own {own - before:.2f} GB of memory more, {mapped:.2f} GB mapped")


@click.command(help=__doc__)
@click.option("--rows", default=1_000_000)
@click.option("--dim", default=512)
@click.option("--concepts", default=20_000)
@click.option("--queries", default=400, help="to choose and measure by, and as many again to compare")
@click.option("--recall", "target", default=0.95)
@click.option("--rounds", default=15)
@click.option("--folder", type=click.Path(path_type=Path), help="where the cache goes")
@click.option("--parts", default="exact,index")
@click.option("--kinds", default="ivf-int8,ivf-rabitq", help="of index")
def main(
    rows: int,
    dim: int,
    concepts: int,
    queries: int,
    target: float,
    rounds: int,
    folder: Path | None,
    parts: str,
    kinds: str,
) -> None:
    space, rng = Space(dim, concepts), np.random.default_rng(1)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        written_s = time.perf_counter()
        cache = write_random_cache(Path(work) / "cache.zarr", ([] for _ in range(rows)), dim, space.images)
        written_s = time.perf_counter() - written_s
        print(f"{rows:,} x {dim} float16, {torch.get_num_threads()} threads; written in {written_s:.0f} s", flush=True)
        if "exact" in parts:
            measure_exact(cache, space.texts(64 + rounds, dim, rng), rounds)
        if "index" in parts:
            questions = Questions(cache, space, rng, queries)
            for kind in kinds.split(","):
                measure_index(cache, questions, Path(work), kind, target)


if __name__ == "__main__":
    main()
