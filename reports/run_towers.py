"""The trained text tower of a run, before it is exported, as evaluations use it."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from ..distill.errors import DistillError
from ..distill.training.final import Which, load_final
from ..distill.training.run_folder import RunFolder
from ..inference.errors import InputError

TEXTS_AT_A_TIME = 256
NO_IMAGES = "a run has no image tower: export it with `clipglot export`"


class RunTowers:
    """Text side of a finished run; what its image tower was is known, but it is not loaded.

    Attributes:
        name: folder of the run.
        dim: D.
        logit_scale: factor on cosines.
        logit_bias: added to them after a sigmoid loss.
        preprocess: of the image tower.
        weights_sha256: of the image tower.
        quick_gelu: of the image tower.
        context_length: most tokens of a text.
        tokenizer: of the run.
    """

    def __init__(self, run: RunFolder, which: Which = "last") -> None:
        """Load the tower.

        Args:
            run: finished.
            which: weights, of the best validation or of the last step.

        Raises:
            DistillError: the run has not finished, or is damaged.
        """
        encoder = run.provenance()["encoder"]
        self._tower, scale, bias = load_final(run, which)
        self.name, self.dim = str(run.path), int(self._tower.config.embed_dim)
        if encoder["dim"] != self.dim or not isinstance(scale, int | float) or not 0 < scale < math.inf:
            raise DistillError(
                f"{run.path} is damaged: its tower has {self.dim} features and a scale of {scale!r:.40}, its cache "
                f"{encoder['dim']} features: train anew"
            )
        self.logit_scale, self.logit_bias = float(scale), bias
        self.preprocess: dict[str, Any] = encoder["preprocess"]
        self.weights_sha256, self.quick_gelu = str(encoder["weights_sha256"]), bool(encoder["quick_gelu"])
        self.context_length: int = self._tower.config.context_length
        self.tokenizer: Any = self._tower.tokenizer_type.load(run.tokenizer)

    @torch.inference_mode()
    def encode_texts(
        self,
        texts: Sequence[str],
        *,
        raw: bool = False,
        batch_size: int = TEXTS_AT_A_TIME,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> NDArray[np.float32]:
        """`[len(texts), D] float32`, of unit norm unless `raw`, in the order given."""
        features = np.empty((len(texts), self.dim), np.float32)
        done = 0
        for positions, encoded in self._tower.encode_texts(texts, self.tokenizer, self.context_length, batch_size):
            block = encoded.float()
            features[positions] = (block if raw else F.normalize(block, dim=-1)).numpy()
            done += len(positions)
            on_progress(done, len(texts))
        return features

    def normalize(self, pixels: NDArray[np.uint8]) -> Any:
        """Refuse: there is no image tower.

        Raises:
            InputError: always.
        """
        raise InputError(NO_IMAGES)

    def encode_pixels(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Refuse: there is no image tower.

        Raises:
            InputError: always.
        """
        raise InputError(NO_IMAGES)
