"""The exported tokenizer of transformers: the ids of open_clip for texts as people write them, without open_clip.

What of open_clip's cleaning can be said in a tokenizer.json stands there as its normalizer.
"""

import json
from pathlib import Path

from tokenizers import Tokenizer, processors

from ..encoders.loading.untrusted_files import read_json
from ..encoders.tokenizer import FILES, SPECIAL, CaptionTokenizer, TextTokenizer
from .text_normalizers import with_cleaning


def write_tokenizer(folder: Path, tokenizer: TextTokenizer, context_length: int, *, swap_bos_eos: bool = False) -> None:
    """Write a tokenizer that transformers loads, with the cleaning in it.

    Args:
        folder: exists.
        tokenizer: of the text tower.
        context_length: most tokens of a text.
        swap_bos_eos: whether its begin and end token change places.
    """
    tokenizer.save(folder)
    exported = tokenizer.backend
    if swap_bos_eos:
        assert isinstance(tokenizer, CaptionTokenizer), "no other kind has both"
        exported = _swapped(exported, tokenizer)
    exported, _ = with_cleaning(exported)
    (folder / FILES[0]).write_text(exported.to_str(pretty=True), encoding="utf-8")
    config = folder / FILES[1]
    described = read_json(config) | {
        "tokenizer_class": "PreTrainedTokenizerFast",  # others build their own normalizer
        "clean_up_tokenization_spaces": False,
        "model_max_length": context_length,
        "padding_side": "right",
        "truncation_side": "right",
        "model_input_names": ["input_ids", "attention_mask"],
    }
    described.pop("added_tokens_decoder", None)  # stands in tokenizer.json; here it would have old ids
    if not described.get("pad_token"):
        described["pad_token"] = described.get("eos_token") or described.get("unk_token") or SPECIAL["pad_token"]
    config.write_text(json.dumps(described, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / FILES[2]).unlink(missing_ok=True)  # says the same once more


def spells_special_tokens(tokenizer: TextTokenizer) -> bool:
    """Whether a special token that a text spells out is text."""
    return getattr(tokenizer, "special_as_text", True)


def _swapped(exported: Tokenizer, tokenizer: CaptionTokenizer) -> Tokenizer:
    """A tokenizer whose begin and end token have each other's ids."""
    names = {tokenizer.special["bos_token"]: tokenizer.eos_id, tokenizer.special["eos_token"]: tokenizer.bos_id}
    state = json.loads(exported.to_str())
    vocab = state["model"]["vocab"]
    if isinstance(vocab, dict):
        vocab |= {name: id_ for name, id_ in names.items() if name in vocab}
    else:
        first, second = tokenizer.bos_id, tokenizer.eos_id
        vocab[first], vocab[second] = vocab[second], vocab[first]
    for token in state["added_tokens"]:
        token["id"] = names.get(token["content"], token["id"])
    state["added_tokens"].sort(key=lambda token: token["id"])
    state["post_processor"] = None
    result = Tokenizer.from_str(json.dumps(state))
    begin, end = names
    result.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}", pair=f"{begin} $A {end} {begin} $B {end}", special_tokens=list(names.items())
    )
    return result
