"""Evaluation on large caches: retrieval beside the bare product, zero-shot images, linear probe beside scikit-learn.

scripts/bench evaluation
"""

import resource
import time
from collections.abc import Callable
from typing import Any

import click
import numpy as np
from clipglot.evals.linear_probe import Labelled, probe
from clipglot.evals.retrieval import IMAGES, TEXTS, retrieve
from clipglot.evals.zeroshot import classification_report, predict_classes
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

Floats = NDArray[np.float32]


def unit(emb: Floats) -> Floats:
    """At unit norm, in place."""
    emb /= np.linalg.norm(emb, axis=1, keepdims=True)
    return emb


def around(centres: Floats, spread: float, rng: np.random.Generator) -> Floats:
    """Unit embeddings about centres."""
    emb = rng.standard_normal(centres.shape, np.float32)
    emb *= spread / np.float32(np.sqrt(centres.shape[1]))
    emb += centres
    return unit(emb)


def bare_product(text_emb: Floats, image_emb: Floats) -> None:
    """All cosines in the blocks of `retrieve`, and nothing else."""
    buffer = np.empty((TEXTS, IMAGES), np.float32)
    for start in range(0, len(text_emb), TEXTS):
        for first in range(0, len(image_emb), IMAGES):
            a, b = text_emb[start : start + TEXTS], image_emb[first : first + IMAGES]
            np.matmul(a, b.T, out=buffer.ravel()[: len(a) * len(b)].reshape(len(a), -1))


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """Time of a call, and what it gives."""
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


@click.command(help=__doc__)
@click.option("--images", default=100_000, help="of retrieval and of the probe")
@click.option("--captions", default=500_000)
@click.option("--dim", default=512)
@click.option("--classified", default=50_000, help="images of zero-shot classification")
@click.option("--classes", default=1000, help="of zero-shot classification")
@click.option("--probe-classes", default=100)
@click.option("--parts", default="retrieval,zeroshot,probe")
def main(images: int, captions: int, dim: int, classified: int, classes: int, probe_classes: int, parts: str) -> None:
    rng = np.random.default_rng(0)
    if "retrieval" in parts:
        image_emb = unit(rng.standard_normal((images, dim), np.float32))
        owner = np.sort(rng.integers(0, images, captions))
        text_emb = around(image_emb[owner], 3.0, rng)
        product_s, _ = seconds(lambda: bare_product(text_emb, image_emb))
        retrieve_s, found = seconds(lambda: retrieve(text_emb, image_emb, owner))
        ranks = found.report().text_to_image
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"retrieval, {images:,} images, {captions:,} captions, D={dim}: {retrieve_s:.1f} s")
        print(f"  bare product in the same blocks: {product_s:.1f} s; ratio {retrieve_s / product_s:.2f}")
        print(f"  R@1 {ranks.r_at_1:.3f}; peak memory of the process {peak:.2f} GB", flush=True)
        del image_emb, text_emb, found
    if "zeroshot" in parts:
        class_emb = unit(rng.standard_normal((classes, dim), np.float32))
        labels = rng.integers(0, classes, classified)
        emb = around(class_emb[labels], 4.0, rng)
        names = [str(i) for i in range(classes)]

        def classify() -> Any:
            return classification_report(predict_classes(emb, labels, class_emb), labels, names, names)

        classify_s, report = seconds(classify)
        product_s, _ = seconds(lambda: bare_product(emb, class_emb))
        print(f"zero-shot, image side, {classified:,} images, {classes:,} classes: {classify_s:.2f} s")
        print(f"  bare product: {product_s:.2f} s; top-1 {report.top1:.3f}", flush=True)
    if "probe" in parts:
        centres = unit(rng.standard_normal((probe_classes, dim), np.float32))
        labels, test_labels = (rng.integers(0, probe_classes, n) for n in (images, 10_000))
        train = Labelled(emb=around(centres[labels], 8.0, rng), classes=labels)
        test = Labelled(emb=around(centres[test_labels], 8.0, rng), classes=test_labels)
        probe_s, found = seconds(lambda: probe(train, test, probe_classes, (None,)))
        penalty = found.points[0].penalties[0]
        model = LogisticRegression(C=penalty, max_iter=1000)
        sklearn_s, _ = seconds(lambda: model.fit(train.emb, train.classes))
        theirs = model.score(test.emb, test.classes)
        print(f"probe, {images:,} x {dim}, {probe_classes} classes, penalty chosen: {probe_s:.1f} s, C={penalty:g}")
        print(f"  scikit-learn's fit with this C: {sklearn_s:.1f} s; ratio {probe_s / sklearn_s:.2f}")
        print(f"  accuracy {found.points[0].accuracy:.4f}, scikit-learn {theirs:.4f}")


if __name__ == "__main__":
    main()
