"""Speed of a text tower step on the CPU by batch layout: padded as in open_clip, trimmed, packed rows, by length.

    scripts/bench packing [--rounds 3] [--batch-size 64] [--layers 12] [--precisions fp32 bf16]

The step is forward and backward of ViT-B/32's text tower, without an optimizer. The layouts alternate on the same
captions; their features are compared before they are timed. Prints a Markdown table: pairs/s of the padded step and
the speed-up of the others, median of all rounds with minimum and maximum. On a processor without bf16 arithmetic a bf16
step takes minutes.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import torch
from clipglot.encoders.text_scratch import Attention, ScratchConfig, ScratchTower
from clipglot.jobs.bench_data import QUERIES, draw_lengths
from torch import Tensor

VOCAB_SIZE, BOS, EOS, CONTEXT = 49_408, 49_406, 49_407, 77
# Words per caption (mean, standard deviation; log-normal) and tokens per word. BOS and EOS are added.
CAPTIONS = {
    "search queries": QUERIES,
    # MS COCO: sentences of 10.5 common words on average, one token each: 10.5 + 2 = 12.5.
    "COCO": (10.5, 2.4, 1.0),
    # Between CC3M (10.3 ± 4.5 words) and CC12M (20.2 ± 16.3; arXiv 2102.08981, table 2): 13 × 1.25 + 2 = 18, cut at 77.
    "alt text": (13.0, 13.0, 1.25),
}
Step = Callable[[ScratchTower, list[list[int]]], Tensor]


def draw(kind: str, num: int, rng: np.random.Generator) -> list[list[int]]:
    """Captions of random tokens with the lengths of a kind of caption."""
    mean, deviation, tokens_a_word = CAPTIONS[kind]
    lengths = draw_lengths(num, rng, mean=mean, deviation=deviation, tokens_a_word=tokens_a_word, most=CONTEXT)
    return [[BOS, *rng.integers(0, BOS, length - 2).tolist(), EOS] for length in lengths]


def pad(captions: list[list[int]], length: int) -> Tensor:
    """Ids `[B, length]`, padded with zeros."""
    return torch.tensor([caption + [0] * (length - len(caption)) for caption in captions])


def padded(tower: ScratchTower, captions: list[list[int]]) -> Tensor:
    """open_clip's own forward: the peer."""
    features: Tensor = tower.text(pad(captions, CONTEXT))
    return features


def trimmed(tower: ScratchTower, captions: list[list[int]]) -> Tensor:
    """open_clip's forward, padded only to the longest caption of the batch."""
    text, lengths = tower.text, torch.tensor([len(caption) for caption in captions])
    longest = int(lengths.max())
    x = text.token_embedding(pad(captions, longest)) + text.positional_embedding[:longest]
    x = text.ln_final(text.transformer(x, attn_mask=text.attn_mask[:longest, :longest]))
    features: Tensor = x[torch.arange(len(captions)), lengths - 1] @ text.text_projection
    return features


def packed(attention: Attention) -> Step:
    """Forward of clipglot, packing included."""

    def step(tower: ScratchTower, captions: list[list[int]]) -> Tensor:
        tower.attention = attention
        return tower.encode(captions)

    return step


STEPS: dict[str, Step] = {
    "padded": padded,
    "trimmed": trimmed,
    "in rows": packed("rows"),
    "by length": packed("lengths"),
}


def step_s(step: Step, tower: ScratchTower, captions: list[list[int]], weights: Tensor, precision: str) -> float:
    """Seconds of forward and backward."""
    tower.zero_grad(set_to_none=True)
    started = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else nullcontext():
        features = step(tower, captions)
    (features.float() * weights).sum().backward()
    return time.perf_counter() - started


@torch.inference_mode()
def require_same_features(tower: ScratchTower) -> None:
    """Raise unless every layout gives the features of open_clip."""
    captions = draw("alt text", 8, np.random.default_rng(0))
    for step in STEPS.values():
        torch.testing.assert_close(step(tower, captions), padded(tower, captions), rtol=1e-4, atol=1e-4)


def main() -> None:
    """Measure every kind of caption in each precision and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--precisions", nargs="+", choices=("fp32", "bf16"), default=["fp32"])
    args = parser.parse_args()
    torch.manual_seed(0)
    config = ScratchConfig(
        embed_dim=512,
        vocab_size=VOCAB_SIZE,
        context_length=CONTEXT,
        width=512,
        heads=8,
        layers=args.layers,
        pad_id=0,
        eos_id=EOS,
        quick_gelu=False,
    )
    tower = ScratchTower(config)
    require_same_features(tower)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {args.layers} layers, B={args.batch_size}\n")
    print("| captions | tokens | precision | padded, pairs/s | trimmed, × | in rows, × | by length, × |")
    print("|---|---|---|---|---|---|---|")
    weights = torch.randn(args.batch_size, config.embed_dim)
    for kind in CAPTIONS:
        for precision in args.precisions:
            rng = np.random.default_rng(0)
            warm_up = draw(kind, args.batch_size, rng)
            for name, step in STEPS.items():
                if name != "padded":  # always the same shapes, and slow
                    step_s(step, tower, warm_up, weights, precision)
            times: dict[str, list[float]] = {name: [] for name in STEPS}
            tokens = []
            for _ in range(args.rounds):
                captions = draw(kind, args.batch_size, rng)
                tokens += map(len, captions)
                for name, step in STEPS.items():
                    times[name].append(step_s(step, tower, captions, weights, precision))
            ratios = [sorted(np.divide(times["padded"], times[name])) for name in STEPS if name != "padded"]
            cells = [f"{statistics.median(r):.1f} ({r[0]:.1f} to {r[-1]:.1f})" for r in ratios]
            speed = args.batch_size / statistics.median(times["padded"])
            row = [kind, f"{np.mean(tokens):.1f}", precision, f"{speed:.1f}", *cells]
            print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
