"""A merged CLIP: a folder with both towers that open_clip loads, written by the export and loaded as its users will.

open_clip loads it, but for text towers that it has no form of: there it loads the image tower alone.
"""

import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
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
from .loading.clips import TIMM_PREFIX, load_clip
from .loading.hub import fetched_from_hub
from .loading.language_models import first_line
from .loading.model_names import HUB_PREFIX, LOCAL_PREFIX
from .loading.untrusted import (
    CLIP_CONFIG,
    LM_CONFIG,
    TOKENIZER_FILES,
    clip_config,
    clip_tokenizer,
)
from .loading.untrusted_files import read_json, require_regular
from .text_tower import TextTower, TextTowerConfig
from .text_towers import TEXT_TOWERS
from .tokenizer import TextTokenizer, open_clip_tokenizer, takes_captions

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
    """Both towers of a CLIP, in evaluation mode. D features.

    Attributes:
        name: folder that it was loaded from, or open_clip's name of it.
        image_tower: with its identity.
        text_tower: ours, which computes no padding; None where only open_clip can compute the text tower.
        tokenizer: of `text_tower`, or open_clip's.
        context_length: most tokens of a text.
        logit_scale: factor on cosines before a softmax.
        logit_bias: added to scaled cosines before a sigmoid, after a sigmoid loss.
        model_cfg: that open_clip builds it from.
        record: what an export tells of where it came from; empty in other CLIPs.
    """

    name: str
    image_tower: ImageTower
    text_tower: TextTower | None
    tokenizer: Any
    context_length: int
    logit_scale: float
    logit_bias: float | None
    model_cfg: dict[str, Any]
    record: dict[str, Any]
    _by_open_clip: Any = None  # the model, where there is no `text_tower`

    @property
    def dim(self) -> int:
        """D."""
        return self.image_tower.dim

    @property
    def preprocess(self) -> dict[str, Any]:
        """open_clip's `preprocess_cfg`."""
        return self.image_tower.preprocess

    @property
    def weights_sha256(self) -> str:
        """Digest of the image tower's tensors."""
        return self.image_tower.weights_sha256

    @property
    def quick_gelu(self) -> bool:
        """The activation that an open_clip config would set."""
        return self.image_tower.quick_gelu

    @property
    def image_parameters(self) -> int:
        """Weights of the image tower."""
        return sum(tensor.numel() for tensor in self.image_tower.visual.parameters())

    @property
    def text_parameters(self) -> int:
        """Weights of the text tower."""
        if self.text_tower is not None:
            return sum(tensor.numel() for tensor in self.text_tower.parameters())
        named = self._by_open_clip.named_parameters()
        return sum(tensor.numel() for name, tensor in named if not name.startswith(("visual.", "logit_")))

    def normalize(self, pixels: NDArray[np.uint8]) -> Tensor:
        """What the image tower takes of pixels `[B, height, width, 3] uint8`, `[B, 3, height, width] float32`."""
        return self.image_tower.normalize(pixels)

    def encode_pixels(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Raw features `[B, D] float32` of pixels `[B, height, width, 3] uint8`."""
        return self.image_tower.encode(pixels)

    def placed(self, device: str | torch.device) -> "MergedClip":
        """The CLIP on a device."""
        for module in (self.text_tower, self._by_open_clip):
            if module is not None:
                module.to(device)
        return replace(self, image_tower=self.image_tower.placed(device))

    @torch.inference_mode()
    def encode_texts(
        self,
        texts: Sequence[str],
        *,
        raw: bool = False,
        batch_size: int = TEXTS_AT_A_TIME,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> NDArray[np.float32]:
        """`[len(texts), D] float32`, of unit norm unless `raw`, in the order given.

        Args:
            texts: any number.
            raw: as the tower gives them.
            batch_size: texts at a time; they are sorted by length, so that a batch has few lengths.
            on_progress: called with the texts done and their number.

        Raises:
            EncoderError: the tokenizer gives an id that the text tower does not have.
        """
        features = np.empty((len(texts), self.dim), np.float32)
        done = 0
        try:
            for positions, block in self._blocks(texts, batch_size):
                given = block if raw else F.normalize(block, dim=-1)
                features[positions] = given.float().cpu().numpy()
                done += len(positions)
                on_progress(done, len(texts))
        except IndexError as error:  # of the embedding of tokens
            raise EncoderError(
                f"{self.name}: its tokenizer belongs to another text tower ({error}): export it again"
            ) from error
        return features

    def _blocks(self, texts: Sequence[str], batch_size: int) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
        """Positions of some texts and their raw features, until all are done."""
        if self.text_tower is None:
            clip, tokenizer = self._by_open_clip, self.tokenizer
            device = next(clip.parameters()).device
            for start in range(0, len(texts), batch_size):
                block = list(texts[start : start + batch_size])
                yield np.arange(start, start + len(block)), clip.encode_text(tokenizer(block).to(device))
            return
        yield from self.text_tower.encode_texts(texts, self.tokenizer, self.context_length, batch_size)


def load_merged(folder: Path, *, by_open_clip: bool = False) -> MergedClip:
    """Load a folder that `clipglot export` wrote, or any other open_clip `local-dir:`.

    Args:
        folder: with an open_clip_config.json.
        by_open_clip: compute texts as open_clip does, with padding, wherever it can.

    Raises:
        EncoderError: no such folder, or one that does not load.
    """
    if (folder / "run.json").is_file():
        raise EncoderError(f"{folder} is a run: merge it with `clipglot export {folder} -o MERGED` and pass that")
    if not (folder / CLIP_CONFIG).is_file():
        raise EncoderError(
            f"{folder}: no {CLIP_CONFIG} in it: make a merged CLIP with `clipglot export RUN -o {folder}`"
        )
    record = read_json(folder / CLIP_CONFIG).get("clipglot")
    name = f"{LOCAL_PREFIX}{folder}"
    if isinstance(record, dict):
        model_cfg = clip_config(name)
        assert model_cfg is not None, "a folder has one"
        if own := _text_that_open_clip_lacks(model_cfg, folder):
            return _load_with_own_text(folder, *own, model_cfg, record)
    clip, config = load_clip(name, None)
    is_read = isinstance(record, dict) or takes_captions(folder, config["text_cfg"])
    tower = None if by_open_clip else _own_text_tower(clip, config, folder if is_read else None)
    return _of_open_clip(name, clip, config, tower, record=record if isinstance(record, dict) else {})


def load_from_hub(repository: str) -> MergedClip:
    """Load a CLIP from a hub repository: an export of ours with our text tower, any other as open_clip does.

    Args:
        repository: ORG/NAME.

    Raises:
        EncoderError: no such repository, no connection, or a model that does not load.
    """
    try:
        folder = fetched_from_hub(repository, [CLIP_CONFIG, WEIGHTS, LM_CONFIG, *TOKENIZER_FILES])
    except Exception as error:  # of the hub, of many kinds
        raise EncoderError(
            f"{repository}: no such folder, and the hub gives no such model ({first_line(error)})"
        ) from error
    if not (folder / CLIP_CONFIG).is_file():
        raise EncoderError(f"{repository}: no {CLIP_CONFIG} in it: pass the repository of an open_clip model")
    is_ours = isinstance(read_json(folder / CLIP_CONFIG).get("clipglot"), dict)
    if not is_ours or not (folder / WEIGHTS).is_file():  # open_clip has rules of its own for a repository's tokenizer
        return load_named(f"{HUB_PREFIX}{repository}", None)
    return replace(load_merged(folder), name=repository)


def load_named(model: str, pretrained: str | None) -> MergedClip:
    """Load a CLIP that open_clip knows by name.

    Args:
        model: as of `load_image_tower`, but no timm ViT, which has no text tower.
        pretrained: as of `load_image_tower`.

    Raises:
        EncoderError: unknown name, no weights, or weights that do not fit.
    """
    if model.startswith(TIMM_PREFIX):
        raise EncoderError(f"{model} has no text tower: pass the folder of a merged CLIP")
    clip, config = load_clip(model, pretrained)
    return _of_open_clip(model, clip, config, _own_text_tower(clip, config, None), pretrained=pretrained)


def _of_open_clip(
    name: str,
    clip: Any,
    config: dict[str, Any],
    own: tuple[TextTower, TextTokenizer] | None,
    *,
    pretrained: str | None = None,
    record: dict[str, Any] | None = None,
) -> MergedClip:
    """A CLIP that open_clip has loaded; texts by our tower if there is one."""
    clip.eval().requires_grad_(False)
    if own is None:
        try:
            tokenizer = clip_tokenizer(name if ":" in name else name.replace("/", "-"), config)
            ids = tokenizer(["a caption"])  # some damage shows only here
        except Exception as error:  # a missing or damaged tokenizer file, of any kind
            shown = name.removeprefix(LOCAL_PREFIX)
            raise EncoderError(f"{shown}: its tokenizer does not load ({error})") from error
        try:
            with torch.inference_mode():
                clip.encode_text(ids)
        except IndexError:
            pass  # ids that the tower does not have, which `encode_texts` names
        except Exception as error:  # of a damaged configuration, such as no id of the end of a text
            shown = name.removeprefix(LOCAL_PREFIX)
            raise EncoderError(f"{shown}: its text tower does not compute ({error!r})") from error
    bias = getattr(clip, "logit_bias", None)
    return MergedClip(
        name=name.removeprefix(LOCAL_PREFIX),
        image_tower=tower_of_clip(clip, config, model=name, pretrained=pretrained),
        text_tower=own and own[0],
        tokenizer=own[1] if own else tokenizer,
        context_length=own[0].config.context_length if own else int(config["text_cfg"].get("context_length", 77)),
        logit_scale=float(clip.logit_scale.exp()),
        logit_bias=None if bias is None else float(bias),
        model_cfg=config,
        record=record or {},
        _by_open_clip=None if own else clip,
    )


def _own_text_tower(clip: Any, config: dict[str, Any], export: Path | None) -> tuple[TextTower, TextTokenizer] | None:
    """Our text tower and tokenizer with the weights of a CLIP that open_clip has loaded; None where we have none.

    Args:
        clip: its modules are shared, not copied.
        config: its `model_cfg`.
        export: folder of our own export, or of a CLIP of others with such a tokenizer; None for other CLIPs of others.
    """
    for kind in TEXT_TOWERS.values():
        if tower := kind.from_open_clip(clip, config, export):
            try:
                tokenizer = tower.tokenizer_type.load(export) if export else open_clip_tokenizer()
            except Exception as error:  # a missing or damaged tokenizer file, of any kind
                raise EncoderError(f"{export}: its tokenizer does not load ({error})") from error
            return tower.eval().requires_grad_(False), tokenizer
    return None


def _text_that_open_clip_lacks(
    model_cfg: dict[str, Any], folder: Path
) -> tuple[type[TextTower], TextTowerConfig] | None:
    """Kind and configuration of an exported text tower that open_clip cannot build; None if it can."""
    for tower in TEXT_TOWERS.values():
        text_config = tower.config_type.from_export(model_cfg, folder)
        if text_config and not text_config.loads_in_open_clip:
            return tower, text_config
    return None


def _load_with_own_text(
    folder: Path,
    kind: type[TextTower],
    text_config: TextTowerConfig,
    model_cfg: dict[str, Any],
    record: dict[str, Any],
) -> MergedClip:
    """The image tower as open_clip builds it, the text tower as clipglot does."""
    name = f"{LOCAL_PREFIX}{folder}"
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
        name=str(folder),
        image_tower=tower_of_clip(clip, model_cfg, model=name),
        text_tower=text,
        tokenizer=tokenizer,
        context_length=text_config.context_length,
        logit_scale=float(tensors["logit_scale"].exp()),
        logit_bias=float(tensors["logit_bias"]) if "logit_bias" in tensors else None,
        model_cfg=model_cfg,
        record=record,
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
