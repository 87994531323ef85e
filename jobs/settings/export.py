"""Settings of `clipglot export`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

ExportFormat = Literal["open_clip", "transformers", "sentence-transformers", "onnx"]


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """`clipglot export`: merge the frozen image tower and the trained text tower into one CLIP."""

    run: Annotated[Path, "folder of a finished run, or of a merged CLIP"]
    output: Annotated[Path, "folder of the merged CLIP; must not exist; several formats get a folder each in it"]
    format: Annotated[
        tuple[ExportFormat, ...], "open_clip, transformers, sentence-transformers or onnx; repeat it for several"
    ] = ("open_clip",)
    quantize: Annotated[
        Literal["int8-embeddings", "int8"] | None,
        "make the text model of --format onnx smaller: its token embeddings, or all of it, which costs more",
    ] = None
    step: Annotated[
        Literal["best", "last"] | None,
        "weights of the best validation, or those after the last step (default: best, where the run had a --val)",
    ] = None
    model: Annotated[str | None, "where the image tower is now, if it moved since caching"] = None
    pretrained: Annotated[str | None, "where its weights are now, if they moved since caching"] = None
