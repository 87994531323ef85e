"""Connected components from pairs that come a few at a time, in numpy alone."""

import numpy as np
from numpy.typing import NDArray


class Components:
    """N things, joined pair by pair.

    >>> components = Components(6)
    >>> components.join(np.array([4, 1]), np.array([5, 2]))
    >>> components.join(np.array([2]), np.array([5]))
    >>> components.sizes()
    {'num_groups': 1, 'num_pictures': 4, 'largest': 4}
    """

    def __init__(self, num: int) -> None:
        self._root = np.arange(num)  # of each; a root is its own

    def join(self, a: NDArray[np.int64], b: NDArray[np.int64]) -> None:
        """Join pairs `[P]`, `[P]`: the larger root goes below the smaller, until each pair has one."""
        while len(a := a[apart := self._root[a] != self._root[b]]):
            b = b[apart]
            roots = self._root[a], self._root[b]
            np.minimum.at(self._root, np.maximum(*roots), np.minimum(*roots))
            while not np.array_equal(up := self._root[self._root], self._root):
                self._root = up

    def sizes(self) -> dict[str, int]:
        """How many groups of two or more there are, how many things in them, and in the largest."""
        counts = np.bincount(self._root, minlength=1)
        groups = counts[counts > 1]
        return {
            "num_groups": len(groups),
            "num_pictures": int(groups.sum()),
            "largest": int(groups.max(initial=0)),
        }
