"""The closed-form opponent of a trained text tower: TF-IDF of character n-grams + ridge regression."""

import numpy as np
import scipy.sparse as sp
import torch
from clipglot.cache.read.cache import Cache
from clipglot.distill.training.ridge import ridge_by_rounds
from clipglot.evals.retrieval import Ranks, retrieve
from sklearn.feature_extraction.text import TfidfVectorizer

PENALTIES = (1.0, 3.0, 10.0)
EmbeddingFiles = np.ndarray


def tfidf_ridge(train: Cache, val: Cache, *, spaced: bool) -> tuple[Ranks, float]:
    """N-grams regressed onto mean-centred image embeddings; val is looked at once.

    Args:
        train: to fit on; the penalty is chosen by R@10 on the last tenth of its images.
        val: to retrieve from.
        spaced: whether the language has spaces: 2-5-grams within words, else 1-3-grams.

    Returns:
        Text→image ranks on val, and the penalty.
    """
    captions, image_index = train.captions(), train.caption_image()
    image_emb, val_emb = (cache.image_emb().astype(np.float32) for cache in (train, val))
    mean = image_emb.mean(0)

    def ranks(
        fit_on: EmbeddingFiles, queries: list[str], targets: EmbeddingFiles, of: EmbeddingFiles, alpha: float
    ) -> Ranks:
        analyzer, ngrams = ("char_wb", (2, 5)) if spaced else ("char", (1, 3))
        vectorizer = TfidfVectorizer(analyzer=analyzer, ngram_range=ngrams, min_df=2, sublinear_tf=True)
        features = vectorizer.fit_transform([captions[i] for i in fit_on])
        weights, intercept = ridge(features, _unit(image_emb - mean)[image_index[fit_on]], alpha)
        predicted = _unit(vectorizer.transform(queries) @ weights + intercept)
        return retrieve(predicted.astype(np.float32), targets, of).text_to_image

    split = int(0.9 * len(train))
    fit_on, held_out = np.flatnonzero(image_index < split), np.flatnonzero(image_index >= split)
    queries, targets = [captions[i] for i in held_out], _unit(image_emb[split:] - mean)
    tried = {a: ranks(fit_on, queries, targets, image_index[held_out] - split, a).r_at_10 for a in PENALTIES}
    alpha = max(tried, key=lambda a: tried[a])
    everything = np.arange(len(captions))
    return ranks(everything, val.captions(), _unit(val_emb - mean), val.caption_image(), alpha), alpha


def ridge(
    x: sp.csr_matrix, y: EmbeddingFiles, alpha: float, tolerance: float = 1e-4
) -> tuple[EmbeddingFiles, EmbeddingFiles]:
    """scikit-learn's `Ridge(alpha)` with intercept, by rounds on all targets at once.

    scikit-learn's own takes them one after the other and so the features as often: minutes instead of seconds.

    Args:
        x: features `[n, W]`.
        y: targets `[n, D]`.
        alpha: the penalty.
        tolerance: of the residual, relative.

    Returns:
        Weights `[W, D]` and intercept `[D]`.
    """
    x, y_mean = sp.csr_matrix(x, dtype=np.float64), y.mean(0)
    transposed, x_mean = x.T.tocsr(), np.asarray(x.mean(0)).ravel()

    def gram(weights: torch.Tensor) -> torch.Tensor:
        w = weights.numpy()
        return torch.from_numpy(transposed @ (x @ w) - len(y) * np.outer(x_mean, x_mean @ w))

    moment = torch.from_numpy(transposed @ (y - y_mean))
    weights = ridge_by_rounds(gram, moment, alpha, tolerance=tolerance).numpy()
    return weights, y_mean - x_mean @ weights


def _unit(x: EmbeddingFiles) -> EmbeddingFiles:
    return x / np.linalg.norm(x, axis=1, keepdims=True)
