"""Base class of text towers: unpadded captions in, raw features out, and all that differs from kind to kind."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .errors import EncoderError
from .packing import PackedCaptions, PackedRows
from .tokenizer import TextTokenizer

TEXTS_SORTED_AT_A_TIME = 2**16


@dataclass(frozen=True, kw_only=True)
class TextTowerConfig(ABC):
    """Configuration of a text tower: enough to build it again, and to tell open_clip how.

    Attributes:
        embed_dim: D.
        context_length: most tokens of a caption.
    """

    embed_dim: int
    context_length: int

    def to_plain(self) -> dict[str, Any]:
        """Plain values, as JSON stores them; `type(config)(**values)` is the same configuration."""
        return asdict(self)

    @abstractmethod
    def to_open_clip(self) -> dict[str, Any]:
        """The `text_cfg` of open_clip."""

    @abstractmethod
    def describe(self) -> str:
        """One line for the model card."""

    @property
    def loads_in_open_clip(self) -> bool:
        """Whether open_clip can build this tower; clipglot loads the exports that it cannot."""
        return True

    @classmethod
    def from_export(cls, model_cfg: Mapping[str, Any], folder: Path) -> Self | None:
        """Configuration of the text tower of an export.

        Args:
            model_cfg: of its open_clip_config.json.
            folder: of the export.

        Returns:
            None if the export holds another kind, or a kind that open_clip always loads.
        """
        return None

    def extra_files(self) -> dict[str, str]:
        """Files of an export that only this kind needs, from name to content."""
        return {}

    def loading_code(self, folder: str) -> str:
        """Python that loads an export from `folder`."""
        if self.loads_in_open_clip:
            return f"""import open_clip

model, _, preprocess = open_clip.create_model_and_transforms("local-dir:{folder}")
model.eval()  # without dropout
tokenizer = open_clip.get_tokenizer("local-dir:{folder}")"""
        return f"""from pathlib import Path
from clipglot.encoders.merged_clip import load_merged

clip = load_merged(Path("{folder}"))
clip.encode_texts(["a caption"])  # [1, D], unit norm"""

    def loading_guide(self, folder: str) -> str:
        """Markdown for the model card: the loading code, and what is special about it."""
        return f"```python\n{self.loading_code(folder)}\n```"


@dataclass(frozen=True, kw_only=True)
class TowerSpec:
    """What a run asks of its text tower, of whatever kind.

    Attributes:
        text: the tower by name, folder or hub repository, as `--text` has it.
        embed_dim: D.
        context_length: most tokens of a caption.
        may_shorten: whether a tower with fewer positions takes these, because nobody asked for so many.
        quick_gelu: whether the image tower's CLIP computes its activations so.
        image_model: the image tower by name; if it is a CLIP's, its text tower can be trained further.
        image_pretrained: its weights.
        dropout: share of the values that training sets to zero; None leaves it as the tower has it.
        warm_start: whether the tower will begin in closed form.
        kept_words: rows of a language model's word embeddings that a pruned tokenizer keeps; empty for all.
    """

    text: str
    embed_dim: int
    context_length: int
    may_shorten: bool = False
    quick_gelu: bool = False
    image_model: str = ""
    image_pretrained: str | None = None
    dropout: float | None = None
    warm_start: bool = False
    kept_words: Sequence[int] = ()


def context_within(longest: int | None, context_length: int, name: str, *, may_shorten: bool) -> int:
    """Context length of a tower with a limited number of positions.

    Args:
        longest: positions of the tower; None for no limit.
        context_length: most tokens of a caption, as asked for.
        name: of the tower, for the message.
        may_shorten: as of `TowerSpec`.

    Raises:
        EncoderError: more tokens are asked for than there are positions.
    """
    if longest is None or context_length <= longest:
        return context_length
    if may_shorten:
        return longest
    raise EncoderError(
        f"--context-length {context_length}: {name} takes at most {longest} tokens: pass --context-length {longest}"
    )


class Regressions(Protocol):
    """Regressions from captions to the embeddings of their images. A tower starts from one; the trainer fits them."""

    def token_bag(self, *, vocab_size: int, pad_id: int, bos_id: int, eos_id: int) -> tuple[Tensor, Tensor]:
        """Token weights `[V, D]` and a bias `[D]`, whose sum over a caption predicts the embedding of its image."""

    def linear_head(self, pooled: Callable[[Any], Tensor]) -> Tensor:
        """Weights `[D, W]` of a linear head.

        Args:
            pooled: gives the input of the head, `[B, W]`, for what `TextTower.pack` gives.
        """


class TextTower(nn.Module, ABC):
    """A text tower. B captions, D features.

    Its parameters have the names of open_clip's CustomTextCLIP (`text.…`).

    Attributes:
        kind: key of its configuration in `final/config.json` of a run.
        noun: for messages, such as "a language model".
        names: values of `--text` that stand for this kind; those of no kind name a language model.
        config_type: class of its configuration.
        options_type: dataclass of the settings of `clipglot train` that belong to this kind alone, by the same names.
        tokenizer_type: class of its tokenizers.
        has_own_tokenizer: whether `--text` names the tokenizer, too.
        config: its configuration.
        grad_checkpointing: compute the activations of blocks again in backward instead of keeping them.
        frozen_sha256: digest of the tensors of a frozen model that the tower learns from and does not hold.
        vocabulary: what became of the tokens of the tower that this one goes on from, in a few words.
    """

    kind: ClassVar[str]
    noun: ClassVar[str]
    names: ClassVar[tuple[str, ...]] = ()
    config_type: ClassVar[type[TextTowerConfig]]
    options_type: ClassVar[type[Any]]
    tokenizer_type: ClassVar[type[TextTokenizer]]
    has_own_tokenizer: ClassVar[bool] = False
    config: TextTowerConfig
    grad_checkpointing: bool = False
    frozen_sha256: str = ""
    vocabulary: str = ""

    def __init__(self, config: TextTowerConfig) -> None:
        super().__init__()
        self.config = config

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> Self:
        """A tower with random weights, given what `to_plain` of its configuration gave."""
        return cls(cls.config_type(**values))

    @classmethod
    def from_open_clip(cls, clip: Any, model_cfg: Mapping[str, Any], export: Path | None) -> Self | None:
        """The text tower of a CLIP that open_clip has loaded.

        Args:
            clip: the model.
            model_cfg: of its open_clip_config.json.
            export: folder of an export of ours; None for a CLIP of others.

        Returns:
            None if it is of another kind, or none that this kind computes to the same features.
        """
        return None

    @classmethod
    @abstractmethod
    def create(cls, spec: TowerSpec, options: Any, tokenizer: TextTokenizer) -> "TextTower":
        """The tower that a run begins with, on the CPU, ready to be trained.

        Args:
            spec: what the run asks for.
            options: an `options_type`.
            tokenizer: of the run.

        Raises:
            EncoderError: there is no such tower, or none that can be trained as asked.
        """

    @abstractmethod
    def continued(
        self, spec: TowerSpec, options: Any, old_tokenizer: TextTokenizer, tokenizer: TextTokenizer
    ) -> "TextTower":
        """A tower that begins a run with what this one has learned in another.

        Args:
            spec: what the new run asks for.
            options: an `options_type`.
            old_tokenizer: that this tower was trained with.
            tokenizer: of the new run.

        Raises:
            EncoderError: this tower cannot be trained as asked.
        """

    @abstractmethod
    def pack(self, ids: NDArray[Any], lengths: NDArray[np.int64]) -> PackedCaptions | PackedRows:
        """Captions as `forward` takes them, on the host; arguments and errors as of `PackedCaptions.of`."""

    @abstractmethod
    def forward(self, packed: PackedCaptions | PackedRows) -> Tensor:
        """Raw features `[B, D]` of packed captions on this tower's device, in the order given."""

    @abstractmethod
    def compile_rows(self, backend: str | Callable[..., Any] = "inductor", mode: str | None = None) -> None:
        """Compile the training forward over rows, and pack for it from now on.

        Args:
            backend: as of `torch.compile`.
            mode: as of `torch.compile`.
        """

    @property
    def num_parameters(self) -> tuple[int, int]:
        """Numbers of the parameters that are trained and of all; of a head alone, the frozen model's among them."""
        parameters = list(self.whole.parameters())
        return sum(p.numel() for p in parameters if p.requires_grad), sum(p.numel() for p in parameters)

    @property
    def whole(self) -> "TextTower":
        """The tower that is saved and exported: itself, unless this is a part that learns alone."""
        return self

    @property
    def trains_language_model(self) -> bool:
        """Whether parameters of a pretrained language model itself are trained, by a learning rate of their own."""
        return False

    @property
    @abstractmethod
    def has_dropout(self) -> bool:
        """Whether training gives a caption other features each time."""

    @abstractmethod
    def warm_start(self, tokenizer: TextTokenizer, regressions: Regressions) -> None:
        """Overwrite a part of the weights with a regression, so that the tower retrieves before the first step."""

    def learning_rate_factors(self, *, pretrained: float, layer_decay: float) -> dict[str, float]:
        """Factor on the learning rate of each trained parameter, by name.

        Args:
            pretrained: for the parameters of a pretrained model.
            layer_decay: a further factor on these, for each layer between them and the head.
        """
        return {name: 1.0 for name, parameter in self.named_parameters() if parameter.requires_grad}

    def plain(self) -> Self:
        """The tower as it is saved and exported: what LoRA has learned is added to its weights; itself without any."""
        if not any("lora_" in name for name, _ in self.named_parameters()):
            return self
        tower = copy.copy(self)
        tower._modules = dict(self._modules)
        tower.text = copy.deepcopy(self.text)
        tower._merge_lora()
        return tower

    def _merge_lora(self) -> None:
        """Add what LoRA has learned to the weights, in place; of towers that can have it."""
        raise NotImplementedError

    def tensors(self) -> dict[str, Tensor]:
        """Tensors of the plain tower by name, on the CPU, as safetensors stores them."""
        return {name: tensor.detach().cpu().contiguous() for name, tensor in self.plain().state_dict().items()}

    @staticmethod
    def allow_shapes() -> None:
        """Let torch compile for as many shapes as a run has.

        Two numbers of rows, a last micro-batch of its own, gradient on and off: these alone are all that it allows.
        """
        torch._dynamo.config.recompile_limit = max(32, torch._dynamo.config.recompile_limit)

    def encode(self, captions: Sequence[Sequence[int] | NDArray[Any]]) -> Tensor:
        """Raw features `[B, D]` of token ids, ragged and unpadded, in the order given: pack, move, forward.

        Raises:
            EncoderError: a caption that the tower cannot pool.
        """
        lengths = np.fromiter(map(len, captions), np.int64, len(captions))
        ids = np.concatenate([np.asarray(caption, np.int64) for caption in captions])
        features: Tensor = self(self.pack(ids, lengths).to(self.device))
        return features

    def encode_texts(
        self, texts: Sequence[str], tokenizer: TextTokenizer, context_length: int, batch_size: int
    ) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
        """Positions of some texts and their raw features `[b, D]`, until all are done; in the order of length.

        Args:
            texts: any number.
            tokenizer: of this tower.
            context_length: tokens at which a text is cut.
            batch_size: texts at a time; sorted, so that a batch has few lengths.
        """
        for start in range(0, len(texts), TEXTS_SORTED_AT_A_TIME):
            ids = tokenizer.encode(texts[start : start + TEXTS_SORTED_AT_A_TIME], context_length)
            order = np.argsort([len(each) for each in ids], kind="stable")
            for positions in np.split(order, range(batch_size, len(order), batch_size)):
                yield start + positions, self.encode([ids[i] for i in positions])

    @property
    def device(self) -> torch.device:
        """Where its parameters are."""
        return next(self.parameters()).device
