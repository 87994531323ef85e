"""Peak host memory of one step at a batch of 32,768, by the ViT-B/32 text tower on the CPU.

    scripts/bench big_batch

Gradient caching embeds the batch twice, a micro-batch at a time, and the loss walks over its logits in blocks. A plain
step would hold the activations of 260,000 tokens and several copies of a 32,768 x 32,768 matrix of logits (4.3 GB).
"""

import argparse
import resource
import time
from pathlib import Path

import numpy as np
import torch
from clipglot.distill.data.batch import Batch
from clipglot.distill.data.targets import Targets
from clipglot.distill.train_settings import TrainSettings
from clipglot.distill.training.student import build_student
from clipglot.encoders.text_scratch import ScratchConfig, ScratchTower

CPU = torch.device("cpu")
DIM, VOCABULARY = 512, 49_408


def peak_gb() -> float:
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def main() -> None:
    """Take one step and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=32_768)
    parser.add_argument("--micro-batch", type=int, default=512)
    parser.add_argument("--layers", type=int, default=12)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    # Search queries: BOS, EOS and about six tokens between them.
    lengths = 2 + np.minimum(1 + rng.poisson(5, options.batch_size), 75)
    captions = rng.integers(3, VOCABULARY, lengths.sum())
    captions[np.cumsum(lengths) - 1] = 2

    config = ScratchConfig(
        embed_dim=DIM,
        vocab_size=VOCABULARY,
        context_length=77,
        width=512,
        heads=8,
        layers=options.layers,
        pad_id=0,
        eos_id=2,
        quick_gelu=False,
    )
    settings = TrainSettings(cache=Path("none"), output=Path("none"), batch_size=options.batch_size)
    student = build_student(ScratchTower(config), settings, CPU, "fp32")
    image_emb = torch.nn.functional.normalize(torch.randn(options.batch_size, DIM), dim=-1)
    edges = np.concatenate([[0], np.cumsum(lengths)])
    packed = [
        student.tower.pack(captions[edges[i] : edges[i + len(part)]], part)
        for i in range(0, options.batch_size, options.micro_batch)
        for part in [lengths[i : i + options.micro_batch]]
    ]
    before, started = peak_gb(), time.perf_counter()
    targets = Targets(image_emb=image_emb, own=slice(0, options.batch_size))
    result = student.step(Batch(packed=packed, targets=targets), 1e-4)
    seconds = time.perf_counter() - started
    print("| batch | micro-batch | tokens | loss | peak before, GB | peak of the step, GB | s |")
    print("|---|---|---|---|---|---|---|")
    print(
        f"| {options.batch_size:,} | {options.micro_batch} | {lengths.sum():,} | {result.loss.item():.3f} "
        f"| {before:.1f} | {peak_gb():.1f} | {seconds:.0f} |"
    )


if __name__ == "__main__":
    main()
