"""What comes before the first step: a cache, a tokenizer, a tower and a feed that fit each other, or a refusal."""

from dataclasses import dataclass
from typing import Any

import torch

from ...cache.progress import OnProgress
from ...cache.read.cache import Cache
from ...encoders.tokenizer import TextTokenizer
from ..data.load import load_data, load_validation, open_images, pooling_of, views_of
from ..data.loader import BatchLoader
from ..data.pairs import ValidationData
from ..data.statistics import CaptionStats, count_pairs, sample_pairs
from ..device import resolve_precision
from ..provenance import content_id, require_same_encoder, run_provenance
from ..train_settings import TrainSettings
from .build_tower import build_tower, open_tokenizer
from .loggers import require_loggers
from .run_folder import RunFolder
from .student import Student
from .warm_start import warm_start


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What the loop runs on.

    Attributes:
        run: its folder, not yet begun.
        tokenizer: of its captions.
        feed: of its steps.
        val_data: held-out pairs, if there are any.
        sample: else some of its own pairs.
        pairs: its pairs in figures.
        student: what learns.
        device: where.
        description: provenance and precision, as run.json has them.
    """

    run: RunFolder
    tokenizer: TextTokenizer
    feed: BatchLoader
    val_data: ValidationData | None
    sample: ValidationData | None
    pairs: CaptionStats
    student: Student
    device: torch.device
    description: dict[str, Any]


def build_run(settings: TrainSettings, device: torch.device, resume: bool, on_progress: OnProgress) -> Setup:
    """Open, check and load everything; writes nothing but tokens.

    Args:
        settings: of the run.
        device: where it learns.
        resume: whether a run that is there goes on.
        on_progress: called while embeddings are checked, captions tokenized and a warm start fitted.

    Raises:
        CacheError, EncoderError, DistillError: each message says what to do.
    """
    require_loggers(settings)
    run, cache = RunFolder(settings.output), Cache(settings.cache).require_sealed()
    val_cache = Cache(settings.val).require_sealed() if settings.val else None
    if val_cache:
        require_same_encoder(cache.info.encoder, val_cache.info.encoder, f"the encoder of {settings.val}")
    precision = resolve_precision(settings.precision, device)
    pooling = pooling_of(cache, settings)
    description = {
        "provenance": run_provenance(cache, views_of(cache, settings)),
        "computed_in": {
            "precision": precision,
            "tf32": settings.tf32 and device.type == "cuda",
            "pool_chunks": pooling.pool_chunks if pooling else None,
        },
    }
    run.require_ready(settings, description, resume=resume)
    tokenizer = open_tokenizer(settings, run.tokenizer, cache.captions)
    images = open_images(cache, settings, device, on_progress)
    data = load_data(cache, images, tokenizer, settings, run.tokens / content_id(cache), on_progress)
    tower = build_tower(settings, cache.info.encoder, tokenizer).to(device)
    if settings.warm_start == "ridge" and not run.has_checkpoint():
        warm_start(tower, tokenizer, cache, data, settings, on_progress)
    student = Student(tower, settings, device, precision)
    return Setup(
        run=run,
        tokenizer=tokenizer,
        feed=BatchLoader(settings, data, student.tower, device),
        val_data=load_validation(val_cache, tokenizer, settings, run.tokens / content_id(val_cache), on_progress)
        if val_cache
        else None,
        sample=None if val_cache else sample_pairs(cache, data),
        pairs=count_pairs(cache, data, tokenizer, settings.context_length),
        student=student,
        device=device,
        description=description,
    )
