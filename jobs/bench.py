"""`clipglot bench`: what this machine reaches, each as a ratio to a ceiling or a peer of the same rounds."""

import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..cache.format import EMB, Status
from ..cache.progress import OnProgress, Progress, ignore_progress
from ..cache.read.cache import Cache
from ..distill.data.image_embeddings import open_images
from ..distill.data.pairs import TrainData
from ..distill.data.tokens import group_equal_captions, tokenize
from ..distill.device import free_bytes, resolve_compile, resolve_device
from ..distill.train_settings import TrainSettings
from ..encoders.text_scratch import ScratchConfig
from ..encoders.tokenizer import CaptionTokenizer, train_bpe
from .bench_data import copy_to_npy, query_texts, write_random_cache
from .bench_steps import Steps, in_turns, matmul_flops_s
from .settings.bench import BenchSettings

CPU_BATCH, CUDA_BATCH = 64, 4096
CUDA_ROUND = 10  # steps between two looks at the device, as --log-every has it
ROUNDS = 11
MOST_CAPTIONS = 100_000  # of a cache, that are tokenized for the bench
MOST_ROWS = 200_000  # of a cache, that are copied for np.memmap
DIM = 512  # of a synthetic cache
READ_ROWS, REPEATS = 4096, 20  # random rows of a read, which takes too little time to be timed once
NUM_MATRICES, SHARE_OF_MEMORY = 4, 0.25  # that a whole B×B loss holds, and may take of what is free


@dataclass(frozen=True, kw_only=True)
class Measure:
    """What was reached, held against something else measured in turn with it.

    Attributes:
        what: was measured.
        unit: of all values.
        values: one a round.
        against: what it is held to.
        references: its values, one a round.
    """

    what: str
    unit: str
    values: list[float]
    against: str
    references: list[float]

    @property
    def value(self) -> float:
        """The median of the rounds."""
        return statistics.median(self.values)

    @property
    def reference(self) -> float:
        """The median of the rounds."""
        return statistics.median(self.references)

    @property
    def ratio(self) -> float:
        """Value / reference."""
        return self.value / self.reference

    @property
    def spread(self) -> tuple[float, float]:
        """The lowest and the highest ratio of a round."""
        ratios = [value / reference for value, reference in zip(self.values, self.references, strict=True)]
        return min(ratios), max(ratios)

    def to_json(self) -> dict[str, Any]:
        """All but the single rounds."""
        held = {"unit": self.unit, "value": self.value, "against": self.against, "reference": self.reference}
        return {"what": self.what} | held | {"ratio": self.ratio, "spread": list(self.spread), "n": len(self.values)}


@dataclass(frozen=True, kw_only=True)
class BenchReport:
    """What a machine reaches.

    Attributes:
        machine: processor or GPU.
        torch: its version.
        threads: of the processor that torch uses.
        precision: of the tower's autocast.
        compiled: whether tower and loss were.
        num_parameters: of the tower.
        batch_size: captions of a step.
        tokens_per_caption: BOS and EOS included, the mean of what was timed.
        captions_per_s: that the bare tower learns from.
        tokens_per_s: the same in tokens.
        measures: each a ratio.
    """

    machine: str
    torch: str
    threads: int
    precision: str
    compiled: bool
    num_parameters: int
    batch_size: int
    tokens_per_caption: float
    captions_per_s: float
    tokens_per_s: float
    measures: list[Measure]


def bench(settings: BenchSettings, on_progress: OnProgress = ignore_progress) -> BenchReport:
    """Measure; writes nothing but into a temporary folder.

    Args:
        settings: what to measure.
        on_progress: called with the stages `prepare` and `measure`; the latter counts rounds.

    Raises:
        CacheError, EncoderError, DistillError: each message says what to do.
    """
    device = resolve_device(settings.device)
    on_cuda = device.type == "cuda"
    training = settings.training(settings.batch_size or (CUDA_BATCH if on_cuda else CPU_BATCH))
    round_steps = CUDA_ROUND if on_cuda else 1
    rounds = ROUNDS if settings.steps is None else -(-settings.steps // round_steps)
    with tempfile.TemporaryDirectory(prefix="clipglot-bench-") as folder:
        on_progress(Progress("prepare", 0))
        if settings.cache:
            cache = Cache(settings.cache).require_sealed()
        else:
            texts = query_texts(max(8 * training.batch_size, 2**14), np.random.default_rng(0))
            cache = write_random_cache(Path(folder) / "cache.zarr", ([text] for text in texts), DIM)
        reads = _reads(cache, Path(folder) / "rows.npy")
        data, tokenizer = load_bench_data(cache, training, device)
        config = ScratchConfig(
            embed_dim=cache.info.encoder.dim,
            vocab_size=settings.vocab_size,
            context_length=training.context_length,
            width=training.width,
            heads=training.heads,
            layers=training.layers,
            pad_id=tokenizer.pad_id,
            eos_id=tokenizer.eos_id,
            quick_gelu=cache.info.encoder.quick_gelu,
        )
        with Steps(training, data, config, round_steps=round_steps) as steps:
            return _measure(steps, reads, rounds, resolve_compile(settings.compile, device), on_progress)


def load_bench_data(cache: Cache, training: TrainSettings, device: torch.device) -> tuple[TrainData, CaptionTokenizer]:
    """What `train` would load, but for the first captions alone, whose ids are not kept.

    Raises:
        CacheError: a chunk is absent or damaged.
        EncoderError: a vocabulary too small to hold the 256 bytes.
    """
    captions = cache.captions(0, MOST_CAPTIONS)
    tokenizer = train_bpe(captions, training.vocab_size)
    tokens = tokenize(tokenizer, captions, training.context_length)
    image_index = cache.caption_image()[: len(captions)]
    data = TrainData(
        images=open_images(cache, training, device),
        tokens=tokens,
        caption_image=np.where(cache.status()[image_index] == Status.EMBEDDED, image_index, -1),
        caption_group=group_equal_captions(tokens),
    )
    return data, tokenizer


def _reads(cache: Cache, npy: Path) -> dict[str, Callable[[], float]]:
    """Seconds of a read of random rows from the cache, and from a copy of them."""
    mapped, num_rows = cache.mapped(EMB), min(len(cache), MOST_ROWS)
    copy_to_npy(mapped, npy, num_rows, cache.info.chunk_rows)
    flat = np.load(npy, mmap_mode="r")
    rows = np.random.default_rng(0).integers(0, num_rows, READ_ROWS)

    def timed(read: Callable[[], Any]) -> Callable[[], float]:
        def seconds() -> float:
            started = time.perf_counter()
            for _ in range(REPEATS):
                read()
            return (time.perf_counter() - started) / REPEATS

        return seconds

    return {"mapped": timed(lambda: mapped.take(rows)), "memmap": timed(lambda: flat.take(rows, axis=0))}


def _measure(
    steps: Steps,
    reads: dict[str, Callable[[], float]],
    rounds: int,
    compiled: bool,
    on_progress: OnProgress,
) -> BenchReport:
    size = steps.batch_size
    measured: dict[str, Callable[[], float]] = {
        "whole": steps.whole,
        "wait": lambda: steps.wait_s,
        "flops": lambda: steps.flops,
        "tokens": lambda: steps.num_tokens,
        "tower": steps.tower,
        "matmul": lambda: matmul_flops_s(steps.device, steps.precision),
        "feed": steps.fed_alone,
        "loss": steps.loss,
    } | reads
    if NUM_MATRICES * 4 * size**2 < SHARE_OF_MEMORY * free_bytes(steps.device):
        measured["whole loss"] = steps.whole_loss
    given = in_turns(measured, rounds, on_round=lambda done, total: on_progress(Progress("measure", done, total)))

    def rate(name: str, of: float) -> list[float]:
        return [of / seconds for seconds in given[name]]

    def ms(name: str) -> list[float]:
        return [1e3 * seconds for seconds in given[name]]

    def measure(what: str, unit: str, values: list[float], against: str, references: list[float]) -> Measure:
        return Measure(what=what, unit=unit, values=values, against=against, references=references)

    tower_tflops = [flops / seconds / 1e12 for flops, seconds in zip(given["flops"], given["tower"], strict=True)]
    matmul_tflops = [flops / 1e12 for flops in given["matmul"]]
    measures = [
        measure("tower alone", "TFLOP/s", tower_tflops, "a large matmul", matmul_tflops),
        measure("step", "pairs/s", rate("whole", size), "tower alone", rate("tower", size)),
        measure("feeding alone", "ms", ms("feed"), "step", ms("whole")),
        measure("waiting for the feed", "ms", ms("wait"), "step", ms("whole")),
        measure("loss", "ms", ms("loss"), "step", ms("whole")),
    ]
    if "whole loss" in given:
        measures.append(measure("loss in blocks", "ms", ms("loss"), "loss at once", ms("whole loss")))
    measures.append(measure("random rows", "rows/s", rate("mapped", READ_ROWS), "np.memmap", rate("memmap", READ_ROWS)))
    tokens, tower_s = statistics.median(given["tokens"]), statistics.median(given["tower"])
    return BenchReport(
        machine=machine(steps.device),
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        precision=steps.precision,
        compiled=compiled,
        num_parameters=sum(parameter.numel() for parameter in steps.student.tower.parameters()),
        batch_size=size,
        tokens_per_caption=tokens / size,
        captions_per_s=size / tower_s,
        tokens_per_s=tokens / tower_s,
        measures=measures,
    )


def machine(device: torch.device) -> str:
    """What computes, by its name where the system knows it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
