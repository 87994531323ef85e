"""The text tower and the tokenizer that a run asks for."""

from collections.abc import Callable
from pathlib import Path

import torch

from ..cache.format import EncoderInfo
from ..encoders.lm import LMTower, load_lm
from ..encoders.lm_tokenizer import AnyTokenizer, LMTokenizer
from ..encoders.text import TextConfig, TextTower
from ..encoders.tokenizer import CaptionTokenizer, train_bpe
from ..encoders.tower import StudentTower
from .errors import DistillError
from .train_settings import TrainSettings


def open_tokenizer(settings: TrainSettings, kept: Path, captions: Callable[[], list[str]]) -> AnyTokenizer:
    """The tokenizer of a run: the one that it keeps, the language model's, the one given, or one made from captions.

    Args:
        settings: of the run.
        kept: its tokenizer's folder, which need not exist yet.
        captions: of the cache.

    Raises:
        EncoderError: no tokenizer there.
        DistillError: a tokenizer for a language model, which has its own.
    """
    if settings.text != "scratch":
        if settings.tokenizer:
            raise DistillError(f"--tokenizer {settings.tokenizer}: {settings.text} has a tokenizer of its own: drop it")
        return LMTokenizer.load(kept if kept.exists() else settings.text)
    if kept.exists():
        return CaptionTokenizer.load(kept)
    return (
        CaptionTokenizer.load(settings.tokenizer) if settings.tokenizer else train_bpe(captions(), settings.vocab_size)
    )


def build_tower(settings: TrainSettings, encoder: EncoderInfo, tokenizer: AnyTokenizer) -> StudentTower:
    """The text tower that a run begins with, on the CPU; its random weights follow from the seed.

    Args:
        settings: of the run.
        encoder: of the cache.
        tokenizer: of the run.

    Raises:
        EncoderError: no language model there, or none that can be trained as asked.
    """
    torch.manual_seed(settings.seed)
    if isinstance(tokenizer, CaptionTokenizer):
        scratch = TextTower(scratch_config(settings, encoder, tokenizer))
        scratch.dropout = settings.dropout or 0.0
        return scratch
    tower = load_lm(
        settings.text,
        encoder.dim,
        pooler=settings.pooler,
        head=settings.head,
        context_length=settings.context_length,
        dropout=settings.dropout,
    )
    _prepare(tower, settings)
    return tower


def _prepare(tower: LMTower, settings: TrainSettings) -> None:
    """Freeze and adapt as asked."""
    if settings.lora_rank:
        tower.add_lora(
            rank=settings.lora_rank, alpha=settings.resolved_lora_alpha, targets=settings.lora_targets, dropout=0.0
        )
    else:
        tower.freeze(train_layers=settings.train_layers, word_embeddings=settings.freeze_embeddings)


def scratch_config(
    settings: TrainSettings, encoder: EncoderInfo, tokenizer: CaptionTokenizer, *, vocab_size: int | None = None
) -> TextConfig:
    """The scratch tower that a run asks for, given what it is to match.

    Args:
        settings: of the run.
        encoder: of the cache.
        tokenizer: of the run.
        vocab_size: rows of its vocabulary, where they shall be more than the tokenizer's.
    """
    return TextConfig(
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
