"""Grafting: a text tower that has learned something goes on with another vocabulary. V tokens, W width, D features."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
from open_clip.transformer import TextTransformer
from torch import Tensor, nn

from .errors import EncoderError
from .open_clip_loading import LOCAL_PREFIX, load_clip
from .text_scratch import ScratchConfig, ScratchTower
from .tokenizer import CaptionTokenizer, open_clip_tokenizer


def load_clip_text(model: str, pretrained: str | None) -> tuple[ScratchTower, CaptionTokenizer]:
    """The text tower of a CLIP and its tokenizer.

    Args:
        model: as of `load_image_tower`.
        pretrained: as there.

    Raises:
        EncoderError: no such CLIP, or a text tower that is not causal and pooled at the end of the text.
    """
    if model.startswith("timm/"):
        raise EncoderError(f"--text clip: {model} has no text tower: pass scratch, or a language model")
    try:
        clip, config = load_clip(model, pretrained)
    except EncoderError as error:
        raise EncoderError(f"--text clip needs the CLIP that made the cache where it was: {error}") from error
    # OpenAI's layout has the text tower's modules beside the image tower.
    text: Any = clip if isinstance(clip, open_clip.CLIP) else clip.text
    pooled_by = clip.text_pool_type if text is clip else getattr(text, "pool_type", None)
    causal = isinstance(text, open_clip.CLIP | TextTransformer) and text.attn_mask is not None
    plain = causal and isinstance(text.text_projection, nn.Parameter) and getattr(text, "cls_emb", None) is None
    if not (plain and pooled_by in ("argmax", "eos")):
        raise EncoderError(
            f"--text clip: the text tower of {model} is not a causal transformer pooled at the text's end"
        )
    tokenizer = _tokenizer_of(model, config)
    if tokenizer.vocab_size != text.token_embedding.num_embeddings:
        raise EncoderError(
            f"--text clip: {model} has rows for {text.token_embedding.num_embeddings:,} tokens, its tokenizer knows "
            f"{tokenizer.vocab_size:,}: pass scratch, or a language model"
        )
    tower = ScratchTower(
        ScratchConfig(
            embed_dim=config["embed_dim"],
            vocab_size=text.token_embedding.num_embeddings,
            context_length=len(text.positional_embedding),
            width=text.token_embedding.embedding_dim,
            heads=text.transformer.resblocks[0].attn.num_heads,
            layers=len(text.transformer.resblocks),
            pad_id=tokenizer.pad_id,
            eos_id=tokenizer.eos_id,
            quick_gelu=bool(config.get("quick_gelu", False)),
        )
    )
    expected = tower.text.state_dict()
    tensors = {name: tensor for name, tensor in text.state_dict().items() if name in expected}
    try:
        tower.text.load_state_dict(tensors)
    except RuntimeError as error:  # layer scale, another MLP
        reason = str(error).splitlines()[-1].strip()
        raise EncoderError(f"--text clip: the text tower of {model} has another form than ours ({reason})") from error
    return tower, tokenizer


def transfer_vocabulary(
    tower: ScratchTower, old: CaptionTokenizer, new: CaptionTokenizer, *, context_length: int, embed_dim: int
) -> ScratchTower:
    """A tower with the blocks of another one and a new vocabulary.

    Tokens that the new vocabulary takes over from the old one keep their rows. Any other begins at the mean of the rows
    that spell its text in the old vocabulary. Where the number of features differs the projection begins anew.

    Args:
        tower: what was learned.
        old: its tokenizer.
        new: of the tower to be.
        context_length: of the tower to be.
        embed_dim: D.

    Raises:
        EncoderError: a context longer than the old tower has positions for.
    """
    if context_length > tower.config.context_length:
        raise EncoderError(
            f"--context-length {context_length}: the tower to begin with has {tower.config.context_length} positions: "
            f"pass --context-length {tower.config.context_length}"
        )
    config = replace(
        tower.config,
        vocab_size=new.vocab_size,
        context_length=context_length,
        embed_dim=embed_dim,
        pad_id=new.pad_id,
        eos_id=new.eos_id,
    )
    result = ScratchTower(config)
    tensors = {name: tensor for name, tensor in tower.text.state_dict().items() if name != "attn_mask"}
    tensors["positional_embedding"] = tensors["positional_embedding"][:context_length]
    tensors["token_embedding.weight"] = _rows(tensors["token_embedding.weight"], old, new)
    if embed_dim != tower.config.embed_dim:
        del tensors["text_projection"]
    result.text.load_state_dict(result.text.state_dict() | tensors)
    return result


def _rows(embedding: Tensor, old: CaptionTokenizer, new: CaptionTokenizer) -> Tensor:
    """The new vocabulary's rows `[V, W]`."""
    spelling, splitting = new.backend, old.backend
    known, tokens = (backend.get_vocab(with_added_tokens=True) for backend in (splitting, spelling))
    kept = {new.pad_id: old.pad_id, new.bos_id: old.bos_id, new.eos_id: old.eos_id}
    if known.items() <= tokens.items():
        # Only of an extended vocabulary: elsewhere "cat" may be a word or the beginning of one.
        kept |= {id_: id_ for id_ in known.values()}
    added = [id_ for id_ in range(new.vocab_size) if id_ not in kept]
    spelled = splitting.encode_batch([spelling.decode([id_]) for id_ in added], add_special_tokens=False)
    rows = embedding.mean(0).repeat(new.vocab_size, 1)
    rows[list(kept)] = embedding[list(kept.values())]
    for id_, encoding in zip(added, spelled, strict=True):
        if encoding.ids:
            rows[id_] = embedding[encoding.ids].mean(0)
    return rows


def _tokenizer_of(model: str, config: dict[str, Any]) -> CaptionTokenizer:
    """The tokenizer that open_clip takes for a model."""
    if not config["text_cfg"].get("hf_tokenizer_name"):
        return open_clip_tokenizer()
    if model.startswith(LOCAL_PREFIX):
        return CaptionTokenizer.load(Path(model.removeprefix(LOCAL_PREFIX)))
    raise EncoderError(f"--text clip: {model} has a tokenizer that is not in its folder: download it (local-dir:PATH)")
