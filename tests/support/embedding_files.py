"""Embedding files as people have them on disk."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from clipglot.cache.read.cache import Cache


def read_given(cache: Path) -> tuple[np.ndarray, list[str], list[list[str]]]:
    """Raw embeddings `[N, D]` of a cache, the paths of its images and their captions."""
    opened = Cache(cache)
    captions, image_index = opened.captions(), opened.caption_image()
    raw = opened.image_emb().astype(np.float32) * opened.norm()[:, None]
    return raw, opened.keys(), [[captions[i] for i in np.flatnonzero(image_index == row)] for row in range(len(opened))]


def write_jsonl(path: Path, keys: list[str], captions: list[list[str]]) -> None:
    lines = [json.dumps({"image": key, "text": texts}) for key, texts in zip(keys, captions, strict=True)]
    path.write_text("\n".join(lines) + "\n")


def write_folder(folder: Path, given: Any, parts: tuple[int, ...] = (25, 0, 15)) -> Path:
    """Write a folder as clip-retrieval does: unit rows in half precision, one caption an image, parts from 0 on."""
    raw, keys, captions = given
    for name in ("img_emb", "metadata"):
        (folder / name).mkdir(parents=True)
    unit = (raw / np.linalg.norm(raw, axis=1, keepdims=True)).astype(np.float16)
    start = 0
    for number, size in zip((0, 2, 10), parts, strict=True):
        rows = slice(start, start + size)
        np.save(folder / "img_emb" / f"img_emb_{number}.npy", unit[rows])
        table = {"image_path": keys[rows], "caption": [texts[0] for texts in captions[rows]], "url": ["u"] * size}
        columns = pa.schema([("image_path", pa.string()), ("caption", pa.string()), ("url", pa.string())])
        pq.write_table(pa.table(table, columns), folder / "metadata" / f"metadata_{number}.parquet")
        start += size
    return folder


def tower(tiny_clip: Path) -> list[str]:
    return ["--model", f"local-dir:{tiny_clip}"]
