"""Merged CLIPs of several kinds with random weights, and what plain open_clip makes of captions and images."""

import random
from pathlib import Path
from typing import Any

import timm
import torch
from clipglot.demo.captions import caption
from clipglot.demo.run import ENGLISH_CLIP
from clipglot.demo.scenes import draw, training_scenes
from clipglot.encoders.image_tower import load_image_tower
from clipglot.encoders.merged_clip import write_merged
from clipglot.encoders.text_lm import LMTower
from clipglot.encoders.text_scratch import ScratchConfig, ScratchTower
from clipglot.encoders.tokenizer import train_bpe
from clipglot.encoders.tokenizer_lm import LMTokenizer
from safetensors.torch import save_file

from support.tiny_lms import save_tiny_lm

NUM_CAPTIONS, NUM_IMAGES, CONTEXT = 200, 50, 32


def captions() -> list[str]:
    """200 captions in four languages and three scripts beside Latin."""
    rng = random.Random(0)
    scenes = training_scenes(NUM_CAPTIONS // 4, seed=3)
    return [caption(scene, language, rng) for scene in scenes for language in ("en", "ru", "zh", "ko")]  # type: ignore[arg-type]


def draw_odd_sizes(folder: Path) -> Path:
    """50 images of many sizes and shapes."""
    folder.mkdir()
    rng = random.Random(0)
    for i, scene in enumerate(training_scenes(NUM_IMAGES, seed=4)):
        size = rng.randint(20, 160), rng.randint(20, 160)
        draw(scene, 128).resize(size).save(folder / f"{i:02}.png")
    return folder


def save_merged(kind: str, folder: Path, tiny_clip: Path) -> Path:
    """Write a merged CLIP.

    Args:
        kind: text tower, pooler and image tower, such as "scratch", "bert-cls-timm" or "scratch-sigmoid"; or "english",
            the demo's English CLIP, which clipglot did not write.
        folder: gets the folder `merged`, and what it is made of.
        tiny_clip: whose image tower is an open_clip ViT.
    """
    if kind == "english":
        return ENGLISH_CLIP
    torch.manual_seed(0)
    family, *parts = kind.split("-")
    image_tower = load_image_tower(f"local-dir:{tiny_clip}", None)
    if "timm" in parts:
        save_file(timm.create_model("test_vit").state_dict(), folder / "vit.safetensors")
        image_tower = load_image_tower("timm/test_vit", str(folder / "vit.safetensors"))
    tower: Any
    tokenizer: Any
    if family == "scratch":
        tokenizer = train_bpe(captions(), 400)
        shape = {"width": 32, "heads": 2, "layers": 2, "context_length": CONTEXT, "quick_gelu": image_tower.quick_gelu}
        ids = {"vocab_size": tokenizer.vocab_size, "pad_id": tokenizer.pad_id, "eos_id": tokenizer.eos_id}
        tower = ScratchTower(ScratchConfig(embed_dim=image_tower.dim, **shape, **ids))
    else:
        lm, pooler = save_tiny_lm(folder / "lm", family), next(p for p in ("cls", "eos", "mean") if p in parts)
        tower = LMTower.from_pretrained(str(lm), image_tower.dim, pooler=pooler, context_length=CONTEXT)
        tokenizer = LMTokenizer.load_for_new(lm)
    (folder / "merged").mkdir()
    bias = -5.0 if "sigmoid" in parts else None
    record = {"clipglot": "test"}
    write_merged(folder / "merged", image_tower, tower.eval(), 12.0, bias, tokenizer, record)
    return folder / "merged"


# Saves what open_clip alone makes of captions and images: the independent reference of every format.
BY_OPEN_CLIP = """
import json, sys
import numpy as np, open_clip, torch
from pathlib import Path
from PIL import Image

folder, images, texts, output = sys.argv[1:]
name = "local-dir:" + folder
config = open_clip.get_model_config(name)["text_cfg"]
changes = {"text_cfg": config | {"hf_model_name": folder}} if "hf_model_name" in config else {}
model, _, preprocess = open_clip.create_model_and_transforms(name, **changes)
tokenizer = open_clip.get_tokenizer(name)
with torch.inference_mode():
    text = model.eval().encode_text(tokenizer(json.loads(Path(texts).read_text())))
    image = model.encode_image(torch.stack([preprocess(Image.open(file)) for file in sorted(Path(images).iterdir())]))
np.savez(output, text=text.numpy(), image=image.numpy())
assert "clipglot" not in sys.modules
"""
