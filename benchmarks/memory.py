"""Speed of towers on the CPU with malloc returning memory to the system after each batch, and keeping it.

    scripts/bench memory [--towers ViT-B-32 …] [--rounds 3] [--batches 6] [--batch-size 64]

The setting is `encoders/malloc.py`. Image towers embed batches of random pixels; the text tower of ViT-B/32 takes
training steps on captions as long as search queries. Each measurement is a process of its own; the two kinds alternate.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

TOWERS = ("deit_tiny_patch16_224", "ViT-B-32", "ViT-B-16", "text")


def batch_of(tower: str, size: int) -> Callable[[], object]:
    """Function that computes one batch with a tower of random weights."""
    import numpy as np
    import open_clip
    import timm
    import torch
    from clipglot.encoders.text_scratch import ScratchConfig, ScratchTower

    torch.manual_seed(0)
    if tower == "text":
        options = {"pad_id": 0, "eos_id": 2, "quick_gelu": False, "vocab_size": 49408, "context_length": 77}
        text = ScratchTower(ScratchConfig(embed_dim=512, width=512, heads=8, layers=12, **options))
        optimizer, rng = torch.optim.AdamW(text.parameters(), fused=True), np.random.default_rng(0)
        captions = [[1, *rng.integers(3, 49408, length).tolist(), 2] for length in rng.integers(2, 12, size)]

        def step() -> None:
            optimizer.zero_grad()
            text.encode(captions).square().mean().backward()
            optimizer.step()

        return step
    visual = timm.create_model(tower) if tower in timm.list_models() else open_clip.create_model(tower).visual
    pixels = torch.randn(size, 3, 224, 224)
    return torch.inference_mode()(lambda: visual.eval()(pixels))


def measure(tower: str, size: int, batches: int, kept: bool) -> dict[str, float]:
    """Rows per second (median of the batches) and page faults per row."""
    import torch
    from clipglot.encoders.malloc import set_malloc_thresholds

    if kept:
        assert set_malloc_thresholds(torch.device("cpu"))
    batch, times = batch_of(tower, size), []
    for _ in range(3):
        batch()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(batches):
        started = time.perf_counter()
        batch()
        times.append(time.perf_counter() - started)
    pages = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    return {"rows_per_s": size / statistics.median(times), "pages": pages / batches / size}


def main() -> None:
    """Measure each tower in both modes and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--towers", nargs="+", default=TOWERS)
    parser.add_argument("--one", nargs=2, metavar=("TOWER", "KEPT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one[0], args.batch_size, args.batches, args.one[1] == "True")))
        return
    print("| tower | given back, rows/s | kept, rows/s | kept / given back | pages a row, given back | kept |")
    print("|---|---|---|---|---|---|")
    for tower in args.towers:
        results: dict[bool, list[dict[str, float]]] = {False: [], True: []}
        for _ in range(args.rounds):
            for kept, values in results.items():
                command = [sys.executable, __file__, "--one", tower, str(kept), "--batches", str(args.batches)]
                command += ["--batch-size", str(args.batch_size)]
                values.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout))
        speeds = {kept: [value["rows_per_s"] for value in values] for kept, values in results.items()}
        ratios = [now / before for before, now in zip(speeds[False], speeds[True], strict=True)]
        pages = [f"{statistics.median(value['pages'] for value in results[kept]):,.0f}" for kept in (False, True)]
        medians = [f"{statistics.median(speeds[kept]):.1f}" for kept in (False, True)]
        ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} .. {max(ratios):.2f})"
        print(f"| {tower} | {' | '.join(medians)} | {ratio} | {' | '.join(pages)} |", flush=True)


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    main()
