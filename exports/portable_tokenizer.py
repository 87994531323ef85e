"""A tokenizer.json that a plain loader reads: it cleans, cuts and pads alone; special tokens in texts are text."""

import json
from typing import Any

from tokenizers import Tokenizer

from ..encoders.tokenizer import CaptionTokenizer, TextTokenizer
from .text_normalizers import with_cleaning


def portable_tokenizer(tokenizer: TextTokenizer, context_length: int) -> tuple[str, int]:
    """The content of a tokenizer.json, and how many of its first normalizers clean texts.

    Args:
        tokenizer: of the text tower.
        context_length: most tokens of a text; longer ones are cut, batches padded to their longest.
    """
    cleaned, num_cleaning = with_cleaning(tokenizer.backend)
    state = json.loads(cleaned.to_str())
    if not isinstance(tokenizer, CaptionTokenizer) or tokenizer.special_as_text:
        _spell_special_tokens(state)
    portable = Tokenizer.from_str(json.dumps(state))
    portable.enable_truncation(context_length)
    pad_id = tokenizer.pad_id or 0
    portable.enable_padding(pad_id=pad_id, pad_token=tokenizer.backend.id_to_token(pad_id) or "")
    return str(portable.to_str(pretty=True)), num_cleaning


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
