"""Why weights did not load: one short message with a remedy, for whatever the libraries below raise."""

import pickle
import textwrap
from urllib.error import URLError

from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors import SafetensorError

from .errors import EncoderError


def not_loaded(model: str, weights: str | None, error: Exception) -> EncoderError:
    """Say which weights did not load and what to do; upstream's messages run over hundreds of keys."""
    if isinstance(error.__cause__, pickle.UnpicklingError):  # timm names pickled code as the reason, whatever it was
        error = error.__cause__
    text = str(error)
    reason = textwrap.shorten(text if " " in text else repr(error), 300, placeholder=" …")
    if unreachable := _unreachable(error):
        file = "--model local-dir:PATH" if ":" in model else "--pretrained FILE"
        reason = (
            f"its weights are not on this machine and cannot be fetched ({textwrap.shorten(unreachable, 300)}): "
            f"pass {file}, or try again with a network"
        )
    elif isinstance(error, pickle.UnpicklingError) and "unsupported global" in text.lower():
        reason = "it holds more than tensors and could run any code: save its tensors as safetensors where you trust it"
    elif isinstance(
        error, SafetensorError | pickle.UnpicklingError | KeyError | EOFError
    ):  # torch.load raises KeyErrors
        reason = f"the file is damaged, or holds no weights ({reason}): fetch it again"
    elif "loading state_dict" in reason:
        reason = f"these weights belong to another model ({reason}): pass the file that was saved from this one"
    return EncoderError(f"--model {model}{f' --pretrained {weights}' if weights else ''}: {reason}")


def _unreachable(error: BaseException) -> str | None:
    """Why the network gave nothing, if that is where the error comes from."""
    chain = [error]
    while before := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(before)
    return str(chain[-1]) if any(isinstance(link, LocalEntryNotFoundError | URLError) for link in chain) else None
