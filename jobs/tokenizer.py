"""`clipglot tokenizer`: train a tokenizer on the captions of a cache, extend one, or report how one splits them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from ..cache.read.cache import Cache
from ..cache.storage.atomic import atomic_directory, explain_os_error
from ..distill.errors import DistillError
from ..encoders.text_cleaning import clean
from ..encoders.tokenizer import (
    OPEN_CLIP,
    CaptionTokenizer,
    open_clip_tokenizer,
    read_tokenizer,
    train_bpe,
    train_unigram,
)
from ..encoders.tokenizer_coverage import ScriptCoverage, coverage_warning, sample, script_coverage
from ..encoders.tokenizer_extend import extend
from .settings.tokenizer import TokenizerSettings

VOCAB_SIZE, NUM_ADDED = 16_384, 8_192  # by default: tokens of a new tokenizer, and those that extend one
CAPTIONS_AT_A_TIME = 2**14


@dataclass(frozen=True, kw_only=True)
class TokenizerReport:
    """How a tokenizer splits the captions of a cache.

    Attributes:
        tokenizer: its folder.
        vocab_size: its tokens, special ones included.
        num_captions: all of them are counted.
        tokens_per_caption: mean, BOS and EOS included.
        percentile_95: at most so many tokens have 95 % of the captions.
        longest: most tokens of a caption.
        context_length: tokens beyond which a caption is cut.
        num_cut: captions that are longer.
        num_sampled: captions that `scripts` looks at, evenly spread.
        scripts: what becomes of each script, the most frequent first.
        warning: what is wrong with the tokenizer for these captions, if anything is.
    """

    tokenizer: str
    vocab_size: int
    num_captions: int
    tokens_per_caption: float
    percentile_95: int
    longest: int
    context_length: int
    num_cut: int
    num_sampled: int
    scripts: tuple[ScriptCoverage, ...]
    warning: str | None


def train_tokenizer(settings: TokenizerSettings) -> TokenizerReport:
    """Train a tokenizer on the captions of a cache, or extend one with them; write it and report on it.

    Args:
        settings: with an output; nothing must stand there.

    Raises:
        CacheError, EncoderError: no cache, no tokenizer, one that cannot be extended, or a wrong vocabulary size.
        DistillError: no output, or one that exists.
    """
    if settings.output is None:
        raise DistillError("pass --output DIR to write a tokenizer")
    if os.path.lexists(settings.output):
        raise DistillError(f"{settings.output} exists: choose another -o")
    captions = Cache(settings.cache).captions()
    tokenizer = _train(settings, captions)
    with explain_os_error(settings.output), atomic_directory(settings.output) as partial:
        tokenizer.save(partial)
    return tokenizer_report(tokenizer.backend, captions, str(settings.output), settings.context_length)


def inspect_tokenizer(settings: TokenizerSettings) -> TokenizerReport:
    """Report how an existing tokenizer splits the captions of a cache; nothing is written.

    Args:
        settings: with `inspect`, the tokenizer's folder.

    Raises:
        CacheError, EncoderError: no cache, or no tokenizer.
        DistillError: `inspect` is not given.
    """
    if settings.inspect is None:
        raise DistillError("pass --inspect FOLDER to inspect a tokenizer")
    captions = Cache(settings.cache).captions()
    is_open_clip = _is_open_clip(settings.inspect)
    tokenizer = open_clip_tokenizer().backend if is_open_clip else read_tokenizer(settings.inspect)
    tokenizer.encode_special_tokens = True  # as in training
    return tokenizer_report(tokenizer, captions, str(settings.inspect), settings.context_length)


def tokenizer_report(tokenizer: Tokenizer, captions: Sequence[str], name: str, context_length: int) -> TokenizerReport:
    """Report how a tokenizer splits captions.

    Args:
        tokenizer: one that neither truncates nor pads.
        captions: not yet cleaned; they are cleaned here as open_clip does it.
        name: of the tokenizer.
        context_length: tokens beyond which a caption is cut.
    """
    lengths = np.zeros(len(captions), np.int64)
    for start in range(0, len(captions), CAPTIONS_AT_A_TIME):
        texts = [clean(caption) for caption in captions[start : start + CAPTIONS_AT_A_TIME]]
        lengths[start : start + len(texts)] = [len(e.ids) for e in tokenizer.encode_batch_fast(texts)]
    sampled = sample(captions)
    return TokenizerReport(
        tokenizer=name,
        vocab_size=tokenizer.get_vocab_size(),
        num_captions=len(captions),
        tokens_per_caption=float(lengths.mean()) if len(lengths) else 0.0,
        percentile_95=int(np.percentile(lengths, 95, method="higher")) if len(lengths) else 0,
        longest=int(lengths.max(initial=0)),
        context_length=context_length,
        num_cut=int((lengths > context_length).sum()),
        num_sampled=len(sampled),
        scripts=tuple(script_coverage(tokenizer, sampled)),
        warning=coverage_warning(tokenizer, sampled, name),
    )


def _train(settings: TokenizerSettings, captions: Sequence[str]) -> CaptionTokenizer:
    if settings.extend is None:
        train = train_unigram if settings.kind == "unigram" else train_bpe
        return train(captions, settings.vocab_size or VOCAB_SIZE)
    old = open_clip_tokenizer() if _is_open_clip(settings.extend) else CaptionTokenizer.load_for_new(settings.extend)
    return extend(old, captions, settings.vocab_size or old.vocab_size + NUM_ADDED)


def _is_open_clip(folder: Path) -> bool:
    return str(folder) == OPEN_CLIP and not folder.exists()
