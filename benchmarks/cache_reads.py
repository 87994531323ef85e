"""Read speed of cached embeddings against np.memmap of an .npy with the same rows: chunks, sequential, random rows.

    scripts/bench cache_reads [--rows 400000] [--dim 512] [--rounds 9] [--folder /tmp]

Before a cold read no page of the files is in memory: they are synced, dropped with posix_fadvise and mapped again.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from clipglot.cache.format import EMB
from clipglot.cache.read.cache import Cache
from clipglot.jobs.bench_data import copy_to_npy, write_random_cache
from numpy.typing import NDArray

RANDOM_ROWS = 4096
REPEATS = 20  # reads of random rows per round: one is too short to time


def main() -> None:
    """Measure in alternating rounds; print a Markdown table of clipglot's speed / memmap's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=400_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--folder", type=Path, help="where the files go, on the disk to measure")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        cache, npy = write_both(Path(folder), args.rows, args.dim)
        measure(cache, npy, args.rounds)


def write_both(folder: Path, num_rows: int, dim: int) -> tuple[Cache, Path]:
    """A sealed cache and an .npy of the same random unit rows."""
    cache, npy = write_random_cache(folder / "cache.zarr", ([] for _ in range(num_rows)), dim), folder / "rows.npy"
    copy_to_npy(cache.mapped(EMB), npy, num_rows, cache.info.chunk_rows)
    return cache, npy


def measure(cache: Cache, npy: Path, rounds: int) -> None:
    """Time both readers in turn and print the table."""
    rng = np.random.default_rng(1)
    chunks = [cache.chunk_slice(chunk) for chunk in range(cache.num_chunks)]
    shuffled = [chunks[i] for i in rng.permutation(len(chunks))]
    random_rows = rng.integers(0, len(cache), RANDOM_ROWS)
    size_gb = len(cache) * cache.info.encoder.dim * 2 / 1e9
    mapped, flat = cache.mapped(EMB), np.load(npy, mmap_mode="r")
    assert np.array_equal(mapped.take(random_rows), flat[random_rows])
    started = time.perf_counter()
    mapped.check()
    check_s = time.perf_counter() - started

    def cold(read: Callable[[], Any]) -> float:
        drop(cache.path, npy)
        return seconds(read)

    cases: dict[str, tuple[Callable[[], float], Callable[[], float]]] = {
        "whole chunks in random order, warm": (
            lambda: seconds(lambda: [mapped.read(rows.start, rows.stop) for rows in shuffled]),
            lambda: seconds(lambda: [np.array(flat[rows]) for rows in shuffled]),
        ),
        f"{RANDOM_ROWS:,} random rows, warm": (
            lambda: seconds(lambda: [mapped.take(random_rows) for _ in range(REPEATS)]) / REPEATS,
            lambda: seconds(lambda: [flat.take(random_rows, axis=0) for _ in range(REPEATS)]) / REPEATS,
        ),
        "all rows in order, cold": (
            lambda: cold(lambda: read_in_order(cache.mapped(EMB).read, chunks)),
            lambda: cold(lambda: read_in_order(npy_reader(npy), chunks)),
        ),
    }
    print(
        f"{len(cache):,} × {cache.info.encoder.dim} float16 ({size_gb:.2f} GB, {len(chunks)} chunks), {rounds} rounds\n"
    )
    print("| read | clipglot / memmap | min .. max | clipglot, ms | memmap, ms |")
    print("|---|---|---|---|---|")
    for name, (ours, theirs) in cases.items():
        if name.endswith("cold"):
            del mapped, flat  # a page that is mapped anywhere is not dropped
        else:
            ours(), theirs()
        times = [pair for i in range(rounds) for pair in [one_round(ours, theirs, ours_first=i % 2 == 0)]]
        ratios = [memmap_s / our_s for our_s, memmap_s in times]
        our_s, memmap_s = (statistics.median(column) for column in zip(*times, strict=True))
        spread = f"{min(ratios):.2f} .. {max(ratios):.2f}"
        print(f"| {name} | {statistics.median(ratios):.2f} | {spread} | {our_s * 1e3:.2f} | {memmap_s * 1e3:.2f} |")
    print(f"\nChecking every chunk once, warm: {size_gb / check_s:.1f} GB/s.")


def one_round(ours: Callable[[], float], theirs: Callable[[], float], *, ours_first: bool) -> tuple[float, float]:
    """Seconds of both readers, in the given order."""
    if ours_first:
        return ours(), theirs()
    memmap_s = theirs()
    return ours(), memmap_s


def npy_reader(npy: Path) -> Callable[[int, int], NDArray[np.float16]]:
    """Copies of rows of a freshly mapped .npy."""
    flat = np.load(npy, mmap_mode="r")
    return lambda start, stop: np.array(flat[start:stop])


def read_in_order(read: Callable[[int, int], Any], chunks: list[slice]) -> None:
    """Read every chunk and drop it."""
    for rows in chunks:
        read(rows.start, rows.stop)


def seconds(work: Callable[[], Any]) -> float:
    """Seconds that a call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def drop(cache: Path, npy: Path) -> None:
    """Drop the files of the embeddings from the page cache."""
    for file in (npy, *files_below(cache / EMB)):
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def files_below(folder: Path) -> Iterator[Path]:
    """All files of an array."""
    return (file for file in folder.rglob("*") if file.is_file())


if __name__ == "__main__":
    main()
