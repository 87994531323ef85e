"""Loading of CLIPs by open_clip: by name and weights, or from a folder, and nothing but what was asked for."""

import hashlib
from collections.abc import Mapping
from contextlib import nullcontext
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.pretrained import get_pretrained_cfg
from torch import Tensor

from ..errors import EncoderError
from .hub import hub_access
from .model_names import LOCAL_PREFIX
from .untrusted import clip_config, clip_text_arguments
from .weights_errors import not_loaded, without_pickle_warnings

TIMM_PREFIX = "timm/"


def weights_file(model: str, pretrained: str | None) -> Path | None:
    """The file that `pretrained` names; None for a tag, which wins over a file of that name as in open_clip."""
    if pretrained is None:
        return None
    if not model.startswith(TIMM_PREFIX) and get_pretrained_cfg(model.replace("/", "-"), pretrained):
        return None
    return file if (file := Path(pretrained)).is_file() else None


def load_clip(model: str, pretrained: str | None) -> tuple[Any, dict[str, Any]]:
    """A whole open_clip model with its weights, on the CPU in float32, and its config.

    A language model's config is read from the model's own folder if it is there, not from the hub.

    Raises:
        EncoderError: unknown name, no weights, or weights that do not fit.
    """
    has_schema = ":" in model
    if not has_schema:
        model = model.replace("/", "-")  # as create_model does: OpenAI's names have slashes, ViT-B/32
    if has_schema and pretrained:
        raise EncoderError(f"--model {model} brings its own weights: drop --pretrained {pretrained}")
    try:
        config = clip_config(model)
    except EncoderError as error:
        raise EncoderError(f"--model {model}: {error}") from error
    except Exception as error:  # a hub error, a missing file, broken JSON: open_clip wraps none of them
        raise EncoderError(
            f"--model {model}: cannot read its open_clip_config.json ({error}): "
            "pass the folder or repository of an open_clip model"
        ) from error
    if config is None:
        names = get_close_matches(model, open_clip.list_models(), 1)
        near = f" (did you mean {names[0]}?)" if names else ""
        raise EncoderError(
            f"--model {model}: not an open_clip model{near}; see open_clip.list_models(), or use timm/NAME, "
            "local-dir:PATH"
        )
    if not has_schema and not pretrained:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(model)) or "none"
        raise EncoderError(f"--model {model} needs weights: pass --pretrained FILE or a tag ({tags})")
    if pretrained and not get_pretrained_cfg(model, pretrained) and not Path(pretrained).is_file():
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(model)) or "none"
        raise EncoderError(f"--pretrained {pretrained}: no such file, and no tag of {model}; its tags are: {tags}")
    # open_clip only warns when a tag was trained with the other activation; the features would be wrong.
    tag = get_pretrained_cfg(model, pretrained) if pretrained and not has_schema else {}
    if tag and tag.get("quick_gelu", False):
        config["quick_gelu"] = True
    try:
        is_local = model.startswith(LOCAL_PREFIX) or weights_file(model, pretrained)
        access = nullcontext() if is_local else hub_access()
        with access, without_pickle_warnings(), clip_text_arguments(model, config) as text_arguments:
            clip = open_clip.create_model(
                model,
                pretrained=pretrained,
                force_quick_gelu=bool(config.get("quick_gelu", False)),
                pretrained_text=False,
                require_pretrained=True,
                **text_arguments,
            )
    except EncoderError as error:
        raise EncoderError(f"--model {model}: {error}") from error
    except Exception as error:  # wrong keys, damaged file, download failed: one message says which
        raise not_loaded(model, pretrained, error) from error
    config["vision_cfg"].pop("output_tokens", None)  # CoCa's second output, which a CLIP does not take
    return clip, config


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes, in the order of the names.

    >>> hash_tensors({"a": torch.zeros(2)})[:8] == hash_tensors({"a": torch.zeros(1, 2)})[:8]
    False
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
