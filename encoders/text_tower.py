"""What every text tower that can be a student has in common: captions in, raw features out, no padding between."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .packing import PackedCaptions, PackedRows


@dataclass(frozen=True, kw_only=True)
class TextTowerConfig(ABC):
    """The shape of a tower: enough to build it again, and to tell open_clip how.

    Attributes:
        embed_dim: D.
        context_length: most tokens of a caption.
    """

    embed_dim: int
    context_length: int

    @abstractmethod
    def to_open_clip(self) -> dict[str, Any]:
        """open_clip's `text_cfg`."""

    @abstractmethod
    def describe(self) -> str:
        """The tower in a few words, for the model card."""


class TextTower(nn.Module, ABC):
    """A text tower. B captions, D features.

    Its parameters are named as in open_clip's CustomTextCLIP (`text.…`).

    Attributes:
        config: its shape.
        grad_checkpointing: hold less memory; what is inside the blocks is computed again in backward.
    """

    config: TextTowerConfig
    grad_checkpointing: bool = False

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

    @property
    def device(self) -> torch.device:
        """Where its parameters are."""
        return next(self.parameters()).device

    def plain(self) -> "TextTower":
        """The tower as it is saved and exported: itself, unless something was added to it for training."""
        return self
