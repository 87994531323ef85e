"""Throughput of `clipglot serve` under load against bare forward passes, and the time to its first answer.

    scripts/bench search_server [--clients 64] [--seconds 60] [--width 512 --layers 12]

A CLIP with random weights, whose text tower has ViT-B/32's shape, and a cache of drawn images that its small image
tower made. Clients ask for texts that nobody asked for before, each over one connection, in a process of their own;
near-duplicates are not folded, since a tower with random weights finds all images alike;
the ceiling is forward passes of as many texts as there are clients, in this process, alone. Time to the first answer:
from the start of the command until a query is answered, beside the time in which Python imports torch and open_clip;
the same of an export in ONNX.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from http.client import HTTPConnection
from itertools import count
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import urlencode

import numpy as np
import open_clip
import torch
from clipglot.encoders.merged_clip import load_merged
from clipglot.jobs.cache import cache_images
from clipglot.jobs.export import export_run
from clipglot.jobs.settings.cache import CacheSettings
from clipglot.jobs.settings.export import ExportSettings
from PIL import Image

WORDS = ["red", "green", "dog", "cat", "tree", "house", "car", "on", "under", "beside", "old", "new", "two", "large"]
VISION = {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8}


def new_texts(seed: int) -> Iterator[str]:
    """Search queries that all differ."""
    rng = random.Random(seed)
    for i in count():
        yield f"{' '.join(rng.choices(WORDS, k=rng.randint(3, 7)))} {seed} {i}"


def make(folder: Path, width: int, layers: int, num_images: int) -> tuple[Path, Path]:
    """A CLIP with random weights and a cache of its image tower."""
    torch.manual_seed(0)
    text = {"context_length": 77, "vocab_size": 49408, "width": width, "heads": width // 64, "layers": layers}
    config = {"embed_dim": width, "vision_cfg": VISION, "text_cfg": text}
    model = open_clip.CLIP(**config)
    (clip := folder / "clip").mkdir()
    (clip / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}})
    )
    from safetensors.torch import save_file

    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, clip / "open_clip_model.safetensors")
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    lines = []
    for i in range(num_images):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / "images" / f"{i}.png")
        lines.append(json.dumps({"image": f"images/{i}.png", "text": [f"image {i}"]}))
    (folder / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    settings = CacheSettings(
        source=folder / "pairs.jsonl", output=folder / "cache.zarr", model=f"local-dir:{clip}", num_workers=1
    )
    cache_images(settings)
    return clip, folder / "cache.zarr"


def start(clip: Path, cache: Path, folder: Path, *options: str) -> tuple[subprocess.Popen[str], int, float]:
    """A server, its port, and the seconds until it answered a query."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "clipglot", "serve", str(clip), str(cache), "--port", "0", "--json", *options]
    process = subprocess.Popen(
        [*command, "--thumbnail-folder", str(folder / "thumbnails")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    printed = ""
    while not printed.rstrip().endswith("}"):
        printed += (line := process.stdout.readline())
        if not line:
            raise SystemExit("the server did not start")
    port = int(json.loads(printed)["url"].rsplit(":", 1)[1].strip("/"))
    ask(HTTPConnection("127.0.0.1", port), "a first query")
    return process, port, time.perf_counter() - started


def ask(connection: HTTPConnection, text: str) -> None:
    """Ask for a text and read the answer."""
    connection.request("GET", f"/search?{urlencode({'q': text, 'limit': 20, 'fold': 'false'})}")
    answer = connection.getresponse()
    content = answer.read()
    if answer.status != 200:
        raise SystemExit(f"{answer.status}: {content[:200]!r}")


def load(port: int, clients: int, seconds: float, seed: int) -> list[float]:
    """Latencies of all answers within some seconds."""
    until, latencies = time.perf_counter() + seconds, list[float]()

    def client(number: int) -> None:
        connection = HTTPConnection("127.0.0.1", port)
        for text in new_texts(seed * 1000 + number):
            begun = time.perf_counter()
            if begun > until:
                return
            ask(connection, text)
            latencies.append(time.perf_counter() - begun)

    threads = [Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return latencies


def forwards(clip: Path, batch: int, seconds: float) -> float:
    """Texts a second of forward passes alone."""
    model, done, texts = load_merged(clip), 0, new_texts(1)
    model.encode_texts([next(texts) for _ in range(batch)])
    started = time.perf_counter()
    while (spent := time.perf_counter() - started) < seconds:
        model.encode_texts([next(texts) for _ in range(batch)])
        done += batch
    return done / spent


def import_s(*modules: str) -> float:
    """Seconds in which a new Python imports modules."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", f"import {', '.join(modules)}"], check=True)
    return time.perf_counter() - started


def stop(process: subprocess.Popen[Any]) -> None:
    """End a server that this script started."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(20)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60.0, help="of load; a third of it for the ceiling")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--starts", type=int, default=3)
    given = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clip, cache = make(folder, given.width, given.layers, given.images)
        onnx = folder / "onnx"
        export_run(ExportSettings(run=clip, output=onnx, format=("onnx",)))
        ceiling = forwards(clip, given.clients, given.seconds / 3)
        process, port, _ = start(clip, cache, folder)
        try:
            with ProcessPoolExecutor(1) as clients:
                latencies = clients.submit(load, port, given.clients, given.seconds, 2).result()
        finally:
            stop(process)
        starts: dict[str, list[float]] = {"torch": [], "imports": [], "onnx": []}
        for _ in range(given.starts):
            for kind, model, options in (("torch", clip, ()), ("onnx", onnx, ("--onnx",))):
                process, _, seconds = start(model, cache, folder, *options)
                stop(process)
                starts[kind].append(seconds)
            starts["imports"].append(import_s("torch", "open_clip"))
    rate = len(latencies) / given.seconds
    best = {kind: min(seconds) for kind, seconds in starts.items()}
    print("| what | measured |\n|---|---|")
    print(f"| clients, seconds, answers | {given.clients}, {given.seconds:g}, {len(latencies):,} |")
    print(f"| answers a second | {rate:,.0f} |")
    print(f"| forward passes of {given.clients} texts alone, texts a second | {ceiling:,.0f} |")
    print(f"| ratio | {rate / ceiling:.2f} |")
    print(f"| latency, median and p95 | {statistics.median(latencies):.3f} s, {np.quantile(latencies, 0.95):.3f} s |")
    print(f"| start to first answer | {best['torch']:.2f} s |")
    print(f"| … beyond importing torch and open_clip | {best['torch'] - best['imports']:.2f} s |")
    print(f"| start to first answer, ONNX | {best['onnx']:.2f} s |")


if __name__ == "__main__":
    main()
