"""How a tokenizer splits captions, script by script, and whether that is bad enough to say so before training."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tokenizers import Tokenizer

from .scripts import SPACELESS, is_base, script_runs
from .tokenizer import clean

SAMPLE = 20_000  # captions that are looked at word by word
# A tokenizer that was trained on a script: at most 2.1 tokens a word, 1.0 a character, 0 % unknown, 4 % pieces. One
# that was not: 5.1 to 12.7 tokens a word, 3.0 a character, 18 to 60 % unknown, or 97 % pieces (docs/tokenizers.md).
MAX_TOKENS = {"word": 4.0, "character": 2.0}
MAX_UNKNOWN, MAX_PIECES = 0.05, 0.5
MIN_SHARE = 0.05  # of the characters, from which on a script matters
_BYTE = re.compile("<0x[0-9A-F]{2}>")
OTHER_TOKENIZER = (
    "choose a model whose tokenizer knows the language (`clipglot tokenizer CACHE --inspect FOLDER` compares)"
)


@dataclass(frozen=True, kw_only=True)
class ScriptCoverage:
    """What becomes of one script's words.

    Attributes:
        script: its name; "emoji", and "other" for digits and punctuation.
        unit: a word, or a character where the script has no spaces.
        captions: share of the captions that have it.
        characters: share of all characters (without spaces and marks).
        tokens_per_unit: tokens of a word or character ("fertility").
        whole: share of the units that are whole in one token, or inside of one.
        pieces: share of the tokens that are pieces of a character, most often single bytes.
        unknown: share of the characters that the tokenizer drops or reads as unknown.
    """

    script: str
    unit: Literal["word", "character"]
    captions: float
    characters: float
    tokens_per_unit: float
    whole: float
    pieces: float
    unknown: float


@dataclass(slots=True)
class _Counts:
    captions: int = 0
    characters: int = 0
    units: int = 0
    tokens: int = 0
    whole: int = 0
    pieces: int = 0
    unknown: int = 0


def split_by_script(tokenizer: Tokenizer, captions: Sequence[str]) -> list[ScriptCoverage]:
    """What a tokenizer makes of each script in captions, the most frequent first.

    Args:
        tokenizer: any, that neither cuts nor pads: `read_tokenizer`, `CaptionTokenizer.backend`, or `backend_tokenizer`
            of one of transformers.
        captions: at most `SAMPLE` of them, evenly spread, are looked at.
    """
    texts = [clean(caption) for caption in sample(captions)]
    unknown, byte_ids = _unknown_id(tokenizer), _byte_ids(tokenizer)
    found: dict[str, _Counts] = {}
    for text, encoding in zip(texts, tokenizer.encode_batch(texts, add_special_tokens=False), strict=True):
        seen = set()
        for script, tokens, units, pieces in _runs(text, encoding, unknown, byte_ids):
            counts = found.setdefault(script, _Counts())
            seen.add(script)
            lost = units.count("unknown")
            counts.characters += len(units)
            counts.tokens += tokens
            counts.pieces += pieces
            counts.unknown += lost
            if script in SPACELESS:
                counts.units += len(units)
                counts.whole += units.count("whole")
            else:
                counts.units += 1
                counts.whole += tokens == 1 and lost == 0 and pieces == 0
        for script in seen:
            found[script].captions += 1
    total = sum(counts.characters for counts in found.values())
    splits = (
        ScriptCoverage(
            script=script,
            unit="character" if script in SPACELESS else "word",
            captions=counts.captions / len(texts),
            characters=counts.characters / total,
            tokens_per_unit=counts.tokens / counts.units,
            whole=counts.whole / counts.units,
            pieces=counts.pieces / counts.tokens if counts.tokens else 0.0,
            unknown=counts.unknown / counts.characters,
        )
        for script, counts in found.items()
    )
    return sorted(splits, key=lambda split: -split.characters)


def split_badly(tokenizer: Tokenizer, captions: Sequence[str], name: str = "the tokenizer") -> str | None:
    """Say if a tokenizer does not know the language of captions, as an English one with Chinese.

    Args:
        tokenizer: as of `split_by_script`.
        captions: of the training set, or a sample.
        name: how the message calls the tokenizer.

    Returns:
        One sentence with scripts, figures and the remedy, or None.
    """
    complaints = bad_splits(tokenizer, captions)
    if not complaints:
        return None
    return f"{name} splits these captions badly: {complaints}: {OTHER_TOKENIZER}"


def bad_splits(tokenizer: Tokenizer, captions: Sequence[str]) -> str:
    """What `split_badly` complains of, script by script; empty if nothing is wrong."""
    return "; ".join(filter(None, map(_complaint, split_by_script(tokenizer, captions))))


def _complaint(split: ScriptCoverage) -> str | None:
    figures = []
    if split.unknown >= MAX_UNKNOWN:
        figures.append(f"{split.unknown:.0%} of the characters unknown")
    if split.tokens_per_unit >= MAX_TOKENS[split.unit]:
        figures.append(f"{split.tokens_per_unit:.1f} tokens a {split.unit}")
    if split.pieces >= MAX_PIECES:
        figures.append(f"{split.pieces:.0%} of the tokens pieces of a character")
    if not figures or split.characters < MIN_SHARE or split.script == "other":
        return None
    return f"{split.script} ({split.characters:.0%} of the text) has {', '.join(figures)}"


def sample(captions: Sequence[str]) -> list[str]:
    """At most `SAMPLE` captions, evenly spread."""
    return list(captions[:: -(-len(captions) // SAMPLE) or 1])


Unit = Literal["whole", "piece", "unknown"]


def _runs(
    text: str, encoding: Any, unknown: int | None, byte_ids: set[int]
) -> Iterator[tuple[str, int, list[Unit], int]]:
    """Of each run of a script: its name, how many tokens touch it, what became of each character, tokens of pieces."""
    # A lone mark of a word's begin stands where the first character does, but is no piece of it.
    spans = [
        (start, end, id_)
        for (start, end), id_, token in zip(encoding.offsets, encoding.ids, encoding.tokens, strict=True)
        if end > start and token != "▁"
    ]
    state: list[Unit] = ["unknown"] * len(text)
    broken = [
        id_ in byte_ids
        or (place > 0 and spans[place - 1][1] > start)
        or (place + 1 < len(spans) and spans[place + 1][0] < end)
        for place, (start, end, id_) in enumerate(spans)
    ]
    for (start, end, id_), in_pieces in zip(spans, broken, strict=True):
        if id_ != unknown:
            state[start:end] = ["piece" if in_pieces else "whole"] * (end - start)
    first = 0
    for script, start, end in script_runs(text):
        while first < len(spans) and spans[first][1] <= start:
            first += 1
        last = first
        while last < len(spans) and spans[last][0] < end:
            last += 1
        units = [state[place] for place in range(start, end) if is_base(text[place])]
        yield script, last - first, units, sum(broken[first:last])


def _unknown_id(tokenizer: Tokenizer) -> int | None:
    model = json.loads(tokenizer.to_str())["model"]
    if model["type"] == "Unigram":
        # With bytes in the vocabulary nothing is unknown, whatever token is named for it.
        return None if model.get("byte_fallback") else model["unk_id"]
    token = model.get("unk_token")
    return None if token is None else tokenizer.token_to_id(token)


def _byte_ids(tokenizer: Tokenizer) -> set[int]:
    return {id_ for token, id_ in tokenizer.get_vocab().items() if _BYTE.fullmatch(token)}
