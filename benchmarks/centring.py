"""Centring and whitening of image embeddings: closed-form recall on a held-out tenth of a cache's images.

    scripts/bench centring CACHE [--spaced]

TF-IDF + ridge is fitted onto the images as transformed by each row of the table, and retrieves from images under the
same transform. The last rows leave the images unchanged and multiply the prediction with their metric, as
`--warm-start ridge` does.
"""

import argparse
from pathlib import Path

import numpy as np
from baseline import ridge
from clipglot.cache.read.cache import Cache
from clipglot.evals.retrieval import retrieve
from sklearn.feature_extraction.text import TfidfVectorizer

PENALTIES = (1.0, 3.0, 10.0, 30.0)
POWERS, SHRINKAGES = (0.25, 0.5, 1.0), (0.1, 0.3, 1.0)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--spaced", action="store_true", help="the language has spaces between words")
    options = parser.parse_args()
    cache = Cache(options.cache)
    image_emb, captions, image_index = cache.image_emb().astype(np.float64), cache.captions(), cache.caption_image()
    split = int(0.9 * len(cache))
    fit_on, held_out = np.flatnonzero(image_index < split), np.flatnonzero(image_index >= split)
    analyzer, ngrams = ("char_wb", (2, 5)) if options.spaced else ("char", (1, 3))
    vectorizer = TfidfVectorizer(analyzer=analyzer, ngram_range=ngrams, min_df=2, sublinear_tf=True)
    features = vectorizer.fit_transform([captions[i] for i in fit_on])
    queries = vectorizer.transform([captions[i] for i in held_out])

    mean = image_emb[:split].mean(0)
    values, vectors = np.linalg.eigh(np.cov(image_emb[:split].T))

    def whitened(power: float) -> np.ndarray:
        scales = (values + 0.01 * values.mean()) ** -power
        return (image_emb - mean) @ (vectors * scales)

    def metric(shrinkage: float) -> np.ndarray:
        return (vectors / (values + shrinkage * values.mean())) @ vectors.T

    def recalls(alpha: float, targets: np.ndarray, gallery: np.ndarray, matrix: np.ndarray) -> tuple[float, ...]:
        targets, gallery = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (targets, gallery))
        weights, intercept = ridge(features, targets[image_index[fit_on]], alpha)
        predicted = (queries @ weights + intercept) @ matrix
        predicted /= np.linalg.norm(predicted, axis=1, keepdims=True)
        candidates = gallery[split:].astype(np.float32)
        ranks = retrieve(
            predicted.astype(np.float32), candidates, image_index[held_out] - split
        ).text_to_image.summary()
        return ranks.r_at_10, ranks.r_at_5, ranks.r_at_1

    unit = image_emb / np.linalg.norm(image_emb, axis=1, keepdims=True)
    plain = np.eye(image_emb.shape[1])
    # Regression targets, gallery to retrieve from, matrix that the prediction is multiplied with.
    forms = {"as they are": (unit, unit, plain), "centred": (image_emb - mean, image_emb - mean, plain)}
    forms |= {f"centred, whitened to the power {p:g}": (whitened(p), whitened(p), plain) for p in POWERS}
    in_metric = {f"as they are, prediction in their metric, shrunk by {s:g}": metric(s) for s in SHRINKAGES}
    forms |= {name: (image_emb - mean, unit, matrix) for name, matrix in in_metric.items()}

    print(f"| {len(cache) - split} held-out images | R@1 | R@5 | R@10 | penalty |\n|---|---|---|---|---|")
    for name, (targets, gallery, matrix) in forms.items():
        best = max((recalls(alpha, targets, gallery, matrix), alpha) for alpha in PENALTIES)
        (at_10, at_5, at_1), alpha = best
        print(f"| {name} | {at_1:.1%} | {at_5:.1%} | {at_10:.1%} | {alpha:g} |", flush=True)


if __name__ == "__main__":
    main()
