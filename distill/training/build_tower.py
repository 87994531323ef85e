"""The tokenizer and the text tower that a run asks for."""

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from ...cache.format import EncoderInfo
from ...cache.sources.text_files import decode_text, split_lines
from ...cache.storage.regular import read_regular
from ...encoders.loading.untrusted import CLIP_CONFIG
from ...encoders.text_lm import LMTower
from ...encoders.text_tower import TextTower, TowerSpec
from ...encoders.text_towers import TEXT_TOWERS, tower_named
from ...encoders.tokenizer import TextTokenizer, train_bpe
from ...encoders.tokenizer_lm import LMTokenizer
from ..errors import DistillError
from ..train_settings import TrainSettings
from .final import final_kind, load_final
from .run_folder import RunFolder


def open_tokenizer(
    settings: TrainSettings,
    kept: Path,
    captions: Callable[[], list[str]],
    balanced: Callable[[], list[str]] | None = None,
) -> TextTokenizer:
    """The tokenizer of a run: its own, that of its text tower, the one given, or one trained on the captions.

    Args:
        settings: of the run.
        kept: folder of the tokenizer that the run keeps, if it was begun before.
        captions: gives those of the cache.
        balanced: gives a sample that is balanced over languages, for a BPE to be trained on; by default all captions.

    Raises:
        EncoderError: no tokenizer there.
        DistillError: a tokenizer for a tower that has its own, an earlier run that has not finished, or a folder of
            another kind.
    """
    earlier = earlier_run(settings)
    _require_text_tower(settings.text)
    kind = _kind_of(settings, earlier)
    if kind.has_own_tokenizer and settings.tokenizer:
        raise DistillError(f"--tokenizer {settings.tokenizer}: {settings.text} has a tokenizer of its own: drop it")
    if kept.exists():
        return kind.tokenizer_type.load(kept)
    folder = settings.tokenizer or (earlier.tokenizer if earlier else None)
    if folder is None and not kind.has_own_tokenizer:
        return train_bpe((balanced or captions)(), settings.vocab_size)
    tokenizer = kind.tokenizer_type.load_for_new(folder or settings.text)
    if isinstance(tokenizer, LMTokenizer):
        if settings.pooler == "eos" and not earlier:
            tokenizer = tokenizer.with_end()
        if settings.text_prompt:
            tokenizer = tokenizer.with_prompt(settings.text_prompt, settings.text)
        if settings.prune_vocab:
            if earlier:
                raise DistillError(
                    f"--prune-vocab: {settings.text} is a run, which keeps its tokens: drop it, or begin with the "
                    "language model itself"
                )
            tokenizer = tokenizer.pruned([captions(), *(_lines(file) for file in settings.vocab_text)])
    return tokenizer


def build_tower(settings: TrainSettings, encoder: EncoderInfo, tokenizer: TextTokenizer) -> TextTower:
    """The text tower that a run begins with, on the CPU; its random weights follow from the seed.

    Args:
        settings: of the run.
        encoder: of the cache.
        tokenizer: of the run.

    Raises:
        EncoderError: no such tower, or none that can be trained as asked.
        DistillError: settings of another kind of tower.
    """
    torch.manual_seed(settings.seed)
    earlier = earlier_run(settings)
    kind = _kind_of(settings, earlier)
    spec = TowerSpec(
        text=settings.text,
        embed_dim=encoder.dim,
        context_length=settings.context_length,
        may_shorten=not settings.given("context_length"),
        quick_gelu=encoder.quick_gelu,
        image_model=encoder.model,
        image_pretrained=encoder.pretrained,
        dropout=settings.dropout,
        warm_start=settings.warm_start == "ridge",
    )
    if settings.prune_vocab and isinstance(tokenizer, LMTokenizer) and not earlier:
        spec = replace(spec, kept_words=LMTokenizer.load(settings.text).rows_of(tokenizer))
    options = _options_of(settings, kind)
    if earlier:
        old_tokenizer = kind.tokenizer_type.load(earlier.tokenizer)
        tower = load_final(earlier).tower.continued(spec, options, old_tokenizer, tokenizer)
    else:
        tower = kind.create(spec, options, tokenizer)
    if isinstance(tokenizer, LMTokenizer) and tokenizer.prompt:
        longest = tower.config.context_length
        if len(tokenizer.encode(["a"], longest + 1)[0]) > longest:
            raise DistillError(
                f"--text-prompt {tokenizer.prompt!r:.80} leaves no room for captions in {longest} tokens: shorten it, "
                "or raise --context-length"
            )
    if settings.simcse and not tower.has_dropout and not settings.token_dropout:
        raise DistillError(
            f"--simcse {settings.simcse}: both passes of a caption would be the same, as what is trained of "
            f"{settings.text} drops nothing: pass --dropout, e.g. 0.1, or --token-dropout"
        )
    return tower


def earlier_run(settings: TrainSettings) -> RunFolder | None:
    """The run whose text tower is trained further, if `--text` names one."""
    folder = Path(settings.text)
    is_run = settings.text not in ("", *_tower_names()) and (folder / "run.json").is_file()
    return RunFolder(folder) if is_run else None


def _tower_names() -> list[str]:
    return [name for tower in TEXT_TOWERS.values() for name in tower.names]


def _kind_of(settings: TrainSettings, earlier: RunFolder | None) -> type[TextTower]:
    return final_kind(earlier) if earlier else tower_named(settings.text)


def _options_of(settings: TrainSettings, kind: type[TextTower]) -> Any:
    """The settings that belong to a kind of tower alone.

    Raises:
        DistillError: one of another kind is given.
    """
    own = [field.name for field in fields(kind.options_type)]
    if kind is not LMTower and (flag := settings.given("text_prompt", "prune_vocab", "text_features")):
        raise DistillError(f"--{flag} belongs to a language model; --text {settings.text} is {kind.noun}: drop it")
    for other in TEXT_TOWERS.values():
        foreign = [field.name for field in fields(other.options_type) if field.name not in own]
        if flag := settings.given(*foreign):
            raise DistillError(f"--{flag} belongs to {other.noun}; --text {settings.text} is {kind.noun}: drop it")
    return kind.options_type(**{name: getattr(settings, name) for name in own})


def _lines(file: Path) -> list[str]:
    """Lines of a `--vocab-text`, by line ends alone, as other files of texts.

    Raises:
        DistillError: it cannot be read, or is not UTF-8.
    """
    try:
        return split_lines(decode_text(read_regular(file)))
    except (OSError, UnicodeDecodeError) as error:
        raise DistillError(
            f"--vocab-text {file}: no text file in UTF-8 ({error}): pass one with a text a line"
        ) from error


def _require_text_tower(text: str) -> None:
    """Refuse files, and folders of ours that hold no text tower to begin with."""
    if text in _tower_names():
        return
    if not text or Path(text).is_file():
        raise DistillError(f"--text {text!r}: expected scratch, clip, the folder of a run or a language model")
    if (Path(text) / "zarr.json").is_file():
        raise DistillError(f"--text {text} is a cache: pass the folder of a run or of a language model")
    if (Path(text) / CLIP_CONFIG).is_file():
        raise DistillError(f"--text {text} is a merged CLIP: pass the folder of the run that it was exported from")
