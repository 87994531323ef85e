"""Throughput of the training step on one GPU, beside its ceiling and its peers, within 8 minutes.

    scripts/bench gpu [--out gpu.json] [--budget-s 440] [--device cuda] [--tiny]

Sizes are those of a job of 40 hours: 3.7 million random unit embeddings of 512 features on the device, captions of
random tokens as long as search queries, ViT-B/32's text tower (12 layers, width 512, 8 heads, 49,408 tokens), bf16,
fused AdamW. A step is that of `train`, with its loading thread; the bare tower step is forward, backward and AdamW on
the same tokens. Model FLOPs count what the step needs (`tower_flops`): 6 × parameters of the blocks × tokens, the last
block for EOS alone, and attention within captions. A stage that fails, or that the budget leaves no time for, says so
in its row. Prints a Markdown table.
"""

import argparse
import gc
import json
import signal
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from clipglot.cache.format import EMB
from clipglot.distill.data.image_embeddings import OnDevice, OnHost
from clipglot.distill.data.pairs import TrainData
from clipglot.distill.data.tokens import TokenTable, group_equal_captions
from clipglot.distill.device import resolve_device
from clipglot.distill.train_settings import TrainSettings
from clipglot.encoders.text_scratch import Attention, ScratchConfig
from clipglot.jobs.bench import machine
from clipglot.jobs.bench_data import query_tokens, write_random_cache
from clipglot.jobs.bench_steps import Steps, in_turns, matmul_flops_s
from clipglot.jobs.settings.bench import BenchSettings
from torch import Tensor

JOB_PAIRS = 3_700_000 * 30
STATED_FLOPS_S = 989e12  # dense bf16 of an H100 or H200, by its data sheet
LEAST_S = 15  # a stage is not started with less time left
BLOCK = 2**18  # embeddings generated at a time


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of the measurements.

    Attributes:
        batches: batch sizes B of the whole step; everything else is measured at the first.
        round_steps: steps per round for each of them.
        bank_batch: batch size of the step with further negatives.
        bank: number of further negatives.
        piece: captions per forward padded to 77; the activations of a whole batch would not fit.
        mapped: embeddings of the cache that is read from mapped files.
    """

    images: int = 3_700_000
    dim: int = 512
    width: int = 512
    layers: int = 12
    heads: int = 8
    vocab_size: int = 49_408
    batches: tuple[int, ...] = (4096, 32_768)
    round_steps: tuple[int, ...] = (10, 5)
    rounds: int = 5
    bank_batch: int = 1024
    bank: int = 131_072
    piece: int = 1024
    mapped: int = 400_000


SMALL = {"images": 500, "dim": 16, "width": 16, "layers": 2, "heads": 2, "vocab_size": 100, "rounds": 1}
TINY = Sizes(**SMALL, batches=(16, 32), round_steps=(2, 1), bank_batch=8, bank=64, piece=8, mapped=200)


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the table; `ratio` is this speed / that of the row `to`."""

    what: str
    pairs_per_s: float | None = None
    step_ms: float | None = None
    ratio: float | None = None
    to: str = ""
    note: str = ""


class TimeIsUp(BaseException):
    """Raised by a signal when the budget is spent; no Exception, because compilers catch those."""


class Job:
    """The data and the stages measured on it."""

    def __init__(self, sizes: Sizes, device: torch.device) -> None:
        self.sizes, self.device = sizes, device
        names = ("width", "layers", "heads", "vocab_size")
        self.shape: dict[str, Any] = {name: getattr(sizes, name) for name in names}
        ids = {"pad_id": 0, "eos_id": sizes.vocab_size - 1}
        self.config = ScratchConfig(embed_dim=sizes.dim, context_length=77, quick_gelu=False, **ids, **self.shape)
        self.tokens = query_tokens(sizes.images, sizes.vocab_size, 77, np.random.default_rng(0))
        image_emb = torch.empty(sizes.images, sizes.dim, dtype=torch.float16, device=device)
        for block in torch.split(image_emb, BLOCK):
            block.copy_(F.normalize(torch.randn(block.shape, device=device), dim=1))
        self.data = TrainData(
            images=OnDevice(image_emb[None]),
            tokens=self.tokens,
            caption_image=np.arange(sizes.images),
            caption_group=group_equal_captions(self.tokens),
        )
        self.pairs_per_s: dict[str, float] = {}  # by row so far

    def training(self, batch_size: int, **changes: Any) -> TrainSettings:
        """Settings of a training run."""
        bench = BenchSettings(precision="bf16", device=str(self.device), **self.shape)
        return replace(bench.training(batch_size), **changes)

    def measure(
        self, batch: int, *, data: TrainData | None = None, attention: Attention = "auto", **changes: Any
    ) -> tuple[dict[str, float], float]:
        """Medians of a whole step and of its parts, and the peak of memory in GB."""
        sizes = self.sizes
        round_steps = dict(zip(sizes.batches, sizes.round_steps, strict=True)).get(batch, sizes.round_steps[0])
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        training = self.training(batch, **changes)
        with Steps(training, data or self.data, self.config, round_steps=round_steps, attention=attention) as steps:
            measures: dict[str, Callable[[], float]] = {
                "whole": steps.whole,
                "wait": lambda: steps.wait_s,
                "flops": lambda: steps.flops,
                "tokens": lambda: steps.num_tokens,
                "tower": steps.tower,
                "loss": steps.loss,
                "feed": steps.fed_alone,
            }
            times = in_turns(measures, sizes.rounds)
        peak = torch.cuda.max_memory_allocated() / 1e9 if self.device.type == "cuda" else 0.0
        return {name: statistics.median(values) for name, values in times.items()}, peak

    def train(self, batch: int) -> list[Row]:
        """The step as `train` runs it, against the peak of the device."""
        medians, peak = self.measure(batch)
        matmul = matmul_flops_s(self.device, "bf16")
        step, tower = f"step, B={batch:,}", f"tower, B={batch:,}"
        note = f"{shares(medians)}; {peak:.0f} GB; the job in {JOB_PAIRS * medians['whole'] / batch / 60:.1f} minutes"
        rows = [
            self.row(tower, batch, medians["tower"], note=f"{medians['tokens']:,.0f} tokens"),
            self.row(step, batch, medians["whole"], tower, note),
        ]
        for what, part in ((tower, "tower"), (step, "whole")):
            speed = medians["flops"] / medians[part]
            for to, ceiling in (("989 TFLOP/s, stated", STATED_FLOPS_S), ("a large matmul", matmul)):
                note = f"model FLOP utilisation: {speed / 1e12:.3g} of {ceiling / 1e12:.3g} TFLOP/s"
                rows.append(Row(what=what, ratio=speed / ceiling, to=to, note=note))
        return rows

    def padded(self, compiled: bool) -> list[Row]:
        """open_clip's own forward over captions padded to 77, with backward and AdamW, without loss and loading."""
        batch, rounds = self.sizes.batches[0], min(3, self.sizes.rounds)
        ids, lengths = self.tokens.gather(np.arange(batch))
        padded = np.zeros((batch, 77), np.int64)
        padded[np.arange(77) < lengths[:, None]] = ids
        pieces = torch.split(torch.from_numpy(padded).to(self.device), self.sizes.piece)
        with Steps(self.training(batch, compile="off"), self.data, self.config, round_steps=2) as steps:
            text = steps.student.tower.text
            forward: Callable[[Tensor], Tensor] = torch.compile(text, dynamic=False) if compiled else text
            times = in_turns({"s": lambda: steps.timed(lambda: steps.tower_step(pieces, forward))}, rounds, warm_up=1)
        name, seconds = f"tower padded to 77{', compiled' * compiled}, B={batch:,}", statistics.median(times["s"])
        note = f"open_clip's forward, {self.sizes.piece:,} at a time"
        return [self.row(name, batch, seconds, f"{packed}, B={batch:,}", note) for packed in ("tower", "step")]

    def form(self, attention: Attention, compiled: bool) -> list[Row]:
        """Another form of attention, or the same without compilation."""
        batch = self.sizes.batches[0]
        medians, _ = self.measure(batch, attention=attention, compile="auto" if compiled else "off")
        name = f"{attention} attention, {'as train compiles' if compiled else 'eager'}, B={batch:,}"
        return [
            self.row(f"{part}, {name}", batch, medians[key], f"{part}, B={batch:,}")
            for part, key in (("tower", "tower"), ("step", "whole"))
        ]

    def bank(self) -> list[Row]:
        """Cost of negatives from the cache."""
        batch, name = self.sizes.bank_batch, f"step, B={self.sizes.bank_batch:,}"
        without, _ = self.measure(batch)
        with_bank, _ = self.measure(batch, negatives=str(self.sizes.bank))
        note = f"{with_bank['whole'] / without['whole'] - 1:+.0%} time a step"
        return [
            self.row(name, batch, without["whole"]),
            self.row(f"{name}, {self.sizes.bank:,} negatives", batch, with_bank["whole"], name, note),
        ]

    def mapped(self) -> list[Row]:
        """Embeddings read from mapped chunk files instead of the device."""
        batch, num = self.sizes.batches[0], self.sizes.mapped
        with tempfile.TemporaryDirectory(prefix="clipglot-gpu-") as folder:
            cache = write_random_cache(Path(folder) / "cache.zarr", ([] for _ in range(num)), self.sizes.dim)
            data = TrainData(
                images=OnHost([cache.mapped(EMB).take], self.device),
                tokens=TokenTable(self.tokens.ids, self.tokens.offsets.take(np.arange(num + 1))),
                caption_image=np.arange(num),
                caption_group=self.data.caption_group[:num],
            )
            medians, _ = self.measure(batch, data=data)
        return [self.row(f"step, mapped, B={batch:,}", batch, medians["whole"], f"step, B={batch:,}", shares(medians))]

    def row(self, what: str, batch: int, seconds: float, to: str = "", note: str = "") -> Row:
        """A line, with its ratio to an earlier one if that was measured."""
        speed = self.pairs_per_s[what] = batch / seconds
        ratio = speed / self.pairs_per_s[to] if to in self.pairs_per_s else None
        return Row(what=what, pairs_per_s=speed, step_ms=1e3 * seconds, ratio=ratio, to=to, note=note)


def shares(medians: dict[str, float]) -> str:
    """Fractions of a whole step spent in its parts."""
    parts = {"waiting for data": "wait", "loading alone": "feed", "loss": "loss"}
    return ", ".join(f"{part} {medians[key] / medians['whole']:.1%}" for part, key in parts.items())


def stages(job: Job) -> list[tuple[str, Callable[[], list[Row]]]]:
    """The measurements, the most important first."""
    return [
        *((f"train, B={batch:,}", lambda batch=batch: job.train(batch)) for batch in job.sizes.batches),
        ("padded to 77", lambda: job.padded(compiled=False)),
        ("eager", lambda: job.form("auto", compiled=False)),
        ("varlen", lambda: job.form("varlen", compiled=False)),
        ("lengths", lambda: job.form("lengths", compiled=False)),
        ("mapped", job.mapped),
        ("bank", job.bank),
        ("rows with a mask", lambda: job.form("rows", compiled=True)),
        ("padded to 77, compiled", lambda: job.padded(compiled=job.device.type == "cuda")),
    ]


def guarded(name: str, stage: Callable[[], list[Row]], left_s: float) -> list[Row]:
    """Run a stage within the time left; returns its rows, or one row with the reason for their absence."""
    if left_s < LEAST_S:
        return [Row(what=name, note=f"left out: {max(0, left_s):.0f} s of the budget were left")]
    signal.setitimer(signal.ITIMER_REAL, left_s)
    try:
        return stage()
    except TimeIsUp:
        return [Row(what=name, note=f"stopped after {left_s:.0f} s: the budget was spent")]
    except Exception as error:
        message = " ".join(str(error).split())
        return [Row(what=name, note=f"failed: {type(error).__name__}: {message[:200]}")]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def stop(number: int, frame: object) -> None:
    """Signal handler: end the running stage."""
    raise TimeIsUp


def main() -> None:
    """Run the stages, print each row when it is measured, and write all as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    parser.add_argument("--budget-s", type=float, default=440, help="seconds for all stages together")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, to try the script")
    args = parser.parse_args()
    started = time.perf_counter()
    signal.signal(signal.SIGALRM, stop)
    device, sizes = resolve_device(args.device), TINY if args.tiny else Sizes()
    job = Job(sizes, device)
    title = f"{machine(device)}, torch {torch.__version__}, {sizes.images:,} × {sizes.dim} embeddings on the device"
    print(f"{title}; ready after {time.perf_counter() - started:.0f} s\n")
    print("| what | pairs/s | ms a step | ratio | to | |")
    print("|---|---|---|---|---|---|")
    rows: list[Row] = []
    for name, stage in stages(job):
        for row in guarded(name, stage, args.budget_s - (time.perf_counter() - started)):
            numbers = [row.pairs_per_s, row.step_ms, row.ratio]
            formats = ["{:,.0f}", "{:,.1f}", "{:.3g}"]
            cells = ["" if n is None else f.format(n) for n, f in zip(numbers, formats, strict=True)]
            print(f"| {row.what} | {' | '.join(cells)} | {row.to} | {row.note} |", flush=True)
            rows.append(row)
        if args.out:
            report = {"machine": title, "sizes": asdict(sizes), "rows": [asdict(row) for row in rows]}
            args.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        gc.collect()
        torch.compiler.reset()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    print(f"\n{time.perf_counter() - started:.0f} s in all.")


if __name__ == "__main__":
    main()
