"""Training speed of a text tower with a frozen image tower: clipglot against `open_clip_train --lock-image`.

    scripts/bench lock_image --data ../shared/data --work /tmp/lock_image --peer-python PEER/bin/python

Both train ViT-B/32's text tower with random weights (12 layers, width 512, 8 heads, 77 positions, 49,408 tokens) in
float32, on the same images and short captions, with the same batch size, each through its own command line and with
its default number of threads. Prints a Markdown table of pairs/s.
"""

import argparse
import csv
import json
import re
import shlex
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import open_clip
import torch
from clipglot.encoders.tokenizer import CaptionTokenizer, train_bpe
from safetensors.torch import save_file
from tokenizers import Tokenizer

MODEL = "ViT-B-32"
VOCAB_SIZE = 49_408  # as CLIP's tokenizer
QUERY_TOKENS = 8  # per caption at most, with BOS and EOS
WARM_UP = 2  # steps left out: they fill caches and start the loader's workers
EPOCHS = 30  # over which the caching pass is spread
MAKE_PEER = (
    "python3 -m venv PEER && PEER/bin/pip install open_clip_torch==3.3.0 'webdataset<=0.2.86' pandas braceexpand "
    "fsspec ftfy regex tqdm"
)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """An image below the data's folder and a caption as long as a search query."""

    image: str
    text: str


def main() -> None:
    """Measure both and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds flickr8k/")
    parser.add_argument("--work", type=Path, required=True, help="working folder; it is emptied")
    parser.add_argument("--peer-python", type=Path, required=True, help=f"Python with open_clip_train: {MAKE_PEER}")
    parser.add_argument("--steps", type=int, default=6, help="of each side (default: 6)")
    parser.add_argument("--batch-size", type=int, default=64, help="pairs of a step (default: 64)")
    args = parser.parse_args()
    python = [args.peer_python, "-c", "import open_clip_train.main"]
    if not args.peer_python.is_file() or subprocess.run(python, capture_output=True).returncode:
        parser.error(f"{args.peer_python} has no open_clip_train; create one with\n    {MAKE_PEER}")
    if args.steps <= WARM_UP:
        parser.error(f"--steps {args.steps}: the first {WARM_UP} are left out, pass more")
    shutil.rmtree(args.work, ignore_errors=True)
    args.work.mkdir(parents=True)

    images = (args.data / "flickr8k").absolute()
    pairs = query_pairs(images / "train.jsonl", args.steps * args.batch_size)
    peer = lock_image(args.peer_python, pairs, images, args.work, args.batch_size)
    ours, pass_s, tokenizer = cache_and_train(pairs, images, args.work, args.batch_size)

    theirs, texts = open_clip.get_tokenizer(MODEL), [pair.text for pair in pairs]
    peer_tokens = statistics.mean(len(theirs.encode(text)) + 2 for text in texts)  # BOS, EOS
    our_tokens = statistics.mean(map(len, tokenizer.encode(texts, 77)))
    peer_pairs_s, our_pairs_s = statistics.median(peer), statistics.median(ours)
    print(f"{len(pairs):,} pairs, {args.steps} steps of {args.batch_size}, the first {WARM_UP} left out; fp32\n")
    print("| | pairs/s, median | lowest to highest | tokens a caption |")
    print("|---|---|---|---|")
    for name, speeds, tokens in (
        ("open_clip_train --lock-image", peer, f"{peer_tokens:.1f}, padded to 77"),
        ("clipglot train, from a cache", ours, f"{our_tokens:.1f}"),
    ):
        print(f"| {name} | {statistics.median(speeds):.2f} | {min(speeds):.2f} to {max(speeds):.2f} | {tokens} |")
    print(f"| ratio | {our_pairs_s / peer_pairs_s:.1f} | | |\n")
    peer_ms, our_ms, pass_ms = 1e3 / peer_pairs_s, 1e3 / our_pairs_s, 1e3 * pass_s / len(pairs)
    whole_ms = our_ms + pass_ms / EPOCHS
    print(
        f"A pair of one epoch out of {EPOCHS}: {peer_ms:.0f} ms against {our_ms:.1f} + {pass_ms:.0f} / {EPOCHS} "
        f"(its share of the caching pass) = {whole_ms:.1f} ms, {peer_ms / whole_ms:.1f} times as long."
    )


def query_pairs(manifest: Path, num_pairs: int) -> list[Pair]:
    """Images, each with the first words of its first English caption: at most `QUERY_TOKENS` CLIP tokens."""
    encode = open_clip.get_tokenizer(MODEL).encode
    pairs = []
    for line in manifest.read_text(encoding="utf-8").splitlines()[:num_pairs]:
        row = json.loads(line)
        words = row["en"][0].split()
        while len(encode(" ".join(words))) > QUERY_TOKENS - 2:
            words.pop()
        pairs.append(Pair(image=row["image"], text=" ".join(words)))
    assert len(pairs) == num_pairs, f"{manifest} has {len(pairs)} images, expected {num_pairs}"
    return pairs


def lock_image(python: Path, pairs: list[Pair], images: Path, work: Path, batch_size: int) -> list[float]:
    """Pairs/s of each step after warm-up, as open_clip_train logs them."""
    with open(work / "pairs.csv", "w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "caption"])
        rows.writerows((str(images / pair.image), pair.text) for pair in pairs)
    data = "--dataset-type csv --train-data pairs.csv --csv-img-key image --csv-caption-key caption --csv-separator ,"
    # Without a folder of logs it saves no checkpoint at the end.
    command = (
        f"-m open_clip_train.main --lock-image --model {MODEL} --precision fp32 --device cpu --workers 1 "
        f"--batch-size {batch_size} --epochs 1 --warmup 0 --log-every-n-steps 1 --logs none {data}"
    )
    done = subprocess.run([python.absolute(), *shlex.split(command)], cwd=work, capture_output=True, text=True)
    speeds = [float(speed) for speed in re.findall(r"Batch \(t\): [\d.]+, ([\d.e+-]+)/s,", done.stderr)]
    if done.returncode or len(speeds) != len(pairs) // batch_size:
        raise SystemExit(f"open_clip_train failed, or its log has another format:\n{done.stderr}")
    return speeds[WARM_UP:]


def cache_and_train(
    pairs: list[Pair], images: Path, work: Path, batch_size: int
) -> tuple[list[float], float, CaptionTokenizer]:
    """Cache the images and train on them.

    Returns:
        Pairs/s of each step after warm-up, seconds of the caching pass, and the tokenizer.
    """
    tower, manifest = work / "tower", work / "pairs.jsonl"
    save_random_clip(tower)
    lines = [json.dumps({"image": pair.image, "text": pair.text}, ensure_ascii=False) for pair in pairs]
    manifest.write_text("\n".join(lines) + "\n", encoding="utf-8")
    tokenizer = save_tokenizer(work / "tokenizer", english(images / "train.jsonl"))

    def run(command: str) -> str:
        arguments = [sys.executable, "-m", "clipglot", *shlex.split(command)]
        return subprocess.run(arguments, cwd=work, check=True, stdout=subprocess.PIPE, text=True).stdout

    root = shlex.quote(str(images))
    common = f"--batch-size {batch_size} --precision fp32 --device cpu"
    report = json.loads(
        run(f"cache pairs.jsonl -o cache.zarr --model local-dir:tower --image-root {root} {common} --json")
    )
    assert report["num_embedded"] == len(pairs)
    size = "--width 512 --layers 12 --heads 8 --context-length 77"
    run(f"train cache.zarr -o run --tokenizer tokenizer {size} --epochs 1 --log-every 1 {common}")
    metrics = [json.loads(line) for line in (work / "run" / "metrics.jsonl").read_text().splitlines()]
    return [line["pairs_per_s"] for line in metrics if "pairs_per_s" in line][WARM_UP:], report["wall_s"], tokenizer


def save_random_clip(folder: Path) -> None:
    """Write the peer's model, with random weights, as a folder that `local-dir:` loads."""
    folder.mkdir()
    torch.manual_seed(0)
    save_file(open_clip.create_model(MODEL).state_dict(), folder / "open_clip_model.safetensors")
    config = {"model_cfg": open_clip.get_model_config(MODEL), "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))


def save_tokenizer(folder: Path, captions: Iterator[str]) -> CaptionTokenizer:
    """Train a tokenizer on the whole corpus and pad its vocabulary to the peer's size: AdamW updates those rows too."""
    train_bpe(captions, VOCAB_SIZE).save(folder)
    file = str(folder / "tokenizer.json")
    tokenizer = Tokenizer.from_file(file)
    tokenizer.add_tokens([f"<unused {i}>" for i in range(VOCAB_SIZE - tokenizer.get_vocab_size())])
    tokenizer.save(file)
    return CaptionTokenizer.load(folder)


def english(manifest: Path) -> Iterator[str]:
    """All English captions of a manifest."""
    for line in manifest.read_text(encoding="utf-8").splitlines():
        yield from json.loads(line)["en"]


if __name__ == "__main__":
    main()
