"""Settings of `clipglot report`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from ...cache.location import Location
from ...distill.settings import require, require_at_least_one
from .evaluate import ALL, is_count


@dataclass(frozen=True, kw_only=True)
class ReportSettings:
    """`clipglot report`: one HTML file of runs and merged CLIPs."""

    runs: Annotated[tuple[Path, ...], "folders of runs and of merged CLIPs"]
    output: Annotated[Path, "HTML file to write"]
    cache: Annotated[
        tuple[Location, ...],
        "cache to measure on, with captions or classes; repeat it (default: the --val caches of the runs)",
    ] = ()
    against: Annotated[str | None, "another CLIP with the same image tower: a folder, ORG/NAME, or NAME:PRETRAINED"] = (
        None
    )
    translations: Annotated[
        bool, "the other CLIP reads the captions' translations (--teacher-field of `clipglot cache`)"
    ] = False
    classes: Annotated[
        Path | None, "file of class names in your language; default: the names of the classes in the cache"
    ] = None
    classes_language: Annotated[
        str | None, "language to take from a JSON file of classes in several languages (Babel-ImageNet)"
    ] = None
    templates: Annotated[
        tuple[str, ...], "en, ru, zh, ko, a file, or a prompt with {} in it; repeat it (default: the name alone)"
    ] = ()
    distractors: Annotated[bool, "also offer classes that no image has"] = False
    against_classes: Annotated[Path | None, "class names for the other CLIP, e.g. English ones"] = None
    against_templates: Annotated[tuple[str, ...], "prompts for the other CLIP, as in --templates"] = ()
    labels: Annotated[Path | None, "table with the class of each image, if the captions are not classes"] = None
    label_field: Annotated[str, "column of --labels with the class"] = "label"
    key_field: Annotated[str, "column of --labels with the image's key in the cache"] = "image"
    shots: Annotated[
        str | None,
        "training images per class of linear probes on caches of classes, e.g. 1,2,4,8,16,all (default: none)",
    ] = None
    seeds: Annotated[int, "random draws of the training images for each number of shots"] = 3
    speed: Annotated[bool, "measure the speed of merged CLIPs, some twenty seconds each"] = False
    image_root: Annotated[
        str | None, "folder or URL where the images are now, for thumbnails (default: where the caches read them)"
    ] = None
    thumbnails: Annotated[int, "images to show at most; 0 for none"] = 60

    def __post_init__(self) -> None:
        require(len(self.runs) > 0, "pass the folder of a run or of a merged CLIP")
        require(self.thumbnails >= 0, f"--thumbnails {self.thumbnails}: must be 0 or more")
        require_at_least_one(self, "seeds")
        for name in ("against_classes", "against_templates", "translations"):
            flag = f"--{name.replace('_', '-')}"
            require(not getattr(self, name) or self.against is not None, f"{flag} needs --against FOLDER")
        parts = [part.strip() for part in (self.shots or ALL).split(",")]
        require(
            all(part == ALL or (is_count(part)) for part in parts),
            f"--shots {self.shots}: expected numbers of at least 1, or {ALL}, with commas between them",
        )
