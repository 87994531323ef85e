"""Cleaning of texts inside an exported tokenizer: what of open_clip's cleaning the tokenizers library can do.

open_clip cleans a text in Python before its tokenizer sees it; other libraries do not.
"""

from typing import Any

from ftfy.chardata import LIGATURES, WIDTH_MAP
from tokenizers import Regex, Tokenizer, normalizers

CLEANING_NOTE = (
    "Texts are cleaned by the tokenizer itself: widths, ligatures, quotes, control characters, white space, Unicode "
    "NFC and the HTML entities `&amp; &lt; &gt; &quot; &nbsp; &#39;`. Text in a wrong encoding (`Ã©`) and other HTML "
    "entities stay as they are, where open_clip repairs them with ftfy."
)
_TERMINAL = r"\x1b\[[\d;]*[a-zA-Z]"  # colours of terminals
_CONTROLS = r"[\x00-\x08\x0b\x0e-\x1f\x7f\u206a-\u206f\ufeff\ufff9-\ufffc]"
_ENTITIES = {"&quot;": '"', "&#39;": "'", "&nbsp;": " ", "&lt;": "<", "&gt;": ">"}


def with_cleaning(tokenizer: Tokenizer) -> tuple[Tokenizer, int]:
    """A copy that cleans texts ahead of its own normalizers, and how many normalizers that takes.

    Args:
        tokenizer: stays as it is; it may be the one that a tower goes on with.
    """
    cleaning, copy = _cleaning(), Tokenizer.from_str(tokenizer.to_str())
    before = [copy.normalizer] if copy.normalizer else []
    copy.normalizer = normalizers.Sequence([*cleaning, *before])
    return copy, len(cleaning)


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
