"""Linear probe: logistic regression on cached embeddings, with few images a class or all.

The protocol of CLIP (Radford et al. 2021, arXiv:2103.00020, appendix A.3): L-BFGS, an L2 penalty on the weights that is
chosen on held-out training images. N images, C classes, D features.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..cache.progress import OnProgress, Progress, ignore_progress
from .errors import EvalError

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]
# Inverse penalties as scikit-learn's C, from strong to weak; each fit begins at the one before.
PENALTIES: tuple[float, ...] = tuple(10.0 ** (half / 2) for half in range(-4, 13))
PATIENCE = 2  # penalties that are no better, after which the path ends
HELD_OUT = 0.2  # of the training images, to choose the penalty with all of them
MOST_TO_CHOOSE = 10_000  # training images that the penalty is chosen with; and as many held out, at most
FEW_HELD_OUT = 4  # images a class, to choose the penalty with few shots
MAX_STEPS = 1000
TOLERANCE = 1e-5  # of the gradient's largest entry, per image
BLOCK_BYTES = 32 * 2**20  # of logits held at once
DEFINITION = (
    "logistic regression with an L2 penalty on unit embeddings, by L-BFGS; the penalty is the one with the best "
    "accuracy on held-out training images (with few shots up to 4 others a class, with all images a fifth)"
)


@dataclass(frozen=True, kw_only=True)
class ProbePoint:
    """Test accuracy with a number of training images a class.

    Attributes:
        shots: images a class; None for all.
        accuracy: mean over the draws.
        low: of the draws.
        high: of the draws.
        accuracies: of each draw.
        mean_per_class: mean accuracy of the classes, over the draws.
        penalties: chosen in each draw, as scikit-learn's C.
        num_train: images of a draw.
        num_short: classes that have fewer images, and give all but one.
    """

    shots: int | None
    accuracy: float
    low: float
    high: float
    accuracies: list[float]
    mean_per_class: float
    penalties: list[float]
    num_train: int
    num_short: int


@dataclass(frozen=True, kw_only=True)
class ProbeReport:
    """A linear probe by the number of training images.

    Attributes:
        points: by shots, ascending, all images last.
        num_classes: C.
        num_train: training images there are.
        num_test: test images.
        zero_shot: accuracy on the test images without any training image, if a CLIP was given.
        chance: of a guess.
    """

    points: list[ProbePoint]
    num_classes: int
    num_train: int
    num_test: int
    zero_shot: float | None
    chance: float

    def to_json(self) -> dict[str, Any]:
        """All figures, and how they were made."""
        return asdict(self) | {"definition": DEFINITION}


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """Embeddings and classes of images.

    Attributes:
        emb: `[N, D] float32`.
        classes: `[N]`.
    """

    emb: Floats
    classes: Indices

    def __len__(self) -> int:
        return len(self.classes)

    def take(self, rows: Indices) -> "Labelled":
        """Some of the images."""
        return Labelled(emb=self.emb[rows], classes=self.classes[rows])


def split(classes: Indices, share: float, seed: int) -> tuple[Indices, Indices]:
    """Rows of two parts of images, the second with a share of each class, at least one image of it.

    Raises:
        EvalError: a class has a single image.

    >>> first, second = split(np.array([0] * 8 + [1] * 2), 0.25, seed=0)
    >>> len(first), len(second)
    (7, 3)
    """
    order = _drawn_by_class(classes, seed)
    sizes = [len(rows) for rows in order]
    if min(sizes) < 2:
        raise EvalError("a class has a single image, so it cannot be split into training and test: pass --test CACHE")
    ends = [min(size - 1, max(1, round(share * size))) for size in sizes]
    second = np.sort(np.concatenate([rows[:end] for rows, end in zip(order, ends, strict=True)]))
    first = np.sort(np.concatenate([rows[end:] for rows, end in zip(order, ends, strict=True)]))
    return first, second


def probe(
    train: Labelled,
    test: Labelled,
    num_classes: int,
    shots: Sequence[int | None],
    seeds: int = 3,
    zero_shot: float | None = None,
    on_progress: OnProgress = ignore_progress,
    device: str = "cpu",
) -> ProbeReport:
    """Test accuracy of linear probes, by images a class.

    Args:
        train: every class has an image.
        test: images to measure with.
        num_classes: C.
        shots: images a class; None for all.
        seeds: draws of few images; a class with fewer images gives all it has but one, which stays held out.
        zero_shot: to report beside.
        on_progress: called with the fits of stage `probe`.
        device: to fit on.
    """
    plan = [(each, seed) for each in shots for seed in range(1 if each is None else seeds)]
    results: dict[int | None, list[tuple[float, float, float, int]]] = {each: [] for each in shots}
    for done, (each, seed) in enumerate(plan):
        on_progress(Progress("probe", done, len(plan)))
        results[each].append(_fit_and_test(train, test, num_classes, each, seed, device))
    on_progress(Progress("probe", len(plan), len(plan)))
    points = []
    for each, found in results.items():
        accuracies = [accuracy for accuracy, *_ in found]
        points.append(
            ProbePoint(
                shots=each,
                accuracy=float(np.mean(accuracies)),
                low=min(accuracies),
                high=max(accuracies),
                accuracies=accuracies,
                mean_per_class=float(np.mean([per_class for _, per_class, _, _ in found])),
                penalties=[penalty for _, _, penalty, _ in found],
                num_train=found[0][3],
                num_short=0 if each is None else int((np.bincount(train.classes) - 1 < each).sum()),
            )
        )
    return ProbeReport(
        points=points,
        num_classes=num_classes,
        num_train=len(train),
        num_test=len(test),
        zero_shot=zero_shot,
        chance=1 / num_classes,
    )


def _fit_and_test(
    train: Labelled, test: Labelled, num_classes: int, shots: int | None, seed: int, device: str
) -> tuple[float, float, float, int]:
    """Accuracy, mean per class, penalty and training images of one draw."""
    order = _drawn_by_class(train.classes, seed)
    if shots is None:
        fit_rows = np.arange(len(train))
        choose = train.take(np.sort(np.random.default_rng(seed).permutation(len(train))[: 2 * MOST_TO_CHOOSE]))
        first, second = _halves(choose, HELD_OUT, seed)
    else:
        ends = [min(shots, max(1, len(rows) - 1)) for rows in order]
        fit_rows = np.sort(np.concatenate([rows[:end] for rows, end in zip(order, ends, strict=True)]))
        others = [rows[end : end + FEW_HELD_OUT] for rows, end in zip(order, ends, strict=True)]
        first, second = train.take(fit_rows), train.take(np.concatenate(others))
    penalty, start = choose_penalty(first, second, num_classes, device)
    fit = train.take(fit_rows) if shots is not None else train
    weights = fit_logistic(fit, num_classes, penalty, start=start, device=device)
    right = predict(weights, test.emb) == test.classes
    counts = np.bincount(test.classes, minlength=num_classes)
    recalls = np.bincount(test.classes[right], minlength=num_classes)[counts > 0] / counts[counts > 0]
    return float(right.mean()), float(recalls.mean()), penalty, len(fit_rows)


def _halves(images: Labelled, share: float, seed: int) -> tuple[Labelled, Labelled]:
    """Images to fit and to choose with; a class with one image is fitted alone."""
    order = _drawn_by_class(images.classes, seed)
    ends = [min(len(rows) - 1, max(1, round(share * len(rows)))) for rows in order]
    first = np.concatenate([rows[end:] for rows, end in zip(order, ends, strict=True)])
    second = np.concatenate([rows[:end] for rows, end in zip(order, ends, strict=True)])
    return images.take(first[:MOST_TO_CHOOSE] if len(first) > MOST_TO_CHOOSE else first), images.take(second)


def _drawn_by_class(classes: Indices, seed: int) -> list[Indices]:
    """Rows of each class that has some, in random order: the draws of fewer images are parts of those of more."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(classes))
    order = order[np.argsort(classes[order], kind="stable")]
    return np.split(order, np.flatnonzero(np.diff(classes[order])) + 1)


def choose_penalty(
    fit: Labelled, held_out: Labelled, num_classes: int, device: str = "cpu"
) -> tuple[float, Tensor | None]:
    """The penalty with the best accuracy on held-out images, and the weights it gave; cross-entropy decides ties.

    Args:
        fit: images to fit with.
        held_out: images to choose with; without any, the penalty in the middle is taken.
        num_classes: C.
        device: to fit on.
    """
    if not len(held_out):
        return PENALTIES[len(PENALTIES) // 2], None
    best: tuple[float, float] = (-1.0, 0.0)
    penalty_of_best, best_weights, worse = PENALTIES[0], None, 0
    weights: Tensor | None = None
    for penalty in PENALTIES:
        weights = fit_logistic(fit, num_classes, penalty, start=weights, device=device, tolerance=10 * TOLERANCE)
        accuracy = float((predict(weights, held_out.emb) == held_out.classes).mean())
        emb, classes = torch.from_numpy(held_out.emb).to(device), torch.from_numpy(held_out.classes).to(device)
        score = (accuracy, -float(_cross_entropy(emb, classes, weights)[0]))
        if score > best:
            best, penalty_of_best, best_weights, worse = score, penalty, weights, 0
        else:
            worse += 1
        if worse > PATIENCE:
            break
    return penalty_of_best, best_weights


def fit_logistic(
    images: Labelled,
    num_classes: int,
    penalty: float,
    *,
    start: Tensor | None = None,
    device: str = "cpu",
    tolerance: float = TOLERANCE,
) -> Tensor:
    """Weights `[D + 1, C]` of multinomial logistic regression; the last row is the intercept, which has no penalty.

    Minimises the mean cross-entropy plus ||W||^2 / (2 C N), scikit-learn's objective divided by C N.

    Args:
        images: to fit.
        num_classes: C.
        penalty: scikit-learn's C.
        start: weights to begin at.
        device: to fit on.
        tolerance: on the largest entry of the gradient, at which the fit ends.
    """
    emb = torch.from_numpy(images.emb).to(device)
    classes = torch.from_numpy(images.classes).to(device)
    weights = torch.zeros(emb.shape[1] + 1, num_classes, device=device) if start is None else start.clone()
    weights.requires_grad_(True)
    optimizer = torch.optim.LBFGS(
        [weights],
        max_iter=MAX_STEPS,
        max_eval=2 * MAX_STEPS,
        tolerance_grad=tolerance,
        tolerance_change=0,
        history_size=10,
        line_search_fn="strong_wolfe",
    )
    decay = 1 / (penalty * len(images))

    @torch.no_grad()
    def objective() -> Tensor:
        slopes = weights[:-1]
        loss, gradient = _cross_entropy(emb, classes, weights)
        gradient[:-1] += decay * slopes
        weights.grad = gradient
        return loss + 0.5 * decay * (slopes**2).sum()

    optimizer.step(objective)  # type: ignore[no-untyped-call]
    return weights.detach()


def _cross_entropy(emb: Tensor, classes: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy and its gradient `[D + 1, C]`, in blocks of images."""
    loss, gradient = torch.zeros((), device=emb.device), torch.zeros_like(weights)
    step = max(1, BLOCK_BYTES // (4 * weights.shape[1]))
    for block, own in zip(torch.split(emb, step), torch.split(classes, step), strict=True):
        logits = torch.addmm(weights[-1], block, weights[:-1])
        norm = logits.logsumexp(1, keepdim=True)
        loss += (norm.squeeze(1) - logits.gather(1, own[:, None]).squeeze(1)).sum()
        residual = logits.sub_(norm).exp_()  # probabilities, less one for the right class
        residual.scatter_add_(1, own[:, None], residual.new_full((len(own), 1), -1.0))
        gradient[:-1].addmm_(block.T, residual)
        gradient[-1] += residual.sum(0)
    return loss / len(emb), gradient / len(emb)


@torch.no_grad()
def predict(weights: Tensor, emb: Floats) -> Indices:
    """Class of the largest logit of each image, `[N]`."""
    result = [
        torch.addmm(weights[-1], block.to(weights.device), weights[:-1]).argmax(1).cpu().numpy()
        for block in torch.split(torch.from_numpy(emb), max(1, BLOCK_BYTES // (4 * weights.shape[1])))
    ]
    return np.concatenate(result) if result else np.zeros(0, np.int64)
