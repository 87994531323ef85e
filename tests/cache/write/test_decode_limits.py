"""An image that takes too long is left out and said so; large images wait for memory."""

import os
import threading
import time
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np
import pytest
from clipglot.cache.format import MAX_DECODE_S, MAX_PIXELS, Status
from clipglot.cache.write import decode_pool as pools
from clipglot.cache.write.decode_limits import (
    FREE_PIXELS,
    PIXEL_BYTES,
    UNIT_BYTES,
    DecodeMemory,
    DecodeTimers,
    decode_memory_bytes,
    max_decode_s,
)
from clipglot.cache.write.decode_pool import Block, decode_pool
from clipglot.cache.write.image_decode import ResizeCrop
from support.slow_reader import SlowReader

GEOMETRY = ResizeCrop(height=8, width=8, resize_mode="squash", interpolation="bicubic", fill=0)


@pytest.mark.parametrize("slow", [{3}, {0, 1, 11}])
def test_an_image_that_takes_too_long_is_left_out_and_the_others_are_as_ever(
    slow: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools, "CHECK_S", 0.05)
    keys = [str(i) for i in range(12)]
    blocks = [Block(start, keys[start : start + 4], None, (0,)) for start in range(0, 12, 4)]
    reader = SlowReader(frozenset(map(str, slow)))
    options: dict[str, Any] = {"block_rows": 4, "num_workers": 2, "max_pixels": MAX_PIXELS, "image_s": 0.5}
    status, colours, hashes = [], [], []
    with decode_pool(reader, GEOMETRY, **options) as pool:
        for block in pool.decode(blocks):
            status += [Status(value) for value in block.status.tolist()]
            colours += block.pixels[0, :, 0, 0, 0].tolist()
            hashes += block.hash.any(1).tolist()
        assert pool.num_died == 0
    assert status == [Status.TOO_SLOW if i in slow else Status.EMBEDDED for i in range(12)]
    assert colours == [0 if i in slow else i for i in range(12)]
    assert all(hashes)


def test_more_images_in_a_row_may_take_too_long_than_workers_may_die(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "CHECK_S", 0.05)
    num = pools.MAX_DEATHS + 2
    keys = [str(i) for i in range(num)]
    options: dict[str, Any] = {"block_rows": num, "num_workers": 1, "max_pixels": MAX_PIXELS, "image_s": 0.1}
    with decode_pool(SlowReader(frozenset(keys)), GEOMETRY, **options) as pool:
        (block,) = pool.decode([Block(0, keys, None, (0,))])
        assert set(block.status.tolist()) == {Status.TOO_SLOW}


def busy(timers: DecodeTimers, slot: int, row: int, idle: bool) -> None:
    with timers.running(slot, row):
        while True:
            time.sleep(60) if idle else sum(range(10_000))


def test_processor_time_counts_and_not_the_clock() -> None:
    context = get_context("forkserver")
    timers = DecodeTimers(context, 3)
    processes: list[BaseProcess] = [context.Process(target=busy, args=(timers, i, 70 + i, i == 0)) for i in range(2)]
    for process in processes:
        process.start()
    try:
        until = time.monotonic() + 60
        while not (overdue := timers.overdue(0.5)) and time.monotonic() < until:
            time.sleep(0.05)
        assert [(image.row, image.pid) for image in overdue] == [(71, processes[1].pid)]
    finally:
        for process in processes:
            process.kill()
            process.join()
    timers.reset()
    assert timers.overdue(0) == []


def test_a_finished_image_is_not_overdue() -> None:
    timers = DecodeTimers(get_context("forkserver"), 2)
    with timers.running(1, 0):
        sum(range(2_000_000))
        assert [(image.row, image.pid) for image in timers.overdue(-1)] == [(0, os.getpid())]
    assert timers.overdue(-1) == []


def test_the_time_of_an_image_grows_with_the_pixels_that_are_allowed() -> None:
    assert max_decode_s(1000) == max_decode_s(MAX_PIXELS) == MAX_DECODE_S
    assert max_decode_s(3 * MAX_PIXELS) == 3 * MAX_DECODE_S


def most_at_once(memory: DecodeMemory, sizes: list[int]) -> int:
    """The most pixels that threads, one an image, hold at the same time."""
    lock, held, most = threading.Lock(), 0, 0

    def decode(num_pixels: int) -> None:
        nonlocal held, most
        with memory.claim(num_pixels):
            with lock:
                held += num_pixels
                most = max(most, held)
            time.sleep(0.02)
            with lock:
                held -= num_pixels

    threads = [threading.Thread(target=decode, args=(size,)) for size in sizes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return most


def test_large_images_wait_for_memory_and_small_ones_do_not() -> None:
    memory = DecodeMemory(get_context("forkserver"), 10 * UNIT_BYTES)
    fits = 10 * UNIT_BYTES // PIXEL_BYTES
    sizes = np.random.default_rng(0).integers(FREE_PIXELS + 1, fits, 30).tolist()
    assert most_at_once(memory, sizes) <= fits
    assert most_at_once(memory, [20 * fits, 20 * fits, fits]) == 20 * fits  # larger than all of it, one at a time
    assert most_at_once(memory, [FREE_PIXELS] * 40) > 10 * FREE_PIXELS


def test_there_is_memory_to_decode() -> None:
    assert decode_memory_bytes() > UNIT_BYTES
