"""The scratch text tower: open_clip's TextTransformer, causal, pooled at EOS, with our own forward over its modules.

open_clip's forward takes only captions padded to the full context length. Ours computes no pad: a causal tower pooled
at EOS never looks at what follows, so the features are the same (`tests/encoders/test_text_scratch.py` compares them).
The tower begins with random weights, as a bag of tokens, or with the weights of a CLIP or of an earlier run.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from open_clip.transformer import QuickGELU, TextTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .attention import Attend, by_length, in_rows, varlen
from .errors import EncoderError
from .lora import LoRAOptions, add_attention_lora, merge_attention_lora
from .packing import PackedCaptions, PackedRows, row_length
from .text_bag_init import init_from_bag
from .text_tower import Regressions, TextTower, TextTowerConfig, TowerSpec, context_within
from .text_transfer import causal_text_of, kept_rows, load_clip_text, transfer_rows
from .tokenizer import CaptionTokenizer, TextTokenizer, open_clip_tokenizer

Attention = Literal["auto", "lengths", "rows", "flex", "varlen"]


NUM_SPECIAL = 3  # tokens that every vocabulary keeps: padding, begin and end


@dataclass(frozen=True, kw_only=True)
class ScratchConfig(TextTowerConfig):
    """Configuration of a scratch text tower; see `to_open_clip` for the names that open_clip gives its parts."""

    vocab_size: int
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
        """The `text_cfg` of open_clip. `hf_tokenizer_name` only has to be non-empty: a folder is its own tokenizer."""
        fields = asdict(self)
        del fields["embed_dim"], fields["quick_gelu"]
        return fields | {"pool_type": "eos", "proj_type": "linear", "hf_tokenizer_name": "clipglot"}

    def describe(self) -> str:
        """One line for the model card."""
        return f"causal transformer, {self.layers} layers, width {self.width}, {self.heads} heads, pooled at EOS"


@dataclass(frozen=True, kw_only=True)
class ScratchOptions(LoRAOptions):
    """Settings of `clipglot train` for this tower: its shape, if it has random weights; LoRA, if it has others."""

    width: int = 512
    layers: int = 6
    heads: int = 8


class ScratchTower(TextTower):
    """A text tower of open_clip's modules. B captions, S tokens or slots, W width, D features.

    Its parameters have the names of open_clip's CustomTextCLIP (`text.…`).

    Attributes:
        attention: by length, in rows with a mask or by flex_attention, or by FlashAttention's varlen. "auto" goes by
            length, on CUDA in rows: with a mask, or with flex_attention where the rows are compiled.
        dropout: share of the values that training sets to zero, in token embeddings and in the output of each block.
            It draws from torch's global generators: who forwards twice for one gradient seeds them alike.
        drop_embeddings: whether dropout applies to token embeddings, too.
        grad_checkpointing: as of every tower; not in the last block, which runs on EOS alone.
    """

    kind = "text"
    noun = "a scratch tower"
    names = ("scratch", "clip")
    config_type = ScratchConfig
    options_type = ScratchOptions
    tokenizer_type = CaptionTokenizer
    config: ScratchConfig
    attention: Attention = "auto"
    dropout: float = 0.0
    drop_embeddings: bool = True
    _compiled_rows: Callable[..., Tensor] | None = None

    def __init__(self, config: ScratchConfig) -> None:
        super().__init__(config)
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

    @classmethod
    def create(cls, spec: TowerSpec, options: ScratchOptions, tokenizer: TextTokenizer) -> "ScratchTower":
        """A tower with random weights, or the text tower of the CLIP that made the cache (`--text clip`).

        Args:
            spec: what the run asks for.
            options: its shape; a CLIP's tower has its own.
            tokenizer: of the run.

        Raises:
            EncoderError: the CLIP does not load, or its text tower is of another form.
        """
        assert isinstance(tokenizer, CaptionTokenizer)
        if spec.text == "clip":
            tower, old_tokenizer = cls.from_clip(spec.image_model, spec.image_pretrained)
            return tower.continued(spec, options, old_tokenizer, tokenizer)
        config = ScratchConfig(
            embed_dim=spec.embed_dim,
            vocab_size=tokenizer.vocab_size,
            context_length=spec.context_length,
            pad_id=tokenizer.pad_id,
            eos_id=tokenizer.eos_id,
            quick_gelu=spec.quick_gelu,
            width=options.width,
            layers=options.layers,
            heads=options.heads,
        )
        return cls(config)._with_dropout(spec)

    @classmethod
    def from_clip(cls, model: str, pretrained: str | None) -> tuple["ScratchTower", CaptionTokenizer]:
        """The text tower of a CLIP, and its tokenizer.

        Args:
            model: as of `load_image_tower`.
            pretrained: as of `load_image_tower`.

        Raises:
            EncoderError: no such CLIP, or a text tower that is not causal and pooled at the end of the text.
        """
        text, tokenizer, quick_gelu = load_clip_text(model, pretrained)
        try:
            return cls._of_modules(text, tokenizer.pad_id, tokenizer.eos_id, quick_gelu), tokenizer
        except RuntimeError as error:  # layer scale, another MLP
            reason = str(error).splitlines()[-1].strip()
            raise EncoderError(
                f"--text clip: the text tower of {model} has another form than ours ({reason})"
            ) from error

    @classmethod
    def from_open_clip(cls, clip: Any, model_cfg: Mapping[str, Any], export: Path | None) -> "ScratchTower | None":
        """The text tower of a CLIP that open_clip has loaded; None if it is not causal and pooled at the text's end.

        Args:
            clip: the model.
            model_cfg: of its open_clip_config.json.
            export: folder with a tokenizer of ours or like ours (`takes_captions`); None for CLIPs of others, of which
                only those with open_clip's own tokenizer are taken.
        """
        text, text_cfg = causal_text_of(clip), model_cfg["text_cfg"]
        if text is None or "hf_model_name" in text_cfg:
            return None
        if export is not None:
            pad_id, eos_id = text_cfg.get("pad_id"), text_cfg.get("eos_id")
            if type(pad_id) is not int or type(eos_id) is not int:
                return None
        else:
            tokenizer = open_clip_tokenizer()
            pad_id, eos_id = tokenizer.pad_id, tokenizer.eos_id
            own = {"hf_tokenizer_name", "tokenizer_kwargs", "tokenizer_mode"} & {k for k, v in text_cfg.items() if v}
            if own or text.token_embedding.num_embeddings != tokenizer.vocab_size:
                return None
        try:
            return cls._of_modules(text, pad_id, eos_id, bool(model_cfg.get("quick_gelu", False)))
        except RuntimeError:  # layer scale, another MLP
            return None

    @classmethod
    def _of_modules(cls, text: Any, pad_id: int, eos_id: int, quick_gelu: bool) -> "ScratchTower":
        """A tower with the weights of a text tower of open_clip.

        Raises:
            RuntimeError: it has other tensors.
        """
        vocab_size, width = text.token_embedding.weight.shape
        config = ScratchConfig(
            embed_dim=text.text_projection.shape[1],
            vocab_size=vocab_size,
            context_length=len(text.positional_embedding),
            width=width,
            heads=text.transformer.resblocks[0].attn.num_heads,
            layers=len(text.transformer.resblocks),
            pad_id=pad_id,
            eos_id=eos_id,
            quick_gelu=quick_gelu,
        )
        tower = cls(config)
        expected = tower.text.state_dict()
        tensors = text.state_dict()
        if others := {name for name in tensors.keys() - expected.keys() if name.startswith("transformer.")}:
            raise RuntimeError(f"it has {min(others)}")
        tower.text.load_state_dict({name: tensor for name, tensor in tensors.items() if name in expected})
        return tower

    def continued(
        self, spec: TowerSpec, options: ScratchOptions, old_tokenizer: TextTokenizer, tokenizer: TextTokenizer
    ) -> "ScratchTower":
        """A tower with these weights for another vocabulary, context length and number of features.

        Args:
            spec: what the new run asks for.
            options: LoRA; the shape stays.
            old_tokenizer: that this tower was trained with.
            tokenizer: of the new run.

        Raises:
            EncoderError: a context length above this tower's, a warm start, which would overwrite the weights, or a
                target of LoRA that there is not.
        """
        assert isinstance(old_tokenizer, CaptionTokenizer)
        assert isinstance(tokenizer, CaptionTokenizer)
        if spec.warm_start:
            raise EncoderError(f"--warm-start ridge: {spec.text} has learned already: drop it")
        context_length = context_within(
            self.config.context_length, spec.context_length, "the tower to begin with", may_shorten=spec.may_shorten
        )
        tower = self.with_vocabulary(old_tokenizer, tokenizer, context_length=context_length, embed_dim=spec.embed_dim)
        kept = kept_rows(old_tokenizer, tokenizer)
        if len(kept) < tokenizer.vocab_size:
            tower.vocabulary = _fate_of_tokens(len(kept), tokenizer.vocab_size)
        if options.lora_rank:
            tower.add_lora(options, kept=kept)
            # With another number of features the projection is new.
            tower.text.text_projection.requires_grad_(spec.embed_dim != self.config.embed_dim)
        return tower._with_dropout(spec)

    def _with_dropout(self, spec: TowerSpec) -> "ScratchTower":
        self.dropout = spec.dropout or 0.0
        # Token embeddings that hold a regression are not dropped: what they know would be lost.
        self.drop_embeddings = not spec.warm_start
        return self

    @property
    def has_dropout(self) -> bool:
        """Whether training gives a caption other features each time."""
        return self.dropout > 0

    def warm_start(self, tokenizer: TextTokenizer, regressions: Regressions) -> None:
        """Begin as a bag of tokens, fitted in closed form.

        Args:
            tokenizer: of the run.
            regressions: that the trainer fits.

        Raises:
            EncoderError: the tower has no room for one.
        """
        assert isinstance(tokenizer, CaptionTokenizer)
        special = {"pad_id": tokenizer.pad_id, "bos_id": tokenizer.bos_id, "eos_id": tokenizer.eos_id}
        weights, bias = regressions.token_bag(vocab_size=self.config.vocab_size, **special)
        init_from_bag(self.text, weights, bias, **special)

    def with_vocabulary(
        self, old: CaptionTokenizer, new: CaptionTokenizer, *, context_length: int, embed_dim: int
    ) -> "ScratchTower":
        """A tower with the blocks of this one and another vocabulary.

        Tokens that both vocabularies have keep their rows. Any other begins at the mean of the rows that spell its text
        in the old vocabulary. Where the number of features differs, the projection begins with random weights.

        Args:
            old: tokenizer of this tower.
            new: tokenizer of the result.
            context_length: of the result.
            embed_dim: D of the result.

        Raises:
            EncoderError: a context length above this tower's.
        """
        longest = self.config.context_length
        context_within(longest, context_length, "the tower to begin with", may_shorten=False)
        config = replace(
            self.config,
            vocab_size=new.vocab_size,
            context_length=context_length,
            embed_dim=embed_dim,
            pad_id=new.pad_id,
            eos_id=new.eos_id,
        )
        tower = ScratchTower(config)
        tensors = {name: tensor for name, tensor in self.text.state_dict().items() if name != "attn_mask"}
        tensors["positional_embedding"] = tensors["positional_embedding"][:context_length]
        tensors["token_embedding.weight"] = transfer_rows(tensors["token_embedding.weight"], old, new)
        if embed_dim != self.config.embed_dim:
            del tensors["text_projection"]
        tower.text.load_state_dict(tower.text.state_dict() | tensors)
        return tower

    def add_lora(self, options: LoRAOptions, *, kept: Collection[int]) -> None:
        """Freeze the tower, and learn low-rank updates of its attention and the embeddings of new tokens.

        Args:
            options: with a rank.
            kept: ids of the tokens whose embeddings stay as they are.

        Raises:
            EncoderError: there is no such target.
        """
        self.text.requires_grad_(False)
        add_attention_lora(self._attentions, options)
        if len(kept) < self.config.vocab_size:
            self.text.new_tokens = NewTokens(kept, self.config.vocab_size, self.config.width)

    @property
    def num_parameters(self) -> tuple[int, int]:
        """As of every tower; changes of embeddings are no parameters besides these."""
        num_trained, num_all = super().num_parameters
        new = getattr(self.text, "new_tokens", None)
        return (
            (num_trained, num_all) if new is None else (num_trained - self.config.width, num_all - new.weight.numel())
        )

    @property
    def _attentions(self) -> list[nn.MultiheadAttention]:
        return [block.attn for block in self.text.transformer.resblocks]

    def _merge_lora(self) -> None:
        """As of every tower that has it; changes of token embeddings are added, too."""
        merge_attention_lora(self._attentions)
        if new := getattr(self.text, "new_tokens", None):
            new.add_to(self.text.token_embedding)
            del self.text.new_tokens
        self.requires_grad_(True)

    def pack(self, ids: NDArray[Any], lengths: NDArray[np.int64]) -> PackedCaptions | PackedRows:
        """Captions as `forward` takes them, on the host; arguments and errors as of `PackedCaptions.of`."""
        config, on_cuda = self.config, self.text.positional_embedding.is_cuda
        if self.attention in ("rows", "flex") or (self.attention == "auto" and on_cuda):
            return PackedRows.of(
                ids,
                lengths,
                config.eos_id,
                pad_id=config.pad_id,
                row_length=row_length(config.context_length),
                few_shapes=self._compiled_rows is not None,
            )
        return PackedCaptions.of(ids, lengths, config.eos_id)

    def compile_rows(self, backend: str | Callable[..., Any] = "inductor", mode: str | None = None) -> None:
        """Compile the training forward over rows, and pack for it from now on.

        Each new number of rows or captions compiles once more, with gradient and without.

        Args:
            backend: as of `torch.compile`.
            mode: as of `torch.compile`.
        """
        self.allow_shapes()
        self._compiled_rows = torch.compile(self._rows, dynamic=False, fullgraph=True, backend=backend, mode=mode)

    def forward(self, packed: PackedCaptions | PackedRows) -> Tensor:
        """Raw features `[B, D]` of packed captions on this tower's device, in the order given."""
        if isinstance(packed, PackedRows):
            rows = self._compiled_rows if self._compiled_rows and self.training else self._rows
            return rows(packed.ids, packed.positions, packed.caption, packed.last)
        attend = (varlen if self.attention == "varlen" else by_length)(packed, self.config.heads)
        return self._features(packed.ids, packed.positions, packed.last, attend)[packed.restore]

    def _rows(self, ids: Tensor, positions: Tensor, caption: Tensor, last: Tensor) -> Tensor:
        # Without a compiler flex_attention holds all scores: the mask is better there.
        flex = self.attention == "flex" or (self.attention == "auto" and ids.is_cuda and torch.compiler.is_compiling())
        attend = in_rows(caption, self.config.heads, flex=flex)
        return self._features(ids.flatten(), positions.flatten(), last, attend)

    def _features(self, ids: Tensor, positions: Tensor, last: Tensor, attend: Attend) -> Tensor:
        text = self.text
        # Not by indexing: on the CPU its gradient is added up by several threads in no fixed order.
        x = text.token_embedding(ids) + F.embedding(positions, text.positional_embedding)  # [S, W]
        if new := getattr(text, "new_tokens", None):
            x = x + new(ids)
        dropout = self.dropout if self.training else 0.0
        x = _dropped(x, dropout if self.drop_embeddings else 0.0)
        *blocks, last_block = text.transformer.resblocks
        for block in blocks:
            if self.grad_checkpointing and torch.is_grad_enabled():
                x = checkpoint(_block, block, x, attend, dropout, use_reentrant=False)
            else:
                x = _block(block, x, attend, dropout)
        # Only EOS is pooled, so the last block has to answer for it alone.
        x = _block(last_block, x, attend, dropout, last)  # [B, W]
        features: Tensor = text.ln_final(x) @ text.text_projection
        return features


def _fate_of_tokens(num_kept: int, vocab_size: int) -> str:
    """What becomes of a tower's tokens under another tokenizer."""
    if num_kept > NUM_SPECIAL:
        return f"{num_kept:,} tokens keep their embeddings, {vocab_size - num_kept:,} are new"
    return (
        f"{vocab_size:,} new tokens, which begin at the mean of the old ones that spell them; what the tower read may "
        "be lost. To keep it, extend its own tokenizer (`clipglot tokenizer CACHE --extend FOLDER`)"
    )


class NewTokens(nn.Module):
    """Learned changes of the embeddings of some tokens, while those of all others are frozen; zero at first.

    Changes and no rows: weight decay then draws a row to where it began, as it does with LoRA. V tokens, W width.
    """

    row: Tensor

    def __init__(self, kept: Collection[int], vocab_size: int, width: int) -> None:
        """Begin with no change.

        Args:
            kept: ids of the frozen tokens.
            vocab_size: V.
            width: W.
        """
        super().__init__()
        is_new = torch.ones(vocab_size, dtype=torch.bool)
        is_new[list(kept)] = False
        # Row 0 stands for all frozen tokens and stays zero.
        self.register_buffer("row", is_new.cumsum(0) * is_new, persistent=False)  # [V]
        self.weight = nn.Parameter(torch.zeros(int(is_new.sum()) + 1, width))

    def forward(self, ids: Tensor) -> Tensor:
        """Changes `[T, W]` of the embeddings of tokens `[T]`."""
        return F.embedding(self.row[ids], self.weight, padding_idx=0)

    @torch.no_grad()
    def add_to(self, embedding: nn.Embedding) -> None:
        """Add the changes to the embeddings of all tokens."""
        embedding.weight += self.weight[self.row]


def _block(block: Any, x: Tensor, attend: Attend, dropout: float, last: Tensor | None = None) -> Tensor:
    """A residual block over tokens `[S, W]`, or over the last token of each caption `[B, W]`."""
    attn = block.attn
    lora = getattr(attn, "lora", None)
    normed = block.ln_1(x)
    qkv = F.linear(normed, attn.in_proj_weight, attn.in_proj_bias)
    if lora is not None:
        qkv = qkv + lora.qkv(normed)
    q, k, v = qkv.chunk(3, dim=-1)
    attended = attend(q, k, v, last)
    added = F.linear(attended, attn.out_proj.weight, attn.out_proj.bias)
    if lora is not None:
        added = added + lora.out(attended)
    x = (x if last is None else x[last]) + _dropped(added, dropout)
    return x + _dropped(block.mlp(block.ln_2(x)), dropout)


def _dropped(x: Tensor, dropout: float) -> Tensor:
    """Zero a share of the values and scale up the others (Srivastava et al. 2014, JMLR 15, section 4)."""
    return F.dropout(x, dropout) if dropout else x
