"""Coverage of scripts by a tokenizer: tokens per word and unknown characters, and a warning if they are poor."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tokenizers import Tokenizer

from .scripts import SPACELESS, is_base, script_runs
from .text_cleaning import clean

SAMPLE = 20_000  # captions that are split into words
# Tokenizers trained on a script: at most 2.1 tokens per word, 1.0 per character, 0 % unknown, 4 % pieces. Others: 5.1
# to 12.7 tokens per word, 3.0 per character, 18 to 60 % unknown, or 97 % pieces (docs/tokenizers.md).
MAX_TOKENS = {"word": 4.0, "character": 2.0}
MAX_UNKNOWN, MAX_PIECES = 0.05, 0.5
MIN_FRACTION = 0.05  # of the characters; rarer scripts cause no warning
_BYTE = re.compile("<0x[0-9A-F]{2}>")
OTHER_TOKENIZER = (
    "choose a model whose tokenizer knows the language (`clipglot tokenizer CACHE --inspect FOLDER` compares)"
)


@dataclass(frozen=True, kw_only=True)
class ScriptCoverage:
    """Statistics of the words of one script.

    Attributes:
        script: name of the script; "emoji", and "other" for digits and punctuation.
        unit: word, or character in scripts without spaces.
        captions: fraction of the captions that contain the script.
        characters: fraction of all characters (without spaces and marks).
        tokens_per_unit: mean tokens per word or character ("fertility").
        whole: fraction of the units that are one token, or inside one.
        pieces: fraction of the tokens that are parts of a character, usually single bytes.
        unknown: fraction of the characters that the tokenizer drops or maps to the unknown token.
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


def script_coverage(tokenizer: Tokenizer, captions: Sequence[str]) -> list[ScriptCoverage]:
    """Statistics of each script in captions, the most frequent script first.

    Args:
        tokenizer: any tokenizer that neither truncates nor pads: from `read_tokenizer`, `CaptionTokenizer.backend`, or
            `backend_tokenizer` of a transformers tokenizer.
        captions: at most `SAMPLE` of them, evenly spread, are counted.
    """
    texts = [clean(caption) for caption in sample(captions)]
    unknown, byte_ids = _unknown_id(tokenizer), _byte_ids(tokenizer)
    by_script: dict[str, _Counts] = {}
    for text, encoding in zip(texts, tokenizer.encode_batch(texts, add_special_tokens=False), strict=True):
        scripts = set()
        for script, tokens, units, pieces in _runs(text, encoding, unknown, byte_ids):
            counts = by_script.setdefault(script, _Counts())
            scripts.add(script)
            num_unknown = units.count("unknown")
            counts.characters += len(units)
            counts.tokens += tokens
            counts.pieces += pieces
            counts.unknown += num_unknown
            if script in SPACELESS:
                counts.units += len(units)
                counts.whole += units.count("whole")
            else:
                counts.units += 1
                counts.whole += tokens == 1 and num_unknown == 0 and pieces == 0
        for script in scripts:
            by_script[script].captions += 1
    total = sum(counts.characters for counts in by_script.values())
    coverage = (
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
        for script, counts in by_script.items()
    )
    return sorted(coverage, key=lambda script: -script.characters)


def coverage_warning(tokenizer: Tokenizer, captions: Sequence[str], name: str = "the tokenizer") -> str | None:
    """Warning if a tokenizer covers the scripts of captions poorly, such as an English one with Chinese.

    Args:
        tokenizer: as in `script_coverage`.
        captions: of the training set, or a sample.
        name: name of the tokenizer in the message.

    Returns:
        One sentence with scripts, figures and advice, or None.
    """
    faults = poor_coverage(tokenizer, captions)
    return f"{name} splits these captions badly: {faults}: {OTHER_TOKENIZER}" if faults else None


def poor_coverage(tokenizer: Tokenizer, captions: Sequence[str]) -> str:
    """Figures of poorly covered scripts, as text; empty if there are none."""
    return "; ".join(filter(None, map(_coverage_fault, script_coverage(tokenizer, captions))))


def _coverage_fault(coverage: ScriptCoverage) -> str | None:
    figures = []
    if coverage.unknown >= MAX_UNKNOWN:
        figures.append(f"{coverage.unknown:.0%} of the characters unknown")
    if coverage.tokens_per_unit >= MAX_TOKENS[coverage.unit]:
        figures.append(f"{coverage.tokens_per_unit:.1f} tokens per {coverage.unit}")
    if coverage.pieces >= MAX_PIECES:
        figures.append(f"{coverage.pieces:.0%} of the tokens pieces of a character")
    if not figures or coverage.characters < MIN_FRACTION or coverage.script == "other":
        return None
    return f"{coverage.script} ({coverage.characters:.0%} of the text) has {', '.join(figures)}"


def sample(captions: Sequence[str]) -> list[str]:
    """At most `SAMPLE` captions, evenly spread."""
    return list(captions[:: -(-len(captions) // SAMPLE) or 1])


Unit = Literal["whole", "piece", "unknown"]


def _runs(
    text: str, encoding: Any, unknown: int | None, byte_ids: set[int]
) -> Iterator[tuple[str, int, list[Unit], int]]:
    """For each run of a script: its name, number of tokens, state of each character, number of pieces among tokens."""
    # A lone start-of-word mark has the offsets of the first character, but is not a piece of it.
    spans = [
        (start, end, id_)
        for (start, end), id_, token in zip(encoding.offsets, encoding.ids, encoding.tokens, strict=True)
        if end > start and token != "▁"
    ]
    state: list[Unit] = ["unknown"] * len(text)
    is_piece = [
        id_ in byte_ids
        or (index > 0 and spans[index - 1][1] > start)
        or (index + 1 < len(spans) and spans[index + 1][0] < end)
        for index, (start, end, id_) in enumerate(spans)
    ]
    for (start, end, id_), piece in zip(spans, is_piece, strict=True):
        if id_ != unknown:
            state[start:end] = ["piece" if piece else "whole"] * (end - start)
    first = 0
    for script, start, end in script_runs(text):
        while first < len(spans) and spans[first][1] <= start:
            first += 1
        last = first
        while last < len(spans) and spans[last][0] < end:
            last += 1
        units = [state[index] for index in range(start, end) if is_base(text[index])]
        yield script, last - first, units, sum(is_piece[first:last])


def _unknown_id(tokenizer: Tokenizer) -> int | None:
    model = json.loads(tokenizer.to_str())["model"]
    if model["type"] == "Unigram":
        # With byte fallback nothing is unknown, even if the model names an unknown token.
        return None if model.get("byte_fallback") else model["unk_id"]
    token = model.get("unk_token")
    return None if token is None else tokenizer.token_to_id(token)


def _byte_ids(tokenizer: Tokenizer) -> set[int]:
    return {id_ for token, id_ in tokenizer.get_vocab().items() if _BYTE.fullmatch(token)}
