"""Texts per second of `clip.encode_text` against open_clip and sentence-transformers, on the same tower.

The tower is the text tower of ViT-B/32 with random weights and open_clip's tokenizer: 12 layers, width 512, context 77.
open_clip pads every text to 77 tokens; sentence-transformers pads to the longest of a batch, sorted by length. All
three give the same embeddings, which is checked. The captions are a random sample, split among the rounds; in each
round the three take the same ones in turn, open_clip, which is slow, fewer of them. Rates are per second.
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import clipglot
import numpy as np
import open_clip
import torch
from clipglot.jobs.export import export_run
from clipglot.jobs.settings.export import ExportSettings
from safetensors.torch import save_file

VISION = {"image_size": 32, "layers": 1, "width": 64, "head_width": 32, "patch_size": 16}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12}


def write_clip(folder: Path) -> Path:
    """A folder with the tower."""
    torch.manual_seed(0)
    config = {"embed_dim": 512, "vision_cfg": VISION, "text_cfg": TEXT}
    save_file(open_clip.CLIP(**config).state_dict(), folder / "open_clip_model.safetensors")
    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "shortest"}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    return folder


def by_open_clip(folder: Path, batch_size: int) -> Callable[[list[str]], Any]:
    """Texts as open_clip's users embed them."""
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    model.eval()

    @torch.inference_mode()
    def encode(texts: list[str]) -> Any:
        blocks = [texts[i : i + batch_size] for i in range(0, len(texts), batch_size)]
        return torch.cat([model.encode_text(tokenizer(block), normalize=True) for block in blocks]).numpy()

    return encode


def by_sentence_transformers(folder: Path, batch_size: int) -> Callable[[list[str]], Any]:
    """Texts as users of sentence-transformers embed them."""
    from sentence_transformers import SentenceTransformer

    export_run(ExportSettings(run=folder, output=folder / "st", format=("sentence-transformers",)))
    model = SentenceTransformer(str(folder / "st"), device="cpu")
    return lambda texts: model.encode(texts, batch_size=batch_size, normalize_embeddings=True, show_progress_bar=False)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=Path, required=True, help="JSONL with captions")
    parser.add_argument("--text-field", default="en")
    parser.add_argument("--num", type=int, default=10_000)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--num-open-clip", type=int, default=1000, help="captions of these that open_clip takes")
    arguments = parser.parse_args()
    texts: list[str] = []
    for line in arguments.texts.read_text(encoding="utf-8").splitlines():
        given = json.loads(line)[arguments.text_field]
        texts += given if isinstance(given, list) else [given]
    texts = random.Random(0).sample(texts, min(arguments.num, len(texts)))
    with tempfile.TemporaryDirectory() as name:
        folder = write_clip(Path(name))
        clip = clipglot.load(folder, device="cpu")
        ways: dict[str, Callable[[list[str]], Any]] = {
            "clipglot": lambda given: clip.encode_text(given, batch_size=arguments.batch_size, progress=False),
            "sentence-transformers": by_sentence_transformers(folder, arguments.batch_size),
            "open_clip": by_open_clip(folder, arguments.batch_size),
        }
        expected = ways["open_clip"](texts[:200])
        for way, encode in ways.items():
            difference = np.abs(np.asarray(encode(texts[:200])) - expected).max()
            assert difference < 1e-5, (way, difference)
        rates: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}  # a second, and a second of the CPU
        for part in (texts[i :: arguments.rounds] for i in range(arguments.rounds)):
            for way, encode in ways.items():
                given = part if way != "open_clip" else part[: max(1, arguments.num_open_clip // arguments.rounds)]
                started, cpu_started = time.perf_counter(), time.process_time()
                encode(given)
                elapsed = time.perf_counter() - started, time.process_time() - cpu_started
                rates[way].append((len(given) / elapsed[0], len(given) / elapsed[1]))
                print(f"{way}: {rates[way][-1][0]:,.1f} texts/s", file=sys.stderr, flush=True)
    machine = f"torch {torch.__version__}, {torch.get_num_threads()} threads"
    print(f"{machine}; {len(texts):,} texts in {arguments.rounds} rounds, batches of {arguments.batch_size}\n")
    print("| way | texts/s, median | spread | clipglot is, of each round | by CPU time |\n|---|---|---|---|---|")
    for way, each in rates.items():
        speeds = [rate for rate, _ in each]
        times = [
            [own[kind] / other[kind] for own, other in zip(rates["clipglot"], each, strict=True)] for kind in (0, 1)
        ]
        faster = [f"{statistics.median(one):.2f}× ({min(one):.2f} to {max(one):.2f})" for one in times]
        print(
            f"| {way} | {statistics.median(speeds):,.1f} | {min(speeds):,.1f} to {max(speeds):,.1f} | "
            f"{faster[0]} as fast | {faster[1]} |"
        )


if __name__ == "__main__":
    main()
