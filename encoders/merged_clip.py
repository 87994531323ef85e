"""A merged CLIP, loaded as whoever receives it will: by open_clip, but for text towers that it has no form of."""

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
from .open_clip_loading import LM_CONFIG, load_clip
from .text_lm import OPEN_CLIP_POOLERS, LMConfig, LMTower
from .text_tower import TextTower
from .tokenizer_lm import AnyTokenizer, LMTokenizer

TEXTS_AT_A_TIME = 256
NO_TEXT = {"width": 8, "heads": 1, "layers": 1}  # for open_clip to build beside the image side


@dataclass(frozen=True, kw_only=True)
class MergedClip:
    """Both towers of an open_clip folder. D features.

    Attributes:
        image_tower: the image side, with its identity.
        logit_scale: the factor on cosines before a softmax.
    """

    folder: Path
    image_tower: ImageTower
    logit_scale: float
    _text_features: Callable[[list[str]], Tensor]

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str], *, raw: bool = False) -> NDArray[np.float32]:
        """`[len(texts), D] float32`, of unit norm unless `raw`."""
        blocks = [
            self._text_features(list(texts[i : i + TEXTS_AT_A_TIME])) for i in range(0, len(texts), TEXTS_AT_A_TIME)
        ]
        result: NDArray[np.float32] = torch.cat([b if raw else F.normalize(b, dim=-1) for b in blocks]).numpy()
        return result


def load_merged(folder: Path) -> MergedClip:
    """Load a folder that `clipglot export` wrote, or any other open_clip `local-dir:`.

    Raises:
        EncoderError: no such folder, or open_clip cannot load it.
    """
    if not (folder / CONFIG).is_file():
        raise EncoderError(f"{folder}: no {CONFIG} in it: make a merged CLIP with `clipglot export RUN -o {folder}`")
    name = f"local-dir:{folder}"
    lm_config = _lm_config(folder)
    if lm_config and not lm_config.loads_in_open_clip:
        return _load_with_own_text(folder, lm_config)
    clip, config = load_clip(name, None)
    try:
        tokenizer = open_clip.get_tokenizer(name)
    except Exception as error:  # a missing or damaged tokenizer file, of any kind
        raise EncoderError(f"{folder}: its tokenizer does not load ({error})") from error
    clip.eval().requires_grad_(False)
    return MergedClip(
        folder=folder,
        image_tower=tower_of_clip(clip, config, model=name),
        logit_scale=float(clip.logit_scale.exp()),
        _text_features=lambda texts: clip.encode_text(tokenizer(texts)),
    )


def _lm_config(folder: Path) -> LMConfig | None:
    """The language model of a folder that `write_merged` wrote; None if its text tower is none, or it is another's."""
    config = _read(folder / CONFIG)
    if "clipglot" not in config or "hf_model_name" not in config["model_cfg"]["text_cfg"]:
        return None
    text = config["model_cfg"]["text_cfg"]
    poolers: dict[str, Any] = {theirs: ours for ours, theirs in OPEN_CLIP_POOLERS.items()}
    return LMConfig(
        embed_dim=config["model_cfg"]["embed_dim"],
        name=text["hf_model_name"],
        model=_read(folder / LM_CONFIG),
        pooler=poolers.get(text["hf_pooler_type"], text["hf_pooler_type"]),
        head=text["hf_proj_type"],
        context_length=text["context_length"],
    )


def _load_with_own_text(folder: Path, lm_config: LMConfig) -> MergedClip:
    """A folder whose text tower open_clip has no form of: its image side by open_clip, the text side by us."""
    config = _read(folder / CONFIG)["model_cfg"]
    try:
        tensors = load_file(folder / WEIGHTS)
        with _without_warning("initialized partially"):  # the weights follow
            clip: Any = open_clip.create_model(
                f"local-dir:{folder}", load_weights=False, pretrained_image=False, text_cfg=NO_TEXT
            )
        clip.visual.load_state_dict(_below("visual.", tensors))
        text = LMTower(lm_config)
        text.text.load_state_dict(_below("text.", tensors))
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise EncoderError(f"{folder}: does not load ({str(error).splitlines()[0]}): export it again") from error
    tokenizer = LMTokenizer.load(folder)
    text.eval().requires_grad_(False)
    return MergedClip(
        folder=folder,
        image_tower=tower_of_clip(clip, config, model=f"local-dir:{folder}"),
        logit_scale=float(tensors["logit_scale"].exp()),
        _text_features=lambda texts: text.encode(tokenizer.encode(texts, lm_config.context_length)),
    )


@contextmanager
def _without_warning(part: str) -> Iterator[None]:
    """Keep open_clip, which logs to the root, from saying so."""

    def is_other(record: logging.LogRecord) -> bool:
        return part not in record.getMessage()

    root = logging.getLogger()
    root.addFilter(is_other)
    try:
        yield
    finally:
        root.removeFilter(is_other)


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin so, named without that."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _read(file: Path) -> dict[str, Any]:
    try:
        value: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EncoderError(f"{file}: no JSON ({error}): export the run again") from error
    return value


WEIGHTS, CONFIG = "open_clip_model.safetensors", "open_clip_config.json"


def write_merged(
    folder: Path,
    image_tower: ImageTower,
    text_tower: TextTower,
    logit_scale: float,
    logit_bias: float | None,
    tokenizer: AnyTokenizer,
    provenance: dict[str, Any],
) -> None:
    """Write weights, config and tokenizer of the merged CLIP into an existing folder.

    Args:
        folder: where; load it with `open_clip.create_model_and_transforms("local-dir:FOLDER")`.
        image_tower: its tensors are written as they are.
        text_tower: the student.
        logit_scale: the factor on cosines (not its logarithm).
        logit_bias: what is added to scaled cosines, of a sigmoid loss.
        tokenizer: the one that the student was trained with.
        provenance: kept in the config under `clipglot`, where open_clip does not look.
    """
    tensors: dict[str, Tensor] = {f"visual.{k}": v for k, v in image_tower.visual.state_dict().items()}
    tensors |= text_tower.state_dict()
    tensors["logit_scale"] = torch.tensor(math.log(logit_scale))
    if logit_bias is not None:
        tensors["logit_bias"] = torch.tensor(logit_bias)
    # Not save_file: it makes files that only their owner may read.
    (folder / WEIGHTS).write_bytes(save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}))
    config = {
        "model_cfg": {
            "embed_dim": image_tower.dim,
            "quick_gelu": image_tower.quick_gelu,
            "vision_cfg": image_tower.vision_cfg,
            "text_cfg": text_tower.config.to_open_clip(),
            "custom_text": True,
            # open_clip makes room for a bias only where it is told how it began.
            **({} if logit_bias is None else {"init_logit_bias": logit_bias}),
        },
        "preprocess_cfg": image_tower.preprocess,
        "clipglot": provenance,
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    tokenizer.save(folder)
    if isinstance(text_tower, LMTower):  # transformers' own config, where its loaders look for it
        lm_config = json.dumps(text_tower.config.model, indent=2, ensure_ascii=False)
        (folder / LM_CONFIG).write_text(lm_config + "\n", encoding="utf-8")
