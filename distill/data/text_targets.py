"""Text targets: embeddings of captions' translations by a text teacher, as training reads them."""

import torch

from ...cache.format import TEACHER_EMB
from ...cache.read.cache import Cache
from ...cache.write.text_targets import TextTargetStatus
from ..errors import DistillError
from .image_embeddings import OnHost, fits_in_memory


def open_text_targets(cache: Cache, device: torch.device) -> OnHost:
    """Open the teacher's embeddings of a sealed cache, checked against their checksums.

    Its rows are captions; rows of captions without a target are zeros. Embeddings in a folder are mapped, others are
    read into memory.

    Args:
        cache: whose captions have a teacher.
        device: where the embeddings are needed.

    Raises:
        CacheError: a chunk is absent or damaged.
        DistillError: the cache has no targets, or none of any caption, or more than the memory holds.
    """
    remedy = "cache again with the --teacher-field of the captions in the language that the CLIP reads"
    if not cache.info.source.images:
        raise DistillError(
            f"--teacher-weight: the targets of {cache.path} are a teacher's already: drop it, and take --loss cosine"
        )
    if not cache.info.source.teacher_fields:
        raise DistillError(f"--teacher-weight: {cache.path} holds no teacher's embeddings: {remedy}")
    if not (cache.teacher_status() == TextTargetStatus.EMBEDDED).any():
        raise DistillError(f"--teacher-weight: no caption of {cache.path} has a teacher's embedding: {remedy}")
    if cache.arrays.is_folder:
        return OnHost([cache.mapped(TEACHER_EMB).check().take], device)
    # Captions are drawn from everywhere, so that all of them must be at hand.
    if not fits_in_memory(2 * cache.info.num_captions * cache.info.encoder.dim, torch.device("cpu")):
        raise DistillError(
            f"{cache.path}: the embeddings of its teacher would take more than half of the free memory: copy the "
            "cache to a local disk, as a Zarr folder, from where they are mapped"
        )
    emb = cache.teacher_emb()
    return OnHost([lambda captions: emb.take(captions, axis=0)], device)
