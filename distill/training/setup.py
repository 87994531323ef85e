"""Set-up of a run before its first step: cache, tokenizer, tower and loader that fit each other, or a refusal."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from ...cache.format import OWN_CAPTIONS
from ...cache.location import Location
from ...cache.progress import OnProgress, ignore_progress
from ...cache.read.cache import Cache
from ...cache.read.caption_sets import with_captions
from ...encoders.text_lm import LMHead, LMTower
from ...encoders.text_tower import TextTower
from ...encoders.tokenizer import TextTokenizer
from ..data.image_embeddings import open_images, resolve_chunk_shuffle, resolve_num_views
from ..data.languages import LanguageMix, mix_languages
from ..data.loader import BatchLoader
from ..data.pairs import ValidationData, load_train_data, load_validation_data
from ..data.statistics import CaptionStats, count_captions, sample_pairs
from ..data.text_features import open_features
from ..data.text_targets import open_text_targets
from ..device import resolve_precision
from ..errors import DistillError
from ..provenance import content_id, require_same_encoder, run_provenance
from ..train_settings import TrainSettings
from .build_tower import build_tower, open_tokenizer
from .loggers import require_loggers
from .run_folder import RunFolder
from .student import Student, build_student
from .warm_start import warm_start


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Parts of a run.

    Attributes:
        run: its folder, not yet begun.
        tokenizer: of its captions.
        loader: of its batches.
        val_data: held-out pairs, if there are any.
        val_content: name of their content (`content_id`); empty without.
        sample: else some of its own pairs.
        mix: languages of its captions; None where neither sets nor languages were chosen.
        caption_names: sets that it trains on.
        val_caption_names: sets of the held-out pairs.
        captions: figures of its captions.
        num_captions: that it trains on.
        student: that learns.
        device: where it learns.
        description: provenance and precision, as run.json has them.
    """

    run: RunFolder
    tokenizer: TextTokenizer
    loader: BatchLoader
    val_data: ValidationData | None
    val_content: str
    sample: ValidationData | None
    mix: LanguageMix | None
    caption_names: tuple[str, ...]
    val_caption_names: tuple[str, ...]
    captions: CaptionStats
    num_captions: int
    student: Student
    device: torch.device
    description: dict[str, Any]


def build_run(
    settings: TrainSettings,
    device: torch.device,
    *,
    resume: bool = False,
    on_progress: OnProgress = ignore_progress,
) -> Setup:
    """Open, check and load everything; writes nothing but tokens.

    Args:
        settings: of the run.
        device: where it learns.
        resume: whether a run in the folder is resumed.
        on_progress: called while embeddings are checked, captions tokenized and a warm start fitted.

    Raises:
        CacheError, EncoderError, DistillError: each message says what to do.
    """
    require_loggers(settings.log_to)
    run, cache = RunFolder(settings.output), with_captions(Cache(settings.cache).require_sealed(), settings.captions)
    val_cache = _open_val(settings.val, settings.val_captions, cache) if settings.val else None
    if val_cache:
        require_same_encoder(cache.info.encoder, val_cache.info.encoder, f"the encoder of {settings.val}")
    precision = resolve_precision(settings.precision, device)
    chunk_shuffle = resolve_chunk_shuffle(cache, settings)
    description = {
        "provenance": run_provenance(cache, resolve_num_views(cache, settings.views)),
        "computed_in": {
            "precision": precision,
            "tf32": settings.tf32 and device.type == "cuda",
            "pool_chunks": chunk_shuffle.pool_chunks if chunk_shuffle else None,
        },
    }
    run.require_ready(settings, description, resume=resume)
    chooses = settings.has_further_captions or settings.language or settings.language_temperature is not None
    mix = mix_languages(cache, settings) if chooses else None
    tokenizer = open_tokenizer(
        settings,
        run.tokenizer,
        lambda: mix.trained(cache.captions()) if mix else cache.captions(),
        (lambda: mix.balanced(cache.captions(), settings.seed)) if mix else None,
    )
    tower = _learning_part(build_tower(settings, cache.info.encoder, tokenizer), settings)
    context_length = tower.config.context_length  # of a tower with few positions, shorter than the default
    data = load_train_data(
        cache,
        open_images(cache, settings, device, on_progress),
        tokenizer,
        context_length,
        run.tokens / content_id(cache),
        text_targets=open_text_targets(cache, device) if settings.teacher_weight else None,
        mix=mix,
        workers=settings.workers,
        on_progress=on_progress,
    )
    features = partial(
        open_features,
        fingerprint=tokenizer.fingerprint(context_length),
        precision=precision,
        device=device,
        on_progress=on_progress,
    )
    if isinstance(tower, LMHead):
        data = replace(data, features=features(cache, data.tokens, tower, fallback=run.tokens / content_id(cache)))
    tower.to(device)
    if settings.warm_start == "ridge" and not run.has_checkpoint():
        warm_start(tower, tokenizer, cache, data, settings, on_progress)
    student = build_student(tower, settings, device, precision)
    loader = BatchLoader(settings, data, student.tower, device, num_passes=settings.num_passes)
    val_data, val_content = None, ""
    if val_cache:
        val_content = content_id(val_cache)
        val_data = load_validation_data(
            val_cache,
            tokenizer,
            context_length,
            run.tokens / val_content,
            workers=settings.workers,
            on_progress=on_progress,
        )
        if isinstance(tower, LMHead):
            of_val = features(val_cache, val_data.tokens, tower, fallback=run.tokens / val_content)
            val_data = replace(val_data, features=of_val)
    return Setup(
        run=run,
        tokenizer=tokenizer,
        loader=loader,
        val_data=val_data,
        val_content=val_content,
        sample=None if val_cache else sample_pairs(cache, data),
        mix=mix,
        caption_names=cache.caption_names,
        val_caption_names=val_cache.caption_names if val_cache else (),
        captions=count_captions(cache, data, tokenizer, context_length),
        num_captions=int(np.count_nonzero(data.caption_image >= 0)),
        student=student,
        device=device,
        description=description,
    )


def _open_val(path: Location, names: Sequence[str], cache: Cache) -> Cache:
    """The held-out pairs: with the captions that are named, or else those of the run that it has.

    Raises:
        CacheError: no such cache or captions.
        DistillError: it has none of those that the run trains on.
    """
    val = Cache(path).require_sealed()
    known = {OWN_CAPTIONS, *(info.name for info in val.arrays.caption_sets())}
    chosen = names or [name for name in cache.caption_names if name in known]
    if not chosen:
        raise DistillError(
            f"--val {path} has no captions {' or '.join(cache.caption_names)}: add them with `clipglot captions {path} "
            f"FILE --name {cache.caption_names[0]}`, or pass --val-captions, of {', '.join(sorted(known))}"
        )
    return with_captions(val, chosen)


def _learning_part(tower: TextTower, settings: TrainSettings) -> TextTower:
    """The part of a tower that learns: the head alone where the features of a frozen model are computed once."""
    if not settings.freezes_lm or settings.live_because or not isinstance(tower, LMTower):
        return tower
    return tower.head_alone() or tower
