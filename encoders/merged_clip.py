"""A merged CLIP: a folder with both towers that open_clip loads, written by the export and loaded as its users will.

open_clip loads it, but for text towers that it has no form of: there it loads the image tower alone.
"""

import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from .errors import EncoderError
from .image_tower import ImageTower, tower_of_clip
from .open_clip_loading import load_clip
from .text_tower import TextTower, TextTowerConfig
from .text_towers import TEXT_TOWERS
from .tokenizer import TextTokenizer
from .untrusted import CLIP_CONFIG, LOCAL_PREFIX, clip_config, clip_tokenizer
from .untrusted_files import read_json, require_regular

WEIGHTS = "open_clip_model.safetensors"
TEXTS_AT_A_TIME = 256
NO_TEXT = {"width": 8, "heads": 1, "layers": 1}  # a text tower for open_clip to build, where ours takes its place


def write_merged(
    folder: Path,
    image_tower: ImageTower,
    text_tower: TextTower,
    logit_scale: float,
    logit_bias: float | None,
    tokenizer: TextTokenizer,
    provenance: dict[str, Any],
) -> None:
    """Write weights, configuration and tokenizer of a merged CLIP into an existing folder.

    Args:
        folder: where; `open_clip.create_model_and_transforms("local-dir:FOLDER")` loads it.
        image_tower: its tensors are written unchanged.
        text_tower: the trained tower.
        logit_scale: factor on cosines (not its logarithm).
        logit_bias: added to scaled cosines, after a sigmoid loss.
        tokenizer: that the text tower was trained with.
        provenance: kept in the configuration under `clipglot`, which open_clip does not read.
    """
    tensors: dict[str, Tensor] = {f"visual.{k}": v for k, v in image_tower.visual.state_dict().items()}
    tensors |= text_tower.tensors()
    tensors["logit_scale"] = torch.tensor(math.log(logit_scale))
    if logit_bias is not None:
        tensors["logit_bias"] = torch.tensor(logit_bias)
    # Not save_file, whose files only their owner may read.
    (folder / WEIGHTS).write_bytes(save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}))
    config = {
        "model_cfg": {
            "embed_dim": image_tower.dim,
            "quick_gelu": image_tower.quick_gelu,
            "vision_cfg": image_tower.vision_cfg,
            "text_cfg": text_tower.config.to_open_clip(),
            "custom_text": True,
            # open_clip has a bias only if the configuration names its initial value.
            **({} if logit_bias is None else {"init_logit_bias": logit_bias}),
        },
        "preprocess_cfg": image_tower.preprocess,
        "clipglot": provenance,
    }
    (folder / CLIP_CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    tokenizer.save(folder)
    for name, content in text_tower.config.extra_files().items():
        (folder / name).write_text(content, encoding="utf-8")


@dataclass(frozen=True, kw_only=True)
class MergedClip:
    """Both towers of an open_clip folder. D features.

    Attributes:
        folder: that it was loaded from.
        image_tower: with its identity.
        logit_scale: factor on cosines before a softmax.
    """

    folder: Path
    image_tower: ImageTower
    logit_scale: float
    _text_features: Callable[[list[str]], Tensor]

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str], *, raw: bool = False) -> NDArray[np.float32]:
        """`[len(texts), D] float32`, of unit norm unless `raw`.

        Raises:
            EncoderError: the tokenizer gives an id that the text tower does not have.
        """
        try:
            blocks = [
                self._text_features(list(texts[i : i + TEXTS_AT_A_TIME])) for i in range(0, len(texts), TEXTS_AT_A_TIME)
            ]
        except IndexError as error:  # of the embedding of tokens
            raise EncoderError(
                f"{self.folder}: its tokenizer belongs to another text tower ({error}): export it again"
            ) from error
        result: NDArray[np.float32] = torch.cat([b if raw else F.normalize(b, dim=-1) for b in blocks]).numpy()
        return result


def load_merged(folder: Path) -> MergedClip:
    """Load a folder that `clipglot export` wrote, or any other open_clip `local-dir:`.

    Raises:
        EncoderError: no such folder, or one that does not load.
    """
    if not (folder / CLIP_CONFIG).is_file():
        raise EncoderError(
            f"{folder}: no {CLIP_CONFIG} in it: make a merged CLIP with `clipglot export RUN -o {folder}`"
        )
    if own := _text_that_open_clip_lacks(folder):
        return _load_with_own_text(folder, *own)
    name = f"{LOCAL_PREFIX}{folder}"
    clip, config = load_clip(name, None)
    try:
        tokenizer = clip_tokenizer(name, config)
        tokenizer(["a caption"])  # some damage shows only here
    except Exception as error:  # a missing or damaged tokenizer file, of any kind
        raise EncoderError(f"{folder}: its tokenizer does not load ({error})") from error
    clip.eval().requires_grad_(False)
    return MergedClip(
        folder=folder,
        image_tower=tower_of_clip(clip, config, model=name),
        logit_scale=float(clip.logit_scale.exp()),
        _text_features=lambda texts: clip.encode_text(tokenizer(texts)),
    )


def _text_that_open_clip_lacks(folder: Path) -> tuple[type[TextTower], TextTowerConfig] | None:
    """Kind and configuration of an exported text tower that open_clip cannot build; None if it can."""
    if "clipglot" not in read_json(folder / CLIP_CONFIG):
        return None
    config = clip_config(f"{LOCAL_PREFIX}{folder}")
    assert config is not None, "a folder has one"
    for tower in TEXT_TOWERS.values():
        text_config = tower.config_type.from_export(config, folder)
        if text_config and not text_config.loads_in_open_clip:
            return tower, text_config
    return None


def _load_with_own_text(folder: Path, kind: type[TextTower], text_config: TextTowerConfig) -> MergedClip:
    """The image tower as open_clip builds it, the text tower as clipglot does."""
    name = f"{LOCAL_PREFIX}{folder}"
    config = clip_config(name)
    assert config is not None, "a folder has one"
    try:
        tensors = load_file(require_regular(folder / WEIGHTS))
        with _without_warning("initialized partially"):  # the weights follow
            clip: Any = open_clip.create_model(name, load_weights=False, pretrained_image=False, text_cfg=NO_TEXT)
        clip.visual.load_state_dict(_with_prefix("visual.", tensors))
        text = kind(text_config)
        text.load_state_dict({name: tensor for name, tensor in tensors.items() if name.startswith("text.")})
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise EncoderError(f"{folder}: does not load ({str(error).splitlines()[0]}): export it again") from error
    tokenizer = kind.tokenizer_type.load(folder)
    text.eval().requires_grad_(False)
    return MergedClip(
        folder=folder,
        image_tower=tower_of_clip(clip, config, model=name),
        logit_scale=float(tensors["logit_scale"].exp()),
        _text_features=lambda texts: text.encode(tokenizer.encode(texts, text_config.context_length)),
    )


@contextmanager
def _without_warning(part: str) -> Iterator[None]:
    """Drop log records of open_clip that hold this text; up to 3.3 it logs to the root, later to its own loggers."""

    def is_other(record: logging.LogRecord) -> bool:
        return part not in record.getMessage()

    loggers = [logging.getLogger(name) for name in (None, "open_clip.factory")]
    for logger in loggers:
        logger.addFilter(is_other)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(is_other)


def _with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, named without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
