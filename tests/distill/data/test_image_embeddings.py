"""Sources of image embeddings: device memory, mapped files, chunks in a buffer; and prefetching of batches."""

import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clipglot.cache.errors import CacheError
from clipglot.cache.progress import Progress
from clipglot.cache.read.cache import Cache
from clipglot.distill.data.batch_sampler import BatchSampler
from clipglot.distill.data.image_embeddings import Buffered, OnDevice, OnHost, open_images
from clipglot.distill.data.loader import prefetch
from clipglot.distill.data.shuffle import ChunkShuffle
from clipglot.distill.errors import DistillError
from clipglot.distill.train_settings import EmbeddingSettings
from clipglot.distill.training.run_folder import RunFolder
from clipglot.distill.training.train import train
from support.run_comparison import assert_same_run
from support.run_logs import logged
from support.runs import settings, stop_at

CPU = torch.device("cpu")


def test_chunks_in_shuffled_order_train_and_resume_exactly(tiny_cache: Path, tmp_path: Path) -> None:
    info = Cache(tiny_cache).info
    chunk_gb = 2 * info.chunk_rows * info.encoder.dim / 1e9
    pooled = settings(tiny_cache, tmp_path / "straight", embeddings="chunks", buffer_gb=4 * chunk_gb, batch_size=4)
    train(pooled)
    broken = replace(pooled, output=tmp_path / "broken")
    assert not train(broken, on_progress=stop_at(13)).complete
    with pytest.raises(DistillError, match="pool_chunks"):  # another buffer is another order
        train(replace(broken, buffer_gb=8 * chunk_gb), resume=True)
    assert train(broken, resume=True).complete
    assert_same_run(tmp_path / "broken", tmp_path / "straight")


@pytest.mark.parametrize(("place", "kind"), [("device", OnDevice), ("mapped", OnHost), ("chunks", Buffered)])
def test_sources_read_the_same_rows(tiny_cache: Path, place: Any, kind: type) -> None:
    cache, rows = Cache(tiny_cache), np.array([7, 0, 39, 7])
    source = open_images(cache, EmbeddingSettings(embeddings=place, buffer_gb=1e-6), CPU)
    assert type(source) is kind
    source.hold([(0, chunk) for chunk in range(cache.num_chunks)])
    emb = source.read(rows).to(CPU, non_blocking=True)
    assert torch.equal(emb, torch.from_numpy(cache.image_emb()[rows]))
    source.close()


def test_embeddings_larger_than_memory_are_mapped(tiny_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(open_images(Cache(tiny_cache), EmbeddingSettings(), CPU), OnDevice)
    monkeypatch.setattr("clipglot.distill.data.image_embeddings.free_bytes", lambda device: 1000)
    assert isinstance(open_images(Cache(tiny_cache), EmbeddingSettings(), CPU), OnHost)


@pytest.mark.parametrize(("pool_chunks", "batch_size"), [(1, 5), (2, 16), (3, 40), (2, 100)])
def test_the_buffer_reads_each_chunk_once_per_epoch_and_holds_few(pool_chunks: int, batch_size: int) -> None:
    reads: list[int] = []

    def read_chunk(chunk: Any) -> Any:
        view, number = chunk
        assert view == 0
        reads.append(number)
        return np.arange(16 * number, 16 * number + 16, dtype=np.float16)[:, None]

    chunk_shuffle = ChunkShuffle(chunk_rows=16, pool_chunks=pool_chunks)
    usable = np.where(np.arange(512) % 16 < 6, np.arange(512), -1)
    sampler = BatchSampler(usable, batch_size=batch_size, seed=0, chunk_shuffle=chunk_shuffle)
    source = Buffered(read_chunk, 1, chunk_shuffle, CPU)
    pools_of_a_batch = 1 + -(-batch_size // (6 * pool_chunks))  # six usable rows a chunk
    for epoch in range(2):
        for index in range(len(sampler)):
            source.hold(sampler.chunks_near(epoch, index, is_last=epoch == 1))
            rows = sampler.batch(epoch, index).rows
            assert source.read(rows)[:, 0].tolist() == rows.tolist()
            assert len(source._chunks) <= (pools_of_a_batch + 1) * pool_chunks
    source.close()
    assert max(map(reads.count, reads)) <= 2  # once an epoch


def test_a_run_leaves_no_threads(tiny_cache: Path, tmp_path: Path) -> None:
    train(settings(tiny_cache, tmp_path / "run", embeddings="chunks"))
    time.sleep(0.1)
    assert not [t.name for t in threading.enumerate() if t.name.startswith(("batch-loader", "chunks"))]


def test_all_negatives_need_the_embeddings_on_the_device(tiny_cache: Path, tmp_path: Path) -> None:
    with pytest.raises(DistillError, match="--embeddings device"):
        train(settings(tiny_cache, tmp_path / "run", negatives="all", embeddings="mapped"))


def test_a_too_small_buffer_is_refused_with_the_minimum_size(tiny_cache: Path, tmp_path: Path) -> None:
    given = settings(tiny_cache, tmp_path / "run", embeddings="chunks", buffer_gb=1e-7, epochs=1)
    with pytest.raises(
        DistillError, match=r"--buffer-gb 1e-07: the buffer must hold 3 chunks of .* pass at least"
    ) as refused:
        train(given)
    assert not (tmp_path / "run").exists()
    assert train(replace(given, buffer_gb=float(str(refused.value).split()[-1]))).complete


def test_negatives_with_chunks_in_a_buffer_are_refused(tiny_cache: Path, tmp_path: Path) -> None:
    with pytest.raises(DistillError, match="--embeddings chunks reads it in order"):
        train(settings(tiny_cache, tmp_path / "run", negatives="5", embeddings="chunks"))


def test_an_error_of_the_loaders_thread_is_raised_and_the_thread_ends() -> None:
    def make(number: int) -> int:
        if number == 3:
            raise ZeroDivisionError("three")
        return number

    made = prefetch(make, range(10))
    assert [next(made) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ZeroDivisionError, match="three"):
        next(made)


def test_prefetching_stops_when_the_loop_ends() -> None:
    made: list[int] = []

    def make(number: int) -> int:
        made.append(number)
        return number

    steps = prefetch(make, range(1000))
    next(steps)
    steps.close()
    assert len(made) <= 5


def test_a_late_damaged_chunk_costs_no_step(tiny_cache: Path, tmp_path: Path) -> None:
    cache = Path(shutil.copytree(tiny_cache, tmp_path / "cache.zarr"))
    chunk = cache / "images/emb/c/0/1/0"
    whole = chunk.read_bytes()
    chunk_gb = len(whole) / 1e9
    straight = settings(cache, tmp_path / "straight", embeddings="chunks", buffer_gb=3 * chunk_gb, batch_size=4)
    train(straight)
    assert sum("loss" in line and line["epoch"] == 0 for line in logged(tmp_path / "straight")) == 10

    broken = replace(straight, output=tmp_path / "broken")
    steps: list[int] = []

    def damage(progress: Progress) -> None:
        if progress.stage != "train":
            return
        steps.append(progress.done)
        if progress.done == 10:
            chunk.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))

    with pytest.raises(CacheError, match=r"damaged chunk images/emb/c/0/1/0 .*: delete .* at step (\d+): .* --resume"):
        train(broken, on_progress=damage)
    state = RunFolder(broken.output).load_checkpoint()
    assert state is not None
    assert state["step"] == max(steps) >= 10
    chunk.write_bytes(whole)
    assert train(broken, resume=True).complete
    assert_same_run(tmp_path / "broken", tmp_path / "straight")


def test_a_damaged_chunk_is_named_before_the_first_step(tiny_cache: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_cache, tmp_path / "cache.zarr")
    chunk = next(file for file in (tmp_path / "cache.zarr" / "images" / "emb").rglob("c/0/1/0"))
    raw = bytearray(chunk.read_bytes())
    raw[5] ^= 1
    chunk.write_bytes(raw)
    for where in ("device", "mapped"):
        with pytest.raises(Exception, match="images/emb/c/0/1/0"):
            train(settings(tmp_path / "cache.zarr", tmp_path / "run", embeddings=where))
    assert not (tmp_path / "run").exists()
