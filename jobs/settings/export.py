"""Settings of `clipglot export`."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from ...distill.settings import require

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
        "shrink the text model of --format onnx: its token embeddings, or all of it, at a higher loss of accuracy",
    ] = None
    step: Annotated[
        Literal["best", "last"] | None,
        "weights of the best validation, or of the last step (default: best, if the run had a --val)",
    ] = None
    interpolate: Annotated[
        float | None,
        "for a run with --text clip: share of the way from its initial weights (0) to the trained ones (1)",
    ] = None
    model: Annotated[str | None, "where the image tower is now, if it moved since caching"] = None
    pretrained: Annotated[str | None, "where its weights are now, if they moved since caching"] = None
    license: Annotated[
        str | None, "license of the towers, for the model card, as hubs write it: mit, apache-2.0, …"
    ] = None
    language: Annotated[
        tuple[str, ...],
        "language of the captions, for the model card: ru, zh, …; repeat it (default: the language tags of the cache)",
    ] = ()
    dataset: Annotated[tuple[str, ...], "hub dataset of the captions, for the model card: ORG/NAME; repeat it"] = ()
    push: Annotated[
        str | None,
        "hub repository ORG/NAME to upload the export to, with the token of `hf auth login` or HF_TOKEN; other files "
        "of that repository are deleted",
    ] = None
    private: Annotated[bool, "make that repository private"] = False

    def __post_init__(self) -> None:
        require(
            self.interpolate is None or 0 <= self.interpolate <= 1,
            f"--interpolate {self.interpolate}: must lie between 0 and 1",
        )
        if self.push is None:
            require(not self.private, "--private is of --push: pass both")
            return
        require(
            bool(re.fullmatch(r"[\w.-]+/[\w.-]+", self.push)), f"--push {self.push}: expected a repository, ORG/NAME"
        )
        require(
            self.license is not None,
            "--push needs --license: a model card says what others may do with it; take the license of both towers",
        )
