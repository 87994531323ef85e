"""Speed of planning a table in one thread, against Arrow that only reads the fields that are asked for.

    scripts/bench planning [--format jsonl] [--rows 1000000] [--where "similarity > 0.3 and lang == 'zh'"]
        [--lines-per-picture 1] [--folder /tmp]

Each run is a process of its own, so that its peak of memory is its own. The manifest is in the page cache.
"""

import argparse
import csv
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
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet
from clipglot.cache.format import CacheInfo, EncoderInfo, SourceInfo
from clipglot.cache.sources.parquet import ParquetSource
from clipglot.cache.sources.source import RowBatch, Source
from clipglot.cache.sources.table import TableSource
from clipglot.cache.write import row_writer as columns
from clipglot.cache.write.plan import plan_cache

SENTENCE = (
    "красный кот сидит на окне старого дома и смотрит на дождь a photo of the cat on an old table 猫が眠る 一只猫 睡觉"
)
LANGUAGES = ("ru", "en", "zh", "ja")
TOWER = EncoderInfo(
    model="none", pretrained=None, weights_sha256="0", preprocess={}, dim=512, precision="fp32", quick_gelu=False
)


def main() -> None:
    """Write a manifest, read it and plan it in turn; print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--format", choices=("jsonl", "csv", "tsv", "parquet"), default="jsonl")
    parser.add_argument("--where", help="condition on the fields similarity and lang")
    parser.add_argument(
        "--lines-per-picture", type=int, default=1, help="lines of each image, far apart; 1: none to merge"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the files go, on the disk to measure")
    parser.add_argument("--child", choices=("plan", "read"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        manifest = next(args.folder.glob("m.*"))
        print(json.dumps(plan(manifest, args.where) if args.child == "plan" else read(manifest, args.where)))
        return
    print(
        f"{args.format}, {args.rows:,} rows, {args.lines_per_picture} per image, --where {args.where!r}; "
        f"{args.rounds} rounds; pyarrow {pyarrow.__version__}"
    )
    print("\nrows/s: rows a second of the processor, also of Arrow and the digest; clock: rows a second of the clock")
    print("\n| round | rows/s | clock | Arrow | to it | images | parse | digest | write | merge | sha256 | peak MB |")
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        write_manifest(Path(folder) / f"m.{args.format}", args.rows, args.lines_per_picture)
        for i in range(args.rounds):
            read_s = in_child("read", folder, args.where)["cpu_s"]
            planned = in_child("plan", folder, args.where)
            shares = " | ".join(
                f"{planned[stage] / planned['wall_s']:.0%}" for stage in ("parse", "digest", "write", "merge")
            )
            plan_s = planned["cpu_s"]
            print(
                f"| {i + 1} | {args.rows / plan_s:,.0f} | {args.rows / planned['wall_s']:,.0f} "
                f"| {args.rows / read_s:,.0f} | {read_s / plan_s:.2f} | {planned['images']:,.0f} | {shares} "
                f"| {args.rows / planned['sha256_s']:,.0f} | {planned['peak_mb']:,.0f} |"
            )


def write_manifest(path: Path, rows: int, lines_per_image: int) -> None:
    """Write one record per line, with unused fields, as exports of web data sets have them."""
    rng = random.Random(0)
    captions = [" ".join(rng.choices(SENTENCE.split(), k=rng.randint(4, 16))) for _ in range(20_000)]
    captions = [text.replace(" ", ", ", 1) if rng.random() < 0.2 else text for text in captions]
    images = -(-rows // lines_per_image)

    def records() -> Iterator[dict[str, Any]]:
        for i in range(rows):
            image = i % images
            yield {
                "image": f"{image // 10_000:05d}/{image:09d}.jpg",
                "text": f"{rng.choice(captions)} {i}",
                "width": 640,
                "height": 480,
                "similarity": round(rng.random(), 4),
                "lang": rng.choice(LANGUAGES),
            }

    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(records())), path)
        return
    with open(path, "w", encoding="utf-8", newline="") as file:
        if path.suffix == ".jsonl":
            file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records())
        else:
            fields = ["image", "text", "width", "height", "similarity", "lang"]
            writer = csv.DictWriter(file, fields, delimiter="," if path.suffix == ".csv" else "\t")
            writer.writeheader()
            writer.writerows(records())


def in_child(task: str, folder: str, where: str | None) -> dict[str, float]:
    """Run `plan` or `read` in a process of its own."""
    command = [sys.executable, __file__, "--child", task, "--folder", folder, *(["--where", where] if where else [])]
    report: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return report


def read(manifest: Path, where: str | None) -> dict[str, float]:
    """The ceiling: Arrow reads the fields that are asked for, with their types given, in one thread."""
    pyarrow.set_cpu_count(1)
    types = {"image": pyarrow.string(), "text": pyarrow.string()}
    if where:
        types |= {"similarity": pyarrow.float64(), "lang": pyarrow.string()}
    before = time.process_time()
    if manifest.suffix == ".parquet":
        pyarrow.parquet.read_table(manifest, columns=list(types), use_threads=False)
    elif manifest.suffix == ".jsonl":
        options = pyarrow.json.ParseOptions(explicit_schema=pyarrow.schema(types), unexpected_field_behavior="ignore")
        pyarrow.json.read_json(manifest, pyarrow.json.ReadOptions(use_threads=False), options)
    else:
        pyarrow.csv.read_csv(
            manifest,
            pyarrow.csv.ReadOptions(use_threads=False),
            pyarrow.csv.ParseOptions(delimiter="," if manifest.suffix == ".csv" else "\t"),
            pyarrow.csv.ConvertOptions(column_types=types, include_columns=list(types)),
        )
    return {"cpu_s": time.process_time() - before}


def plan(manifest: Path, where: str | None) -> dict[str, float]:
    """Plan the manifest, timing each stage, and its digest apart; the cache is removed again."""
    spent = dict.fromkeys(("parse", "digest", "merge"), 0.0)

    def timed(stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            before = time.perf_counter()
            try:
                return function(*arguments)
            finally:
                spent[stage] += time.perf_counter() - before

        return call

    def batches(source: Source) -> Iterator[RowBatch]:
        iterator = iter(source.batches())
        next_batch = timed("parse", lambda: next(iterator, None))
        while (batch := next_batch()) is not None:
            yield batch

    columns.digests_of = timed("digest", columns.digests_of)
    columns.first_lines = timed("merge", columns.first_lines)
    columns.RowWriter._merge_lines = timed("merge", columns.RowWriter._merge_lines)  # type: ignore[method-assign]
    source_info = SourceInfo(
        path=str(manifest), sha256="", image_root="/", image_field="image", text_fields=["text"], where=where
    )
    source = (ParquetSource if manifest.suffix == ".parquet" else TableSource)(source_info)
    info = CacheInfo(state="planning", encoder=TOWER, source=source_info, batch_size=64)
    with tempfile.TemporaryDirectory(dir=manifest.parent) as output:
        started, cpu = time.perf_counter(), time.process_time()
        planned = plan_cache(Path(output) / "c.zarr", batches(source), info)
        wall_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    write = wall_s - sum(spent.values())
    cpu = time.process_time()
    source.sha256()
    sha256_s = time.process_time() - cpu
    images = planned.num_images
    return spent | {
        "write": write,
        "wall_s": wall_s,
        "cpu_s": cpu_s,
        "sha256_s": sha256_s,
        "images": images,
        "peak_mb": peak_mb,
    }


if __name__ == "__main__":
    main()
