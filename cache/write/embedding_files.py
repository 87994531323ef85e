"""Image embeddings of a cache as files of other tools: .npy for faiss and autofaiss, .parquet, .safetensors.

Only embedded images are written: a row of zeros would be a neighbour of everything. `row` tells where each came from.
N images of the cache, n of them embedded, D features.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..errors import CacheError
from ..format import Status
from ..read.cache import Cache
from ..storage.atomic import explain_os_error
from .convert import require_nothing, whole_file

_ROWS = [("row", pa.int64()), ("key", pa.string()), ("captions", pa.list_(pa.string()))]


@dataclass(frozen=True, kw_only=True)
class EmbeddingFiles:
    """What was written.

    Attributes:
        files: the embeddings; beside .npy and .safetensors a .parquet with row, key and captions of each.
        num_embedded: n.
        num_left_out: images of the cache that were not embedded.
        num_bytes: of the embeddings.
        wall_s: seconds from start to end.
    """

    files: list[Path]
    num_embedded: int
    num_left_out: int
    num_bytes: int
    wall_s: float


def write_embedding_files(
    cache: Cache, output: Path, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> EmbeddingFiles:
    """Write the plain view of a cache's embeddings, with rows, keys and captions.

    Args:
        cache: local or at a URL.
        output: ends in .npy, .parquet or .safetensors; neither it nor the .parquet beside it may exist.
        on_progress: called after each chunk with the chunks done and all chunks.

    Raises:
        CacheError: the cache is not sealed or is damaged, the output exists, or the disk is full.
    """
    started = time.perf_counter()
    cache.require_sealed()
    embedded, dim = cache.status() == Status.EMBEDDED, cache.info.encoder.dim
    num = int(embedded.sum())
    if not num:
        raise CacheError(f"{cache.path} has no embedded image: there is nothing to write")
    suffix = output.suffix.lower()
    table = output if suffix == ".parquet" else output.with_suffix(".parquet")
    targets = list(dict.fromkeys((output, table)))
    for target in targets:
        require_nothing(target)
    with ExitStack() as stack:
        for target in targets:
            stack.enter_context(explain_os_error(target, "make its folder writable or choose another name"))
        partial = {target: stack.enter_context(whole_file(target)) for target in targets}
        with_emb = [("image_emb", pa.list_(pa.float16(), dim))] if output == table else []
        rows = stack.enter_context(pq.ParquetWriter(partial[table], pa.schema([*_ROWS, *with_emb])))
        raw = None if output == table else stack.enter_context(open(partial[output], "wb"))
        if raw is not None:
            raw.write(_header(suffix, num, dim))
        for chunk, columns in _chunks(cache, embedded):
            emb = columns.pop("image_emb")
            if raw is not None:
                raw.write(emb.astype("<f2", copy=False).tobytes())
            else:
                columns["image_emb"] = pa.FixedSizeListArray.from_arrays(pa.array(emb.ravel()), dim)
            if len(emb):
                rows.write_table(pa.table(columns, schema=rows.schema))
            on_progress(chunk + 1, cache.num_chunks)
    return EmbeddingFiles(
        files=targets,
        num_embedded=num,
        num_left_out=len(cache) - num,
        num_bytes=num * dim * 2,
        wall_s=time.perf_counter() - started,
    )


def _chunks(cache: Cache, embedded: NDArray[np.bool_]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Columns of the embedded images of each chunk."""
    caption_image = cache.caption_image()
    for chunk in range(cache.num_chunks):
        rows = cache.chunk_slice(chunk)
        chosen = np.flatnonzero(embedded[rows]) + rows.start
        keys = cache.keys(rows.start, rows.stop)
        captions = cache.captions_by_image(rows, caption_image)
        yield (
            chunk,
            {
                "row": chosen,
                "key": [keys[row - rows.start] for row in chosen.tolist()],
                "captions": [captions[row - rows.start] for row in chosen.tolist()],
                "image_emb": cache.emb_rows(chosen),
            },
        )


def _header(suffix: str, num: int, dim: int) -> bytes:
    """What stands before `[num, dim] float16` in row order, so that embeddings are written as they are read."""
    if suffix == ".npy":
        described = f"{{'descr': '<f2', 'fortran_order': False, 'shape': ({num}, {dim}), }}"
        return b"\x93NUMPY\x01\x00" + _padded(described, 10, ending="\n", size=2)
    described = json.dumps({"image_emb": {"dtype": "F16", "shape": [num, dim], "data_offsets": [0, num * dim * 2]}})
    return _padded(described, 8, ending=" ", size=8)


def _padded(text: str, before: int, *, ending: str, size: int) -> bytes:
    """Length of a header in `size` bytes and the header, so that what follows begins at a multiple of 64 bytes."""
    fill = -(before + len(text) + 1) % 64
    header = (text + " " * fill + ending).encode()
    return len(header).to_bytes(size, "little") + header
