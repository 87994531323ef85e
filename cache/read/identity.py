"""Identity of the embeddings of a cache, by which what was computed from them is recognised as theirs."""

import hashlib
import json

from ..errors import ChunkId
from ..format import EMB, STATUS
from .cache import Cache


def embedding_identity(cache: Cache) -> str:
    """Digest of the plain embeddings and the statuses of a cache, and of the tower that made them.

    Copies of a cache have one identity, in HDF5 too. A cache that was appended to, made again by another tower, or
    whose embeddings differ in any bit, has another. Of a local folder only the checksums are read.

    Args:
        cache: sealed.

    Raises:
        DamagedCacheError: a chunk is absent or of the wrong size.
    """
    encoder = cache.info.encoder
    chunks: list[ChunkId] = [(EMB, (0, chunk, 0)) for chunk in range(cache.num_chunks)]
    chunks += [(STATUS, (chunk,)) for chunk in range(cache.num_chunks)]
    parts = [encoder.weights_sha256, encoder.dim, len(cache), cache.info.chunk_rows]
    parts += [cache.arrays.chunk_checksum(chunk) for chunk in chunks]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
