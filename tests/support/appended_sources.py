"""Manifests whose sources are appended one to another, and what caches of them hold."""

import json
from pathlib import Path
from typing import Any

from clipglot.cache.read.cache import Cache
from clipglot.cache.read.verify import verify

from support.drawings import draw_images


def write_manifests(folder: Path) -> dict[str, Path]:
    """Of thirty images `old` has the first ten, `more` those from the fifth on, `grown` and `all` every one."""
    drawn = draw_images(folder, 30)
    lines = drawn.read_text().splitlines()
    lines[12] = json.dumps({"image": "images/absent.png", "text": "нет"})
    found = {"all": drawn}
    for name, part in (("old", lines[:10]), ("more", [*lines[5:], lines[20]]), ("grown", lines)):
        found[name] = drawn.with_name(f"{name}.jsonl")
        found[name].write_text("\n".join(part))
    drawn.write_text("\n".join(lines))
    return found


def content(path: Path) -> tuple[Any, ...]:
    """Keys, captions with their rows, embeddings, norms and statuses of a whole cache."""
    cache = Cache(path).require_sealed()
    assert verify(cache) == []
    captions = list(zip(cache.caption_image().tolist(), cache.captions(), strict=True))
    return cache.keys(), captions, cache.image_emb(), cache.norm(), cache.status().tolist()


def files(folder: Path) -> dict[str, bytes]:
    """The bytes of every file."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
