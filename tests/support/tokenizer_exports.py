"""Tokenizers as an export holds them."""

import json
from pathlib import Path

from clipglot.encoders.tokenizer import CaptionTokenizer


def save_as_export(tokenizer: CaptionTokenizer, folder: Path, context_length: int) -> Path:
    """Save a tokenizer beside the config that makes open_clip read it."""
    tokenizer.save(folder)
    text = {"context_length": context_length, "vocab_size": tokenizer.vocab_size, "hf_tokenizer_name": "clipglot"}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"text_cfg": text}}))
    return folder
