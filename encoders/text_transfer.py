"""Transfer of trained text weights: the text tower of a CLIP, and token embeddings for another vocabulary.

V tokens of the new vocabulary, W width.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.tokenizer import bytes_to_unicode
from open_clip.transformer import TextTransformer
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from .errors import EncoderError
from .loading.clips import load_clip
from .loading.model_names import LOCAL_PREFIX
from .tokenizer import CaptionTokenizer, open_clip_tokenizer

BYTE_OF = {character: byte for byte, character in bytes_to_unicode().items()}
"""Bytes by the characters that byte-level vocabularies write for them."""
FALLBACK = re.compile("<0x([0-9A-F]{2})>")  # a byte in vocabularies with byte fallback
END_OF_WORD = "</w>"  # of the tokens of CLIP
SPACE = "\u0120"  # as byte-level vocabularies write it, before the first token of a word
NO_CHARACTER = "\ufffd"  # what bytes that are no character decode to


def load_clip_text(model: str, pretrained: str | None) -> tuple[Any, CaptionTokenizer, bool]:
    """The text tower of a CLIP, its tokenizer, and whether it has QuickGELU.

    Args:
        model: as of `load_image_tower`.
        pretrained: as of `load_image_tower`.

    Returns:
        A module with the attributes of open_clip's TextTransformer, the tokenizer, and the activation.

    Raises:
        EncoderError: no such CLIP, or a text tower that is not causal and pooled at the end of the text.
    """
    if model.startswith("timm/"):
        raise EncoderError(f"--text clip: {model} has no text tower: pass scratch, or a language model")
    try:
        clip, config = load_clip(model, pretrained)
    except EncoderError as error:
        raise EncoderError(f"--text clip needs the CLIP that made the cache where it was: {error}") from error
    text = causal_text_of(clip)
    if text is None:
        raise EncoderError(
            f"--text clip: the text tower of {model} is not a causal transformer pooled at the text's end"
        )
    tokenizer = _tokenizer_of(model, config)
    if tokenizer.vocab_size != text.token_embedding.num_embeddings:
        raise EncoderError(
            f"--text clip: {model} has rows for {text.token_embedding.num_embeddings:,} tokens, its tokenizer knows "
            f"{tokenizer.vocab_size:,}: pass scratch, or a language model"
        )
    return text, tokenizer, bool(config.get("quick_gelu", False))


def causal_text_of(clip: Any) -> Any:
    """The text tower of a CLIP of open_clip, a module with the attributes of its TextTransformer.

    Returns:
        None if it is not a causal transformer pooled at the text's end.
    """
    # OpenAI's layout has the text tower's modules beside the image tower.
    text: Any = clip if isinstance(clip, open_clip.CLIP) else getattr(clip, "text", None)
    pooled_by = clip.text_pool_type if text is clip else getattr(text, "pool_type", None)
    causal = isinstance(text, open_clip.CLIP | TextTransformer) and text.attn_mask is not None
    plain = causal and isinstance(text.text_projection, nn.Parameter) and getattr(text, "cls_emb", None) is None
    return text if plain and pooled_by in ("argmax", "eos") else None


def kept_rows(old: CaptionTokenizer, new: CaptionTokenizer) -> dict[int, int]:
    """Ids of the tokens whose embeddings a new vocabulary keeps, with their ids in the old one.

    Args:
        old: tokenizer of the old vocabulary.
        new: tokenizer of the new one.
    """
    known, tokens = (tokenizer.backend.get_vocab(with_added_tokens=True) for tokenizer in (old, new))
    kept = {new.pad_id: old.pad_id, new.bos_id: old.bos_id, new.eos_id: old.eos_id}
    if known.items() <= tokens.items():
        # Only of an extended vocabulary: elsewhere "cat" may be a word or the beginning of one.
        kept |= {id_: id_ for id_ in known.values()}
    return kept


def transfer_rows(embedding: Tensor, old: CaptionTokenizer, new: CaptionTokenizer) -> Tensor:
    """Token embeddings `[V, W]` of a new vocabulary, made of those of an old one.

    Tokens of both keep their rows; any other begins at the mean of the rows that spell its text in the old vocabulary.
    Tokens that no text gives, such as a lone byte of a character, begin at the mean of the rows of their bytes.

    Args:
        embedding: of the old vocabulary.
        old: its tokenizer.
        new: tokenizer of the new one.
    """
    spelling, splitting = new.backend, old.backend
    kept = kept_rows(old, new)
    added = [id_ for id_ in range(new.vocab_size) if id_ not in kept]
    texts = [_text_of(id_, spelling, splitting) for id_ in added]
    spelled = splitting.encode_batch(texts, add_special_tokens=False)
    byte_ids = _byte_ids(splitting.get_vocab(with_added_tokens=True))
    rows = embedding.mean(0).repeat(new.vocab_size, 1)
    rows[list(kept)] = embedding[list(kept.values())]
    filled: list[int] = []
    parts: list[int] = []  # of the filled rows, one after another
    starts: list[int] = []
    for id_, text, encoding in zip(added, texts, spelled, strict=True):
        ids = encoding.ids
        if not ids or NO_CHARACTER in text:
            ids = [byte_ids[byte] for byte in _bytes_of(spelling.id_to_token(id_) or "") if byte in byte_ids] or ids
        if ids:
            filled.append(id_)
            starts.append(len(parts))
            parts += ids
    if filled:
        rows[filled] = F.embedding_bag(torch.tensor(parts), embedding, torch.tensor(starts), mode="mean")
    return rows


def _text_of(id_: int, spelling: Tokenizer, splitting: Tokenizer) -> str:
    """Text of a token, as the old tokenizer should split it.

    A token that ends a word is most often all of it. Where the old vocabulary writes the space before a word into its
    first token, only a text with that space is split as the word is in a sentence.
    """
    text: str = spelling.decode([id_])
    ends_word = (spelling.id_to_token(id_) or "").endswith(END_OF_WORD)
    return f" {text.strip()}" if ends_word and splitting.token_to_id(SPACE) is not None else text


def _byte_ids(vocabulary: Mapping[str, int]) -> dict[int, int]:
    """Ids of the tokens that stand for single bytes, of a byte-level vocabulary or one with byte fallback."""
    if all(character in vocabulary for character in BYTE_OF):
        return {byte: vocabulary[character] for character, byte in BYTE_OF.items()}
    fallback = {byte: vocabulary.get(f"<0x{byte:02X}>") for byte in range(256)}
    return {byte: id_ for byte, id_ in fallback.items() if id_ is not None}


def _bytes_of(token: str) -> bytes:
    """Bytes that a token of such a vocabulary stands for; none where it stands for something else."""
    if match := FALLBACK.fullmatch(token):
        return bytes.fromhex(match[1])
    characters = token.removesuffix(END_OF_WORD)
    return bytes(BYTE_OF[c] for c in characters) if all(c in BYTE_OF for c in characters) else b""


def _tokenizer_of(model: str, config: dict[str, Any]) -> CaptionTokenizer:
    """The tokenizer that open_clip takes for a model."""
    if not config["text_cfg"].get("hf_tokenizer_name"):
        return open_clip_tokenizer()
    if model.startswith(LOCAL_PREFIX):
        return CaptionTokenizer.load(Path(model.removeprefix(LOCAL_PREFIX)))
    raise EncoderError(f"--text clip: {model} has a tokenizer that is not in its folder: download it (local-dir:PATH)")
