"""Batches of images on their way through an image tower: one computes while the next is moved to its device.

The pass over images feeds it (`cache/tower.py` says what that asks for). A GPU that runs out of memory gets less from
then on. B images of a batch, D features.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .errors import EncoderError
from .image_tower import ImageTower
from .malloc import set_malloc_thresholds

Features = Callable[[], NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True)
class Deviation:
    """How far half precision moves the features of some images: 1 - cosine to those in float32.

    Attributes:
        precision: of the features.
        mean: over the images.
        worst: of them.
        num_pictures: that were looked at.
    """

    precision: str
    mean: float
    worst: float
    num_pictures: int


class ImageQueue:
    """Feeds an image tower.

    Attributes:
        in_flight: batches that are worth having on their way while the next one is gathered.
        transfer_s: seconds in which pixels moved to the device and, on the CPU, were normalized.
        forward_s: seconds in which the tower computed.
        most: images that fit into memory at once, where a batch did not.
        deviation: of half precision, on the first batch.
    """

    def __init__(self, tower: ImageTower) -> None:
        self._tower = tower
        self._device = tower.device
        self._is_cuda = self._device.type == "cuda"
        set_malloc_thresholds(self._device)
        self.in_flight = 2 if self._is_cuda else 0  # one computes, one is moved
        self.transfer_s = self.forward_s = 0.0
        self.most: int | None = None
        self.deviation: Deviation | None = None
        self._moving = torch.cuda.Stream(self._device) if self._is_cuda else None  # type: ignore[no-untyped-call]

    def staging(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """Memory for pixels, page-locked where there is a GPU to move them to."""
        memory: NDArray[np.uint8] = torch.zeros(shape, dtype=torch.uint8, pin_memory=self._is_cuda).numpy()
        return memory

    def submit(self, pixels: NDArray[np.uint8], num: int) -> Features:
        """Begin a batch; on the CPU, compute it.

        Args:
            pixels: `[B, height, width, 3]` in memory of `staging`, left alone until the features are there.
            num: of them that are images, from the first; the rest fills the batch up.

        Returns:
            A function that waits and gives raw features `[num, D]`.

        Raises:
            EncoderError: not even one image fits into memory.
        """
        if self._tower.precision != "fp32" and self.deviation is None:
            self.deviation = self._deviation(pixels[:num])
        given = torch.from_numpy(pixels)
        return self._submit_to_gpu(given, num) if self._is_cuda else self._computed(given, num)

    def _computed(self, pixels: Tensor, num: int) -> Features:
        started = time.perf_counter()
        x = self._tower.normalize(pixels)
        normalized_at = time.perf_counter()
        features = self._forward(x, self._tower)[:num].numpy()
        self.transfer_s += normalized_at - started
        self.forward_s += time.perf_counter() - normalized_at
        return lambda: features

    def _submit_to_gpu(self, pixels: Tensor, num: int) -> Features:
        """Queue the move, the forward and the way back; nothing here waits for the GPU."""
        assert self._moving is not None
        computing = torch.cuda.current_stream(self._device)
        begun, moved, ready, done, fetched = (_event() for _ in range(5))
        with torch.cuda.stream(self._moving):
            begun.record()
            on_device = pixels.to(self._device, non_blocking=True)
            moved.record()
        computing.wait_event(moved)
        on_device.record_stream(computing)  # its memory is not given to the next batch before this one has read it
        ready.record(computing)
        features = self._forward(self._tower.normalize(on_device), self._tower)[:num]
        done.record(computing)
        result = torch.empty(features.shape, pin_memory=True).copy_(features, non_blocking=True)
        fetched.record(computing)

        def wait() -> NDArray[np.float32]:
            fetched.synchronize()
            self.transfer_s += begun.elapsed_time(moved) / 1000
            self.forward_s += ready.elapsed_time(done) / 1000
            features_: NDArray[np.float32] = result.numpy()
            return features_

        return wait

    def _forward(self, x: Tensor, tower: ImageTower) -> Tensor:
        """Features of a batch, in as many pieces as memory asks for."""
        while True:
            try:
                return torch.cat([tower.forward(piece) for piece in torch.split(x, self.most or len(x))])
            except torch.OutOfMemoryError as error:
                tried = min(self.most or len(x), len(x))
                if tried == 1:
                    raise EncoderError(
                        f"the tower does not fit into the memory of {self._device} with a single image "
                        f"({str(error).splitlines()[0]}): free memory there, or pass --precision bf16 or --device cpu"
                    ) from error
            self.most = -(-tried // 2)  # not in the handler, which still holds what the failed forward had
            if self._is_cuda:
                torch.cuda.empty_cache()

    def _deviation(self, pixels: NDArray[np.uint8]) -> Deviation:
        x = self._tower.normalize(pixels)
        half, full = (
            self._forward(x, tower).double() for tower in (self._tower, replace(self._tower, precision="fp32"))
        )
        distances = 1 - torch.nn.functional.cosine_similarity(half, full)
        return Deviation(
            precision=self._tower.precision,
            mean=float(distances.mean()),
            worst=float(distances.max()),
            num_pictures=len(pixels),
        )


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
