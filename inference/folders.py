"""Folders that hold no CLIP for clipglot: exports for other libraries, and several exports beside each other."""

from pathlib import Path

from .onnx_layout import is_onnx

_OPEN_CLIP = "open_clip_config.json"
_OTHERS = {"modules.json": "SentenceTransformer", "config.json": "AutoModel.from_pretrained"}


def other_export(folder: Path) -> str | None:
    """What a folder is, and what to load instead; None where it may be a CLIP in open_clip's format, or no export.

    Args:
        folder: any path.
    """
    if not folder.is_dir() or (folder / _OPEN_CLIP).is_file():
        return None
    inside = [each for each in sorted(folder.iterdir()) if (each / _OPEN_CLIP).is_file() or is_onnx(each)]
    if inside:
        return f"{folder} is no merged CLIP, but has one in it: load {' or '.join(map(str, inside))}"
    loader = next((loader for name, loader in _OTHERS.items() if (folder / name).is_file()), None)
    if loader is None:
        return None
    return (
        f'{folder} is a model for another library, {loader}("{folder}"): clipglot loads exports in open_clip\'s format '
        "and in ONNX"
    )
