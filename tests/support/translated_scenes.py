"""Images whose captions have translations, runs on them, and what plain open_clip makes of the translations."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from clipglot.demo.captions import caption
from clipglot.demo.run import ENGLISH_CLIP
from clipglot.demo.scenes import draw, training_scenes
from clipglot.distill.train_settings import TrainSettings

TRAIN, VAL = 320, 128
MODEL = f"local-dir:{ENGLISH_CLIP}"


def draw_scenes(folder: Path) -> dict[str, Path]:
    """Scenes with Russian captions and their English translations; half of the images of `mixed` lack the latter."""
    rng = random.Random(0)
    scenes = training_scenes(TRAIN + VAL, seed=0)
    rows = []
    for i, scene in enumerate(scenes):
        draw(scene).save(folder / f"{i:03}.png")
        told = {language: [caption(scene, language, rng, complete=True) for _ in range(2)] for language in ("ru", "en")}
        rows.append({"image": f"{i:03}.png", "text": told["ru"], "en": told["en"]})
    mixed = [row | {"en": row["en"] if i % 2 else []} for i, row in enumerate(rows[:TRAIN])]
    for name, part in (("train", rows[:TRAIN]), ("val", rows[TRAIN:]), ("mixed", mixed)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, part)))
    return {name: folder / f"{name}.jsonl" for name in ("train", "val", "mixed")}


def settings(cache: Path, run: Path, **changes: Any) -> TrainSettings:
    small: dict[str, Any] = {"width": 64, "layers": 1, "heads": 4, "context_length": 40, "vocab_size": 400}
    pace: dict[str, Any] = {"batch_size": 64, "epochs": 16, "lr": 3e-3, "log_every": 1, "device": "cpu"}
    return TrainSettings(cache=cache, output=run, **small | pace | changes)


def english(texts: Sequence[str]) -> Any:
    """What plain open_clip makes of texts, unit norm."""
    clip, _, _ = open_clip.create_model_and_transforms(MODEL)
    with torch.no_grad():
        return F.normalize(clip.eval().encode_text(open_clip.get_tokenizer(MODEL)(list(texts))), dim=-1).numpy()
