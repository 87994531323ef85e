"""Settings of `clipglot eval`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from ...cache.format import OWN_CAPTIONS
from ...cache.location import Location
from ...distill.settings import require, require_at_least_one

ALL = "all"
MOST_DIGITS = 9  # of a count


def is_count(part: str) -> bool:
    """Whether a text is a whole number of at least 1."""
    return part.isascii() and part.isdigit() and len(part) <= MOST_DIGITS and int(part) > 0


def shot_numbers(shots: str) -> tuple[int | None, ...]:
    """Numbers of training images a class, ascending; None for all images, at the end.

    Raises:
        DistillError: something else stands there.

    >>> shot_numbers("4, 1,all")
    (1, 4, None)
    """
    parts = {part.strip() for part in shots.split(",") if part.strip()}
    few = sorted(int(part) for part in parts - {ALL} if is_count(part))
    require(
        bool(parts) and len(few) == len(parts - {ALL}),
        f"--shots {shots}: expected numbers of at least 1, or {ALL}, with commas between them",
    )
    return (*few, None) if ALL in parts else tuple(few)


@dataclass(frozen=True, kw_only=True)
class RetrievalSettings:
    """`clipglot eval retrieval`: recall of a merged CLIP on a cache."""

    merged: Annotated[Path, "folder of a merged CLIP"]
    cache: Annotated[Location, "cache of images and captions, made by the same image tower"]
    captions: Annotated[
        tuple[str, ...],
        "captions to measure with: a set of the cache (`clipglot captions`), or source for those that it was made "
        "with; repeat for several (default: source)",
    ] = ()
    queries: Annotated[
        Path | None,
        "MUGE's queries instead of captions: JSON lines with query_id, query_text and item_ids, the keys of the images",
    ] = None
    submission: Annotated[Path | None, "file for MUGE's leaderboard: each of --queries with its ten best images"] = None
    against: Annotated[str | None, "another CLIP with the same image tower: a folder, ORG/NAME, or NAME:PRETRAINED"] = (
        None
    )
    translations: Annotated[
        bool, "the other CLIP reads the captions' translations (--teacher-field of `clipglot cache`)"
    ] = False

    def __post_init__(self) -> None:
        require(self.submission is None or self.queries is not None, "--submission needs --queries FILE")
        require(not self.translations or self.against is not None, "--translations needs --against FOLDER")
        require(not (self.captions and self.queries), "--captions and --queries exclude each other: pass one")
        require(
            not (self.translations and self.captions not in ((), (OWN_CAPTIONS,))),
            "--translations are of the captions that the cache was made with: drop --captions",
        )
        require(self.queries is None or self.against is None, "--queries and --against exclude each other: pass one")


@dataclass(frozen=True, kw_only=True)
class ZeroShotSettings:
    """`clipglot eval zeroshot`: classification by class names, without training images."""

    merged: Annotated[Path, "folder of a merged CLIP"]
    cache: Annotated[Location, "cache of class folders, or of images whose only caption is their class"]
    classes: Annotated[
        Path | None, "file of class names in your language; default: the names of the classes in the cache"
    ] = None
    classes_language: Annotated[
        str | None, "language to take from a JSON file of classes in several languages (Babel-ImageNet)"
    ] = None
    templates: Annotated[
        tuple[str, ...], "en, ru, zh, ko, a file, or a prompt with {} in it; repeat it (default: the name alone)"
    ] = ()
    labels: Annotated[Path | None, "table with the class of each image, if the captions are not classes"] = None
    label_field: Annotated[str, "column of --labels with the class"] = "label"
    key_field: Annotated[str, "column of --labels with the image's key in the cache"] = "image"
    distractors: Annotated[bool, "also offer classes that no image has"] = False
    against: Annotated[str | None, "another CLIP with the same image tower: a folder, ORG/NAME, or NAME:PRETRAINED"] = (
        None
    )
    against_classes: Annotated[Path | None, "class names for the other CLIP, e.g. English ones"] = None
    against_templates: Annotated[tuple[str, ...], "prompts for the other CLIP, as in --templates"] = ()
    interpolate: Annotated[
        str | None, "shares of the way from the text tower of --against (0) to this one (1), e.g. 0,0.25,0.5,0.75,1"
    ] = None

    def __post_init__(self) -> None:
        for name in ("against_classes", "against_templates", "interpolate"):
            flag = f"--{name.replace('_', '-')}"
            require(not getattr(self, name) or self.against is not None, f"{flag} needs --against FOLDER")
        require(not self.distractors or self.classes is not None, "--distractors is of --classes: pass both")
        _ = self.shares

    @property
    def shares(self) -> tuple[float, ...]:
        """Of `interpolate`."""
        try:
            shares = tuple(float(share) for share in (self.interpolate or "").split(",") if share.strip())
        except ValueError:
            shares = (-1.0,)
        require(
            all(0 <= share <= 1 for share in shares),
            f"--interpolate {self.interpolate}: expected numbers between 0 and 1 with commas between them",
        )
        return shares


@dataclass(frozen=True, kw_only=True)
class ProbeSettings:
    """`clipglot eval probe`: a linear classifier on cached embeddings."""

    cache: Annotated[Location, "cache of class folders, or of images whose only caption is their class"]
    test: Annotated[Location | None, "cache of test images; default: a part of CACHE is held out"] = None
    test_share: Annotated[float, "share of each class that is held out, without --test"] = 0.2
    labels: Annotated[Path | None, "table with the class of each image, if the captions are not classes"] = None
    label_field: Annotated[str, "column of --labels with the class"] = "label"
    key_field: Annotated[str, "column of --labels with the image's key in the cache"] = "image"
    shots: Annotated[str, "training images per class, separated by commas"] = "1,2,4,8,16,all"
    seeds: Annotated[int, "random draws of the training images for each number of shots"] = 3
    merged: Annotated[Path | None, "folder of a merged CLIP, to compare with its zero-shot accuracy"] = None
    classes: Annotated[Path | None, "file of class names for the merged CLIP"] = None
    templates: Annotated[tuple[str, ...], "prompts for the merged CLIP, as in `clipglot eval zeroshot`"] = ()
    device: Annotated[str, "device that fits the classifiers: cpu, cuda, …"] = "cpu"

    def __post_init__(self) -> None:
        require_at_least_one(self, "seeds")
        require(0 < self.test_share < 1, f"--test-share {self.test_share}: must lie between 0 and 1")
        require(
            self.merged is not None or not (self.classes or self.templates), "--classes and --templates need --merged"
        )
        _ = self.numbers

    @property
    def numbers(self) -> tuple[int | None, ...]:
        """Of `shots`."""
        return shot_numbers(self.shots)


@dataclass(frozen=True, kw_only=True)
class SpeedSettings:
    """`clipglot eval speed`: texts and images a second, latency, size."""

    merged: Annotated[Path, "folder of a merged CLIP, or of its export in ONNX"]
    cache: Annotated[Location | None, "cache whose captions are encoded; default: short prompts in four languages"] = (
        None
    )
    batch_sizes: Annotated[str, "inputs at a time, separated by commas"] = "1,8,64"
    device: Annotated[str | None, "cpu, cuda, … (default: the GPU if there is one)"] = None

    def __post_init__(self) -> None:
        _ = self.batches

    @property
    def batches(self) -> tuple[int, ...]:
        """Of `batch_sizes`, ascending."""
        parts = [part.strip() for part in self.batch_sizes.split(",")]
        require(
            all(is_count(part) for part in parts),
            f"--batch-sizes {self.batch_sizes}: expected numbers of at least 1, with commas between them",
        )
        return tuple(sorted({int(part) for part in parts}))
