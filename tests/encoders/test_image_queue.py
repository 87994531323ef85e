"""The queue before an image tower: its own features, less at once where memory runs out, half precision measured."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from clipglot.cache.read.cache import Cache
from clipglot.cli.main import main
from clipglot.encoders.errors import EncoderError
from clipglot.encoders.image_queue import ImageQueue
from clipglot.encoders.image_tower import ImageTower, Precision, load_image_tower
from numpy.typing import NDArray
from torch import Tensor, nn

NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class SmallMemory(nn.Module):
    """A tower on a device whose memory holds so many images."""

    def __init__(self, visual: nn.Module, holds: int) -> None:
        super().__init__()
        self.visual, self.holds = visual, holds
        self.sizes: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.holds:
            raise torch.OutOfMemoryError("out of memory\nand much detail")
        self.sizes.append(len(x))
        features: Tensor = self.visual(x)
        return features


def tower_of(tiny_clip: Path, precision: Precision = "fp32", device: str = "cpu") -> ImageTower:
    return load_image_tower(f"local-dir:{tiny_clip}", None, precision=precision, device=device)


def staged(queue: ImageQueue, count: int, seed: int = 0) -> NDArray[np.uint8]:
    pixels = queue.staging((count, 32, 32, 3))
    pixels[:] = np.random.default_rng(seed).integers(0, 256, pixels.shape)
    return pixels


def test_the_queue_gives_the_towers_own_features_of_the_images_alone(tiny_clip: Path) -> None:
    tower = tower_of(tiny_clip)
    queue = ImageQueue(tower)
    pixels = staged(queue, 8)
    assert np.array_equal(queue.submit(pixels, 5)(), tower.encode(pixels)[:5])
    assert min(queue.transfer_s, queue.forward_s) > 0
    assert (queue.max_images, queue.deviation) == (None, None)


@pytest.mark.parametrize(("holds", "most"), [(8, None), (7, 4), (4, 4), (3, 2), (1, 1)])
def test_out_of_memory_halves_what_the_tower_sees(holds: int, most: int | None, tiny_clip: Path) -> None:
    tower = tower_of(tiny_clip)
    visual = SmallMemory(tower.visual, holds)
    queue = ImageQueue(replace(tower, visual=visual))
    for seed in range(2):
        pixels = staged(queue, 8, seed)
        np.testing.assert_allclose(queue.submit(pixels, 8)(), tower.encode(pixels), rtol=1e-5, atol=1e-6)
    assert queue.max_images == most
    assert visual.sizes == [most or 8] * (2 * 8 // (most or 8))


def test_a_tower_that_does_not_fit_with_one_image_is_refused(tiny_clip: Path) -> None:
    tower = tower_of(tiny_clip)
    queue = ImageQueue(replace(tower, visual=SmallMemory(tower.visual, 0)))
    with pytest.raises(EncoderError, match=r"memory of cpu with a single image \(out of memory\): free memory"):
        queue.submit(staged(queue, 5), 5)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_deviation_of_half_precision_is_measured_on_the_first_images(precision: Precision, tiny_clip: Path) -> None:
    queue, full, half = ImageQueue(tower_of(tiny_clip, precision)), tower_of(tiny_clip), tower_of(tiny_clip, precision)
    pixels = staged(queue, 8)
    queue.submit(pixels, 6)()
    a, b = (tower.encode(pixels[:6]).astype(np.float64) for tower in (full, half))
    distance = 1 - (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    first = queue.deviation
    assert first is not None
    assert (first.precision, first.num_pictures) == (precision, 6)
    assert first.worst >= first.mean > 0
    np.testing.assert_allclose([first.mean, first.worst], [distance.mean(), distance.max()], rtol=1e-3, atol=1e-9)
    queue.submit(staged(queue, 8, seed=1), 8)()
    assert queue.deviation is first


def test_the_command_says_what_memory_held_and_how_far_half_precision_is_off(
    manifest: Path, tiny_cache: Path, tiny_clip: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def small(model: str, pretrained: str | None, **options: Any) -> ImageTower:
        tower = load_image_tower(model, pretrained, **options)
        return replace(tower, visual=SmallMemory(tower.visual, 3))

    monkeypatch.setattr("clipglot.jobs.cache_job.load_image_tower", small)
    options = ["--model", f"local-dir:{tiny_clip}", "--batch-size", "8", "--num-workers", "1", "--precision", "bf16"]
    said = CliRunner().invoke(main, ["cache", str(manifest), "-o", str(tmp_path / "cache.zarr"), *options])
    assert said.exit_code == 0, said.output
    assert said.stdout.count("memory held only 2 of 8 images at once") == 1
    assert "bf16 against fp32 on the first 8 images: cosine distance" in said.stdout
    assert "read " in said.stdout
    found, expected = Cache(tmp_path / "cache.zarr").image_emb(), Cache(tiny_cache).image_emb()
    assert np.abs(found - expected).max() < 0.02


@pytest.mark.gpu
@NEEDS_CUDA
def test_on_a_gpu_batches_in_flight_give_the_towers_own_features(tiny_clip: Path) -> None:
    tower = tower_of(tiny_clip, device="cuda")
    queue = ImageQueue(tower)
    batches = [staged(queue, 16, seed) for seed in range(3)]
    assert torch.from_numpy(batches[0]).is_pinned()
    waiting = [queue.submit(pixels, 15) for pixels in batches]
    for pixels, features in zip(batches, waiting, strict=True):
        assert np.array_equal(features(), tower.encode(pixels)[:15])
    assert min(queue.transfer_s, queue.forward_s) > 0


@pytest.mark.gpu
@NEEDS_CUDA
def test_on_a_gpu_the_pass_gives_the_cpus_embeddings(
    manifest: Path, tiny_cache: Path, make_cache: Callable[..., Any], tmp_path: Path
) -> None:
    made = make_cache(manifest, tmp_path / "cache.zarr", device="cuda").cache
    assert np.abs(made.image_emb() - Cache(tiny_cache).image_emb()).max() < 2e-3
