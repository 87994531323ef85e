"""Speed of the whole training step on the CPU, against the bare packed tower step on the same tokens.

    scripts/bench step [--steps 15] [--batch-size 64] [--layers 12]

ViT-B/32's text tower in float32 on captions as long as search queries. The step is that of `train`: loading thread,
tower, loss, clipping, AdamW. The bare step is forward, backward and AdamW. They alternate. Prints a Markdown table: the
ratio of the medians, and the minimum and maximum over rounds.
"""

import argparse

from clipglot.jobs.bench import bench
from clipglot.jobs.settings.bench import BenchSettings


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--layers", type=int, default=12)
    args = parser.parse_args()
    report = bench(
        BenchSettings(batch_size=args.batch_size, layers=args.layers, steps=args.steps, precision="fp32", device="cpu")
    )
    print(
        f"{report.machine}, torch {report.torch}, {report.threads} threads, {report.precision}; {args.layers} layers, "
        f"{report.num_parameters / 1e6:.1f} M parameters; B={report.batch_size}, "
        f"{report.tokens_per_caption:.1f} tokens a caption; {args.steps} steps each\n"
    )
    print("| what | reached | against | there | ratio | lowest .. highest |")
    print("|---|---|---|---|---|---|")
    for measure in report.measures:
        reached, there = (f"{value:.4g} {measure.unit}" for value in (measure.value, measure.reference))
        lowest, highest = measure.spread
        ratios = f"{measure.ratio:.3g} | {lowest:.3g} .. {highest:.3g}"
        print(f"| {measure.what} | {reached} | {measure.against} | {there} | {ratios} |")


if __name__ == "__main__":
    main()
