"""Statistics of embeddings: anisotropy, effective rank, alignment, uniformity. Pure numpy."""

import numpy as np
from numpy.typing import NDArray


def anisotropy(emb: NDArray[np.float32], groups: NDArray[np.int64] | None = None) -> float:
    """Mean cosine of two different captions or images; 1 is collapse.

    Ethayarajh 2019, arXiv:1909.00512, section 3.4, where it is estimated from a sample.

    Args:
        emb: `[B, D]`, unit norm.
        groups: `[B]`, equal for rows of the same text; such pairs are not counted.

    >>> anisotropy(np.eye(3, dtype=np.float32)), anisotropy(np.ones((3, 1), np.float32))
    (0.0, 1.0)
    >>> anisotropy(np.eye(2, dtype=np.float32)[[0, 0, 1]], np.array([5, 5, 7]))
    0.0
    """
    _, group, counts = np.unique(
        np.arange(len(emb)) if groups is None else groups, return_inverse=True, return_counts=True
    )
    sums = np.zeros((len(counts), emb.shape[1]))
    np.add.at(sums, group.ravel(), emb)
    num_pairs = len(emb) ** 2 - int((counts**2).sum())
    if not num_pairs:
        return 0.0
    return float(((sums.sum(0) ** 2).sum() - (sums**2).sum()) / num_pairs)


def effective_rank(emb: NDArray[np.float32], max_rows: int = 2048) -> float:
    """Effective number of dimensions: exponential of the entropy of the centred singular values.

    Roy and Vetterli 2007, "The effective rank: a measure of effective dimensionality", section 2.

    Args:
        emb: `[B, D]`.
        max_rows: maximum number of rows used, evenly spaced.

    >>> round(effective_rank(np.eye(4, dtype=np.float32)), 6)
    3.0
    """
    sampled = emb[:: -(-len(emb) // max_rows)].astype(np.float64) if len(emb) else emb
    centred = sampled - sampled.mean(0)
    gram = centred.T @ centred if len(sampled) >= sampled.shape[1] else centred @ centred.T
    singular = np.sqrt(np.clip(np.linalg.eigvalsh(gram), 0, None))
    total = singular.sum()
    # Singular values that are zero up to rounding errors are left out.
    fractions = singular[singular > 1e-6 * total] / total if total > 1e-6 else np.ones(1)
    return float(np.exp(-(fractions * np.log(fractions)).sum()))


def alignment(text_emb: NDArray[np.float32], image_emb: NDArray[np.float32]) -> float:
    """Mean squared distance of positive pairs `[B, D]`, unit norm (Wang, Isola 2020, arXiv:2005.10242, section 4)."""
    return float(np.mean(np.sum((text_emb - image_emb) ** 2, axis=1)))


def uniformity(emb: NDArray[np.float32], max_rows: int = 2048) -> float:
    """Logarithm of the mean Gaussian potential of distinct pairs, t = 2 (same paper); lower is better, 0 is collapse.

    Args:
        emb: `[B, D]`, unit norm.
        max_rows: maximum number of rows used, evenly spaced.
    """
    if len(emb) < 2:
        return 0.0
    sampled = emb[:: -(-len(emb) // max_rows)]
    cosine = (sampled @ sampled.T)[np.triu_indices(len(sampled), 1)]
    return float(np.log(np.mean(np.exp(-4 * (1 - cosine)))))
