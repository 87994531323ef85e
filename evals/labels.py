"""Classes of the images of a cache: from class folders, a column, or a table of labels.

N images.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..cache.format import Status
from ..cache.read.cache import Cache
from ..cache.sources.image_folder import ImageFolderSource
from .captions import embeddings
from .errors import EvalError
from .prompts import ClassNames

IMAGENET = 1000  # classes
_SYNSET = re.compile("n[0-9]{8}")


@dataclass(frozen=True, kw_only=True)
class LabelledImages:
    """Embedded images of a cache that have a class.

    Attributes:
        labels: C labels, sorted; those of class folders by the folders' names.
        names: names of each class, at least one.
        rows: `[N]`, rows of the images in the cache, ascending.
        classes: `[N]`, index in `labels` of each image's class.
        num_unlabelled: embedded images without a class, which are left out.
    """

    labels: list[str]
    names: list[tuple[str, ...]]
    rows: NDArray[np.int64]
    classes: NDArray[np.int64]
    num_unlabelled: int = 0

    @property
    def shown(self) -> list[str]:
        """The first name of each class."""
        return [names[0] for names in self.names]

    def embeddings(self, cache: Cache) -> NDArray[np.float32]:
        """Image embeddings `[N, D] float32`."""
        return embeddings(cache, self.rows)


def labels_of(cache: Cache, table: Iterable[tuple[str, str]] | None = None, origin: str = "") -> LabelledImages:
    """The classes of a cache's images: their only caption, as class folders give it, or that of a table.

    Args:
        cache: sealed.
        table: key and label of images, in place of captions.
        origin: of the table, for messages.

    Raises:
        EvalError: no images, an image has several captions or labels, or none has a class.
        CacheError: the cache is not complete.
    """
    embedded = cache.require_sealed().status() == Status.EMBEDDED
    if not cache.info.source.images:
        raise EvalError(f"{cache.path} has no images, but translations (--no-images): pass a cache of images")
    label_of = _from_table(cache, table, origin) if table is not None else _from_captions(cache)
    rows = np.array(sorted(row for row in label_of if embedded[row]), np.int64)
    if not len(rows):
        if table is None:
            problem = "no embedded image has a caption: pass --labels FILE with the columns image and label"
        else:
            example = f", such as {cache.keys(0, 1)[0]!r}" if len(cache) else ""
            problem = f"no key of {origin} is one of an embedded image{example}: name their column with --key-field"
        raise EvalError(f"{cache.path}: {problem}")
    first = {label_of[row]: row for row in reversed(rows.tolist())}
    keys = cache.keys() if table is None and cache.info.source.kind == ImageFolderSource.kind else []
    labels = sorted(first, key=lambda label: _folder(keys[first[label]], label) if keys else label)
    number = {label: i for i, label in enumerate(labels)}
    return LabelledImages(
        labels=labels,
        names=[(label,) for label in labels],
        rows=rows,
        classes=np.array([number[label_of[row]] for row in rows.tolist()]),
        num_unlabelled=int(embedded.sum()) - len(rows),
    )


def _folder(key: str, label: str) -> str:
    """The name of a class folder as torchvision sorts it, with underscores.

    >>> _folder("train/hot_dog/1.jpg", "hot dog")
    'hot_dog'
    """
    return next((part for part in key.split("/") if part.replace("_", " ") == label), label)


def _from_captions(cache: Cache) -> dict[int, str]:
    label_of: dict[int, str] = {}
    for row, caption in zip(cache.caption_image().tolist(), cache.captions(), strict=True):
        if label_of.setdefault(row, caption) != caption:
            raise EvalError(
                f"{cache.path}: image {cache.keys(row, row + 1)[0]} (row {row}) has several captions, "
                f"{label_of[row]!r} and {caption!r}, so they are no classes: pass --labels FILE, or a cache of class "
                "folders"
            )
    return label_of


def _from_table(cache: Cache, table: Iterable[tuple[str, str]], origin: str) -> dict[int, str]:
    label_by_key: dict[str, str] = {}
    for key, label in table:
        if label_by_key.setdefault(key, label) != label:
            raise EvalError(f"{origin}: {key} has the labels {label_by_key[key]!r} and {label!r}: keep one")
    return {row: label_by_key[key] for row, key in enumerate(cache.keys()) if key in label_by_key}


def with_names(images: LabelledImages, given: ClassNames, *, distractors: bool = False) -> LabelledImages:
    """Images with the names of a file for their classes.

    Args:
        images: of a cache.
        given: names by label. Ordered ones belong to the sorted labels, unless the names are the labels themselves.
        distractors: keep classes that no image has, as further choices.

    Raises:
        EvalError: unequal numbers, a label without names, or a class that no image has.
    """
    names = given.names
    if not given.is_ordered:
        names = _by_label(images.labels, given)
    elif set(images.labels) <= (by_name := {synonyms[0]: synonyms for synonyms in names.values()}).keys():
        names = by_name
    else:
        names = _by_place(images.labels, given)
        if not names:
            raise EvalError(f"{given.origin} has no name for any class of the images: pass another file or language")
        if len(names) < len(images.labels):  # Babel-ImageNet leaves out what a language has no word for
            images = _only(images, names.keys())
    if lacking := [label for label in images.labels if label not in names]:
        raise EvalError(
            f"{given.origin} has no names for {_some(lacking)}, which the images have: add them (label, tab, names)"
        )
    if not distractors and (unused := [label for label in names if label not in images.labels]):
        raise EvalError(
            f"{given.origin}: no image has class {_some(unused)}: delete them, or pass --distractors to keep them as "
            "further choices"
        )
    return _relabelled(images, names)


def _by_label(labels: Sequence[str], given: ClassNames) -> dict[str, tuple[str, ...]]:
    """Names by label; the file may write a folder's label with its underscores."""
    names: dict[str, tuple[str, ...]] = {}
    for label, synonyms in given.names.items():
        own = label if label in labels else label.replace("_", " ")
        if own in names:
            raise EvalError(f"{given.origin}: {label!r} and an earlier label are one class: join the two lines")
        names[own] = synonyms
    return names


def _by_place(labels: Sequence[str], given: ClassNames) -> dict[str, tuple[str, ...]]:
    places = [int(place) for place in given.names]
    has_numbers = all(label.isascii() and label.isdigit() for label in labels)
    if given.num_places:
        _require_imagenet(labels, given, has_numbers=has_numbers)
    elif len(places) != len(labels):
        raise EvalError(
            f"{given.origin} has {len(places):,} classes, the images have {len(labels):,}: write a line for each, "
            "in the order of the sorted labels, or label, tab and names"
        )
    elif has_numbers and list(labels) != sorted(labels, key=int):
        raise EvalError(
            f"{given.origin}: the labels are numbers, which sort as text otherwise ({_some(labels[:4])}, …): "
            "write label, tab and names in each line"
        )
    by_place = {int(label): label for label in labels} if given.num_places and has_numbers else dict(enumerate(labels))
    names = {
        by_place[place]: synonyms
        for place, synonyms in zip(places, given.names.values(), strict=True)
        if place in by_place
    }
    owner = {_folded(label): label for label in labels}
    for label, synonyms in names.items():
        for name in synonyms:
            if owner.get(_folded(name), label) != label and _folded(label) not in map(_folded, synonyms):
                raise EvalError(
                    f"{given.origin} names {name!r} in the place of class {label!r}, and not all labels are among its "
                    "names: write label, tab and names in each line"
                )
    return names


def _folded(label: str) -> str:
    return label.replace("_", " ").casefold()


def _require_imagenet(labels: Sequence[str], given: ClassNames, *, has_numbers: bool) -> None:
    """Refuse labels whose places are not those that the indices of Babel-ImageNet mean.

    Raises:
        EvalError: too few labels, too large numbers, or labels of ImageNet that sort otherwise than its synsets.
    """
    if has_numbers:
        if unknown := [label for label in labels if int(label) >= given.num_places]:
            raise EvalError(
                f"{given.origin} has indices from 0 to {given.num_places - 1:,}, and {_some(unknown)} is a label of "
                "the images: number them from 0, as ImageNet does"
            )
        return
    if len(labels) < given.num_places:
        raise EvalError(
            f"{given.origin} has indices of {given.num_places:,} classes, the images have {len(labels):,}, so the "
            "places of these are not known: label them with the index itself (--labels)"
        )
    if given.num_places >= IMAGENET and not all(map(_SYNSET.fullmatch, labels)):
        raise EvalError(
            f"{given.origin} has indices of ImageNet's synsets, in the order of n01440764, n01443537, …, the labels "
            f"are {_some(labels[:3])}, …: label the images with the synset or the index (--labels)"
        )


def _only(images: LabelledImages, labels: Iterable[str]) -> LabelledImages:
    chosen = set(labels)
    kept = [label for label in images.labels if label in chosen]
    place = {label: i for i, label in enumerate(kept)}
    new = np.array([place.get(label, -1) for label in images.labels])[images.classes]
    return replace(
        images,
        labels=kept,
        names=[(label,) for label in kept],
        rows=images.rows[new >= 0],
        classes=new[new >= 0],
        num_unlabelled=images.num_unlabelled + int((new < 0).sum()),
    )


def _relabelled(images: LabelledImages, names: dict[str, tuple[str, ...]]) -> LabelledImages:
    labels = [*images.labels, *sorted(names.keys() - set(images.labels))]
    place = {label: i for i, label in enumerate(labels)}
    return replace(
        images,
        labels=labels,
        names=[names[label] for label in labels],
        classes=np.array([place[label] for label in images.labels])[images.classes],
    )


def _some(labels: Sequence[str], most: int = 5) -> str:
    shown = ", ".join(repr(label) for label in labels[:most])
    return shown + (f" and {len(labels) - most:,} more" if len(labels) > most else "")
