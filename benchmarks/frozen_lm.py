"""Frozen language model on the CPU: features beside a bare pass, head steps beside bare products, pruned vocabulary.

    scripts/bench frozen_lm LM CACHE [--captions 3000] [--dim 512] [--parts features,head,whole,micro]

LM is a folder of transformers, CACHE gives the captions; the image embeddings are random. Each run is `clipglot train`,
in this process, and its steps are those of its metrics.jsonl. The bare pass runs the same model over the same captions
in packed batches of the same size and keeps nothing. The bare loop has its data in memory: head, both cross-entropies
over the whole matrix of logits, backward, AdamW. They alternate. Prints a Markdown table; micro batches run in a
process of their own, whose peak memory is reported.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from clipglot.cache.progress import Progress
from clipglot.cache.read.cache import Cache
from clipglot.distill.recipes import RECIPES
from clipglot.distill.train_settings import TrainSettings
from clipglot.distill.training.train import train
from clipglot.encoders.text_lm import LMTower
from clipglot.encoders.tokenizer_lm import LMTokenizer
from clipglot.jobs.bench_data import write_random_cache

CAPTIONS_AT_A_TIME = 256  # as when features are computed
CONTEXT = 40  # tokens; longer captions are cut
HEAD_BATCH = 4096
HEAD_STEPS = 40
WHOLE_BATCH, WHOLE_STEPS = 128, 12
LARGE_BATCH, MICRO_BATCH = 4096, 128


class Trials:
    """Runs on one cache, each in a folder of its own."""

    def __init__(self, cache: Path, lm: Path, folder: Path) -> None:
        self.cache, self.lm, self._folder, self._numbers = cache, lm, folder, count()

    def train(self, on_progress: Callable[[Progress], None] = lambda progress: None, **settings: Any) -> float:
        """Median seconds of a step of a run; its first steps compile and allocate, and do not count."""
        output = self._folder / f"{self.cache.stem}-run{next(self._numbers)}"
        given: dict[str, Any] = {"context_length": CONTEXT, "log_every": 1, "device": "cpu"} | settings
        train(TrainSettings(cache=self.cache, output=output, text=str(self.lm), **given), on_progress=on_progress)
        lines = (json.loads(line) for line in (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
        steps = [line["step_s"] for line in lines if line["kind"] == "step"]
        return statistics.median(steps[len(steps) // 4 :])


def features_s(trials: Trials, num_captions: int) -> float:
    """Seconds until the features of all captions are stored, by a run of one step."""
    times: list[tuple[float, int]] = []

    def note(progress: Progress) -> None:
        if progress.stage == "features":
            times.append((time.perf_counter(), progress.done))

    trials.train(note, train_layers=0, warm_start="none", batch_size=64, epochs=1)
    (began, first), (ended, last) = times[0], times[-1]
    return (ended - began) / (last - first) * num_captions


@torch.inference_mode()
def bare_pass_s(lm: Path, captions: list[str], dim: int) -> float:
    """Seconds of the bare model over all captions."""
    tokenizer, tower = LMTokenizer.load(str(lm)), LMTower.from_pretrained(str(lm), dim, context_length=CONTEXT).eval()
    ids = sorted((np.asarray(each, np.int64) for each in tokenizer.encode(captions, CONTEXT)), key=len)
    batches = [ids[start : start + CAPTIONS_AT_A_TIME] for start in range(0, len(ids), CAPTIONS_AT_A_TIME)]
    packed = [tower.pack(np.concatenate(part), np.array([len(each) for each in part])) for part in batches]
    tower.pooled(packed[0])
    started = time.perf_counter()
    for part in packed:
        tower.pooled(part)
    return time.perf_counter() - started


def bare_head_s(num: int, width: int, dim: int, steps: int = HEAD_STEPS // 2) -> float:
    """Seconds of a step of a linear head on features in memory."""
    features, image_emb = torch.randn(num, width).half(), F.normalize(torch.randn(num, dim), dim=1).half()
    head, log_scale = torch.nn.Linear(width, dim, bias=False), torch.nn.Parameter(torch.tensor(2.66))
    optimizer = torch.optim.AdamW([*head.parameters(), log_scale], fused=True)
    own = torch.arange(HEAD_BATCH)

    def step() -> None:
        chosen = torch.randint(0, num, (HEAD_BATCH,))
        text_emb = F.normalize(head(features[chosen].float()), dim=1)
        logits = log_scale.exp() * text_emb @ image_emb[chosen].float().T
        loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    times = []
    for _ in range(steps):
        started = time.perf_counter()
        step()
        times.append(time.perf_counter() - started)
    return statistics.median(times[len(times) // 4 :])


def one_large_step(cache: Path, lm: Path, folder: Path) -> None:
    """A step of the whole model at a large batch in micro batches; prints seconds and peak memory."""
    settings = {"warm_start": "none", "batch_size": LARGE_BATCH, "micro_batch": MICRO_BATCH, "epochs": 1}
    seconds = Trials(cache, lm, folder).train(**settings)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"step_s": seconds, "peak": peak}))


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lm", type=Path)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--captions", type=int, default=3_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--parts", default="features,head,whole,micro")
    parser.add_argument("--large-step", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.large_step:
        one_large_step(args.cache, args.lm, args.large_step)
        return
    parts = args.parts.split(",")
    captions = list(islice(Cache(args.cache).captions(), args.captions))
    print(f"{args.lm.name}, {len(captions):,} captions, D={args.dim}, torch {torch.__version__}\n")
    print("| what | reached | against | there | ratio |\n|---|--:|---|--:|--:|")

    def row(what: str, reached: str, against: str = "", there: str = "", ratio: float | None = None) -> None:
        print(f"| {what} | {reached} | {against} | {there} | {'' if ratio is None else f'{ratio:.2f}'} |", flush=True)

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        copies = (folder / f"cache{i}.zarr" for i in count())

        def trials(texts: list[str] = captions) -> Trials:
            cache = next(copies)
            write_random_cache(cache, ([text] for text in texts), args.dim)
            return Trials(cache, args.lm, folder)

        seconds: dict[str, list[float]] = {}

        def timed(name: str, work: Callable[[], float]) -> float:
            seconds.setdefault(name, []).append(work())
            return seconds[name][-1]

        def median(name: str) -> float:
            return statistics.median(seconds[name])

        if "features" in parts:
            for _ in range(args.rounds):
                timed("features", lambda: features_s(trials(), len(captions)))
                timed("pass", lambda: bare_pass_s(args.lm, captions, args.dim))
            ours, bare = median("features"), median("pass")
            row("features of all captions, stored", f"{ours:.1f} s", "bare packed pass", f"{bare:.1f} s", ours / bare)
        if "head" in parts:
            width = LMTower.from_pretrained(str(args.lm), args.dim, context_length=CONTEXT).pooled_width
            many = [f"{text} {i}" for i in range(-(-HEAD_BATCH // len(captions))) for text in captions][:HEAD_BATCH]
            wide = trials(many)
            head = {"train_layers": 0, "warm_start": "none", "batch_size": HEAD_BATCH, "epochs": HEAD_STEPS}
            for _ in range(args.rounds):
                timed("head", lambda: wide.train(**head))
                timed("bare head", lambda: bare_head_s(HEAD_BATCH, width, args.dim))
            ours, bare = median("head"), median("bare head")
            pairs = [f"{HEAD_BATCH / each:,.0f} pairs/s" for each in (ours, bare)]
            row(f"head step, {width}→{args.dim}, B={HEAD_BATCH:,}", pairs[0], "bare loop", pairs[1], bare / ours)
        if "whole" in parts:
            lm = {"warm_start": "none", "batch_size": WHOLE_BATCH, "epochs": 1, "lr": 3e-4, "lm_lr": 5e-5}
            few = trials(captions[: WHOLE_BATCH * WHOLE_STEPS])
            for _ in range(args.rounds):
                timed("whole", lambda: few.train(**lm))
                timed("pruned", lambda: few.train(**lm, prune_vocab=True))
            whole, pruned = median("whole"), median("pruned")
            shown = f"{1e3 * whole:.0f} ms"
            row(f"pruned step, B={WHOLE_BATCH}", f"{1e3 * pruned:.0f} ms", "all tokens", shown, pruned / whole)
        if {"features", "head", "whole"} <= {*parts}:
            num = len(captions)
            frozen = median("features") + RECIPES["frozen"]["epochs"] * num / HEAD_BATCH * median("head")
            trained = RECIPES["lm"]["epochs"] * num / WHOLE_BATCH * median("whole")
            heads = frozen - median("features")
            row(
                "epochs of the head, features made",
                f"{heads:.1f} s",
                "whole model",
                f"{trained:.0f} s",
                heads / trained,
            )
            row("the same with its features", f"{frozen:.1f} s", "whole model", f"{trained:.0f} s", frozen / trained)
        if "micro" in parts:
            cache = next(copies)
            many = [f"{text} {i}" for i in range(-(-LARGE_BATCH // len(captions))) for text in captions]
            write_random_cache(cache, ([text] for text in many[:LARGE_BATCH]), args.dim)
            command = [sys.executable, __file__, args.lm, cache, "--large-step", folder]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found = json.loads(done.stdout.splitlines()[-1])
            what = f"whole model, B={LARGE_BATCH:,}, --micro-batch {MICRO_BATCH}"
            row(what, f"{found['step_s']:.0f} s a step", "peak memory", f"{found['peak'] / 2**30:.1f} GiB")


if __name__ == "__main__":
    main()
