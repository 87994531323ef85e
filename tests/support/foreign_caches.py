"""Caches as a stranger could make them, and all ways to read one, tried in a child process of bounded memory."""

import json
import os
import shutil
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from clipglot.cache.errors import CacheError
from clipglot.cache.read.cache import Cache
from clipglot.cache.read.verify import verify
from clipglot.cache.storage.open import store_at
from clipglot.cache.storage.ragged import RaggedReader
from clipglot.cache.write.convert import convert
from clipglot.cache.write.merge import concatenate_caches
from clipglot.distill.data.image_embeddings import open_images
from clipglot.distill.data.pairs import load_train_data
from clipglot.distill.train_settings import EmbeddingSettings
from clipglot.encoders.tokenizer import CaptionTokenizer
from clipglot.jobs.inspect import inspect_cache
from clipglot.jobs.settings.inspect import InspectSettings

from support.damage import rewrite
from support.metadata_edits import edit

Change = Callable[[Path], object]
TEXTS, KEYS = "captions/text", "images/key"


def _described(name: str, **fields: Any) -> Change:
    """Other values in the zarr.json of an array; `chunks` is the chunk shape."""

    def change(cache: Path) -> None:
        document = json.loads((cache / name / "zarr.json").read_text())
        if chunks := fields.pop("chunks", None):
            document["chunk_grid"]["configuration"]["chunk_shape"] = chunks
        (cache / name / "zarr.json").write_text(json.dumps(document | fields))

    return change


def _resized(cache: Path, num: int, **fields: Any) -> None:
    """A cache that declares `num` images and captions in all places, and has its old chunks."""
    edit(cache, num_pictures=num, num_captions=num, **fields)
    for name, shape in {
        "images/emb": [1, num, 16],
        "images/norm": [1, num],
        "images/status": [num],
        "images/hash": [num, 2],
        "captions/image": [num],
        f"{KEYS}/offsets": [num + 1],
        f"{TEXTS}/offsets": [num + 1],
    }.items():
        _described(name, shape=shape)(cache)


def _sparse(name: str, size: int = 10**12) -> Change:
    return lambda cache: os.truncate(cache / name, size)


def _instead(name: str, make: Callable[[Path], object]) -> Change:
    def change(cache: Path) -> None:
        (cache / name).unlink()
        make(cache / name)

    return change


def _zeros(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _zstd_bomb(cache: Path) -> None:
    """Caption bytes of 4 GiB of zeros, in a zstd frame of 130 kB made by hand."""
    blocks = 2**15
    frame = struct.pack("<IBQ", 0xFD2FB528, 0xE0, blocks * 2**17)  # one segment, its size in 8 bytes
    for i in range(blocks):
        header = (2**17 << 3) | (1 << 1) | (i == blocks - 1)  # one byte, repeated 2**17 times
        frame += struct.pack("<I", header)[:3] + b"\0"
    _described(
        f"{TEXTS}/bytes",
        shape=[2**32],
        chunks=[2**32],
        codecs=[{"name": "bytes"}, {"name": "zstd", "configuration": {"level": 0, "checksum": False}}],
    )(cache)
    (cache / TEXTS / "bytes/c/0").write_bytes(frame)


def _circle(cache: Path) -> None:
    for name in ("there", "back"):
        (cache / name).symlink_to(".")


def _beat(content: bytes) -> Change:
    def change(cache: Path) -> None:
        (cache / "workers").mkdir()
        (cache / "workers/0.json").write_bytes(content)

    return change


def _in_large_chunks(cache: Path, **fields: Any) -> None:
    _resized(cache, 10**10, chunk_rows=2**20, **fields)
    for name, rows in (("images/emb", [1, 2**20, 16]), ("images/norm", [1, 2**20]), ("images/status", [2**20])):
        _described(name, chunks=rows)(cache)
    _described("images/hash", chunks=[2**20, 2])(cache)


def _many_empty_chunks(cache: Path) -> None:
    _in_large_chunks(cache, state="planned", counts={})
    for name in (KEYS, TEXTS):
        _described(f"{name}/offsets", chunks=[2**26])(cache)
        for chunk in range(-(-(10**10) // 2**26) + 1):
            (cache / name / f"offsets/c/{chunk}").write_bytes(b"")


def _tokens(cache: Path) -> str:
    return next(f"tokens/{group.name}" for group in (cache / "tokens").iterdir() if group.is_dir())


CHANGES: dict[str, Change] = {
    **{
        f"{kind} for {name}": _instead(name, make)
        for kind, make in (("fifo", os.mkfifo), ("device", _zeros), ("folder", Path.mkdir))
        for name in ("zarr.json", "images/emb/zarr.json", f"{TEXTS}/offsets/c/0", "images/status/c/1")
    },
    "terabyte of metadata": _sparse("zarr.json"),
    "terabyte of metadata of an array": _sparse("images/status/zarr.json"),
    "terabyte in a chunk": _sparse(f"{TEXTS}/bytes/c/0"),
    "terabyte in a chunk of status": _sparse("images/status/c/0"),
    "deep metadata": lambda cache: (cache / "zarr.json").write_bytes(b"[" * 10**6),
    "deep metadata of an array": lambda cache: (cache / "images/emb/zarr.json").write_bytes(b'{"a":' * 10**6),
    "long number": lambda cache: (cache / "images/emb/zarr.json").write_bytes(b"9" * 10**5),
    **{
        f"offsets {what} in {name}": (
            lambda cache, name=name, row=row, value=value: rewrite(cache, f"{name}/offsets", row, value)
        )
        for name in (TEXTS, KEYS)
        for what, row, value in (
            ("beyond", -1, 10**15),
            ("far beyond", slice(5, None), 2**62),
            ("negative", slice(0, 5), -(2**40)),
            ("descending", 7, 10**6),
        )
    },
    **{f"{num:.0e} rows": lambda cache, num=num: _resized(cache, num) for num in (10**8, 10**10, 10**12, 10**15)},
    **{
        f"{num:.0e} rows, planned": lambda cache, num=num: _resized(cache, num, state="planned", counts={})
        for num in (10**10, 10**15)
    },
    "1e10 rows in large chunks": _in_large_chunks,
    "1e10 rows in large chunks, planned": _many_empty_chunks,
    "1e10 rows of status alone": _described("images/status", shape=[10**10]),
    "1e15 bytes of captions": _described(f"{TEXTS}/bytes", shape=[10**15]),
    "1e9 bytes of captions, one a chunk": _described(f"{TEXTS}/bytes", shape=[10**9], chunks=[1]),
    "1e12 bytes in a chunk": _described(f"{TEXTS}/bytes", shape=[10**12], chunks=[10**12]),
    "chunks of nothing": _described("images/status", chunks=[0]),
    "no axes": _described("images/status", shape=[], chunks=[]),
    "1e9 views": lambda cache: (
        edit(cache, num_views=10**9),
        _described("images/norm", shape=[10**9, 40])(cache),
        _described("images/emb", shape=[10**9, 40, 16])(cache),
    ),
    "zstd bomb": _zstd_bomb,
    "doubles": _described("images/emb", data_type="float64"),
    "texts": _described("images/status", data_type="string", fill_value=""),
    "filled with ones": _described("images/status", fill_value=1),
    "captions of images beyond": lambda cache: rewrite(cache, "captions/image", -1, 10**12),
    "captions of images before": lambda cache: rewrite(cache, "captions/image", 0, -5),
    "unknown status": lambda cache: rewrite(cache, "images/status", 3, 99),
    "no UTF-8": lambda cache: rewrite(cache, f"{TEXTS}/bytes", slice(0, 30), 0xFF),
    "links in circles": _circle,
    "token ids beyond": lambda cache: rewrite(cache, f"{_tokens(cache)}/ids", 3, 60_000),
    "token offsets beyond": lambda cache: rewrite(cache, f"{_tokens(cache)}/offsets", -1, 10**15),
    "token offsets descending": lambda cache: rewrite(cache, f"{_tokens(cache)}/offsets", 4, 0),
    "1e12 token ids": lambda cache: _described(f"{_tokens(cache)}/ids", shape=[10**12])(cache),
    "doubles as token ids": lambda cache: _described(f"{_tokens(cache)}/offsets", data_type="float64")(cache),
    "heartbeat of other types": _beat(b'{"worker": [], "of": {}, "host": 3, "pid": "x", "stage": "embed"}'),
    "deep heartbeat": _beat(b"[" * 10**6),
    "types of metadata": lambda cache: edit(cache, languages=3, counts=[], dropped_captions="x"),
    "type of the source": lambda cache: edit(cache, source={"path": 3, "sha256": 4, "image_root": [], "x": 1}),
}
"""What a stranger can do to a cache in a folder, by name."""


def other_cache(cache: Path) -> Path:
    """An intact copy beside a cache, to merge it with."""
    return cache.with_name("intact.zarr")


def _inspect(cache: Path) -> None:
    inspect_cache(InspectSettings(cache=cache, failures=-1)).to_json()


def _verify(cache: Path) -> None:
    if faults := verify(Cache(cache)):
        raise CacheError(str(faults[0]))


def _convert(cache: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        convert(Cache(cache), Path(folder, "out.zarr"))


def _merge(cache: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        caches = [Cache(cache), Cache(other_cache(cache))]
        concatenate_caches(caches, Path(folder, "out.zarr"), prefixes=["a", "b"])


def _embeddings(cache: Path) -> None:
    opened = Cache(cache).require_sealed()
    opened.emb_rows(np.arange(len(opened)) if len(opened) < 10**6 else np.arange(9))
    opened.image_emb(), opened.norm(), opened.hashes(0), list(opened.failures()), opened.keys()


def _train(cache: Path) -> None:
    opened, cpu = Cache(cache).require_sealed(), torch.device("cpu")
    place = "device" if opened.arrays.is_hdf5 else "mapped"
    images = open_images(opened, EmbeddingSettings(embeddings=place), cpu)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = CaptionTokenizer.load(cache.parent / "run/tokenizer")
        load_train_data(opened, images, tokenizer, 24, Path(folder) / "tokens", workers=1)


def _reader(cache: Path) -> None:
    """A ragged reader without the checks of `Cache`."""
    for name in (TEXTS, KEYS):
        reader = RaggedReader(zarr.open_group(store_at(cache, read_only=True), mode="r"), name)
        texts = reader.texts()
        texts.take(np.arange(len(texts))[::-1]).split()
        list(reader.gathered(np.arange(len(reader))[::-1]))


WAYS = {
    "inspect": _inspect,
    "verify": _verify,
    "convert": _convert,
    "merge": _merge,
    "embeddings": _embeddings,
    "train": _train,
    "reader": _reader,
}
"""All ways to read a cache, by name."""


def read(case: list[str]) -> None:
    """Change a copy of a cache and read it in one way.

    Args:
        case: name in `CHANGES`, way, and the folder with the cache and what belongs to it.
    """
    change, way, folder = case
    with tempfile.TemporaryDirectory() as temporary:
        cache = Path(shutil.copytree(Path(folder, "own.zarr"), Path(temporary, "copy/own.zarr")))
        for name in ("intact.zarr", "run"):  # which are only read
            cache.with_name(name).symlink_to(Path(folder, name))
        CHANGES[change](cache)
        WAYS[way](cache)


def open_url(url: str) -> None:
    """Open a cache at a URL."""
    Cache(url)
