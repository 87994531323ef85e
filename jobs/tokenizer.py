"""`clipglot tokenizer`: make a tokenizer from the captions of a cache, and report how it, or any other, splits them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from ..cache.read.cache import Cache
from ..cache.storage.atomic import atomic_directory
from ..distill.errors import DistillError
from ..encoders.tokenizer import (
    OPEN_CLIP,
    CaptionTokenizer,
    clean,
    open_clip_tokenizer,
    read_tokenizer,
    train_bpe,
    train_unigram,
)
from ..encoders.tokenizer_coverage import ScriptCoverage, sample, split_badly, split_by_script
from ..encoders.tokenizer_extend import extend
from .settings.tokenizer import TokenizerSettings

VOCAB_SIZE, MORE = 16_384, 8_192  # by default
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


def write_tokenizer(settings: TokenizerSettings) -> TokenizerReport:
    """Train or extend a tokenizer, or open the one to inspect; then report on it.

    Raises:
        CacheError, EncoderError: no cache, no tokenizer, one that cannot be extended, or a wrong vocabulary size.
        DistillError: the output exists.
    """
    if settings.inspect is not None:
        captions = Cache(settings.cache).captions()
        tokenizer = (
            open_clip_tokenizer().backend if _is_open_clip(settings.inspect) else read_tokenizer(settings.inspect)
        )
        return report_on(tokenizer, captions, str(settings.inspect), settings.context_length)
    assert settings.output is not None  # the settings see to it
    if os.path.lexists(settings.output):
        raise DistillError(f"{settings.output} exists: choose another -o")
    captions = Cache(settings.cache).captions()
    made = _make(settings, captions)
    settings.output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_directory(settings.output) as partial:
        made.save(partial)
    return report_on(made.backend, captions, str(settings.output), settings.context_length)


def report_on(tokenizer: Tokenizer, captions: Sequence[str], name: str, context_length: int) -> TokenizerReport:
    """Count what any tokenizer makes of captions.

    Args:
        tokenizer: that neither cuts nor pads.
        captions: cleaned here as open_clip cleans them.
        name: of the tokenizer.
        context_length: as of the report.
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
        scripts=tuple(split_by_script(tokenizer, sampled)),
        warning=split_badly(tokenizer, sampled, name),
    )


def _make(settings: TokenizerSettings, captions: Sequence[str]) -> CaptionTokenizer:
    if settings.extend is None:
        train = train_unigram if settings.kind == "unigram" else train_bpe
        return train(captions, settings.vocab_size or VOCAB_SIZE)
    old = open_clip_tokenizer() if _is_open_clip(settings.extend) else CaptionTokenizer.load(settings.extend)
    return extend(old, captions, settings.vocab_size or old.vocab_size + MORE)


def _is_open_clip(folder: Path) -> bool:
    return str(folder) == OPEN_CLIP and not folder.exists()
