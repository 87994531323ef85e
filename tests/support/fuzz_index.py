"""Index files changed at random, with checksums that match."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
from clipglot.cache.read.cache import Cache
from clipglot.search import ivf
from clipglot.search.codings import Int8Coding
from clipglot.search.index_file import END, IndexInfo, read_index_file, seal_index
from clipglot.search.ivf import IvfIndex

from support.nearest_rows import unit_queries

NUM, DIM = 600, 12


class _Forged(Int8Coding):
    """Any bytes in the place of a coding."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def content(self) -> bytes:
        return self._content


def search_forged(case: list[str]) -> str:
    """Change a file at random, make its checksums right again, and search it.

    Args:
        case: the cache, the index, and the seed of the change.
    """
    cache, file, seed = Cache(Path(case[0])), Path(case[1]), int(case[2])
    ivf.EXACT_ROWS = 1
    rng, content, opened = np.random.default_rng(seed), bytearray(file.read_bytes()), read_index_file(file)
    faiss_bytes, *_ = END.unpack(content[-END.size :])
    body = content[: faiss_bytes + opened.coding.stored_bytes(DIM)]
    # Half of the changes hit the header and the sizes of lists, where a reader goes wrong.
    most = len(body) if seed % 2 else 2000
    for at in rng.integers(0, most, 1 + seed % 7).tolist():
        size = int(rng.choice([1, 4, 8]))
        end = min(at + size, len(body))
        body[at:end] = [b"\xff", b"\x00", b"\x7f", rng.bytes(1)][int(rng.integers(4))] * (end - at)
    forged = file.with_name(f"forged{seed}.index")
    forged.write_bytes(body[:faiss_bytes])
    claimed = str(rng.choice(["num_rows", "num_lists", "num_probes", "depth"]))
    claims = {} if seed % 5 else {claimed: 2 ** int(rng.integers(0, 62))}
    fields = asdict(opened.info) | claims
    seal_index(forged, _Forged(bytes(body[faiss_bytes:])), lambda sums: IndexInfo(**fields | {"checksums": sums}))
    try:
        index = IvfIndex(cache, forged)
        queries = unit_queries(np.random.default_rng(0), 4, DIM)
        for allowed in (None, np.arange(NUM) % 2 == 0):
            assert index.search(queries, 5, allowed)[1].max() < NUM
    finally:
        forged.unlink()
    return "searched"
