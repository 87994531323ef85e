"""Smaller ONNX text models: the table of token embeddings in int8, or the whole tower."""

import logging
import warnings
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .errors import ExportError

Quantization = Literal["int8-embeddings", "int8"]
LEAST_COSINE = 0.95
"""Smallest cosine of a caption's features with those of the float32 model that a smaller model may give."""


def quantize(source: Path, target: Path, how: Quantization, table: NDArray[np.float32]) -> None:
    """Write a smaller model.

    Args:
        source: the text model in float32.
        target: the new file.
        how: `int8-embeddings`: the table of token embeddings in int8, with a scale for each row; a token's embedding
            is multiplied out when it is looked up. `int8`: all matrices, with activations in int8, too.
        table: of token embeddings, `[V, W]`.

    Raises:
        ExportError: the model has no such table.
    """
    if how == "int8-embeddings":
        _quantize_table(source, target, table)
    else:
        _quantize_all(source, target)


def _quantize_all(source: Path, target: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it logs to the root that the model was not prepared, which it is
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            quantize_dynamic(str(source), str(target), weight_type=QuantType.QInt8)
    finally:
        root.setLevel(level)


def _quantize_table(source: Path, target: Path, table: NDArray[np.float32]) -> None:
    import onnx
    from onnx import numpy_helper

    model = onnx.load(source)
    graph = model.graph
    found = next((each for each in graph.initializer if _holds(each, table)), None)
    gathers = [node for node in graph.node if found is not None and node.input[:1] == [found.name]]
    if found is None or not gathers or any(node.op_type != "Gather" for node in gathers):
        raise ExportError("--quantize int8-embeddings: the model looks up no table of token embeddings: drop it")
    scale = np.maximum(np.abs(table).max(1, keepdims=True) / 127, np.finfo(np.float32).tiny)
    rows, scales = f"{found.name}.int8", f"{found.name}.scale"
    graph.initializer.remove(found)
    graph.initializer.extend(
        [
            numpy_helper.from_array(np.rint(table / scale).astype(np.int8), rows),
            numpy_helper.from_array(scale.astype(np.float32), scales),
        ]
    )
    for node in gathers:
        at = list(graph.node).index(node)
        ids, output = node.input[1], node.output[0]
        graph.node.remove(node)
        for offset, new in enumerate(_lookup(onnx.helper, onnx.TensorProto.FLOAT, rows, scales, ids, output)):
            graph.node.insert(at + offset, new)
    onnx.save(model, target)


def _lookup(helper: Any, float_type: int, rows: str, scales: str, ids: str, output: str) -> list[Any]:
    """Nodes that give rows of the table, multiplied out."""
    whole, real, scale = (f"{output}.{part}" for part in ("int8", "float", "scale"))
    return [
        helper.make_node("Gather", [rows, ids], [whole]),
        helper.make_node("Cast", [whole], [real], to=float_type),
        helper.make_node("Gather", [scales, ids], [scale]),
        helper.make_node("Mul", [real, scale], [output]),
    ]


def _holds(tensor: Any, table: NDArray[np.float32]) -> bool:
    """Whether an initializer is the table."""
    from onnx import numpy_helper

    return tuple(tensor.dims) == table.shape and np.array_equal(numpy_helper.to_array(tensor), table)
