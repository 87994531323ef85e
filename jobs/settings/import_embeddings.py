"""Settings of `clipglot import`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from ...cache.format import SourceInfo
from ...cache.location import is_hdf5
from ...distill.settings import require
from .image_tower_name import require_tower_folder


@dataclass(frozen=True, kw_only=True)
class ImportSettings:
    """`clipglot import`: make a cache from embeddings computed elsewhere."""

    source: Annotated[Path, "output folder of clip-retrieval, or an .npy or .h5 file of embeddings"]
    output: Annotated[Path, "cache to write, e.g. train.zarr"]
    model: Annotated[str, "image tower that made them: an open_clip model, local-dir:PATH, hf-hub:ORG/NAME, timm/NAME"]
    pretrained: Annotated[str | None, "pretrained weights: a tag of that model, or a file"] = None
    captions: Annotated[
        Path | None, "captions of the rows of an .npy or .h5 file, in order: .jsonl, .csv, .tsv or .parquet"
    ] = None
    dataset: Annotated[str | None, "name of the embeddings in an .h5 file"] = None
    image_root: Annotated[Path | None, "folder of the images: a few are embedded again as a check"] = None
    image_field: Annotated[
        str | None, "column with the image's path (default: image; image_path in a folder of clip-retrieval)"
    ] = None
    text_field: Annotated[
        tuple[str, ...],
        "column with the caption or captions; repeat for several (default: text; for clip-retrieval caption)",
    ] = ()
    keys: Annotated[
        bool, "the captions have a column with image names; with --no-keys, rows are named by their numbers"
    ] = True
    precision: Annotated[
        Literal["fp32", "bf16", "fp16"], "precision they were computed in, which later checks allow for"
    ] = "bf16"

    def __post_init__(self) -> None:
        require_tower_folder(self.model)
        require(
            not is_hdf5(self.output),
            f"-o {self.output}: import into a Zarr folder, then convert that with `clipglot convert`",
        )
        require(self.keys or self.image_root is None, "--image-root needs the names of the images: leave out --no-keys")

    @property
    def source_info(self) -> SourceInfo:
        """Description of the source; the kind of source fills in what is not given."""
        return SourceInfo(
            path=str(self.source.absolute()),
            sha256="",
            image_root=str(self.image_root.absolute()) if self.image_root else "",
            image_field=self.image_field or "",
            text_fields=list(self.text_field),
        )
