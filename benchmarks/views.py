"""Effect of stored views: recall on held-out images of runs on one view per image and on several.

    scripts/bench views --train train.zarr --val val.zarr --work /tmp/views [--seeds 0 1] [--views 1 all]

Prints a Markdown table. The runs differ only in `--views` and seed; val is used once per run, at its end.
"""

import argparse
import shlex
import subprocess
from pathlib import Path

import numpy as np
from clipglot.cache.read.cache import Cache
from clipglot.distill.data.pairs import load_validation_data
from clipglot.distill.training.final import load_final
from clipglot.distill.training.run_folder import RunFolder
from clipglot.distill.training.validate import validate
from clipglot.encoders.tokenizer import CaptionTokenizer

TRAIN = "--width 128 --layers 2 --heads 2 --context-length 48 --vocab-size 4000 --batch-size 256 --lr 1e-3 --workers 1"


def main() -> None:
    """Train, validate and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, required=True, help="cache with views")
    parser.add_argument("--val", type=Path, required=True, help="cache of held-out images")
    parser.add_argument("--work", type=Path, required=True, help="folder for the runs, without earlier ones")
    parser.add_argument("--views", nargs="+", default=["1", "all"], help="values of --views to compare")
    parser.add_argument("--epochs", nargs="+", type=int, default=[30, 90], help="lengths of the runs")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1], help="seeds, over which recalls are averaged")
    parser.add_argument("--settings", default=TRAIN, help="settings of `clipglot train`")
    args = parser.parse_args()
    cache = Cache(args.train)
    title = f"{len(cache):,} images, {cache.info.num_views} stored views"
    print(f"| {title} | epochs | final loss | R@1 | R@5 | R@10 | R@10 of each seed |")
    print("|---|---|---|---|---|---|---|")
    for epochs in args.epochs:
        for views in args.views:
            results = []
            for seed in args.seeds:
                run = args.work / f"epochs-{epochs}-views-{views}-seed-{seed}"
                options = f"{args.settings} --epochs {epochs} --views {views} --seed {seed}"
                command = ["clipglot", "train", str(args.train), "-o", str(run), *shlex.split(options)]
                subprocess.run(command, check=True, capture_output=True)
                results.append(measure(RunFolder(run), args.val))
            loss, *recalls = np.mean(results, axis=0)
            shown = " | ".join(f"{recall:.1%}" for recall in recalls)
            each = ", ".join(f"{result[-1]:.1%}" for result in results)
            print(f"| --views {views} | {epochs} | {loss:.2f} | {shown} | {each} |", flush=True)


def measure(run: RunFolder, val: Path) -> tuple[float, float, float, float]:
    """Final training loss of a run, averaged over its last lines, and recall at 1, 5 and 10 on val."""
    tower, tokenizer = load_final(run).tower, CaptionTokenizer.load(run.tokenizer)
    length = tower.config.context_length
    metrics = validate(tower, load_validation_data(Cache(val), tokenizer, length, run.tokens / "val", workers=1))
    losses = [line["loss"] for line in run.metrics() if line["kind"] == "step"]
    return float(np.mean(losses[-3:])), metrics["r_at_1"], metrics["r_at_5"], metrics["r_at_10"]


if __name__ == "__main__":
    main()
