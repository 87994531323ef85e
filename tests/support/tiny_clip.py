"""A two-layer open_clip model with random weights."""

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file

TINY_CONFIG: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1},
}


def save_tiny_clip(folder: Path, seed: int, config: dict[str, Any] = TINY_CONFIG) -> Path:
    """Write a folder that `local-dir:` loads: a two-layer CLIP with random weights, 32 px, 16 features."""
    torch.manual_seed(seed)
    clip = open_clip.CLIP(**config)
    save_file(clip.state_dict(), folder / "open_clip_model.safetensors")
    preprocess = {
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.3, 0.25],
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    return folder


def save_full_clip(folder: Path, **text: Any) -> str:
    """Name of a tiny CLIP with the vocabulary of open_clip's own tokenizer.

    Args:
        folder: to write it to.
        text: of its text tower, on top.
    """
    text_cfg = TINY_CONFIG["text_cfg"] | {"vocab_size": 49408, "context_length": 12} | text
    folder.mkdir()
    return f"local-dir:{save_tiny_clip(folder, 0, TINY_CONFIG | {'text_cfg': text_cfg})}"
