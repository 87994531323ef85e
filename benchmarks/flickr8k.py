"""Flickr8k in Chinese, end to end: cache, train, export, retrieve; beside TF-IDF + ridge on the same cache.

    scripts/bench flickr8k --data ../shared/data --work /tmp/flickr8k [--language zh]

Prints a Markdown table and the commands it ran. Every stage is the command that a user would type; what is there
already in the work folder is made anew.
"""

import argparse
import json
import shlex
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
from clipglot.cache.store import Cache
from clipglot.evals.retrieval import Ranks, retrieve
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import Ridge

TRAIN = "--width 256 --layers 4 --heads 4 --context-length 48 --vocab-size 6000 --batch-size 512 --epochs 20 --lr 1e-3"


def main() -> None:
    """Run all stages and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds flickr8k/ and deit_tiny/")
    parser.add_argument("--work", type=Path, required=True, help="folder to work in")
    parser.add_argument("--language", default="zh", choices=("zh", "en"))
    parser.add_argument("--train", default=TRAIN, help="settings of `clipglot train`")
    args = parser.parse_args()
    shutil.rmtree(args.work, ignore_errors=True)
    args.work.mkdir(parents=True)
    data, work = shlex.quote(str(args.data)), shlex.quote(str(args.work))
    tower = f"--model timm/deit_tiny_patch16_224 --pretrained {data}/deit_tiny/model.safetensors"
    commands: list[tuple[str, float]] = []

    def run(command: str) -> str:
        started = time.perf_counter()
        done = subprocess.run(["clipglot", *shlex.split(command)], check=True, capture_output=True, text=True)
        commands.append((command.replace(data, "DATA").replace(work, "WORK"), time.perf_counter() - started))
        return done.stdout

    for split in ("train", "val"):
        source = f"{data}/flickr8k/{split}.jsonl"
        run(f"cache {source} -o {work}/{split}.zarr {tower} --text-field {args.language}")
    run(f"train {work}/train.zarr -o {work}/run {args.train}")
    run(f"export {work}/run -o {work}/merged")
    measured = json.loads(run(f"eval retrieval {work}/merged {work}/val.zarr --json"))["text_to_image"]
    ours = Ranks(**measured)

    started = time.perf_counter()
    opponent, alpha = tfidf_ridge(Cache(args.work / "train.zarr"), Cache(args.work / "val.zarr"), args.language)
    ridge_s = time.perf_counter() - started

    chance = 10 / opponent.num_candidates
    print(f"| {args.language}, {ours.num_candidates:,} pictures, text→image | R@1 | R@5 | R@10 | × chance @10 | s |")
    print("|---|---|---|---|---|---|")
    print(f"| chance | {chance / 10:.1%} | {chance / 2:.1%} | {chance:.1%} | 1 | |")
    rows = (("TF-IDF + ridge, closed form", opponent, ridge_s), ("clipglot, scratch text tower", ours, commands[2][1]))
    for name, ranks, seconds in rows:
        recalls = f"{ranks.r_at_1:.1%} | {ranks.r_at_5:.1%} | {ranks.r_at_10:.1%}"
        print(f"| {name} | {recalls} | {ranks.r_at_10 / chance:.1f} | {seconds:.0f} |")
    print(f"\nclipglot / closed form at R@10: {ours.r_at_10 / opponent.r_at_10:.2f} (ridge alpha {alpha:g})\n")
    for command, seconds in commands:
        print(f"    clipglot {command}    # {seconds:.0f} s")


def tfidf_ridge(train: Cache, val: Cache, language: str) -> tuple[Ranks, float]:
    """The closed-form opponent: character n-grams regressed onto mean-centred image embeddings.

    The strength of the penalty is chosen on the last tenth of the training pictures, val is looked at once.

    Returns:
        Text→image ranks on val, and the penalty.
    """
    analyzer, ngrams = ("char", (1, 3)) if language == "zh" else ("char_wb", (2, 5))
    captions, owners = train.captions(), train.caption_image()
    image_emb, val_emb = (cache.image_emb().astype(np.float32) for cache in (train, val))
    mean = image_emb.mean(0)

    def centred(emb: np.ndarray) -> np.ndarray:
        emb = emb - mean
        return emb / np.linalg.norm(emb, axis=1, keepdims=True)

    def ranks(fit_on: np.ndarray, queries: list[str], targets: np.ndarray, of: np.ndarray, alpha: float) -> Ranks:
        vectorizer = TfidfVectorizer(analyzer=analyzer, ngram_range=ngrams, min_df=2, sublinear_tf=True)
        features = vectorizer.fit_transform([captions[i] for i in fit_on])
        model = Ridge(alpha=alpha, solver="sparse_cg", tol=1e-3).fit(features, centred(image_emb)[owners[fit_on]])
        predicted = model.predict(vectorizer.transform(queries))
        predicted /= np.linalg.norm(predicted, axis=1, keepdims=True)
        return retrieve(predicted.astype(np.float32), targets, of).text_to_image

    split = int(0.9 * len(train))
    fit_on, held_out = np.flatnonzero(owners < split), np.flatnonzero(owners >= split)
    queries, targets = [captions[i] for i in held_out], centred(image_emb[split:])
    tried = {a: ranks(fit_on, queries, targets, owners[held_out] - split, a).r_at_10 for a in (1.0, 3.0, 10.0)}
    alpha = max(tried, key=lambda a: tried[a])
    everything = np.arange(len(captions))
    return ranks(everything, val.captions(), centred(val_emb), val.caption_image(), alpha), alpha


if __name__ == "__main__":
    main()
