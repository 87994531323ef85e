"""Decoding processes that die: the image that ends its process costs its row; if all of them die, the pass ends."""

import os
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clipglot.cache.errors import CacheError
from clipglot.cache.format import Status
from clipglot.cache.processes import CONTEXT, kill_workers, worker_pool
from clipglot.cache.write.decode_pool import Block, decode_pool
from clipglot.cache.write.image_decode import ResizeCrop
from numpy.typing import NDArray
from support.crashing_reader import CrashingReader

GEOMETRY = ResizeCrop(height=8, width=8, resize_mode="squash", interpolation="bicubic", fill=0)


def decode(
    crashing: set[int], num: int, block_rows: int = 6
) -> tuple[list[Status], list[int], NDArray[np.uint64], int]:
    """Decode images; returns status, colour and hash of each, and the number of processes that died."""
    keys = [str(i) for i in range(num)]
    blocks = [Block(start, keys[start : start + block_rows], None, (0,)) for start in range(0, num, block_rows)]
    reader = CrashingReader(frozenset(map(str, crashing)))
    status, colours, hashes = [], [], []
    with decode_pool(reader, GEOMETRY, block_rows=block_rows, num_workers=2, max_pixels=100) as decoder:
        for block, submitted in zip(decoder.decode(blocks), blocks, strict=True):
            assert block.start == submitted.start
            status += [Status(value) for value in block.status.tolist()]
            colours += block.pixels[0, :, 0, 0, 0].tolist()
            hashes.append(block.hash.copy())
        return status, colours, np.concatenate(hashes), decoder.num_died


@pytest.mark.parametrize("crashing", [{0}, {7}, {3, 4}, {5, 6, 20, 29}])
def test_an_image_that_ends_its_process_is_damaged_and_the_others_are_unchanged(crashing: set[int]) -> None:
    status, colours, hashes, num_died = decode(crashing, 30)
    _, all_colours, all_hashes, none = decode(set(), 30)
    assert (none, all_colours) == (0, list(range(30)))
    assert num_died >= 3
    for i in range(30):
        if i in crashing:
            assert (status[i], colours[i], hashes[i].any()) == (Status.DAMAGED, 0, np.False_)
        else:
            assert (status[i], colours[i]) == (Status.EMBEDDED, i)
            assert (hashes[i] == all_hashes[i]).all()


@pytest.mark.parametrize("block_rows", [1, 2, 6])
def test_processes_that_die_one_after_another_end_the_pass(block_rows: int) -> None:
    with pytest.raises(
        CacheError, match=r"die one after another, the last one at row \d+ \(\d+\), perhaps for lack of"
    ):
        decode(set(range(12, 24)), 30, block_rows)


def begin() -> None:
    """A worker needs nothing."""


def test_a_worker_that_starts_while_a_broken_pool_ends_the_others_is_ended_too() -> None:
    pool = worker_pool(1, __name__, begin)
    pool.submit(os.getpid).result()
    late = CONTEXT.Process(target=time.sleep, args=(600,))
    late.start()
    late.terminate = lambda: None  # type: ignore[method-assign]  # as if it came after the pool had ended its workers
    pool._processes[late.pid] = late
    with pytest.raises(BrokenProcessPool):
        pool.submit(os._exit, 1).result()
    started = time.monotonic()
    kill_workers(pool)
    assert time.monotonic() - started < 60
    assert not late.is_alive()


def test_a_pool_that_breaks_while_it_starts_a_worker_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    submit, refusals = ProcessPoolExecutor.submit, iter([OSError("handle is closed")])

    def refuse_once(pool: ProcessPoolExecutor, *task: Any) -> Any:
        if refusal := next(refusals, None):
            raise refusal
        return submit(pool, *task)

    monkeypatch.setattr(ProcessPoolExecutor, "submit", refuse_once)
    status, colours, _, _ = decode(set(), 12)
    assert (status, colours) == ([Status.EMBEDDED] * 12, list(range(12)))


UNGUARDED = """
import os, sys
from pathlib import Path
with open(sys.argv[3], "a") as file:
    file.write(f"{os.getpid()}\\n")
from clipglot.jobs.cache import cache_images
from clipglot.jobs.settings.cache import CacheSettings
settings = {"source": Path(sys.argv[1]), "output": Path(sys.argv[2]), "model": sys.argv[4]}
assert cache_images(CacheSettings(**settings, num_workers=2)).cache.info.counts == {"embedded": 40}
"""


@pytest.mark.slow
def test_workers_do_not_import_the_script_that_started_them(manifest: Path, tiny_clip: Path, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(UNGUARDED)
    imported = tmp_path / "imported"
    command = [sys.executable, tmp_path / "script.py", manifest, tmp_path / "c.zarr", imported]
    subprocess.run([*command, f"local-dir:{tiny_clip}"], check=True)
    assert len(imported.read_text().splitlines()) == 1
