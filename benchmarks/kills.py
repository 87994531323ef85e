"""Crash test of a shared caching pass: processes are killed at random moments, the cache must stay byte-identical.

Several shards make one pass over small images, or with `--dask` the workers of a Dask cluster and their driver. At
random moments one of these processes is killed (SIGKILL) and restarted, until `--kills` is reached; then the pass may
finish. All files must equal those of an undisturbed pass in one process.

    scripts/bench kills [--dask] [--kills 200] [--workers 2] [--pictures 6400] [--at s3://bucket/killed.zarr]
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path

import fsspec
import numpy as np
from clipglot.cache.location import Location, to_location
from clipglot.cache.read.cache import Cache
from clipglot.cache.read.verify import verify
from PIL import Image

if __name__ == "__main__":  # the decoding processes import this file too, and need no torch
    import torch
    from clipglot.demo.run import ENGLISH_CLIP
    from clipglot.encoders.image_tower import ImageTower
    from clipglot.jobs.cache import cache_images
    from clipglot.jobs.settings.cache import CacheSettings

CHUNK = 8  # images per chunk and per batch
SIDE = 32  # pixels


def draw(folder: Path, num: int) -> Path:
    """Write images of noise and their manifest."""
    noise = np.random.default_rng(0)
    lines = []
    for i in range(num):
        Image.fromarray(noise.integers(0, 255, (SIDE, SIDE, 3), np.uint8)).save(folder / f"{i}.png")
        lines.append(f'{{"image": "{i}.png", "text": "image {i}"}}\n')
    manifest = folder / "pairs.jsonl"
    manifest.write_text("".join(lines))
    return manifest


def start(run: Callable[[], None], messages: Path) -> int:
    """Fork a process from this one, which has already imported torch; returns its process id."""
    pid = os.fork()
    if pid:
        return pid
    os.setsid()
    for descriptor in (1, 2):
        os.dup2(os.open(messages, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    code = 1
    try:
        run()
        code = 0
    finally:
        if code:
            sys.excepthook(*sys.exc_info())
        os._exit(code)


def cache(source: Path, output: Location, slowed_s: float = 0.0, **more: str) -> None:
    """Run a pass."""
    slow_down(slowed_s)
    model = f"local-dir:{ENGLISH_CLIP}"
    sizes = {"batch_size": CHUNK, "chunk_rows": CHUNK, "num_workers": 1, "device": "cpu"}
    cache_images(CacheSettings(source=source, output=output, model=model, **sizes, **more))


def slow_down(seconds: float) -> None:
    """Have each batch take longer."""
    forward = ImageTower.forward

    def slowly(tower: ImageTower, x: "torch.Tensor") -> "torch.Tensor":
        time.sleep(seconds)
        return forward(tower, x)

    ImageTower.forward = slowly


def dask(kind: str, file: Path, slowed_s: float, *more: str) -> None:
    """Run a scheduler, which writes its address to a file, or a worker of it."""
    slow_down(slowed_s)
    os.environ["DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES"] = "1000"
    options = ["--scheduler-file", str(file), "--host", "127.0.0.1", "--dashboard-address", "127.0.0.1:0"]
    import_module(f"distributed.cli.dask_{kind}").main([*options, "--no-dashboard", *more])


def contents(location: Location) -> dict[str, bytes]:
    """Every file or object of a cache, by name."""
    files, root = fsspec.core.url_to_fs(str(location))
    return {name.removeprefix(f"{root}/"): files.cat_file(name) for name in files.find(root)}


def main() -> None:
    """Run both passes and compare their files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dask", action="store_true", help="workers of a Dask cluster, and their driver, not shards")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--pictures", dest="images", type=int, default=6400)
    parser.add_argument("--at", type=to_location, help="output of the killed pass (default: a temporary folder)")
    parser.add_argument("--between", type=float, default=0.5, help="mean seconds between kills")
    parser.add_argument("--slowed", type=float, default=0.15, help="seconds added to each batch")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    moments = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "images").mkdir()
        source = draw(root / "images", args.images)
        alone, killed, messages = root / "alone.zarr", args.at or root / "killed.zarr", root / "messages"
        _, code = os.waitpid(start(partial(cache, source, alone), messages), 0)
        if code:
            raise SystemExit(messages.read_text())
        started, num_kills, scheduler = time.perf_counter(), 0, 0
        numbers, file = range(args.workers), root / "scheduler.json"
        if args.dask:
            scheduler = start(partial(dask, "scheduler", file, 0.0, "--port", "0"), messages)
            while not file.exists():
                time.sleep(0.1)
            one_thread = ("--nthreads", "1", "--no-nanny", "--local-directory", folder)
            processes = {f"worker {i}": partial(dask, "worker", file, args.slowed, *one_thread) for i in numbers}
            processes["driver"] = partial(cache, source, killed, scheduler=str(file))
        else:
            shards = [f"{i}/{args.workers}" for i in numbers]
            processes = {shard: partial(cache, source, killed, args.slowed, shard=shard) for shard in shards}
        running = {start(run, messages): name for name, run in processes.items()}
        while any(not name.startswith("worker") for name in running.values()):
            if num_kills < args.kills:
                time.sleep(moments.uniform(0, 2 * args.between))
                victim = moments.choice(sorted(running))
                os.kill(victim, signal.SIGKILL)
            pid, status = os.waitpid(victim if num_kills < args.kills else -1, 0)
            name = running.pop(pid)
            if status == signal.SIGKILL:
                num_kills += 1
                running[start(processes[name], messages)] = name
            elif status:
                raise SystemExit(f"{name} ended with status {status}:\n{messages.read_text()}")
        for pid in [*running, *[scheduler] * args.dask]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wall_s = time.perf_counter() - started
        faults = [*map(str, verify(Cache(killed)))]
        ours, theirs = contents(killed), contents(alone)
        different = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    print("| processes | chunks | SIGKILLs | wall s | files | different files | faults |")
    print("|---|---|---|---|---|---|---|")
    chunks = -(-args.images // CHUNK)
    print(
        f"| {args.workers} | {chunks} | {num_kills} | {wall_s:.0f} | {len(ours)} | {len(different)} | {len(faults)} |"
    )
    if different or faults:
        raise SystemExit("\n".join([*different, *map(str, faults)]))
    if num_kills < args.kills:
        raise SystemExit(f"the pass finished after {num_kills} kills: pass more --pictures")


if __name__ == "__main__":
    main()
