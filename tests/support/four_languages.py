"""A CLIP that finds drawings by English, Russian, Chinese and Korean texts, made within seconds."""

import json
from pathlib import Path

from clipglot.demo.captions import LANGUAGES, class_prompt
from clipglot.demo.run import ENGLISH_CLIP
from clipglot.demo.scenes import PAIRS, classification_scenes, draw
from clipglot.distill.train_settings import TrainSettings
from clipglot.distill.training.train import train
from clipglot.jobs.cache import cache_images
from clipglot.jobs.export import export_run
from clipglot.jobs.settings.cache import CacheSettings
from clipglot.jobs.settings.export import ExportSettings

PER_PAIR = 6
NUM_IMAGES = PER_PAIR * len(PAIRS)


def draw_pairs(folder: Path) -> Path:
    """Draw each colour and shape some times, e.g. `images/red-circle-0.png`; returns the table, a column a language."""
    scenes, labels = classification_scenes(PER_PAIR, seed=0)
    (folder / "images").mkdir(parents=True)
    with open(folder / "drawings.jsonl", "w", encoding="utf-8") as table:
        for i, (scene, label) in enumerate(zip(scenes, labels, strict=True)):
            name = "-".join(PAIRS[label]).replace(" ", "-")
            image = f"images/{name}-{i % PER_PAIR}.png"
            draw(scene, 128).save(folder / image)
            texts = {language: class_prompt(*PAIRS[label], language) for language in LANGUAGES}
            table.write(json.dumps({"image": image} | texts, ensure_ascii=False) + "\n")
    return folder / "drawings.jsonl"


def cache_drawings(table: Path, output: Path) -> Path:
    """Cache drawings with their captions in four languages."""
    cache_images(
        CacheSettings(
            source=table,
            output=output,
            model=f"local-dir:{ENGLISH_CLIP}",
            text_field=LANGUAGES,
            language=LANGUAGES,
            device="cpu",
            num_workers=1,
        )
    )
    return output


def train_on(cache: Path, folder: Path) -> Path:
    """Train a text tower on the captions of all four languages and merge it."""
    settings = TrainSettings(
        cache=cache,
        output=folder / "run",
        width=64,
        layers=1,
        heads=4,
        context_length=24,
        vocab_size=500,
        batch_size=128,
        epochs=4,
        lr=3e-3,
        warm_start="ridge",
        device="cpu",
    )
    train(settings)
    return export_run(ExportSettings(run=folder / "run", output=folder / "merged")).folder
