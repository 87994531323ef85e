"""Bootstrap intervals of the difference between two towers on the same images.

Efron, Tibshirani 1993, "An Introduction to the Bootstrap", section 13.3 (percentile interval). Images are drawn, not
queries, since the captions of one image are alike.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DRAWS = 2_000
LEVEL = 0.95
FEWEST = 6  # images that differ: of fewer even a sign test tells nothing at this level, and the bootstrap too much
CELLS = 2**22  # of drawn numbers held at once


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A metric of two towers, their difference and its 95 % interval.

    Attributes:
        metric: its name.
        ours: of the tower that is measured.
        theirs: of the tower that it is compared with.
        low: lower end of the interval of ours minus theirs.
        high: upper end.
        num_images: that were drawn from.
        num_differing: of them, those that one of the two does better.
    """

    metric: str
    ours: float
    theirs: float
    low: float
    high: float
    num_images: int
    num_differing: int

    @property
    def difference(self) -> float:
        """Ours minus theirs."""
        return self.ours - self.theirs

    @property
    def is_significant(self) -> bool:
        """Whether the interval leaves out zero, and enough images differ for that to tell anything."""
        return self.num_differing >= FEWEST and (self.low > 0 or self.high < 0)

    def sentence(self, ours: str, theirs: str) -> str:
        """What the interval says.

        >>> num = {"num_images": 100, "num_differing": 12}
        >>> Difference(metric="R@1", ours=0.5, theirs=0.4, low=0.02, high=0.18, **num).sentence("new", "old")
        'R@1: new is better than old by 10.0 points (95 % interval 2.0 to 18.0)'
        >>> num = {"num_images": 9, "num_differing": 2}
        >>> Difference(metric="R@1", ours=0.4, theirs=0.4, low=-0.02, high=0.02, **num).sentence("new", "old")
        'R@1: new and old cannot be told apart on 9 images (difference 0.0 points, 95 % interval -2.0 to 2.0)'
        """
        points = 100 * self.difference
        interval = f"{100 * self.low:.1f} to {100 * self.high:.1f}"
        if not self.is_significant:
            return (
                f"{self.metric}: {ours} and {theirs} cannot be told apart on {self.num_images:,} images "
                f"(difference {points:.1f} points, 95 % interval {interval})"
            )
        which = "better" if points > 0 else "worse"
        if points < 0:
            interval = f"{-100 * self.high:.1f} to {-100 * self.low:.1f}"
        return f"{self.metric}: {ours} is {which} than {theirs} by {abs(points):.1f} points (95 % interval {interval})"


def difference(
    metric: str,
    ours: NDArray[np.float64],
    theirs: NDArray[np.float64],
    images: NDArray[np.int64],
    seed: int = 0,
) -> Difference:
    """Difference of two towers' mean scores over the same queries, with its interval.

    Args:
        metric: name of the score.
        ours: `[Q]`, score of each query, e.g. 1 where it is right.
        theirs: `[Q]`, of the other tower.
        images: `[Q]`, image of each query; queries of an image are drawn together.
        seed: of the draws.

    >>> right = np.ones(50)
    >>> difference("top-1", right, 0 * right, np.arange(50)).low
    1.0
    """
    _, image = np.unique(images, return_inverse=True)
    sums, counts = np.bincount(image, ours - theirs), np.bincount(image)
    # Images with the same sum and count are alike, so it is drawn how many of each kind there are.
    kinds, frequency = np.unique(np.stack([sums, counts]), axis=1, return_counts=True)
    rng, drawn = np.random.default_rng(seed), []
    for start in range(0, DRAWS, step := max(1, CELLS // len(frequency))):
        weights = rng.multinomial(len(sums), frequency / len(sums), size=min(step, DRAWS - start))
        drawn.append(weights @ kinds[0] / (weights @ kinds[1]))
    low, high = np.quantile(np.concatenate(drawn), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Difference(
        metric=metric,
        ours=float(ours.mean()),
        theirs=float(theirs.mean()),
        low=float(low),
        high=float(high),
        num_images=len(sums),
        num_differing=int(np.count_nonzero(np.abs(sums) > 1e-9)),
    )
