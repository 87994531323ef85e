"""Merging: a frozen image tower and a trained text tower become one folder that plain open_clip loads."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from .image import LM_CONFIG, ImageTower
from .lm import LMTower
from .lm_tokenizer import AnyTokenizer
from .tower import StudentTower

WEIGHTS, CONFIG = "open_clip_model.safetensors", "open_clip_config.json"


def write_merged(
    folder: Path,
    image_tower: ImageTower,
    text_tower: StudentTower,
    logit_scale: float,
    logit_bias: float | None,
    tokenizer: AnyTokenizer,
    provenance: dict[str, Any],
) -> None:
    """Write weights, config and tokenizer of the merged CLIP into an existing folder.

    Args:
        folder: where; load it with `open_clip.create_model_and_transforms("local-dir:FOLDER")`.
        image_tower: its tensors are written as they are.
        text_tower: the student.
        logit_scale: the factor on cosines (not its logarithm).
        logit_bias: what is added to scaled cosines, of a sigmoid loss.
        tokenizer: the one that the student was trained with.
        provenance: kept in the config under `clipglot`, where open_clip does not look.
    """
    tensors: dict[str, Tensor] = {f"visual.{k}": v for k, v in image_tower.visual.state_dict().items()}
    tensors |= text_tower.state_dict()
    tensors["logit_scale"] = torch.tensor(math.log(logit_scale))
    if logit_bias is not None:
        tensors["logit_bias"] = torch.tensor(logit_bias)
    # Not save_file: it makes files that only their owner may read.
    (folder / WEIGHTS).write_bytes(save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}))
    config = {
        "model_cfg": {
            "embed_dim": image_tower.dim,
            "quick_gelu": image_tower.quick_gelu,
            "vision_cfg": image_tower.vision_cfg,
            "text_cfg": text_tower.config.to_open_clip(),
            "custom_text": True,
            # open_clip makes room for a bias only where it is told how it began.
            **({} if logit_bias is None else {"init_logit_bias": logit_bias}),
        },
        "preprocess_cfg": image_tower.preprocess,
        "clipglot": provenance,
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    tokenizer.save(folder)
    if isinstance(text_tower, LMTower):  # transformers' own config, where its loaders look for it
        lm_config = json.dumps(text_tower.config.model, indent=2, ensure_ascii=False)
        (folder / LM_CONFIG).write_text(lm_config + "\n", encoding="utf-8")
