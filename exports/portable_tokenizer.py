"""A tokenizer.json that a plain loader reads: it cleans, cuts and pads alone; special tokens in texts are text."""

import json
from typing import Any

from ftfy.chardata import LIGATURES, WIDTH_MAP
from tokenizers import Tokenizer

from ..encoders.tokenizer import CaptionTokenizer, TextTokenizer

_ENTITIES = [
    ("&amp;", "&"),
    ("&amp;", "&"),
    ("&lt;", "<"),
    ("&gt;", ">"),
    ("&quot;", '"'),
    ("&#39;", "'"),
    ("&nbsp;", " "),
]
# What str.split takes for space, and what ftfy removes.
_SPACES = "[\\t-\\r\\x{20}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}]+"
_ESCAPES = "\\x{1b}\\[[0-9;]*[a-zA-Z]"  # colours of terminals
_CONTROLS = "[\\x{00}-\\x{08}\\x{0e}-\\x{1f}\\x{7f}\\x{206a}-\\x{206f}\\x{feff}\\x{fff9}-\\x{fffc}]"


def portable_tokenizer(tokenizer: TextTokenizer, context_length: int) -> tuple[str, int]:
    """The content of a tokenizer.json, and how many of its first normalizers clean texts.

    Args:
        tokenizer: of the text tower.
        context_length: most tokens of a text; longer ones are cut, batches padded to their longest.
    """
    state = json.loads(tokenizer.backend.to_str())
    cleaning = _cleaning()
    before = state["normalizer"]
    own = [] if before is None else before["normalizers"] if before["type"] == "Sequence" else [before]
    state["normalizer"] = {"type": "Sequence", "normalizers": [*cleaning, *own]}
    if not isinstance(tokenizer, CaptionTokenizer) or tokenizer.special_as_text:
        _spell_special_tokens(state)
    portable = Tokenizer.from_str(json.dumps(state))
    portable.enable_truncation(context_length)
    pad_id = tokenizer.pad_id or 0
    portable.enable_padding(pad_id=pad_id, pad_token=tokenizer.backend.id_to_token(pad_id) or "")
    return str(portable.to_str(pretty=True)), len(cleaning)


def _spell_special_tokens(state: dict[str, Any]) -> None:
    """Take special tokens from those found in texts: the file cannot say that texts do not mean them.

    What stands around each text names them by id. Others that are found in texts keep their ids: of tokens outside of
    the vocabulary only the last ones can go.
    """
    vocabulary = state["model"]["vocab"]
    inside = vocabulary if isinstance(vocabulary, dict) else {piece for piece, _ in vocabulary}
    kept: list[dict[str, Any]] = []
    for token in reversed(state["added_tokens"]):
        may_go = token["content"] in inside or not any(other["content"] not in inside for other in kept)
        if not (token["special"] and may_go):
            kept.append(token)
    state["added_tokens"] = kept[::-1]


def _cleaning() -> list[dict[str, Any]]:
    """Normalizers that do of open_clip's cleaning what the tokenizers library can."""
    characters = sorted({**WIDTH_MAP, **LIGATURES}.items())
    quotes = [("[\\x{2bc}\\x{2018}-\\x{201b}]", "'"), ("[\\x{201c}-\\x{201f}]", '"')]
    return [
        *(_replace("String", old, new) for old, new in _ENTITIES),
        *(_replace("String", chr(old), new) for old, new in characters),
        *(_replace("Regex", old, new) for old, new in quotes),
        _replace("Regex", _ESCAPES, ""),
        _replace("Regex", _CONTROLS, ""),
        _replace("Regex", _SPACES, " "),
        {"type": "NFC"},
        {"type": "Strip", "strip_left": True, "strip_right": True},
    ]


def _replace(kind: str, old: str, new: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {kind: old}, "content": new}
