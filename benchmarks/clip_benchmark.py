"""Evaluation beside CLIP_benchmark's on the same export and images, and the linear probe beside scikit-learn's.

pip install --no-deps clip-benchmark
clipglot demo -o DEMO
scripts/bench clip_benchmark DEMO
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
import open_clip
import torch
from clip_benchmark.metrics import zeroshot_classification, zeroshot_retrieval
from clipglot.cache.read.cache import Cache
from clipglot.evals.labels import labels_of
from PIL import Image
from sklearn.linear_model import LogisticRegression
from torch.utils.data import DataLoader, Dataset

TEMPLATES = ["{c}", "это {c}"]
BATCH = 64


class Images(Dataset[Any]):
    """Images of a folder of the demo with what belongs to each."""

    def __init__(self, folder: Path, transform: Any, targets: list[Any], classes: list[str]) -> None:
        self.classes, self._targets, self._transform = classes, targets, transform
        self._files = sorted((folder / "images").iterdir())

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, i: int) -> tuple[Any, Any]:
        return self._transform(Image.open(self._files[i]).convert("RGB")), self._targets[i]


def ours(*arguments: object) -> dict[str, Any]:
    """The JSON of a command."""
    command = [sys.executable, "-m", "clipglot", "eval", *map(str, arguments), "--json"]
    result: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return result


def accuracy(output: torch.Tensor, target: torch.Tensor, topk: tuple[int, ...] = (1,)) -> list[float]:
    """CLIP_benchmark's own formula; its code makes a float of an array of one element, which NumPy 2.4 refuses."""
    prediction = output.topk(max(topk), 1, True, True)[1].t()
    right = prediction.eq(target.view(1, -1).expand_as(prediction))
    return [float(right[:k].reshape(-1).float().sum()) / len(target) for k in topk]


zeroshot_classification.accuracy = accuracy


@click.command(help=__doc__)
@click.argument("demo", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--clip", "merged", type=click.Path(exists=True, file_okay=False, path_type=Path), help="default: merged")
def main(demo: Path, merged: Path | None) -> None:
    merged = merged or demo / "merged"
    clip, _, transform = open_clip.create_model_and_transforms(f"local-dir:{merged}")
    clip.eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{merged}")
    rows: list[tuple[str, float, float]] = []

    cache = Cache(demo / "classes.zarr")
    images = labels_of(cache)
    data = Images(demo / "classes", transform, images.classes.tolist(), images.labels)
    theirs = zeroshot_classification.evaluate(
        clip, DataLoader(data, BATCH), tokenizer, images.labels, TEMPLATES, "cpu", amp=False
    )
    templates = [part for template in TEMPLATES for part in ("--templates", template)]
    report = ours("zeroshot", merged, demo / "classes.zarr", *templates)
    for name, key in (("top1", "acc1"), ("top5", "acc5"), ("mean_per_class", "mean_per_class_recall")):
        rows.append((f"zero-shot {name}", report[name], theirs[key]))

    unseen = Cache(demo / "unseen.zarr")
    captions = [[text] for text in unseen.captions()]
    texts = DataLoader(
        Images(demo / "unseen", transform, captions, []),
        BATCH,
        collate_fn=lambda batch: (torch.stack([image for image, _ in batch]), [text for _, text in batch]),
    )
    theirs = zeroshot_retrieval.evaluate(clip, texts, tokenizer, "cpu", amp=False, recall_k_list=[1, 5, 10])
    recall = ours("retrieval", merged, demo / "unseen.zarr")
    for k in (1, 5, 10):
        for direction, name in (("text_to_image", "image_retrieval"), ("image_to_text", "text_retrieval")):
            rows.append((f"{direction} R@{k}", recall[direction][f"r_at_{k}"], theirs[f"{name}_recall@{k}"]))
    repeated = len(captions) - len({text for (text,) in captions})

    probe = ours("probe", demo / "classes.zarr", "--test", demo / "classes.zarr", "--shots", "all")["points"][0]
    emb = cache.image_emb().astype(np.float32)
    fit = LogisticRegression(C=probe["penalties"][0], max_iter=10_000, tol=1e-6).fit(emb, images.classes)
    rows.append(("linear probe (scikit-learn, same penalty)", probe["accuracy"], float(fit.score(emb, images.classes))))

    print(
        f"{len(cache):,} images of {len(images.labels)} classes; {len(unseen):,} images, {repeated} captions repeated"
    )
    print("\n| metric | clipglot | CLIP_benchmark |\n|---|---|---|")
    for name, mine, other in rows:
        print(f"| {name} | {mine:.4f} | {other:.4f} |")


if __name__ == "__main__":
    main()
