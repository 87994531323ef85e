"""Throughput of `clipglot cache` against `clip-retrieval inference`: same images, tower, weights and cores.

    scripts/bench clip_retrieval --data DIR --peer VENV/bin/clip-retrieval [--num 1500] [--few 64] [--rounds 3]

clip-retrieval needs an environment of its own: `pip install clip-retrieval 'setuptools<81'` (2.45.0 fails under newer
setuptools, which lack pkg_resources). Both run as commands, in turn, on ViT-B/32 with the same file of random weights.
Commands take long to start, so each also runs on a few images; the speed is computed over the additional ones.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import open_clip
from clipglot.cache.read.cache import Cache
from clipglot.distill.cpu import num_usable_cores
from numpy.typing import NDArray
from safetensors.torch import save_file

Run = Callable[[Path, Path, Path, int, int], NDArray[np.float64]]


def ours(images: Path, output: Path, weights: Path, batch_size: int, workers: int) -> NDArray[np.float64]:
    """Cache the images; returns the embeddings."""
    manifest = images.with_suffix(".jsonl")
    rows = [{"image": path.name, "text": "an image"} for path in sorted(images.iterdir())]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["-m", "clipglot", "cache", manifest, "-o", output, "--image-root", images, "--num-workers", workers]
    tower = ["--model", "ViT-B-32", "--pretrained", weights, "--batch-size", batch_size]
    run_quietly([sys.executable, *command, *tower])
    return Cache(output).image_emb().astype(np.float64)


def theirs(images: Path, output: Path, weights: Path, batch_size: int, workers: int, peer: Path) -> NDArray[np.float64]:
    """The same by clip-retrieval."""
    options = {
        "input_dataset": images,
        "output_folder": output,
        "input_format": "files",
        "enable_text": False,
        "enable_metadata": False,
        "enable_wandb": False,
        "use_jit": False,
        "cache_path": None,
        "clip_model": f"open_clip:ViT-B-32/{weights}",
        "batch_size": batch_size,
        "num_prepro_workers": workers,
    }
    run_quietly([peer, "inference", *(part for name, value in options.items() for part in (f"--{name}", value))])
    files = sorted((output / "img_emb").glob("*.npy"))
    return np.concatenate([np.load(file) for file in files]).astype(np.float64)


def run_quietly(command: list[object]) -> None:
    """Run a command; show its output only if it fails."""
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise SystemExit(f"{command[0]} ended with {done.returncode}:\n{done.stdout[-2000:]}")


def copy_images(folder: Path, paths: list[Path]) -> Path:
    """Copy images to a new folder."""
    folder.mkdir()
    for path in paths:
        shutil.copy(path, folder)
    return folder


def main() -> None:
    """Measure both in turns and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with images/")
    parser.add_argument("--peer", type=Path, required=True, help="clip-retrieval's command")
    parser.add_argument("--num", type=int, default=1500, help="number of images, the first by name")
    parser.add_argument("--few", type=int, default=64, help="number of images of the runs that measure start-up")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=64)
    args = parser.parse_args()
    paths = sorted((args.data / "images").iterdir())[: args.num]
    cores = num_usable_cores()
    seconds: dict[tuple[str, int], list[float]] = {}
    runs: dict[str, Run] = {"clipglot": ours, "clip-retrieval": partial(theirs, peer=args.peer)}
    with tempfile.TemporaryDirectory(prefix="clipglot-peer-") as name:
        folder = Path(name)
        weights = folder / "vit_b_32.safetensors"
        save_file(open_clip.create_model("ViT-B-32").state_dict(), weights)
        data = {num: copy_images(folder / f"images_{num}", paths[:num]) for num in (args.few, args.num)}
        for turn in range(args.rounds):
            for num in (args.few, args.num):
                emb = {}
                for who, run in runs.items():
                    started = time.perf_counter()
                    emb[who] = run(data[num], folder / f"{who}_{num}_{turn}", weights, args.batch_size, cores)
                    seconds.setdefault((who, num), []).append(time.perf_counter() - started)
                cosine = (emb["clipglot"] * emb["clip-retrieval"]).sum(1)
                assert cosine.min() > 0.99, cosine.min()
    print(f"{cores} cores, {args.num:,} and {args.few} images, batches of {args.batch_size}, {args.rounds} rounds\n")
    print("| command | all images, s | few images, s | images/s of the additional ones | clipglot's / this |")
    print("|---|---|---|---|---|")
    speeds = {
        who: [
            (args.num - args.few) / (all_s - few_s)
            for all_s, few_s in zip(seconds[who, args.num], seconds[who, args.few], strict=True)
        ]
        for who in runs
    }
    for who, values in speeds.items():
        ratios = [a / b for a, b in zip(speeds["clipglot"], values, strict=True)]
        cells = [
            f"{statistics.median(seconds[who, args.num]):.1f}",
            f"{statistics.median(seconds[who, args.few]):.1f}",
            f"{statistics.median(values):.1f}",
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} .. {max(ratios):.2f})",
        ]
        print(f"| {who} | {' | '.join(cells)} |")


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    main()
