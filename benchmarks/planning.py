"""Speed of planning a JSON lines manifest in one thread, against only parsing its lines.

    scripts/bench planning [--rows 1000000] [--lines-per-picture 1] [--folder /tmp]

Each run is a process of its own, so that its peak of memory is its own. The manifest is in the page cache.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
from clipglot.cache.format import CacheInfo, EncoderInfo, SourceInfo
from clipglot.cache.sources.source import RowBatch
from clipglot.cache.sources.table import TableSource
from clipglot.cache.write import row_writer as columns
from clipglot.cache.write.plan import plan_cache

SENTENCE = (
    "красный кот сидит на окне старого дома и смотрит на дождь a photo of the cat on an old table 猫が眠る 一只猫 睡觉"
)
TOWER = EncoderInfo(
    model="none", pretrained=None, weights_sha256="0", preprocess={}, dim=512, precision="fp32", quick_gelu=False
)


def main() -> None:
    """Write a manifest, plan it and read it in turn; print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument(
        "--lines-per-picture", type=int, default=1, help="lines of each image, far apart; 1: none to merge"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the files go, on the disk to measure")
    parser.add_argument("--child", choices=("plan", "read"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps((plan if args.child == "plan" else read)(args.folder)))
        return
    print(
        f"{args.rows:,} rows, {args.lines_per_picture} per image; {args.rounds} rounds; pyarrow {pyarrow.__version__}"
    )
    print("\n| round | rows/s | to the ceiling | parse | digest | write | merge | peak MB |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        write_manifest(Path(folder) / "m.jsonl", args.rows, args.lines_per_picture)
        for i in range(args.rounds):
            ceiling, planned = in_child("read", folder)["cpu_s"], in_child("plan", folder)
            shares = " | ".join(
                f"{planned[stage] / planned['wall_s']:.0%}" for stage in ("parse", "digest", "write", "merge")
            )
            rate = args.rows / max(planned["wall_s"], planned["cpu_s"])
            print(
                f"| {i + 1} | {rate:,.0f} | {ceiling / planned['cpu_s']:.2f} | {shares} | {planned['peak_mb']:,.0f} |"
            )


def write_manifest(path: Path, rows: int, lines_per_image: int) -> None:
    """Write one record per line, with unused fields, as exports of web data sets have them."""
    rng = random.Random(0)
    captions = [" ".join(rng.choices(SENTENCE.split(), k=rng.randint(4, 16))) for _ in range(20_000)]
    images = -(-rows // lines_per_image)
    with open(path, "w", encoding="utf-8") as file:
        for i in range(rows):
            image = i % images
            file.write(
                f'{{"image": "{image // 10_000:05d}/{image:09d}.jpg", "text": "{rng.choice(captions)} {i}", '
                f'"width": 640, "height": 480, "similarity": {rng.random():.4f}}}\n'
            )


def in_child(task: str, folder: str) -> dict[str, float]:
    """Run `plan` or `read` in a process of its own."""
    command = [sys.executable, __file__, "--child", task, "--folder", folder]
    report: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return report


def read(folder: Path) -> dict[str, float]:
    """The ceiling: parse every line with the standard library."""
    before = time.process_time()
    with open(folder / "m.jsonl", "rb") as file:
        for line in file:
            json.loads(line)
    return {"cpu_s": time.process_time() - before}


def plan(folder: Path) -> dict[str, float]:
    """Plan the manifest, timing each stage; the cache is removed again."""
    spent = dict.fromkeys(("parse", "digest", "merge"), 0.0)

    def timed(stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            before = time.perf_counter()
            try:
                return function(*arguments)
            finally:
                spent[stage] += time.perf_counter() - before

        return call

    def batches(source: TableSource) -> Iterator[RowBatch]:
        iterator = iter(source.batches())
        next_batch = timed("parse", lambda: next(iterator, None))
        while (batch := next_batch()) is not None:
            yield batch

    columns.digests_of = timed("digest", columns.digests_of)
    columns.first_lines = timed("merge", columns.first_lines)
    columns.RowWriter._merge_lines = timed("merge", columns.RowWriter._merge_lines)  # type: ignore[method-assign]
    manifest = folder / "m.jsonl"
    source_info = SourceInfo(path=str(manifest), sha256="", image_root="/", image_field="image", text_fields=["text"])
    info = CacheInfo(state="planning", encoder=TOWER, source=source_info, batch_size=64)
    with tempfile.TemporaryDirectory(dir=folder) as output:
        started, cpu = time.perf_counter(), time.process_time()
        plan_cache(Path(output) / "c.zarr", batches(TableSource(source_info)), info)
        wall_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    write = wall_s - sum(spent.values())
    return spent | {"write": write, "wall_s": wall_s, "cpu_s": cpu_s, "peak_mb": peak_mb}


if __name__ == "__main__":
    main()
