"""Closed-form baseline for a trained text tower: TF-IDF of character n-grams + ridge regression."""

import numpy as np
import scipy.sparse as sp
import torch
from clipglot.cache.read.cache import Cache
from clipglot.distill.training.ridge import solve_ridge
from clipglot.evals.retrieval import Ranks, retrieve
from sklearn.feature_extraction.text import TfidfVectorizer

PENALTIES = (1.0, 3.0, 10.0)
Array = np.ndarray


def tfidf_ridge(train: Cache, val: Cache, *, spaced: bool) -> tuple[Ranks, float]:
    """Retrieval by ridge regression of n-grams onto mean-centred image embeddings; val is used once.

    Args:
        train: cache to fit on; the penalty is chosen by R@10 on the last tenth of its images.
        val: cache to retrieve from.
        spaced: whether the language separates words by spaces: 2-5-grams within words, else 1-3-grams.

    Returns:
        Text→image ranks on val, and the penalty.
    """
    captions, image_index = train.captions(), train.caption_image()
    image_emb, val_emb = (cache.image_emb().astype(np.float32) for cache in (train, val))
    mean = image_emb.mean(0)

    def ranks(fit_on: Array, queries: list[str], targets: Array, of: Array, alpha: float) -> Ranks:
        analyzer, ngrams = ("char_wb", (2, 5)) if spaced else ("char", (1, 3))
        vectorizer = TfidfVectorizer(analyzer=analyzer, ngram_range=ngrams, min_df=2, sublinear_tf=True)
        features = vectorizer.fit_transform([captions[i] for i in fit_on])
        weights, intercept = ridge(features, _unit(image_emb - mean)[image_index[fit_on]], alpha)
        predicted = _unit(vectorizer.transform(queries) @ weights + intercept)
        return retrieve(predicted.astype(np.float32), targets, of).text_to_image.summary()

    split = int(0.9 * len(train))
    fit_on, held_out = np.flatnonzero(image_index < split), np.flatnonzero(image_index >= split)
    queries, targets = [captions[i] for i in held_out], _unit(image_emb[split:] - mean)
    r_at_10 = {a: ranks(fit_on, queries, targets, image_index[held_out] - split, a).r_at_10 for a in PENALTIES}
    alpha = max(r_at_10, key=lambda a: r_at_10[a])
    everything = np.arange(len(captions))
    return ranks(everything, val.captions(), _unit(val_emb - mean), val.caption_image(), alpha), alpha


def ridge(x: sp.csr_matrix, y: Array, alpha: float, tolerance: float = 1e-4) -> tuple[Array, Array]:
    """scikit-learn's `Ridge(alpha)` with intercept, solved iteratively for all targets at once.

    scikit-learn solves one target after another and reads the features each time: minutes instead of seconds.

    Args:
        x: features `[n, W]`.
        y: targets `[n, D]`.
        alpha: penalty.
        tolerance: relative tolerance of the residual.

    Returns:
        Weights `[W, D]` and intercept `[D]`.
    """
    x, y_mean = sp.csr_matrix(x, dtype=np.float64), y.mean(0)
    transposed, x_mean = x.T.tocsr(), np.asarray(x.mean(0)).ravel()

    def gram(weights: torch.Tensor) -> torch.Tensor:
        w = weights.numpy()
        return torch.from_numpy(transposed @ (x @ w) - len(y) * np.outer(x_mean, x_mean @ w))

    moment = torch.from_numpy(transposed @ (y - y_mean))
    weights = solve_ridge(gram, moment, alpha, tolerance=tolerance).numpy()
    return weights, y_mean - x_mean @ weights


def _unit(x: Array) -> Array:
    return x / np.linalg.norm(x, axis=1, keepdims=True)
