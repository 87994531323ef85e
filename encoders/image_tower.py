"""Frozen image towers: any open_clip model and any timm ViT, loaded the way the exported CLIP will load them.

A timm ViT becomes open_clip's `TimmModel` without a projection, so that its embedding is the ViT's own pooled feature
and plain open_clip can rebuild it.
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from open_clip.timm_model import TimmModel
from torch import Tensor, nn

from .errors import EncoderError
from .loading.clips import TIMM_PREFIX, hash_tensors, load_clip
from .loading.hub import hub_access
from .loading.weights_errors import not_loaded, without_pickle_warnings

Precision = Literal["fp32", "bf16", "fp16"]
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
# What of torch may round float32 to TF32.
_ROUNDERS: tuple[Any, ...] = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)  # type: ignore[attr-defined]
_ROUNDERS_LOCK = threading.RLock()
_PREPROCESS_KEYS = ("size", "mode", "mean", "std", "interpolation", "resize_mode", "fill_color")


@dataclass(frozen=True, kw_only=True)
class ImageTower:
    """A frozen image tower in evaluation mode. B images, D features.

    Attributes:
        model: the name it was loaded by.
        pretrained: the tag or file of its weights, None where the name already says it.
        visual: the module; `[B, 3, height, width] float32` to `[B, D]`.
        vision_cfg: open_clip's `vision_cfg` that rebuilds it.
        preprocess: open_clip's `preprocess_cfg`.
        dim: D.
        quick_gelu: the activation that an open_clip config would set for both towers.
        weights_sha256: digest of its tensors, the same wherever they were loaded from.
        precision: what `encode` computes in.
    """

    model: str
    pretrained: str | None
    visual: nn.Module
    vision_cfg: dict[str, Any]
    preprocess: dict[str, Any]
    dim: int
    quick_gelu: bool
    weights_sha256: str
    precision: Precision = "fp32"

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.visual.parameters()).device

    def placed(self, device: str | torch.device) -> "ImageTower":
        """The tower on a device."""
        return replace(self, visual=self.visual.to(device))

    @cached_property
    def _mean_and_std(self) -> tuple[Tensor, Tensor]:
        """On the device; to copy them there for every batch would wait for the one before."""
        mean, std = (torch.tensor(self.preprocess[k], device=self.device).view(-1, 1, 1) for k in ("mean", "std"))
        return mean, std

    def normalize(self, pixels: NDArray[np.uint8] | Tensor) -> Tensor:
        """Pixels `[B, height, width, 3] uint8` to what the tower takes, `[B, 3, height, width] float32`.

        The arithmetic and its order are torchvision's ToTensor and Normalize, so the bits are too.

        Args:
            pixels: an array, or a tensor on the tower's device.
        """
        given = pixels if isinstance(pixels, Tensor) else torch.tensor(pixels, device=self.device)
        mean, std = self._mean_and_std
        return given.permute(0, 3, 1, 2).contiguous().float().div_(255).sub_(mean).div_(std)

    @torch.inference_mode()
    def forward(self, x: Tensor) -> Tensor:
        """Raw features `[B, D] float32` of what `normalize` gives, on its device and in the tower's precision."""
        dtype = _AUTOCAST.get(self.precision)
        exact = nullcontext() if dtype else exact_float32()
        with exact, torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None):
            features = self.visual(x)
        pooled: Tensor = features[0] if isinstance(features, tuple) else features  # output_tokens give both
        return pooled.float()

    def encode(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Raw features `[B, D] float32` (not normalized) of pixels `[B, height, width, 3] uint8`."""
        result: NDArray[np.float32] = self.forward(self.normalize(pixels)).cpu().numpy()
        return result


@contextmanager
def exact_float32() -> Iterator[None]:
    """Compute float32 in float32 inside the block, then put torch's switches back.

    cuDNN rounds what it convolves to TF32 by default, to 10 bits of 23: a ViT's patches would differ from the CPU's in
    the fourth digit. The switches are the process's, so one thread at a time holds them.
    """
    with _ROUNDERS_LOCK:
        before = [rounder.fp32_precision for rounder in _ROUNDERS]
        try:
            for rounder in _ROUNDERS:
                rounder.fp32_precision = "ieee"
            yield
        finally:
            for rounder, precision in zip(_ROUNDERS, before, strict=True):
                rounder.fp32_precision = precision


def load_image_tower(
    model: str, pretrained: str | None, *, device: str | torch.device = "cpu", precision: Precision = "fp32"
) -> ImageTower:
    """Load a frozen image tower.

    Args:
        model: an open_clip name (with `pretrained`), `local-dir:PATH`, `hf-hub:ORG/NAME`, or `timm/NAME`.
        pretrained: a tag or weights file; for `timm/NAME` a file, or None for timm's own weights.
        device: where to put it.
        precision: what to compute in; weights stay float32.

    Raises:
        EncoderError: unknown name, no weights, or weights that do not fit.
    """
    if model.startswith(TIMM_PREFIX):
        visual, config, preprocess = _load_timm(model, pretrained)
        tower = _tower(visual, config, preprocess, model, pretrained)
    else:
        tower = tower_of_clip(*load_clip(model, pretrained), model=model, pretrained=pretrained)
    return replace(tower, precision=precision).placed(device)


def tower_of_clip(clip: Any, config: dict[str, Any], *, model: str, pretrained: str | None = None) -> ImageTower:
    """The image tower of a loaded open_clip model."""
    return _tower(clip.visual, config, clip.visual.preprocess_cfg, model, pretrained)


def _tower(
    visual: nn.Module,
    config: dict[str, Any],
    preprocess: Mapping[str, Any],
    model: str,
    pretrained: str | None,
) -> ImageTower:
    visual.eval().requires_grad_(False)
    return ImageTower(
        model=model,
        pretrained=pretrained,
        vision_cfg=config["vision_cfg"],
        # Lists for tuples, as JSON gives them back: a tower and its export have equal preprocessing.
        preprocess={
            k: list(v) if isinstance(v := preprocess[k], tuple) else v for k in _PREPROCESS_KEYS if k in preprocess
        },
        dim=config["embed_dim"],
        quick_gelu=bool(config.get("quick_gelu", False)),
        weights_sha256=hash_tensors(visual.state_dict()),
        visual=visual,
    )


def _load_timm(model: str, weights: str | None) -> tuple[nn.Module, dict[str, Any], Mapping[str, Any]]:
    name = model.removeprefix(TIMM_PREFIX)
    if weights is not None and not Path(weights).is_file():
        raise EncoderError(f"--pretrained {weights}: no such file (timm towers take a weights file)")
    if not timm.is_model(name):
        raise EncoderError(f"--model {model}: timm has no model {name!r}; see timm.list_models()")
    overlay = {"file": weights} if weights is not None else None
    try:
        # With the classifier that the weights were trained with: only then does timm load strictly.
        with nullcontext() if weights else hub_access(), without_pickle_warnings():
            source = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay)
    except Exception as error:  # unknown tag, wrong keys, damaged file, download failed: one message says which
        raise not_loaded(model, weights, error) from error
    pool, cfg = getattr(source, "global_pool", None), source.pretrained_cfg
    if not isinstance(pool, str) or not pool:
        raise EncoderError(f"--model {model}: not a ViT with a pooled output ({type(source).__name__})")
    if cfg["interpolation"] not in ("bicubic", "bilinear"):
        raise EncoderError(f"--model {model}: open_clip cannot resize with {cfg['interpolation']!r}")
    image_size = tuple(cfg["input_size"][1:])
    visual = TimmModel(name, embed_dim=source.num_features, image_size=image_size, pool=pool, proj="none")
    source.reset_classifier(0)
    visual.trunk.load_state_dict(source.state_dict())
    config = {
        "embed_dim": source.num_features,
        "vision_cfg": {
            "timm_model_name": name,
            "timm_model_pretrained": False,
            "timm_pool": pool,
            "timm_proj": "none",
            "image_size": image_size[0] if len(set(image_size)) == 1 else list(image_size),
        },
    }
    # open_clip's preprocessing cannot express timm's crop_pct; the cache sees what the export will (decision 003).
    preprocess = {
        "size": list(image_size),
        "mode": "RGB",
        "mean": list(cfg["mean"]),
        "std": list(cfg["std"]),
        "interpolation": cfg["interpolation"],
        "resize_mode": "shortest",
        "fill_color": 0,
    }
    return visual, config, preprocess
