"""Manifests of overlapping images, to be appended one to another, and the content of their caches."""

import json
from pathlib import Path
from typing import Any

from clipglot.cache.read.cache import Cache
from clipglot.cache.read.verify import verify

from support.drawings import draw_images


def write_manifests(folder: Path) -> dict[str, Path]:
    """Write manifests of thirty images: `old` has the first ten, `more` all but five, `grown` and `all` all."""
    drawn = draw_images(folder, 30)
    lines = drawn.read_text().splitlines()
    lines[12] = json.dumps({"image": "images/absent.png", "text": "нет"})
    manifests = {"all": drawn}
    for name, part in (("old", lines[:10]), ("more", [*lines[5:], lines[20]]), ("grown", lines)):
        manifests[name] = drawn.with_name(f"{name}.jsonl")
        manifests[name].write_text("\n".join(part))
    drawn.write_text("\n".join(lines))
    return manifests


def content(path: Path) -> tuple[Any, ...]:
    """Keys, captions with their rows, embeddings, norms and statuses of a whole cache."""
    cache = Cache(path).require_sealed()
    assert verify(cache) == []
    captions = list(zip(cache.caption_image().tolist(), cache.captions(), strict=True))
    return cache.keys(), captions, cache.image_emb(), cache.norm(), cache.status().tolist()
