"""ONNX: a folder with a graph of each tower, a tokenizer.json and the preprocessing, in the layout that Immich has.

`textual/model.onnx` takes a batch of captions of any length, `visual/model.onnx` a batch of normalized images; both
give raw features. `clipglot.json` says the rest.
"""

import json
from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ..cache.write.image_decode import ResizeCrop
from ..encoders.merged_clip import MergedClip
from ..encoders.tokenizer import FILES
from ..inference.onnx_layout import FEATURES, FORMAT_VERSION, INDEX, MODEL, PREPROCESS, TEXTUAL, VISUAL
from .errors import ExportError
from .formats import Written
from .onnx_quantize import LEAST_COSINE, Quantization, quantize
from .onnx_towers import image_graph, text_graph, write_graph
from .portable_tokenizer import portable_tokenizer
from .probes import Probes, unit

PACKAGES = ("onnx", "onnxruntime", "onnxscript")
CODE = """import numpy as np
import onnxruntime
from tokenizers import Tokenizer

tokenizer = Tokenizer.from_file("{folder}/textual/tokenizer.json")
session = onnxruntime.InferenceSession("{folder}/textual/model.onnx")
encoded = tokenizer.encode_batch(["a caption"])
columns = [[each.ids for each in encoded], [each.attention_mask for each in encoded]]
given = {each.name: np.array(column, np.int32) for each, column in zip(session.get_inputs(), columns)}
(features,) = session.run(None, given)  # [1, D], of any norm

import clipglot

clip = clipglot.load("{folder}")  # the same and images, without importing torch or open_clip
clip.encode_text(["a caption"])  # [1, D], unit norm"""


def write(folder: Path, clip: MergedClip, *, quantize: Quantization | None = None) -> Written:
    """Write both graphs, tokenizer and preprocessing into an empty folder, and run them with onnxruntime.

    Args:
        folder: exists and is empty.
        clip: on the CPU, with a text tower of ours.
        quantize: make the text model smaller, after the one in float32 has proved right.

    Raises:
        ExportError: a library is absent; a tower has no graph; or onnxruntime computes something else.
    """
    library = _require_packages()
    assert clip.text_tower is not None, "the caller has refused others"
    import onnx

    geometry = ResizeCrop.from_preprocess(clip.image_tower.preprocess)
    graphs = {
        TEXTUAL: text_graph(clip.text_tower.plain()),
        VISUAL: image_graph(clip.image_tower, geometry.height, geometry.width),
    }
    for name, graph in graphs.items():
        (folder / name).mkdir()
        write_graph(graph, folder / name / MODEL)
        onnx.checker.check_model(str(folder / name / MODEL))
    cleaning = _write_files(folder, clip)
    probes = Probes(clip)
    text, image = _text_features(folder, probes), _image_features(folder, probes)
    differences = probes.require_close(library, text, image)
    table = graphs[TEXTUAL].table
    assert table is not None, "of text towers"
    reduced = [] if quantize is None else [_reduce(folder, probes, quantize, table.detach().numpy())]
    _write_json(folder / INDEX, _index(clip, list(graphs[TEXTUAL].inputs), cleaning, quantize))
    return Written(
        loaded_by=library,
        code=CODE,
        text_difference=differences[0],
        image_difference=differences[1],
        notes=[*_notes(list(graphs[TEXTUAL].inputs), geometry), *reduced],
        tags=["onnx"],
    )


def _require_packages() -> str:
    """Name and version of the library that runs the graphs.

    Raises:
        ExportError: one of the libraries is absent.
    """
    try:
        for name in PACKAGES:
            import_module(name)
        found = {name: version(name) for name in PACKAGES}
    except (ImportError, PackageNotFoundError) as error:
        raise ExportError(
            f"--format onnx needs {error.name}, which is not installed: pip install onnx onnxruntime onnxscript"
        ) from error
    return f"onnxruntime {found['onnxruntime']}"


def _write_files(folder: Path, clip: MergedClip) -> int:
    """Write tokenizer, preprocessing and configuration; returns how many normalizers clean."""
    clip.tokenizer.save(folder / TEXTUAL)
    content, cleaning = portable_tokenizer(clip.tokenizer, clip.context_length)
    (folder / TEXTUAL / FILES[0]).write_text(content, encoding="utf-8")
    _write_json(folder / VISUAL / PREPROCESS, clip.image_tower.preprocess)
    _write_json(folder / "config.json", clip.model_cfg)
    return cleaning


def _index(clip: MergedClip, inputs: list[str], cleaning: int, quantize: Quantization | None) -> dict[str, Any]:
    """What clipglot.json holds."""
    tower, tokenizer = clip.image_tower, clip.tokenizer
    return {
        "format_version": FORMAT_VERSION,
        "dim": clip.dim,
        "context_length": clip.context_length,
        "pad_id": tokenizer.pad_id or 0,
        "end_id": tokenizer.encode([""], clip.context_length)[0][-1],
        "logit_scale": clip.logit_scale,
        "logit_bias": clip.logit_bias,
        "text_inputs": inputs,
        "cleaning_normalizers": cleaning,
        "quantize": quantize,
        "encoder": {
            "weights_sha256": tower.weights_sha256,
            "preprocess": tower.preprocess,
            "quick_gelu": tower.quick_gelu,
        },
        "record": clip.record,
    }


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _session(file: Path) -> Any:
    import onnxruntime

    return onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])


def _text_features(folder: Path, probes: Probes) -> NDArray[np.float32]:
    """Raw features of the captions, by the exported tokenizer.json alone."""
    encodings = Tokenizer.from_file(str(folder / TEXTUAL / FILES[0])).encode_batch(probes.captions)
    ids, mask = (np.array([getattr(each, part) for each in encodings], np.int32) for part in ("ids", "attention_mask"))
    session = _session(folder / TEXTUAL / MODEL)
    given = dict(zip([each.name for each in session.get_inputs()], (ids, mask), strict=False))
    features: NDArray[np.float32] = session.run([FEATURES], given)[0]
    return features


def _image_features(folder: Path, probes: Probes) -> NDArray[np.float32]:
    """Raw features of the images, by the exported preprocessing."""
    preprocess = json.loads((folder / VISUAL / PREPROCESS).read_text(encoding="utf-8"))
    mean, std = (np.array(preprocess[name], np.float32) for name in ("mean", "std"))
    normalized = (probes.pixels(preprocess).astype(np.float32) / np.float32(255) - mean) / std
    given = {"image": np.ascontiguousarray(normalized.transpose(0, 3, 1, 2))}
    features: NDArray[np.float32] = _session(folder / VISUAL / MODEL).run([FEATURES], given)[0]
    return features


def _reduce(folder: Path, probes: Probes, how: Quantization, table: NDArray[np.float32]) -> str:
    """Put a smaller text model in the place of the one in float32; returns what that costs.

    Raises:
        ExportError: it costs too much.
    """
    file, smaller = folder / TEXTUAL / MODEL, folder / TEXTUAL / f"{MODEL}.smaller"
    size = sum(each.stat().st_size for each in file.parent.glob(f"{MODEL}*"))
    quantize(file, smaller, how, table)
    for each in file.parent.glob(f"{MODEL}*"):
        if each != smaller:
            each.unlink()
    smaller.rename(file)
    worst = float((unit(_text_features(folder, probes)) * probes.text_emb).sum(1).min())
    if not worst >= LEAST_COSINE:
        raise ExportError(
            f"--quantize {how}: a caption's features have cosine {worst:.4f} with those of the float32 model, expected "
            f"at least {LEAST_COSINE}: pass --quantize int8-embeddings, or none"
        )
    share = file.stat().st_size / size
    return (
        f"The text model is quantized ({how}) to {share:.2f} of its size: the smallest cosine of a caption's features "
        f"with those of the float32 model is {worst:.4f}; the difference of text features above is of the latter."
    )


def _notes(inputs: list[str], geometry: ResizeCrop) -> list[str]:
    names = " and ".join(f"`{name}`" for name in inputs)
    return [
        f"`{TEXTUAL}/{MODEL}` takes {names} (int32, `[batch, tokens]`), `{VISUAL}/{MODEL}` takes `image` (float32, "
        f"`[batch, 3, {geometry.height}, {geometry.width}]`, normalized by `{PREPROCESS}`); both give `{FEATURES}`, "
        "which are not of unit norm.",
        f"`{TEXTUAL}/{FILES[0]}` cuts, pads and cleans by itself: common HTML entities, full width, quotes, control "
        "characters, whitespace and NFC. ftfy's repair of wrongly decoded text and rarer HTML entities are not in it; "
        "`OnnxClip` cleans as open_clip does.",
    ]
