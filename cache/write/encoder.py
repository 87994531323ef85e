"""What the pass asks of an image tower: it is given a batch, and asked for the features later.

The pass imports no torch; `encoders/image_queue.py` has the towers. B images of a batch, D features.
"""

import time
from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Encode = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""Pixels `[B, height, width, 3] uint8` to raw features `[B, D] float32`."""


class ImageEncoder(Protocol):
    """A frozen tower that may compute while the caller goes on.

    Attributes:
        in_flight: batches that are worth having on their way while the next one is gathered; 0 if `submit` computes.
        transfer_s: seconds in which pixels were moved to the device and normalized.
        forward_s: seconds in which the tower computed.
    """

    in_flight: int
    transfer_s: float
    forward_s: float

    def staging(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """Memory for pixels that moves to the device fast."""
        ...

    def submit(self, pixels: NDArray[np.uint8], num: int) -> Callable[[], NDArray[np.float32]]:
        """Begin a batch; what is returned waits for its features.

        Args:
            pixels: `[B, height, width, 3]` in memory of `staging`, left alone until the features are there.
            num: of them that are images, from the first; the rest fills the batch up.

        Returns:
            A function that gives `[num, D]`.
        """
        ...


class PlainImageEncoder:
    """A function as a tower, which computes when it is given a batch."""

    in_flight = 0
    transfer_s = 0.0

    def __init__(self, encode: Encode) -> None:
        self._encode = encode
        self.forward_s = 0.0

    def staging(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """Ordinary memory."""
        return np.zeros(shape, np.uint8)

    def submit(self, pixels: NDArray[np.uint8], num: int) -> Callable[[], NDArray[np.float32]]:
        """Compute a batch."""
        started = time.perf_counter()
        features = self._encode(pixels)[:num]
        self.forward_s += time.perf_counter() - started
        return lambda: features
