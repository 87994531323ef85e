"""Images of coloured noise with captions."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

WORDS = {"красный": (200, 30, 30), "зелёный": (30, 170, 30), "синий": (30, 30, 200), "жёлтый": (220, 210, 40)}


def draw_images(folder: Path, count: int, seed: int = 0) -> Path:
    """Draw `count` PNG files, named in Russian; returns a table of JSON lines with 1 to 3 captions an image."""
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    lines = []
    for i in range(count):
        word = list(WORDS)[i % len(WORDS)]
        noise = rng.normal(WORDS[word], 25, (40, 48, 3)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noise).save(folder / "images" / f"{i:04}.png")
        captions = [f"{word} шум", f"это {word} шум номер {i}", f"шум: {word}"][: 1 + i % 3]
        lines.append(json.dumps({"image": f"images/{i:04}.png", "text": captions}, ensure_ascii=False))
    table = folder / "pairs.jsonl"
    table.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return table
