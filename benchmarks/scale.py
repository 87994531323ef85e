"""Growth of time and memory with the rows of a cache: planned, sealed, inspected, verified, shuffled and fed.

    scripts/bench scale [--rows 1000000,10000000,100000000] [--folder /tmp] [--plot scale.svg]

Keys and captions are planned as `clipglot cache` plans them. One chunk of random unit embeddings is written; all other
chunk files of the embeddings, norms, statuses and hashes are hard links to it, so that 100 million rows of 512 features
take 12 GB of disk, not 115. Everything that reads them reads 102 GB all the same, from memory. Each stage runs in a
process of its own; memory is the peak of what it allocated itself (anonymous pages, sampled twenty times a second), not
of mapped files, which the system can take back. Prints a Markdown table, and the exponent p of a fit time ~ rows^p.
"""

import argparse
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import zarr
from clipglot.cache.format import EMB, HASH, NORM, STATUS, CacheInfo, EncoderInfo, SourceInfo, Status
from clipglot.cache.read.cache import Cache
from clipglot.cache.read.verify import verify
from clipglot.cache.sources.source import SourceRow, batched
from clipglot.cache.write.plan import plan_cache
from clipglot.cache.write.seal import seal
from clipglot.distill.data.image_embeddings import OnHost
from clipglot.distill.data.loader import BatchLoader
from clipglot.distill.data.pairs import TrainData
from clipglot.distill.data.tokens import TokenTable, group_equal_captions
from clipglot.encoders.text_scratch import ScratchConfig, ScratchTower
from clipglot.jobs.bench_data import query_lengths
from clipglot.jobs.inspect import inspect_cache
from clipglot.jobs.settings.bench import BenchSettings
from clipglot.jobs.settings.inspect import InspectSettings

DIM, BATCH, NUM_BATCHES = 512, 32_768, 20
VOCAB_SIZE, CONTEXT = 49_408, 77
TOKENS_AT_A_TIME = 2**20
SAMPLED_S = 0.05


def rows_of(num: int) -> Iterator[SourceRow]:
    """Rows with keys of 30 bytes and captions of 50."""
    for i in range(num):
        yield SourceRow(
            i, f"images/{i // 10_000:06}/{i:012}.jpg", (f"a photograph of two cats and a dog, number {i:010}",)
        )


def plan(folder: Path, num: int) -> None:
    """Plan keys and captions."""
    encoder = EncoderInfo(
        model="random", pretrained=None, weights_sha256="", preprocess={}, dim=DIM, precision="fp32", quick_gelu=False
    )
    source = SourceInfo(path="random", sha256="", image_root="/", image_field="image", text_fields=["text"])
    info = CacheInfo(state="planned", encoder=encoder, source=source, batch_size=64)
    plan_cache(folder / "cache.zarr", batched(rows_of(num)), info, hashed=True)


def link(folder: Path, num: int) -> None:
    """Write the first chunk of each array, and link the others to it; only whole chunks are linked."""
    cache = Cache(folder / "cache.zarr", read_only=False)
    rng, rows = np.random.default_rng(0), min(num, cache.info.chunk_rows)
    emb = rng.standard_normal((rows, DIM), np.float32)
    norm = np.linalg.norm(emb, axis=1)
    values = {
        EMB: (emb / norm[:, None]).astype(np.float16)[None],
        NORM: norm[None],
        STATUS: np.full(rows, Status.EMBEDDED, np.uint8),
        HASH: rng.integers(1, 2**63, (rows, 2)).astype(np.uint64),
    }
    root = zarr.open_group(folder / "cache.zarr", mode="r+")
    for name, first in values.items():
        array = root[name]
        has_views = name in (EMB, NORM)
        array[(slice(None), slice(0, rows)) if has_views else slice(0, rows)] = first
        before, after = (0,) * has_views, (0,) * (array.ndim - has_views - 1)
        chunks = [array.metadata.encode_chunk_key((*before, i, *after)) for i in range(cache.num_chunks)]
        files = [folder / "cache.zarr" / name / chunk for chunk in chunks]
        for file in files[1:]:
            file.parent.mkdir(parents=True, exist_ok=True)
            os.link(files[0], file)


def seal_(folder: Path, num: int) -> None:
    """Count statuses and seal."""
    seal(Cache(folder / "cache.zarr", read_only=False))


def inspect(folder: Path, num: int) -> None:
    """`clipglot inspect`."""
    inspect_cache(InspectSettings(cache=folder / "cache.zarr"))


def verify_(folder: Path, num: int) -> None:
    """`clipglot verify --sample 0`."""
    assert not verify(Cache(folder / "cache.zarr"))


def tokens(folder: Path, num: int) -> None:
    """Random token ids as long as search queries, in files of their own: training maps such files."""
    rng, offsets, start = np.random.default_rng(0), np.zeros(num + 1, np.int64), 0
    with open(folder / "ids", "wb") as file:
        for first in range(0, num, TOKENS_AT_A_TIME):
            ends = np.cumsum(query_lengths(min(TOKENS_AT_A_TIME, num - first), rng, CONTEXT))
            ids = rng.integers(1, VOCAB_SIZE - 1, ends[-1], np.uint16)
            ids[ends - 1] = VOCAB_SIZE - 1  # EOS
            ids.tofile(file)
            offsets[first + 1 : first + 1 + len(ends)] = start + ends
            start += int(ends[-1])
    offsets.tofile(folder / "offsets")


def mapped_tokens(folder: Path) -> TokenTable:
    """The ids and offsets that `tokens` wrote."""
    return TokenTable(np.memmap(folder / "ids", np.uint16, "r"), np.memmap(folder / "offsets", np.int64, "r"))


def group(folder: Path, num: int) -> None:
    """Groups of equal captions, as when training begins."""
    group_equal_captions(mapped_tokens(folder)).tofile(folder / "groups")


def feed(folder: Path, num: int) -> None:
    """An epoch shuffled, and batches of it read: embeddings, tokens, groups."""
    cache = Cache(folder / "cache.zarr")
    data = TrainData(
        images=OnHost([cache.mapped(EMB).take], torch.device("cpu")),
        tokens=mapped_tokens(folder),
        caption_image=np.arange(num),
        caption_group=np.fromfile(folder / "groups", np.int64),
    )
    config = ScratchConfig(
        embed_dim=DIM,
        width=16,
        layers=1,
        heads=1,
        vocab_size=VOCAB_SIZE,
        context_length=CONTEXT,
        quick_gelu=False,
        pad_id=0,
        eos_id=VOCAB_SIZE - 1,
    )
    settings = BenchSettings(device="cpu").training(min(BATCH, num // 2))
    loader = BatchLoader(settings, data, ScratchTower(config), torch.device("cpu"))
    assert sum(1 for _ in loader.batches(0, NUM_BATCHES)) == NUM_BATCHES


STAGES: dict[str, Callable[[Path, int], None]] = {
    "plan": plan, "link": link, "seal": seal_, "inspect": inspect, "verify": verify_, "tokens": tokens,
    "group equal captions": group, f"shuffle, and feed {NUM_BATCHES} batches of {BATCH:,}": feed,
}  # fmt: skip
MADE = ("link", "tokens")  # the benchmark's own; not reported


def own_bytes() -> int:
    """Anonymous memory of this process."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise SystemExit("this system does not tell anonymous memory")


def run_stage(name: str, folder: Path, num: int, told: "multiprocessing.connection.Connection") -> None:
    """Run a stage in this process and tell its seconds and the peak of its own memory beyond what imports take."""
    before, over = own_bytes(), threading.Event()
    peaks = [before]

    def sample() -> None:
        while not over.wait(SAMPLED_S):
            peaks.append(own_bytes())

    sampler = threading.Thread(target=sample)
    sampler.start()
    started = time.perf_counter()
    try:
        STAGES[name](folder, num)
        seconds = time.perf_counter() - started
    finally:
        over.set()
        sampler.join()
    told.send((seconds, max(peaks) - before))


def measure(folder: Path, num: int) -> dict[str, tuple[float, int]]:
    """Seconds and bytes of each stage at a number of rows."""
    found = {}
    context = multiprocessing.get_context("spawn")
    for name in STAGES:
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=run_stage, args=(name, folder, num, there))
        process.start()
        there.close()
        try:
            found[name] = here.recv()
        except EOFError:
            raise SystemExit(f"{name} of {num:,} rows failed") from None
        process.join()
        seconds, memory = found[name]
        print(f"<!-- {num:,} rows, {name}: {seconds:.1f} s, {memory / 1e9:.2f} GB -->", flush=True)
    return found


def exponent(sizes: list[int], values: list[float]) -> float:
    """P of a fit value ~ size^p through the larger half of the sizes."""
    half = max(2, len(sizes) // 2 + 1)
    return float(np.polyfit(np.log(sizes[-half:]), np.log(np.maximum(values[-half:], 1e-9)), 1)[0])


def draw(sizes: list[int], found: dict[int, dict[str, tuple[float, int]]], file: Path) -> None:
    """Time and memory of each stage over the rows, on logarithmic axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    for axes, which, label in zip(figure.subplots(1, 2), (0, 1), ("seconds", "GB of own memory"), strict=True):
        for name in (name for name in STAGES if name not in MADE):
            values = [found[num][name][which] / (1e9 if which else 1) for num in sizes]
            axes.plot(sizes, values, marker="o", label=name)
        axes.set(xscale="log", yscale="log", xlabel="rows", ylabel=label)
    axes.legend(fontsize=7)
    figure.savefig(file)


def main() -> None:
    """Measure each size and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="1000000,10000000,100000000", help="rounded down to whole chunks")
    parser.add_argument("--folder", type=Path, help="where the caches go")
    parser.add_argument("--plot", type=Path, help="curves as SVG or PNG")
    args = parser.parse_args()
    sizes = [int(num) // 2**14 * 2**14 for num in args.rows.split(",")]
    found = {}
    for num in sizes:
        with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
            found[num] = measure(Path(temporary), num)
    print("\n| stage | " + " | ".join(f"{num:,} rows" for num in sizes) + " | time ~ rows^ | memory ~ rows^ |")
    print("|---|" + "--:|" * (len(sizes) + 2))
    for name in (name for name in STAGES if name not in MADE):
        times, memories = zip(*(found[num][name] for num in sizes), strict=True)
        cells = [f"{seconds:.1f} s, {memory / 1e9:.2f} GB" for seconds, memory in zip(times, memories, strict=True)]
        fits = [f"{exponent(sizes, [*each]):.2f}" for each in (times, memories)] if len(sizes) > 1 else ["", ""]
        print(f"| {name} | {' | '.join([*cells, *fits])} |")
    if args.plot:
        draw(sizes, found, args.plot)


if __name__ == "__main__":
    main()
