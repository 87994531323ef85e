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
import open_clip
import torch
import torch.nn.functional as F
from clipglot.cache.format import EMB
from clipglot.distill.data.image_embeddings import OnDevice, OnHost
from clipglot.distill.data.pairs import TrainData
from clipglot.distill.data.targets import Targets
from clipglot.distill.data.tokens import TokenTable, group_equal_captions
from clipglot.distill.device import autocast, resolve_device
from clipglot.distill.losses.infonce import InfoNCE
from clipglot.distill.train_settings import TrainSettings
from clipglot.encoders.image_queue import ImageQueue
from clipglot.encoders.image_tower import tower_of_clip
from clipglot.encoders.loading.language_models import plain_values
from clipglot.encoders.text_lm import LMConfig, LMTower
from clipglot.encoders.text_scratch import Attention, ScratchConfig
from clipglot.jobs.bench import machine
from clipglot.jobs.bench_data import query_tokens, write_random_cache
from clipglot.jobs.bench_steps import Steps, in_turns, matmul_flops_s, synchronize
from clipglot.jobs.settings.bench import BenchSettings
from torch import Tensor
from transformers import BertConfig

JOB_PAIRS = 3_700_000 * 30
STATED_FLOPS_S = 989e12  # dense bf16 of an H100 or H200, by its data sheet
READY = 4  # batches of pixels in memory, which take turns
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
        image_model: open_clip's name of the image tower of the pass, with random weights.
        image_batch: images of one of its batches.
        image_batches: of a round.
        lm_width: of the frozen language model, a BERT with random weights.
        lm_layers: likewise.
        lm_batch: captions of one of its batches.
        lm_batches: of a round.
        head_batch: batch size of the steps of its head.
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
    image_model: str = "ViT-B-32"
    image_batch: int = 512
    image_batches: int = 20
    lm_width: int = 384
    lm_layers: int = 12
    lm_batch: int = 2048
    lm_batches: int = 20
    head_batch: int = 32_768


SMALL = {"images": 500, "dim": 16, "width": 16, "layers": 2, "heads": 2, "vocab_size": 100, "rounds": 1}
SMALL_IMAGES = {"image_model": "ViT-S-32-alt", "image_batch": 2, "image_batches": 1}
SMALL_LM = {"lm_width": 24, "lm_layers": 2, "lm_batch": 16, "lm_batches": 2, "head_batch": 32}
SMALL_STEPS = {"batches": (16, 32), "round_steps": (2, 1), "bank_batch": 8, "bank": 64, "piece": 8, "mapped": 200}
TINY = Sizes(**SMALL, **SMALL_IMAGES, **SMALL_LM, **SMALL_STEPS)


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

    def image_pass(self) -> list[Row]:
        """The frozen image tower over batches that lie ready in memory: what a pass reaches if decoding keeps up."""
        sizes = self.sizes
        clip = open_clip.create_model(sizes.image_model, pretrained=None)
        config = open_clip.get_model_config(sizes.image_model)
        tower = replace(tower_of_clip(clip, config, model=sizes.image_model), precision="bf16").placed(self.device)
        queue, (height, width) = ImageQueue(tower), tower.preprocess["size"]
        ready = queue.staging((READY, sizes.image_batch, height, width, 3))
        ready[:] = np.random.default_rng(0).integers(0, 256, ready.shape, np.uint8)

        def a_round() -> float:
            started, waiting = time.perf_counter(), list[Callable[[], Any]]()
            for i in range(sizes.image_batches):
                waiting.append(queue.submit(ready[i % READY], sizes.image_batch))
                if len(waiting) > queue.in_flight:
                    waiting.pop(0)()
            for features in waiting:
                features()
            return (time.perf_counter() - started) / sizes.image_batches

        seconds = statistics.median(in_turns({"s": a_round}, sizes.rounds, warm_up=1)["s"])
        note = f"images/s, bf16; the job's images in {sizes.images * seconds / sizes.image_batch / 60:.1f} minutes"
        return [self.row(f"pass, {sizes.image_model}, B={sizes.image_batch:,}", sizes.image_batch, seconds, note=note)]

    def frozen_lm(self) -> list[Row]:
        """Features of a frozen language model, and steps of a head on such features."""
        sizes = self.sizes
        shape = {"hidden_size": sizes.lm_width, "intermediate_size": 4 * sizes.lm_width}
        bert = BertConfig(
            vocab_size=sizes.vocab_size, num_hidden_layers=sizes.lm_layers, num_attention_heads=12, **shape
        )
        ids = {"name": "random", "model": plain_values(bert), "embed_dim": sizes.dim, "context_length": 77}
        tower = LMTower(LMConfig(pooler="mean", head="linear", **ids)).to(self.device).eval()
        captions = np.arange(sizes.lm_batch * sizes.lm_batches) % sizes.images
        batches = [tower.pack(*self.tokens.gather(part)) for part in np.split(captions, sizes.lm_batches)]

        @torch.inference_mode()
        def features() -> float:
            synchronize(self.device)
            started = time.perf_counter()
            for batch in batches:
                with autocast("bf16", self.device):
                    tower.pooled(batch.to(self.device)).half().cpu()
            return (time.perf_counter() - started) / sizes.lm_batches

        seconds = statistics.median(in_turns({"s": features}, sizes.rounds, warm_up=1)["s"])
        job = f"the job's captions in {sizes.images * seconds / sizes.lm_batch / 60:.1f} minutes"
        name = f"features of a frozen BERT, {sizes.lm_layers} layers, width {sizes.lm_width}"
        rows = [self.row(name, sizes.lm_batch, seconds, note=f"once; {job}")]
        step_s = self._head_step()
        note = f"an epoch of the job in {sizes.images * step_s / sizes.head_batch:.2f} s, loading left out"
        return [*rows, self.row(f"head step on features, B={sizes.head_batch:,}", sizes.head_batch, step_s, note=note)]

    def _head_step(self) -> float:
        """Seconds of a step of a linear head: forward, loss in blocks, backward, AdamW."""
        sizes, device = self.sizes, self.device
        head = torch.nn.Linear(sizes.lm_width, sizes.dim, bias=False).to(device)
        loss = InfoNCE(temperature=0.07, max_logit_scale=100.0, compiled=device.type == "cuda").to(device)
        optimizer = torch.optim.AdamW([*head.parameters(), *loss.parameters()], lr=1e-3)
        features = torch.randn(sizes.head_batch, sizes.lm_width, device=device)
        image_emb = F.normalize(torch.randn(sizes.head_batch, sizes.dim, device=device), dim=1)
        targets = Targets(image_emb=image_emb, own=slice(0, sizes.head_batch))

        def step() -> float:
            synchronize(device)
            started = time.perf_counter()
            optimizer.zero_grad()
            loss(F.normalize(head(features), dim=1), targets).backward()
            optimizer.step()
            synchronize(device)
            return time.perf_counter() - started

        return statistics.median(in_turns({"s": step}, 5 * sizes.rounds, warm_up=2)["s"])

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
        ("image pass", job.image_pass),
        ("frozen language model", job.frozen_lm),
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
