"""The scratch text tower: open_clip's TextTransformer, causal, pooled at EOS, with our own forward over its modules.

open_clip's forward takes only sequences of the full context length. Ours takes short ones: a causal tower pooled at
EOS never looks at what follows, so the features are the same (`tests/test_text_tower.py` holds them together).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from open_clip.transformer import QuickGELU, TextTransformer
from torch import Tensor, nn

from .errors import EncoderError


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """The shape of a scratch text tower; see `to_open_clip` for the names that open_clip gives its parts."""

    embed_dim: int
    vocab_size: int
    context_length: int
    width: int
    heads: int
    layers: int
    pad_id: int
    eos_id: int
    quick_gelu: bool

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise EncoderError(f"--width {self.width} is not a multiple of --heads {self.heads}")

    def to_open_clip(self) -> dict[str, Any]:
        """open_clip's `text_cfg`. `hf_tokenizer_name` only has to be non-empty: a local folder is its own tokenizer."""
        fields = asdict(self)
        del fields["embed_dim"], fields["quick_gelu"]
        return fields | {"pool_type": "eos", "proj_type": "linear", "hf_tokenizer_name": "clipglot"}


class TextTower(nn.Module):
    """The student. B captions, L tokens, W width, D features.

    Its parameters are named as in open_clip's CustomTextCLIP (`text.…`).
    """

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.text = TextTransformer(
            context_length=config.context_length,
            vocab_size=config.vocab_size,
            width=config.width,
            heads=config.heads,
            layers=config.layers,
            output_dim=config.embed_dim,
            pad_id=config.pad_id,
            eos_id=config.eos_id,
            pool_type="eos",
            act_layer=QuickGELU if config.quick_gelu else nn.GELU,
        )

    def forward(self, captions: Sequence[Sequence[int]]) -> Tensor:
        """Raw features `[B, D]` of token ids, ragged and unpadded.

        Padded to the longest of the batch; pads follow EOS, where causal attention does not look.
        """
        text = self.text
        device = text.positional_embedding.device
        length = max(map(len, captions))
        ids = torch.tensor([[*c, *[self.config.pad_id] * (length - len(c))] for c in captions], device=device)  # [B, L]
        x = text.token_embedding(ids) + text.positional_embedding[:length]  # [B, L, W]
        x = text.transformer(x, attn_mask=text.attn_mask[:length, :length])
        # As upstream: the first EOS pools, also when a caption spells the token out.
        eos = (ids == self.config.eos_id).int().argmax(dim=1)
        pooled = text.ln_final(x[torch.arange(len(captions), device=device), eos])  # [B, W]
        features: Tensor = pooled @ text.text_projection
        return features
