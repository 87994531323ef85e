"""Reading a pretrained language model from a folder or a hub: all of it, or a refusal that says what is wrong."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModel

from .errors import EncoderError
from .text_lm import Head, LMConfig, LMTower, without_pooler
from .text_lm_forward import AFTER_PAD, Pooler
from .tokenizer_lm import LMTokenizer

# What the families' configs call their dropout.
DROPOUTS = ["hidden_dropout_prob", "attention_probs_dropout_prob", "dropout_rate", "dropout", "attention_dropout"]
DROPOUTS += ["activation_dropout", "embedding_dropout", "mlp_dropout", "embd_pdrop", "attn_pdrop", "resid_pdrop"]
# The chance to leave a whole layer out: processes would wait for its gradients, which do not come.
LAYER_DROPS = ["encoder_layerdrop", "layerdrop"]


def load_lm(
    name: str,
    embed_dim: int,
    *,
    pooler: Pooler = "mean",
    head: Head = "linear",
    context_length: int = 77,
    dropout: float | None = None,
) -> LMTower:
    """A tower around the pretrained model of a folder or a hub repository, with a new head.

    Args:
        name: folder or repository, with safetensors: nothing is unpickled, and no code of its own is run.
        embed_dim: D.
        pooler: as of `LMConfig`.
        head: as of `LMConfig`.
        context_length: most tokens of a caption.
        dropout: of the model; None leaves that as its config has it.

    Raises:
        EncoderError: no model there, one that lacks weights or takes fewer tokens, or one that does not embed text.
    """
    try:
        with _quiet():
            config = AutoConfig.from_pretrained(name, trust_remote_code=False)
            set_dropout(config, dropout)
            model, missing = _read(name, config)
    except Exception as error:  # missing file, unknown family, hub error, damaged weights: each with its own type
        raise EncoderError(
            f"--text {name}: no language model that transformers loads from safetensors ({_first_line(error)}): pass "
            "the folder of one (config.json, model.safetensors, tokenizer.json), a hub repository, or scratch"
        ) from error
    if missing:
        raise EncoderError(
            f"--text {name}: its weights lack {len(missing)} tensors of its config.json, such as {missing[0]}: they "
            "belong to another model: download both again"
        )
    require_context(model.config, context_length, name)
    known_as = Path(name).name if Path(name).is_dir() else name  # where a folder lies is nobody else's business
    shape: dict[str, Any] = {"name": known_as, "model": plain_values(model.config), "pooler": pooler, "head": head}
    try:
        tower = LMTower(LMConfig(embed_dim=embed_dim, context_length=context_length, **shape), model)
        _embed_longest(tower)
    except Exception as error:  # a model of images or sound, or one that shares its blocks: what fails differs
        raise EncoderError(
            f"--text {name}: a model of type {model.config.model_type} that does not embed {context_length} tokens "
            f"({type(error).__name__}: {_first_line(error)}): pass a language model whose "
            "layers have weights of their own"
        ) from error
    return tower


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


def has_dropout(config: Any) -> bool:
    """Whether a model of this config gives something else each time it is trained on the same caption."""
    return any((getattr(config, key, 0) or 0) > 0 for key in DROPOUTS)


def require_context(config: Any, context_length: int, name: str) -> None:
    """Refuse captions of more tokens than a model has positions for.

    Raises:
        EncoderError: it takes fewer.
    """
    longest = getattr(config, "max_position_embeddings", None) or 0  # -1 in families without a limit
    if config.model_type in AFTER_PAD:
        longest -= (config.pad_token_id or 0) + 1
    if 0 < longest < context_length:
        raise EncoderError(f"--context-length {context_length}: {name} takes at most {longest} tokens")


def require_tokenizer_fits(tower: LMTower, tokenizer: LMTokenizer, name: str) -> None:
    """Refuse a tokenizer that gives ids without a row, or pads as open_clip will not see.

    Raises:
        EncoderError: says which, and what to change.
    """
    if tokenizer.vocab_size > tower.num_rows:
        raise EncoderError(
            f"--text {name}: its tokenizer knows {tokenizer.vocab_size:,} tokens, its word embeddings have "
            f"{tower.num_rows:,} rows: pass a model whose embeddings were resized to its tokenizer"
        )
    if tower.config.loads_in_open_clip and tokenizer.pad_id != tower.transformer.config.pad_token_id:
        raise EncoderError(
            f"--text {name}: its tokenizer pads with {tokenizer.pad_id}, its config.json has pad_token_id "
            f"{tower.transformer.config.pad_token_id}, so open_clip would not see padding: make the files agree"
        )


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
    model = whole.get_encoder() if config.is_encoder_decoder else whole
    used = {id(p) for p in model.parameters()}
    parameters = dict(whole.named_parameters(remove_duplicate=False))
    return model, sorted(n for n in info["missing_keys"] if n in parameters and id(parameters[n]) in used)


def _embed_longest(tower: LMTower) -> None:
    """Embed the longest caption that there can be, or raise whatever comes of it."""
    tower.depths()
    other_than_pad = (tower.transformer.config.pad_token_id or 0) + 1
    with torch.inference_mode():
        tower.eval().encode([[other_than_pad % tower.num_rows] * tower.config.context_length])
    tower.train()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or "no reason given").splitlines()[0]


@contextmanager
def _quiet() -> Iterator[None]:
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
