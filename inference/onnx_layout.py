"""Files of an export in ONNX, by name: written by `exports/onnx_format.py`, read by `inference/onnx_clip.py`."""

from pathlib import Path

FORMAT_VERSION = 1
INDEX, MODEL, TEXTUAL, VISUAL, PREPROCESS = "clipglot.json", "model.onnx", "textual", "visual", "preprocess_cfg.json"
FEATURES = "features"  # output of both graphs; not `embedding`: values of that name are in the graphs themselves


def is_onnx(folder: Path) -> bool:
    """Whether `clipglot export --format onnx` wrote a folder."""
    return (folder / INDEX).is_file() and (folder / TEXTUAL / MODEL).is_file()
