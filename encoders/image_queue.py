"""Queue of image batches for an image tower: the next batch moves to the device while one is computed.

The caching pass submits batches (interface: `cache/write/encoder.py`). If the GPU runs out of memory, batches are split
from then on. B images of a batch, D features.
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
    """Deviation of features in half precision from those in float32: 1 - cosine.

    Attributes:
        precision: half precision that was measured.
        mean: mean over the images.
        worst: maximum over the images.
        num_pictures: number of images measured.
    """

    precision: str
    mean: float
    worst: float
    num_pictures: int


class ImageQueue:
    """Image tower with asynchronous batches.

    Attributes:
        in_flight: batches worth submitting while the next one is gathered.
        transfer_s: seconds in which pixels moved to the device and, on the CPU, were normalized.
        forward_s: seconds in which the tower computed.
        max_images: images that fit into memory at once; None if every batch has fitted.
        deviation: deviation of half precision, measured on the first batch.
    """

    def __init__(self, tower: ImageTower) -> None:
        self._tower = tower
        self._device = tower.device
        self._is_cuda = self._device.type == "cuda"
        set_malloc_thresholds(self._device)
        self.in_flight = 2 if self._is_cuda else 0  # one is computed, one is moved
        self.transfer_s = self.forward_s = 0.0
        self.max_images: int | None = None
        self.deviation: Deviation | None = None
        self._copy_stream = torch.cuda.Stream(self._device) if self._is_cuda else None  # type: ignore[no-untyped-call]

    def staging(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """Allocate memory for pixels, page-locked if the device is a GPU."""
        memory: NDArray[np.uint8] = torch.zeros(shape, dtype=torch.uint8, pin_memory=self._is_cuda).numpy()
        return memory

    def submit(self, pixels: NDArray[np.uint8], num: int) -> Features:
        """Start a batch; on the CPU, compute it.

        Args:
            pixels: `[B, height, width, 3]` in memory of `staging`, not changed until the features are collected.
            num: how many of them, from the first, are images; the rest is padding.

        Returns:
            A function that waits for the raw features `[num, D]`.

        Raises:
            EncoderError: a single image does not fit into memory.
        """
        if self._tower.precision != "fp32" and self.deviation is None:
            self.deviation = self._deviation(pixels[:num])
        batch = torch.from_numpy(pixels)
        return self._submit_to_gpu(batch, num) if self._is_cuda else self._compute(batch, num)

    def _compute(self, pixels: Tensor, num: int) -> Features:
        started = time.perf_counter()
        x = self._tower.normalize(pixels)
        normalized_at = time.perf_counter()
        features = self._forward(x, self._tower)[:num].numpy()
        self.transfer_s += normalized_at - started
        self.forward_s += time.perf_counter() - normalized_at
        return lambda: features

    def _submit_to_gpu(self, pixels: Tensor, num: int) -> Features:
        """Queue upload, forward and download; nothing here waits for the GPU."""
        assert self._copy_stream is not None
        computing = torch.cuda.current_stream(self._device)
        copy_started, copied, compute_started, computed, fetched = (_event() for _ in range(5))
        with torch.cuda.stream(self._copy_stream):
            copy_started.record()
            on_device = pixels.to(self._device, non_blocking=True)
            copied.record()
        computing.wait_event(copied)
        on_device.record_stream(computing)  # the next batch gets its memory only after this one has read it
        compute_started.record(computing)
        features = self._forward(self._tower.normalize(on_device), self._tower)[:num]
        computed.record(computing)
        result = torch.empty(features.shape, pin_memory=True).copy_(features, non_blocking=True)
        fetched.record(computing)

        def wait() -> NDArray[np.float32]:
            fetched.synchronize()
            self.transfer_s += copy_started.elapsed_time(copied) / 1000
            self.forward_s += compute_started.elapsed_time(computed) / 1000
            features_: NDArray[np.float32] = result.numpy()
            return features_

        return wait

    def _forward(self, x: Tensor, tower: ImageTower) -> Tensor:
        """Features of a batch, split into parts if it does not fit into memory."""
        while True:
            try:
                return torch.cat([tower.forward(part) for part in torch.split(x, self.max_images or len(x))])
            except torch.OutOfMemoryError as error:
                tried = min(self.max_images or len(x), len(x))
                if tried == 1:
                    raise EncoderError(
                        f"the tower does not fit into the memory of {self._device} with a single image "
                        f"({str(error).splitlines()[0]}): free memory there, or pass --precision bf16 or --device cpu"
                    ) from error
            # Outside the handler, which still references the tensors of the failed forward.
            self.max_images = -(-tried // 2)
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
