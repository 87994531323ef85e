"""Every way to run the engine gives what the plain way gives: micro-batches, sources, negatives, precisions."""

import json
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from clipglot.cache.errors import CacheError
from clipglot.cache.store import Cache
from clipglot.distill import images
from clipglot.distill.batches import BatchPlan
from clipglot.distill.data import load_data, open_images
from clipglot.distill.errors import DistillError
from clipglot.distill.feeding import Feed, ahead
from clipglot.distill.final import load_final
from clipglot.distill.images import Buffered, OnDevice, OnHost
from clipglot.distill.optimizer import learning_rate
from clipglot.distill.run import Run
from clipglot.distill.student import Student
from clipglot.distill.towers import build_tower
from clipglot.distill.train import train
from clipglot.distill.train_settings import TrainSettings
from clipglot.encoders.tokenizer import train_bpe
from logs import logged
from runs import settings, stop_at

CPU = torch.device("cpu")


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in logged(run) if "loss" in line]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_final(Run(run)).tower.state_dict()


def assert_same_run(ours: Path, theirs: Path) -> None:
    assert logged(ours) == logged(theirs)
    expected = weights(theirs)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(ours).items())


@pytest.fixture(scope="module")
def plain_run(tiny_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("plain") / "run"
    train(settings(tiny_cache, run))
    return run


def test_micro_batches_and_checkpointing_change_nothing_but_rounding(
    tiny_cache: Path, tmp_path: Path, plain_run: Path
) -> None:
    for name, change in (("cached", {"micro_batch": 3}), ("checkpointed", {"grad_checkpointing": True, "layers": 1})):
        train(settings(tiny_cache, tmp_path / name, **change))
        assert losses(tmp_path / name) == pytest.approx(losses(plain_run), rel=1e-4)
        expected = weights(plain_run)
        for tensor_name, tensor in weights(tmp_path / name).items():
            torch.testing.assert_close(tensor, expected[tensor_name], rtol=1e-3, atol=1e-4)


def test_mapped_embeddings_give_the_very_same_run(tiny_cache: Path, tmp_path: Path, plain_run: Path) -> None:
    train(settings(tiny_cache, tmp_path / "mapped", embeddings="mapped"))
    assert_same_run(tmp_path / "mapped", plain_run)


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


def test_sources_read_the_same_rows(tiny_cache: Path, tmp_path: Path) -> None:
    cache, rows = Cache(tiny_cache), np.array([7, 0, 39, 7])
    expected = torch.from_numpy(cache.image_emb()[rows])
    found = {}
    for where in ("device", "mapped", "chunks"):
        source = open_images(cache, settings(tiny_cache, tmp_path, embeddings=where, buffer_gb=1e-6), CPU)
        source.hold([(0, chunk) for chunk in range(cache.num_chunks)])
        found[where] = source
        assert torch.equal(source.to_device(source.read(rows)), expected)
        source.close()
    assert [type(source) for source in found.values()] == [OnDevice, OnHost, Buffered]


def test_embeddings_are_mapped_where_they_do_not_fit(
    tiny_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(open_images(Cache(tiny_cache), settings(tiny_cache, tmp_path), CPU), OnDevice)
    monkeypatch.setattr("clipglot.distill.data.free_bytes", lambda device: 1000)
    assert isinstance(open_images(Cache(tiny_cache), settings(tiny_cache, tmp_path), CPU), OnHost)


@pytest.mark.parametrize(("pool_chunks", "batch_size"), [(1, 5), (2, 16), (3, 40), (2, 100)])
def test_a_buffer_reads_each_chunk_once_an_epoch_and_holds_few(pool_chunks: int, batch_size: int) -> None:
    reads: list[int] = []

    def read_chunk(chunk: Any) -> Any:
        view, number = chunk
        assert view == 0
        reads.append(number)
        return np.arange(16 * number, 16 * number + 16, dtype=np.float16)[:, None]

    pooling = images.Pooling(chunk_rows=16, pool_chunks=pool_chunks)
    usable = np.where(np.arange(512) % 16 < 6, np.arange(512), -1)
    plan = BatchPlan(usable, batch_size=batch_size, seed=0, pooling=pooling)
    source = Buffered(read_chunk, 1, pooling, CPU)
    pools_of_a_batch = 1 + -(-batch_size // (6 * pool_chunks))  # six usable rows a chunk
    for epoch in range(2):
        for index in range(len(plan)):
            source.hold(plan.chunks_near(epoch, index, is_last=epoch == 1))
            rows = plan.batch(epoch, index).rows
            assert source.read(rows)[:, 0].tolist() == rows.tolist()
            assert len(source._chunks) <= (pools_of_a_batch + 1) * pool_chunks
    source.close()
    assert max(map(reads.count, reads)) <= 2  # once an epoch


def test_no_thread_of_a_run_is_left(tiny_cache: Path, tmp_path: Path) -> None:
    train(settings(tiny_cache, tmp_path / "run", embeddings="chunks"))
    time.sleep(0.1)
    assert not [t.name for t in threading.enumerate() if t.name.startswith(("feed", "chunks"))]


@pytest.mark.parametrize("where", ["device", "mapped"])
def test_negatives_give_the_loss_of_the_plain_softmax(tiny_cache: Path, tmp_path: Path, where: str) -> None:
    given = settings(tiny_cache, tmp_path / "run", negatives="20", embeddings=where)
    _require_plain_softmax(given, num_negatives=20)


def test_all_negatives_are_all_pictures(tiny_cache: Path, tmp_path: Path) -> None:
    _require_plain_softmax(settings(tiny_cache, tmp_path / "run", negatives="all"), num_negatives=40)


def _require_plain_softmax(given: TrainSettings, num_negatives: int) -> None:
    """The loss of a step, with everything from the cache itself: every picture, every caption as text."""
    cache = Cache(given.cache)
    captions, owners, image_emb = cache.captions(), cache.caption_image(), torch.from_numpy(cache.image_emb()).float()
    tokenizer = train_bpe(captions, 300)
    data = load_data(cache, open_images(cache, given, CPU), tokenizer, given, Path("unused"))
    student = Student(build_tower(given, cache.info.encoder, tokenizer), given, CPU, "fp32")
    feed = Feed(given, data, student.tower, CPU)
    num_masked = 0
    for step, fed in enumerate(feed.steps(0, 10)):
        batch = feed.plan.batch(*divmod(step, feed.steps_per_epoch))
        assert fed.draw is not None
        candidates = [*batch.rows.tolist(), *(r for r in fed.draw.rows.tolist() if r not in batch.rows)]
        assert len(fed.draw.rows) == num_negatives
        ids = tokenizer.encode([captions[i] for i in batch.captions], given.context_length)
        text_emb = F.normalize(student.tower.encode(ids), dim=-1)
        carries = {row: {captions[i] for i in np.flatnonzero(owners == row)} for row in candidates}
        texts = [captions[i] for i in batch.captions]
        logits = student.logit_scale * text_emb @ image_emb[candidates].T
        masked = [
            (i, j) for i, text in enumerate(texts) for j, r in enumerate(candidates) if text in carries[r] and i != j
        ]
        num_masked += sum(j < len(texts) for _, j in masked)
        for i, j in masked:
            logits[i, j] = -torch.inf
        own = torch.arange(len(texts))
        expected = (F.cross_entropy(logits, own) + F.cross_entropy(logits[:, : len(texts)].T, own)) / 2
        loss = student.loss(text_emb, feed.targets(fed))
        torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    assert num_masked, "no caption was shared within a batch"


def test_a_run_with_negatives_resumes_exactly(tiny_cache: Path, tmp_path: Path) -> None:
    straight = settings(tiny_cache, tmp_path / "straight", negatives="11", ema=0.9)
    train(straight)
    broken = replace(straight, output=tmp_path / "broken")
    train(broken, on_progress=stop_at(9))
    assert train(broken, resume=True).complete
    assert_same_run(tmp_path / "broken", tmp_path / "straight")


def test_all_negatives_need_the_embeddings_on_the_device(tiny_cache: Path, tmp_path: Path) -> None:
    with pytest.raises(DistillError, match="--embeddings device"):
        train(settings(tiny_cache, tmp_path / "run", negatives="all", embeddings="mapped"))


def test_bfloat16_trains_close_to_float32(tiny_cache: Path, tmp_path: Path, plain_run: Path) -> None:
    train(settings(tiny_cache, tmp_path / "run", precision="bf16"))
    assert losses(tmp_path / "run") == pytest.approx(losses(plain_run), rel=0.05)


def test_float16_leaves_out_steps_that_overflow_learns_and_resumes_exactly(tiny_cache: Path, tmp_path: Path) -> None:
    straight = settings(tiny_cache, tmp_path / "straight", precision="fp16")
    train(straight)
    measured = losses(tmp_path / "straight")
    assert sum(measured[-5:]) < 0.8 * sum(measured[:5])
    broken = replace(straight, output=tmp_path / "broken")
    train(broken, on_progress=stop_at(3))  # while the scale of the gradients is still being found
    assert train(broken, resume=True).complete
    assert_same_run(tmp_path / "broken", tmp_path / "straight")


def test_an_average_of_the_weights_is_what_is_exported(tiny_cache: Path, tmp_path: Path, plain_run: Path) -> None:
    train(settings(tiny_cache, tmp_path / "run", ema=0.5))
    assert losses(tmp_path / "run") == losses(plain_run)  # it watches, it does not steer
    state = Run(tmp_path / "run").load_checkpoint()
    assert state is not None
    for name, tensor in weights(tmp_path / "run").items():
        assert torch.equal(tensor, state["average"][f"module.{name}"])
    assert not torch.equal(weights(tmp_path / "run")["text.text_projection"], state["tower"]["text.text_projection"])


def test_schedules() -> None:
    def rates(**changes: Any) -> list[float]:
        given = TrainSettings(cache=Path("c"), output=Path("o"), lr=2.0, warmup=0.2, **changes)
        return [learning_rate(step, 10, given) for step in range(10)]

    assert rates(schedule="constant") == [1.0, *[2.0] * 9]
    falling = rates(schedule="wsd", cooldown=0.4)
    assert falling[:7] == [1.0, *[2.0] * 6]
    assert falling[7:] == pytest.approx([2 * (1 - (i / 4) ** 0.5) for i in (1, 2, 3)])
    assert rates(schedule="wsd", cooldown=0.8)[2:] == pytest.approx([2 * (1 - (i / 8) ** 0.5) for i in range(8)])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"negatives": "many"}, "--negatives many: is a number, or all"),
        ({"dropout": 1.0}, "--dropout 1.0: is a share"),
        ({"token_dropout": -0.1}, "--token-dropout -0.1: is a share"),
        ({"label_smoothing": 1.0}, "--label-smoothing 1.0"),
        ({"label_smoothing": 0.1, "loss": "siglip"}, "--label-smoothing belongs to"),
        ({"simcse": 0.1}, "--simcse 0.1: both passes of a caption would be the same"),
        ({"alignment": -1.0}, "--alignment -1.0"),
        ({"loss": "similarity", "similarity": 0.5}, "--similarity is a term beside another"),
        ({"teacher_temperature": 0.0}, "--teacher-temperature 0.0"),
        ({"negatives": "5", "loss": "siglip"}, "--negatives belong to the softmax"),
        ({"ema": 1.0}, "--ema 1.0"),
        ({"micro_batch": 0}, "--micro-batch 0"),
        ({"micro_batch": 9}, "--micro-batch 9: is a part of --batch-size 8"),
        ({"schedule": "wsd", "warmup": 0.3, "cooldown": 0.8}, "--warmup 0.3 and --cooldown 0.8: .* at most 1 together"),
        ({"cooldown": 2.0}, "--cooldown 2.0"),
        ({"buffer_gb": 0.0}, "--buffer-gb 0.0"),
        ({"temperature": 2.0}, "--temperature 2.0"),
        ({"temperature": 0.0}, "--temperature 0.0"),
        ({"lr": float("inf")}, "--lr inf"),
    ],
)
def test_settings_that_cannot_be(wrong: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(DistillError, match=message):
        settings(tmp_path, tmp_path / "run", **wrong)


def test_a_buffer_below_one_pool_is_refused_with_the_least_that_will_do(tiny_cache: Path, tmp_path: Path) -> None:
    given = settings(tiny_cache, tmp_path / "run", embeddings="chunks", buffer_gb=1e-7, epochs=1)
    with pytest.raises(
        DistillError, match=r"--buffer-gb 1e-07: the buffer must hold 3 chunks of .* pass at least"
    ) as refused:
        train(given)
    assert not (tmp_path / "run").exists()
    assert train(replace(given, buffer_gb=float(str(refused.value).split()[-1]))).complete


def test_negatives_need_an_order_that_reads_everywhere(tiny_cache: Path, tmp_path: Path) -> None:
    with pytest.raises(DistillError, match="--embeddings chunks reads it in order"):
        train(settings(tiny_cache, tmp_path / "run", negatives="5", embeddings="chunks"))


def test_compiling_is_refused_where_it_gains_nothing(tiny_cache: Path, tmp_path: Path) -> None:
    with pytest.raises(DistillError, match="--compile on: only a GPU"):
        train(settings(tiny_cache, tmp_path / "run", compile="on"))
    assert not (tmp_path / "run").exists()


def test_metrics_go_to_tensorboard(tiny_cache: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(settings(tiny_cache, tmp_path / "run", val=tiny_cache, epochs=2, log_to=("tensorboard",)))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    shown = [event.value for event in events.Scalars("train/loss")]
    assert shown == pytest.approx(losses(tmp_path / "run"), rel=1e-6)
    assert len(events.Scalars("validation/r_at_10")) == 2


def test_a_logger_that_is_not_installed_is_named_before_the_first_step(
    tiny_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipglot.distill.log.find_spec", lambda name: None)
    with pytest.raises(DistillError, match=r"pip install 'clipglot\[wandb\]'"):
        train(settings(tiny_cache, tmp_path / "run", log_to=("wandb",)))
    assert not (tmp_path / "run").exists()


def test_the_profiler_leaves_a_trace(tiny_cache: Path, tmp_path: Path) -> None:
    train(settings(tiny_cache, tmp_path / "run", profile=2))
    trace = json.loads((tmp_path / "run" / "profile" / "trace.json").read_text())
    assert any("ProfilerStep" in event.get("name", "") for event in trace["traceEvents"])


def test_an_error_of_the_feeding_thread_is_raised_and_the_thread_ends() -> None:
    def make(number: int) -> int:
        if number == 3:
            raise ZeroDivisionError("three")
        return number

    made = ahead(make, range(10))
    assert [next(made) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ZeroDivisionError, match="three"):
        next(made)


def test_feeding_stops_when_nobody_asks_any_more() -> None:
    made: list[int] = []

    def make(number: int) -> int:
        made.append(number)
        return number

    steps = ahead(make, range(1000))
    next(steps)
    steps.close()
    assert len(made) <= 5


def test_a_chunk_that_is_found_damaged_late_costs_no_step(tiny_cache: Path, tmp_path: Path) -> None:
    cache = Path(shutil.copytree(tiny_cache, tmp_path / "cache.zarr"))
    chunk = cache / "images/emb/c/0/1/0"
    whole = chunk.read_bytes()
    chunk_gb = len(whole) / 1e9
    straight = settings(cache, tmp_path / "straight", embeddings="chunks", buffer_gb=3 * chunk_gb, batch_size=4)
    train(straight)
    assert sum("loss" in line and line["epoch"] == 0 for line in logged(tmp_path / "straight")) == 10

    broken = replace(straight, output=tmp_path / "broken")
    steps: list[int] = []

    def damage(done: int, total: int, metrics: dict[str, Any]) -> None:
        steps.append(done)
        if done == 10:
            chunk.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))

    with pytest.raises(CacheError, match=r"damaged chunk images/emb/c/0/1/0 .*: delete .* at step (\d+): .* --resume"):
        train(broken, on_progress=damage)
    state = Run(broken.output).load_checkpoint()
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
