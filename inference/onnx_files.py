"""Files of an ONNX export, which a stranger may have made: what is read of them, and what is refused."""

import math
from collections.abc import Iterator, MutableSequence
from pathlib import Path, PurePosixPath
from typing import Any

from ..encoders.errors import EncoderError
from ..encoders.loading.untrusted_files import read_json, require_regular
from .onnx_layout import FORMAT_VERSION, INDEX

MAX_MODEL = 64 * 2**30
MAX_COUNT, MAX_SIDE = 2**24, 2**13
MAX_GRAPH = 2**31  # of a protobuf message
TEXT_INPUTS = (["text"], ["input_ids", "attention_mask"])
_AGAIN = "export the run again"


def read_index(folder: Path) -> dict[str, Any]:
    """What clipglot.json says of an export.

    Raises:
        EncoderError: no such file, a damaged one, or one of another version.
    """
    file = folder / INDEX
    index = read_json(file)
    if index.get("format_version") != FORMAT_VERSION:
        raise EncoderError(
            f"{file}: format_version {index.get('format_version')!r}, expected {FORMAT_VERSION}: {_AGAIN}, or use the "
            "clipglot that wrote it"
        )
    encoder = index.get("encoder")
    right = (
        all(
            _is_count(index.get(name)) for name in ("dim", "context_length", "pad_id", "end_id", "cleaning_normalizers")
        )
        and min(index["dim"], index["context_length"]) > 0
        and _is_finite(index.get("logit_scale"))
        and (index.get("logit_bias") is None or _is_finite(index["logit_bias"]))
        and index.get("text_inputs") in TEXT_INPUTS
        and isinstance(encoder, dict)
        and type(encoder.get("weights_sha256")) is str
        and type(encoder.get("quick_gelu")) is bool
        and isinstance(encoder.get("preprocess"), dict)
        and _is_size(encoder["preprocess"].get("size"))
    )
    if not right:
        raise EncoderError(f"{file}: a field is missing, or of another type: {_AGAIN}")
    return index


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < MAX_COUNT


def _is_finite(value: Any) -> bool:
    return type(value) is float and math.isfinite(value)


def _is_size(value: Any) -> bool:
    """Whether it is a side of images, or both."""
    sides = value if isinstance(value, list) else [value]
    return len(sides) in (1, 2) and all(type(side) is int and 0 < side <= MAX_SIDE for side in sides)


def require_safe_graph(file: Path) -> Path:
    """The file of a graph that reads no other files than those beside it, and runs onnxruntime's own operators alone.

    Raises:
        EncoderError: says what else it would do; or no such file, or no graph.
    """
    import onnx

    path = require_regular(file, MAX_GRAPH)
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # of protobuf, whose errors have no common base
        raise EncoderError(f"{file}: no ONNX model ({str(error).splitlines()[0]}): {_AGAIN}") from error
    for message in _messages(model):
        if isinstance(message, onnx.TensorProto) and message.external_data:
            _require_beside(file, {entry.key: entry.value for entry in message.external_data}.get("location", ""))
        if isinstance(message, onnx.NodeProto) and message.domain not in ("", "ai.onnx"):
            raise EncoderError(f"{file}: has an operator of {message.domain}, which is not ONNX's own: {_AGAIN}")
    return path


def _require_beside(file: Path, location: str) -> None:
    """Refuse external data that is no plain file in the folder of the model.

    Raises:
        EncoderError: as `require_safe_graph`.
    """
    name = PurePosixPath(location)
    if len(name.parts) != 1 or name.name != location or location == ".." or "\\" in location:
        raise EncoderError(f"{file}: takes weights from {location!r}, outside of its folder: {_AGAIN}")
    if require_regular(file.parent / location, MAX_MODEL).parent != file.parent.resolve():
        raise EncoderError(f"{file}: takes weights through {location!r}, a link out of its folder: {_AGAIN}")


def _messages(message: Any) -> Iterator[Any]:
    """A protobuf message and all inside it, at any depth."""
    waiting = [message]
    while waiting:
        current = waiting.pop()
        yield current
        for field, value in current.ListFields():
            if field.type == field.TYPE_MESSAGE:
                waiting += value if isinstance(value, MutableSequence) else [value]
