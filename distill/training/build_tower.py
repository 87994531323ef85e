"""The text tower and the tokenizer that a run asks for."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from ...cache.format import EncoderInfo
from ...encoders.merged_clip import CONFIG
from ...encoders.text_lm import LMTower
from ...encoders.text_lm_loading import (
    has_dropout,
    load_lm,
    plain_values,
    require_context,
    require_tokenizer_fits,
    set_dropout,
)
from ...encoders.text_scratch import ScratchConfig, ScratchTower
from ...encoders.text_tower import TextTower
from ...encoders.text_transfer import load_clip_text, transfer_vocabulary
from ...encoders.tokenizer import CaptionTokenizer, train_bpe
from ...encoders.tokenizer_lm import AnyTokenizer, LMTokenizer
from ..errors import DistillError
from ..train_settings import TrainSettings
from .final import ends_with_lm, load_final
from .run_folder import RunFolder

OWN = ("scratch", "clip")  # text towers that are no language models of transformers


def open_tokenizer(settings: TrainSettings, kept: Path, captions: Callable[[], list[str]]) -> AnyTokenizer:
    """The tokenizer of a run: the one that it keeps, or what its text tower comes with, or is given, or one made anew.

    Args:
        settings: of the run.
        kept: its tokenizer's folder, which need not exist yet.
        captions: of the cache.

    Raises:
        EncoderError: no tokenizer there.
        DistillError: a tokenizer for a language model, which has its own, an earlier run that has not finished, or a
            folder of another kind.
    """
    earlier = earlier_run(settings)
    _require_text_tower(settings.text)
    is_lm = ends_with_lm(earlier) if earlier else settings.text not in OWN
    if is_lm:
        if settings.tokenizer:
            raise DistillError(f"--tokenizer {settings.tokenizer}: {settings.text} has a tokenizer of its own: drop it")
        own = earlier.tokenizer if earlier else settings.text
        return LMTokenizer.load(kept if kept.exists() else own)
    folder = kept if kept.exists() else settings.tokenizer or (earlier.tokenizer if earlier else None)
    return CaptionTokenizer.load(folder) if folder else train_bpe(captions(), settings.vocab_size)


def build_tower(settings: TrainSettings, encoder: EncoderInfo, tokenizer: AnyTokenizer) -> TextTower:
    """The text tower that a run begins with, on the CPU; its random weights follow from the seed.

    Args:
        settings: of the run.
        encoder: of the cache.
        tokenizer: of the run.

    Raises:
        EncoderError: no such tower, or none that can be trained as asked.
        DistillError: settings of a language model for a tower that is none.
    """
    torch.manual_seed(settings.seed)
    if isinstance(tokenizer, LMTokenizer):
        lm = _language_model(settings, encoder)
        require_tokenizer_fits(lm, tokenizer, settings.text)
        _prepare(lm, settings)
        return lm
    if settings.text != "scratch":
        settings.require_no_language_model()
        if settings.warm_start == "ridge":
            raise DistillError(f"--warm-start ridge: {settings.text} has learned already: drop it")
    tower = _text_transformer(settings, encoder, tokenizer)
    tower.dropout = settings.dropout or 0.0
    _require_passes_differ(settings, drops=tower.dropout > 0)
    # Where they hold a regression, to drop them is to lose what it knows.
    tower.drop_embeddings = settings.warm_start == "none"
    return tower


def earlier_run(settings: TrainSettings) -> RunFolder | None:
    """The run that the text tower is taken from, if it is."""
    folder = Path(settings.text)
    return RunFolder(folder) if settings.text not in ("", *OWN) and (folder / "run.json").is_file() else None


def _require_text_tower(text: str) -> None:
    """Refuse files, and folders of ours that hold no text tower to begin with."""
    if text in OWN:
        return
    if not text or Path(text).is_file():
        raise DistillError(f"--text {text!r}: expected scratch, clip, the folder of a run or a language model")
    if (Path(text) / "zarr.json").is_file():
        raise DistillError(f"--text {text} is a cache: pass the folder of a run or of a language model")
    if (Path(text) / CONFIG).is_file():
        raise DistillError(f"--text {text} is a merged CLIP: pass the folder of the run that it was exported from")


def _text_transformer(settings: TrainSettings, encoder: EncoderInfo, tokenizer: CaptionTokenizer) -> ScratchTower:
    if earlier := earlier_run(settings):
        loaded = load_final(earlier).tower
        assert isinstance(loaded, ScratchTower), "its tokenizer is none of a language model"
        tower, old = loaded, CaptionTokenizer.load(earlier.tokenizer)
    elif settings.text == "clip":
        tower, old = load_clip_text(encoder.model, encoder.pretrained)
    else:
        return ScratchTower(scratch_config(settings, encoder, tokenizer))
    return transfer_vocabulary(tower, old, tokenizer, context_length=settings.context_length, embed_dim=encoder.dim)


def _language_model(settings: TrainSettings, encoder: EncoderInfo) -> LMTower:
    if earlier := earlier_run(settings):
        return _language_model_of(earlier, settings, encoder)
    return load_lm(
        settings.text,
        encoder.dim,
        pooler=settings.pooler,
        head=settings.head,
        context_length=settings.context_length,
        dropout=settings.dropout,
    )


def _language_model_of(earlier: RunFolder, settings: TrainSettings, encoder: EncoderInfo) -> LMTower:
    """The tower of an earlier run as it is, but for the context length and dropout of this one."""
    learned = load_final(earlier).tower
    assert isinstance(learned, LMTower), "its tokenizer is one of a language model"
    begun = learned.config
    if begun.embed_dim != encoder.dim:
        raise DistillError(
            f"--text {settings.text} gives {begun.embed_dim} features, {encoder.model} has {encoder.dim}: "
            "begin with the language model itself"
        )
    for name in ("pooler", "head"):
        kept, asked = getattr(begun, name), getattr(settings, name)
        if asked not in (kept, getattr(TrainSettings, name)):
            raise DistillError(
                f"--{name} {asked}: the run {settings.text} learned with {kept}, which stays: drop --{name}, or begin "
                "with the language model itself"
            )
    if settings.warm_start == "ridge" and begun.head != "linear":
        raise DistillError(f"--warm-start ridge fits a linear head, {settings.text} has another: drop --warm-start")
    shape = begun.to_transformers()
    require_context(shape, settings.context_length, settings.text)
    set_dropout(shape, settings.dropout)
    tower = LMTower(replace(begun, context_length=settings.context_length, model=plain_values(shape)))
    tower.load_state_dict(learned.state_dict())
    return tower


def _prepare(tower: LMTower, settings: TrainSettings) -> None:
    """Freeze and adapt as asked."""
    if settings.lora_rank:
        tower.add_lora(
            rank=settings.lora_rank, alpha=settings.resolved_lora_alpha, targets=settings.lora_targets, dropout=0.0
        )
    else:
        tower.freeze(train_layers=settings.train_layers, word_embeddings=settings.freeze_embeddings)
    _require_passes_differ(settings, drops=settings.train_layers != 0 and has_dropout(tower.transformer.config))


def _require_passes_differ(settings: TrainSettings, *, drops: bool) -> None:
    """Refuse --simcse of a tower that gives a caption the same features twice."""
    if settings.simcse and not drops and not settings.token_dropout:
        raise DistillError(
            f"--simcse {settings.simcse}: both passes of a caption would be the same, as what is trained of "
            f"{settings.text} drops nothing: pass --dropout, e.g. 0.1, or --token-dropout"
        )


def scratch_config(
    settings: TrainSettings, encoder: EncoderInfo, tokenizer: CaptionTokenizer, *, vocab_size: int | None = None
) -> ScratchConfig:
    """The scratch tower that a run asks for, given what it is to match.

    Args:
        settings: of the run.
        encoder: of the cache.
        tokenizer: of the run.
        vocab_size: rows of its vocabulary, where they shall be more than the tokenizer's.
    """
    return ScratchConfig(
        embed_dim=encoder.dim,
        vocab_size=vocab_size or tokenizer.vocab_size,
        context_length=settings.context_length,
        width=settings.width,
        heads=settings.heads,
        layers=settings.layers,
        pad_id=tokenizer.pad_id,
        eos_id=tokenizer.eos_id,
        quick_gelu=encoder.quick_gelu,
    )
