"""Reading a pretrained language model from a folder or a hub: all of it, or a refusal that says what is wrong."""

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from transformers import AutoModel

from ..errors import EncoderError
from .untrusted import LM_CONFIG, safe_lm, to_config
from .untrusted_files import read_json

# What the families' configs call their dropout.
DROPOUTS = ["hidden_dropout_prob", "attention_probs_dropout_prob", "dropout_rate", "dropout", "attention_dropout"]
DROPOUTS += ["activation_dropout", "embedding_dropout", "mlp_dropout", "embd_pdrop", "attn_pdrop", "resid_pdrop"]
# The chance to leave a whole layer out: processes would wait for its gradients, which do not come.
LAYER_DROPS = ["encoder_layerdrop", "layerdrop"]
# Ends of the names of tensors without which quantized weights mean something else; not the logit_scale of a CLIP.
_SCALES = re.compile(r"(weight|input|activation|proj|blocks)_scales?(_inv)?$|\.(SCB|absmax|scales|qzeros)$")


def read_pretrained(name: str, dropout: float | None) -> Any:
    """The pretrained model of a folder or a hub repository, without its pooling layer; an encoder-decoder's encoder.

    Args:
        name: folder or repository, with safetensors: nothing is unpickled, and none of its code is run.
        dropout: as of `set_dropout`.

    Raises:
        EncoderError: no model there, or one that lacks weights.
    """
    try:
        with quiet_transformers(), safe_lm(name) as folder:
            config = to_config(read_json(folder / LM_CONFIG), name)
            set_dropout(config, dropout)
            model, missing = _read(str(folder), config)
    except Exception as error:  # missing file, unknown family, hub error, damaged weights: each with its own type
        raise EncoderError(
            f"--text {name}: no language model that transformers loads from safetensors ({first_line(error)}): pass "
            "the folder of one (config.json, model.safetensors, tokenizer.json), a hub repository, or scratch"
        ) from error
    if missing:
        raise EncoderError(
            f"--text {name}: its weights lack {len(missing)} tensors of its config.json, such as {missing[0]}: they "
            "belong to another model: download both again"
        )
    return model


def plain_values(config: Any) -> dict[str, Any]:
    """A config of transformers as `LMConfig.model` has it."""
    values = {k: v for k, v in config.to_diff_dict().items() if not k.startswith("_")}
    return values | {"model_type": config.model_type}


def set_dropout(config: Any, dropout: float | None) -> None:
    """Make a config's dropout what a run asks for; None leaves it. Layers are never left out whole."""
    changes = dict.fromkeys(LAYER_DROPS, 0.0) | ({} if dropout is None else dict.fromkeys(DROPOUTS, dropout))
    for key, value in changes.items():
        if hasattr(config, key):
            setattr(config, key, value)


def config_has_dropout(config: Any) -> bool:
    """Whether a model of this config gives something else each time it is trained on the same caption."""
    return any((getattr(config, key, 0) or 0) > 0 for key in DROPOUTS)


def _read(name: str, config: Any) -> tuple[Any, list[str]]:
    """The model of a config with its weights, and the names of its parameters that were not among them."""

    def read(**without: bool) -> tuple[Any, Any]:
        pretrained: tuple[Any, Any] = AutoModel.from_pretrained(
            name,
            config=config,
            use_safetensors=True,
            dtype=torch.float32,
            trust_remote_code=False,
            output_loading_info=True,
            **without,
        )
        return pretrained

    whole, info = read() if config.is_encoder_decoder else without_pooler(read)
    if scales := sorted(filter(_SCALES.search, info["unexpected_keys"])):
        raise EncoderError(f"{scales[0]} scales weights that are quantized: pass the model that is not quantized")
    model = whole.get_encoder() if config.is_encoder_decoder else whole
    used = {id(p) for p in model.parameters()}
    parameters = dict(whole.named_parameters(remove_duplicate=False))
    return model, sorted(n for n in info["missing_keys"] if n in parameters and id(parameters[n]) in used)


def without_pooler(build: Callable[..., Any]) -> Any:
    """A model that `build` makes, without a layer after the last hidden state where the family has one."""
    try:
        return build(add_pooling_layer=False)
    except TypeError:  # a family that has none
        return build()


def first_line(error: BaseException) -> str:
    """First line of an error's message."""
    return (str(error).strip() or "no reason given").splitlines()[0]


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers from listing the weights that a tower has no use for, and from drawing bars of its own."""
    logger, progress = transformers.utils.logging, transformers.utils.logging.is_progress_bar_enabled()
    level = logger.get_verbosity()
    logger.set_verbosity(logging.ERROR)
    logger.disable_progress_bar()
    try:
        yield
    finally:
        logger.set_verbosity(level)
        if progress:
            logger.enable_progress_bar()
