"""The exported tokenizer of transformers: the ids of open_clip for texts as people write them, without open_clip.

open_clip cleans a text in Python before its tokenizer sees it; transformers does not. What of the cleaning can be said
in a tokenizer.json stands there as its normalizer.
"""

import json
from pathlib import Path
from typing import Any

from ftfy.chardata import LIGATURES, WIDTH_MAP
from tokenizers import Regex, Tokenizer, normalizers, processors

from ..encoders.tokenizer import FILES, SPECIAL, CaptionTokenizer, TextTokenizer
from ..encoders.untrusted_files import read_json

CLEANING_NOTE = (
    "Texts are cleaned by the tokenizer itself: widths, ligatures, quotes, control characters, white space, Unicode "
    "NFC and the HTML entities `&amp; &lt; &gt; &quot; &nbsp; &#39;`. Text in a wrong encoding (`Ã©`) and other HTML "
    "entities stay as they are, where open_clip repairs them with ftfy."
)
_TERMINAL = r"\x1b\[[\d;]*[a-zA-Z]"
_CONTROLS = r"[\x00-\x08\x0b\x0e-\x1f\x7f\u206a-\u206f\ufeff\ufff9-\ufffc]"
_ENTITIES = {"&quot;": '"', "&#39;": "'", "&nbsp;": " ", "&lt;": "<", "&gt;": ">"}


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
    before = [exported.normalizer] if exported.normalizer else []
    exported.normalizer = normalizers.Sequence([*_cleaning(), *before])
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


def _cleaning() -> list[Any]:
    """What open_clip does to a text before its tokenizer, in its order."""
    parts = [normalizers.Replace(Regex("&(?:amp;)+"), "&")]
    parts += [normalizers.Replace(entity, text) for entity, text in _ENTITIES.items()]
    parts.append(normalizers.Replace(Regex(_TERMINAL), ""))
    letters = {**_windows_1252(), **{chr(code): text for code, text in {**LIGATURES, **WIDTH_MAP}.items()}}
    parts += [normalizers.Replace(letter, text) for letter, text in letters.items()]
    parts.append(normalizers.Replace(Regex("[\u02bc\u2018-\u201b]"), "'"))
    parts.append(normalizers.Replace(Regex("[\u201c-\u201f]"), '"'))
    parts.append(normalizers.Replace(Regex(_CONTROLS), ""))
    return [*parts, normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]


def _windows_1252() -> dict[str, str]:
    """Control characters that were characters of Windows, as ftfy reads them."""
    read = {chr(code): bytes([code]).decode("cp1252", "ignore") for code in range(0x80, 0xA0)}
    return {control: text for control, text in read.items() if text}


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
