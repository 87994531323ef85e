"""The pass, end to end on the tiny tower."""

from pathlib import Path

import numpy as np
from clipglot.cache.store import Cache


def test_rows_equal_the_towers_own_output(tiny_cache: Path, tiny_clip: Path, manifest: Path) -> None:
    import open_clip
    import torch
    from PIL import Image

    clip, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tiny_clip}")
    clip.eval()
    cache = Cache(tiny_cache)
    pictures = torch.stack([preprocess(Image.open(manifest.parent / key)) for key in cache.keys()])
    with torch.inference_mode():
        expected = clip.encode_image(pictures, normalize=True).numpy()
    assert np.abs(cache.image_emb() - expected).max() < 2**-11  # half a unit in the last place of float16 near 1
