"""Interface of the image tower to the pass: a batch is submitted, its features are collected later.

The pass itself imports no torch; `encoders/image_queue.py` has the real towers. B images of a batch, D features.
"""

import time
from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

EncodeImages = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""Pixels `[B, height, width, 3] uint8` to raw features `[B, D] float32`."""


class ImageEncoder(Protocol):
    """A frozen tower that may compute while the caller goes on.

    Attributes:
        in_flight: batches worth submitting while the next one is gathered; 0 if `submit` itself computes.
        transfer_s: seconds in which pixels were moved to the device and normalized.
        forward_s: seconds in which the tower computed.
    """

    in_flight: int
    transfer_s: float
    forward_s: float

    def staging(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """Allocate memory for pixels that moves to the device fast."""
        ...

    def submit(self, pixels: NDArray[np.uint8], num: int) -> Callable[[], NDArray[np.float32]]:
        """Start a batch; the function that is returned waits for its features.

        Args:
            pixels: `[B, height, width, 3]` in memory of `staging`, not changed until the features are collected.
            num: how many of them, from the first, are images; the rest is padding.

        Returns:
            A function that gives `[num, D]`.
        """
        ...


class SynchronousEncoder:
    """An `ImageEncoder` of a plain function, which computes when a batch is submitted."""

    in_flight = 0
    transfer_s = 0.0

    def __init__(self, encode: EncodeImages) -> None:
        self._encode = encode
        self.forward_s = 0.0

    def staging(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """Allocate ordinary memory."""
        return np.zeros(shape, np.uint8)

    def submit(self, pixels: NDArray[np.uint8], num: int) -> Callable[[], NDArray[np.float32]]:
        """Compute a batch."""
        started = time.perf_counter()
        features = self._encode(pixels)[:num]
        self.forward_s += time.perf_counter() - started
        return lambda: features
