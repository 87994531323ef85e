"""Why weights did not load: one short message with a remedy, whatever the libraries below raise.

Weights files are untrusted. open_clip, timm and torch refuse pickles that hold more than tensors, and advise to load
them all the same; that advice is never passed on.
"""

import pickle
import re
import textwrap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.error import URLError

from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors import SafetensorError

from ..errors import EncoderError
from .hub import HubUnreachableError

HOLDS_CODE = "it holds more than tensors and could run any code: save its tensors as safetensors where you trust it"
TORCHSCRIPT = (
    "it is a TorchScript archive, which holds code: pass a tag such as openai, or save its tensors as safetensors "
    "where you trust it"
)
DAMAGED = "the file is damaged, or holds no weights: fetch it again"


def not_loaded(model: str, weights: str | None, error: Exception) -> EncoderError:
    """An error that says which weights did not load and what to do; upstream's messages run over hundreds of keys."""
    text = str(error)
    reason = textwrap.shorten(text if " " in text else repr(error), 300, placeholder=" …")
    if unreachable := _unreachable(error):
        file = "--model local-dir:PATH" if ":" in model else "--pretrained FILE"
        reason = (
            f"its weights are not on this machine and cannot be fetched ({textwrap.shorten(unreachable, 300)}): "
            f"pass {file}, or try again with a network"
        )
    elif refusal := pickle_refusal(error):
        reason = refusal
    elif "hasRecord" in text or "inline_container" in text:  # a zip file, but not of torch
        reason = DAMAGED
    elif isinstance(error, SafetensorError | KeyError | EOFError):
        reason = f"the file is damaged, or holds no weights ({reason}): fetch it again"
    elif "loading state_dict" in reason or (weights and weights.endswith(".npz") and isinstance(error, AttributeError)):
        reason = f"these weights belong to another model ({reason}): pass the file that was saved from this one"
    return EncoderError(f"--model {model}{f' --pretrained {weights}' if weights else ''}: {reason}")


def pickle_refusal(error: BaseException) -> str | None:
    """Why a pickle was refused, in our words; None if the error is of another kind."""
    for link in _chain(error):
        text = str(link)
        if "TorchScript archives" in text:
            return TORCHSCRIPT
        if "allow_pickle" in text:  # numpy's arrays of objects
            return HOLDS_CODE
        if isinstance(link, pickle.UnpicklingError):
            # torch reads protocol 2; operands from 128 on are those of newer protocols, other ones no pickle at all.
            operand = re.search(r"Unsupported operand (\d+)", text)
            is_pickle = "unsupported" in text.lower() if operand is None else int(operand[1]) >= 128
            return HOLDS_CODE if is_pickle else DAMAGED
    return None


@contextmanager
def without_pickle_warnings() -> Iterator[None]:
    """Load weights inside the block without torch's warnings of pickles, which are refused anyway."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Detected pickle protocol")
        warnings.filterwarnings("ignore", message="'torch.load' received a zip file")
        yield


def _unreachable(error: BaseException) -> str | None:
    """Why the network gave nothing, if that is where the error comes from."""
    chain = _chain(error)
    for link in chain:
        if isinstance(link, HubUnreachableError):
            return str(link)
    return str(chain[-1]) if any(isinstance(link, LocalEntryNotFoundError | URLError) for link in chain) else None


def _chain(error: BaseException) -> list[BaseException]:
    """An error and those that it came from."""
    chain = [error]
    while before := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(before)
    return chain
