"""A trained CLIP for Python code: texts and images to embeddings, similarity, zero-shot classification, search."""

import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..cache.read.cache import Cache
from ..cache.write.image_decode import ResizeCrop
from ..encoders.errors import EncoderError
from ..encoders.loading.model_names import HUB_PREFIX, LOCAL_PREFIX
from ..search.exact import ExactIndex
from ..search.ivf import IvfIndex
from ..search.open import open_index
from .errors import InputError
from .folders import other_export
from .images import is_single, to_pixels
from .onnx_clip import OnnxClip
from .onnx_layout import is_onnx
from .progress import steps
from .prompts import PLAIN, TEMPLATES, class_embeddings, has_place
from .towers import Towers, ranked, require_same_tower

if TYPE_CHECKING:
    import torch

    from ..encoders.image_tower import ImageTower

Floats = NDArray[np.float32]
IMAGES_AT_A_TIME = 32


@dataclass(frozen=True, kw_only=True)
class Classification:
    """Labels of one image, best first.

    Attributes:
        labels: as they were given.
        probabilities: softmax over all labels of the cosines times the CLIP's logit scale.
        cosines: of the image's embedding and each label's.
    """

    labels: list[str]
    probabilities: list[float]
    cosines: list[float]

    @property
    def label(self) -> str:
        """The best label."""
        return self.labels[0]

    def _repr_html_(self) -> str:
        rows = zip(self.labels, self.probabilities, strict=True)
        return html_table(("label", "probability"), [(label, f"{share:.1%}") for label, share in rows])


@dataclass(frozen=True, kw_only=True)
class Hit:
    """An image of a cache that a search found.

    Attributes:
        row: of the image in the cache.
        key: its path, as the source names it.
        score: cosine with the query.
    """

    row: int
    key: str
    score: float


class Hits(list[Hit]):
    """Images that a search found, best first."""

    def _repr_html_(self) -> str:
        return html_table(("score", "image"), [(f"{hit.score:.3f}", hit.key) for hit in self])


class CLIP:
    """A CLIP in evaluation mode, as `clipglot.load` gives it. D features.

    Results are numpy arrays, or tensors with `convert_to_tensor=True`. One input gives one row `[D]`, several give
    `[n, D]`.

    Attributes:
        model: both towers, a `clipglot.encoders.merged_clip.MergedClip`, or of an export in ONNX a
            `clipglot.inference.onnx_clip.OnnxClip`.
    """

    def __init__(self, model: Towers) -> None:
        self.model = model
        self._geometry = ResizeCrop.from_preprocess(model.preprocess)

    def __repr__(self) -> str:
        return f"CLIP({self.model.name!r}, dim={self.dim}, device={str(self.device)!r})"

    @property
    def dim(self) -> int:
        """D, the number of features."""
        return self.model.dim

    @property
    def device(self) -> "torch.device | str":
        """Where the towers are; "cpu" of an export in ONNX."""
        tower: ImageTower | None = getattr(self.model, "image_tower", None)
        return "cpu" if tower is None else tower.device

    @property
    def logit_scale(self) -> float:
        """Factor on cosines before a softmax or a sigmoid."""
        return self.model.logit_scale

    @property
    def logit_bias(self) -> float | None:
        """Added to scaled cosines before a sigmoid; None of a CLIP that was trained with a softmax."""
        return self.model.logit_bias

    @property
    def tokenizer(self) -> Any:
        """The tokenizer: ours has `encode(texts, context_length)` and `decode(ids)`; of other CLIPs open_clip's."""
        return self.model.tokenizer

    @property
    def context_length(self) -> int:
        """Most tokens of a text; longer ones are cut."""
        return self.model.context_length

    def preprocess(self, image: Any) -> Any:
        """What the image tower takes of an image, `[3, height, width] float32`, bit for bit as open_clip's transform.

        A tensor; of an export in ONNX an array.

        Args:
            image: as of `encode_image`.

        Raises:
            InputError: as of `encode_image`.
        """
        return self.model.normalize(to_pixels(image, self._geometry)[None])[0]

    def encode_text(
        self,
        texts: str | Sequence[str],
        *,
        batch_size: int = 256,
        normalize: bool = True,
        progress: bool | None = None,
        convert_to_tensor: bool = False,
    ) -> Any:
        """Embeddings of texts, `[n, D] float32`; `[D]` of a single text.

        Texts are sorted by length and computed without padding, so a batch of captions costs what its tokens cost.

        Args:
            texts: one or several; a text beyond the context length is cut.
            batch_size: texts at a time.
            normalize: to unit norm.
            progress: show a bar; None shows one in a terminal or a notebook if it takes longer than a moment.
            convert_to_tensor: a tensor on the device instead of a numpy array.

        Raises:
            InputError: something that is no text.

        >>> clip = load("merged")
        >>> clip.encode_text("a red circle").shape, clip.encode_text(["a red circle", "a blue square"]).shape
        ((16,), (2, 16))
        """
        _require_batch(batch_size)
        if not isinstance(texts, Iterable):
            raise InputError(f"of type {type(texts).__name__}: pass a text or several, or encode_image for images")
        given = [texts] if isinstance(texts, str) else list(texts)
        for i, text in enumerate(given):
            if not isinstance(text, str):
                raise InputError(f"text {i} is of type {type(text).__name__}: pass texts, or encode_image for images")
        with steps("encode texts", len(given), progress) as advance:
            emb = self.model.encode_texts(
                given, raw=not normalize, batch_size=batch_size, on_progress=lambda done, total: advance(done)
            )
        return self._given_back(emb, single=isinstance(texts, str), as_tensor=convert_to_tensor)

    def encode_image(
        self,
        images: Any,
        *,
        batch_size: int = IMAGES_AT_A_TIME,
        normalize: bool = True,
        progress: bool | None = None,
        convert_to_tensor: bool = False,
        skip_errors: bool = False,
        positions: Sequence[int] | None = None,
    ) -> Any:
        """Embeddings of images, `[n, D] float32`; `[D]` of a single image.

        Args:
            images: one or several paths, encoded bytes, PIL images or arrays `[h, w, 3] uint8`. Files and bytes are
                rendered as a pass of `clipglot cache` renders them; a PIL image is converted to RGB as open_clip does.
            batch_size: images at a time.
            normalize: to unit norm.
            progress: as of `encode_text`.
            convert_to_tensor: as of `encode_text`.
            skip_errors: give an image that cannot be embedded a row of NaN, with a warning that names it, instead of
                raising.
            positions: by which messages name the images; by default from 0 on.

        Raises:
            InputError: names the image by its position, and the reason.

        >>> clip = load("merged")
        >>> clip.encode_image([np.zeros((40, 60, 3), np.uint8), np.ones((9, 9), np.uint8)]).shape
        (2, 16)
        """
        _require_batch(batch_size)
        single = is_single(images)
        given = [images] if single else list(images)
        numbers = positions or range(len(given))
        emb = np.full((len(given), self.dim), np.nan, np.float32)
        with steps("encode images", len(given), progress) as advance:
            for start in range(0, len(given), batch_size):
                rows, pixels = self._pixels(
                    given, range(start, min(start + batch_size, len(given))), numbers, skip_errors
                )
                if rows:
                    features = self.model.encode_pixels(np.stack(pixels))
                    emb[rows] = features / np.linalg.norm(features, axis=1, keepdims=True) if normalize else features
                advance(min(start + batch_size, len(given)))
        return self._given_back(emb, single=single, as_tensor=convert_to_tensor)

    def encode(self, inputs: Any, **options: Any) -> Any:
        """Embeddings of texts, images, or both: strings are texts, all else is an image.

        Args:
            inputs: one or several; write the path of an image as a `Path`.
            **options: of `encode_text` and `encode_image`.

        Raises:
            InputError: as of these.
        """
        of_images = {"skip_errors": options.pop("skip_errors", False)}
        if is_single(inputs):
            if isinstance(inputs, str):
                return self.encode_text(inputs, **options)
            return self.encode_image(inputs, **options, **of_images)
        given = list(inputs)
        texts = [i for i, value in enumerate(given) if isinstance(value, str)]
        images = [i for i, value in enumerate(given) if not isinstance(value, str)]
        if not texts or not images:
            return self.encode_image(given, **options, **of_images) if images else self.encode_text(given, **options)
        as_tensor = options.pop("convert_to_tensor", False)
        emb = np.empty((len(given), self.dim), np.float32)
        emb[texts] = self.encode_text([given[i] for i in texts], **options)
        emb[images] = self.encode_image([given[i] for i in images], positions=images, **options, **of_images)
        return self._given_back(emb, single=False, as_tensor=as_tensor)

    def similarity(self, a: Any, b: Any) -> Floats:
        """Cosines of two sets of inputs or embeddings, `[len(a), len(b)] float32`.

        Args:
            a: texts and images as `encode` takes them, or embeddings `[n, D]`.
            b: likewise.

        Raises:
            InputError: as of `encode`.
        """
        first, second = (np.atleast_2d(self._embeddings(value)) for value in (a, b))
        result: Floats = first @ second.T
        return result

    def classify(
        self,
        images: Any,
        labels: Sequence[str],
        *,
        templates: str | Sequence[str] = PLAIN,
        skip_errors: bool = False,
        progress: bool | None = None,
    ) -> Any:
        """Zero-shot classification: which of some labels describes an image best.

        Args:
            images: as of `encode_image`.
            labels: at least one.
            templates: sentences with `{}` in the place of a label, such as "a photo of a {}", or a language with
                built-in ones: "en", "ru", "zh", "ko"; a label's embedding is the mean over them.
            skip_errors: None in the place of an image that cannot be embedded, with a warning.
            progress: as of `encode_text`.

        Returns:
            A `Classification`, or a list of them for several images.

        Raises:
            InputError: no label, a template without its place, or a bad image.

        >>> red = np.full((64, 64, 3), (200, 0, 0), np.uint8)
        >>> found = load("merged").classify(red, ["red", "blue"], templates=["a {} square"])
        >>> sorted(found.labels), round(sum(found.probabilities), 6)
        (['blue', 'red'], 1.0)
        """
        if isinstance(labels, str) or not len(labels) or not all(isinstance(label, str) for label in labels):
            raise InputError("no labels to choose from: pass a list of texts, at least one")
        if isinstance(templates, str):
            templates = TEMPLATES.get(templates, (templates,))
        if bad := [template for template in templates if not has_place(template)] or (
            [""] if not len(templates) else []
        ):
            raise InputError(f"template {bad[0]!r} has no {{}} in the place of the label")
        text_emb = class_embeddings(
            lambda texts: self.encode_text(texts, progress=False), [[label] for label in labels], templates
        )
        single = is_single(images)
        emb = np.atleast_2d(self.encode_image(images, skip_errors=skip_errors, progress=progress))
        result = [None if np.isnan(row).any() else self._classified(row, text_emb, labels) for row in emb]
        return result[0] if single else result

    def search(self, cache: Any, query: Any, k: int = 10, *, index: Any = None) -> Any:
        """The images of a cache that fit a query best, by exact search over all its embeddings, or by an index.

        Args:
            cache: path or URL of a cache that this CLIP's image tower made, or what `clipglot.open_cache` gives.
            query: a text, an image or an embedding `[D]`; or several, which take one pass over the cache.
            k: images to find.
            index: file that `clipglot index` wrote of this cache, which is checked in each call; or for many calls what
                `clipglot.search.open.open_index` gives.

        Returns:
            `Hits`, best first; a list of them for several queries.

        Raises:
            CacheError: no cache there, or one that is not complete.
            InputError: a cache of another image tower, or as of `encode`.
            SearchError: no index, a damaged one, or that of another cache.

        >>> hits = load("merged").search("train.zarr", "a red circle", k=3)
        >>> len(hits), hits[0].score >= hits[2].score
        (3, True)
        """
        if k < 1:
            raise InputError(f"k is {k}: pass a number of at least 1")
        opened: Cache = getattr(cache, "cache", cache) if not isinstance(cache, str | Path) else Cache(cache)
        require_same_tower(self.model, opened)
        emb = self._embeddings(query)
        found = search_index(opened, _opened_index(opened, index), np.atleast_2d(emb), k)
        return found[0] if emb.ndim == 1 else found

    def _embeddings(self, value: Any) -> Floats:
        """Unit embeddings of inputs; of embeddings themselves at unit norm."""
        array = value
        if hasattr(value, "detach"):
            array = value.detach().cpu().numpy()
        if isinstance(array, np.ndarray) and array.dtype.kind == "f":
            if array.ndim not in (1, 2) or array.shape[-1] != self.dim:
                raise InputError(f"embeddings of shape {array.shape}: expected [n, {self.dim}]")
            if not (np.linalg.norm(array.astype(np.float64), axis=-1) > 0).all() or not np.isfinite(array).all():
                raise InputError("an embedding that is zero or not finite points nowhere: leave it out")
            result: Floats = (array / np.linalg.norm(array, axis=-1, keepdims=True)).astype(np.float32)
            return result
        encoded: Floats = self.encode(value, progress=False)
        return encoded

    def _pixels(
        self, images: Sequence[Any], rows: Iterable[int], numbers: Sequence[int], skip_errors: bool
    ) -> tuple[list[int], list[NDArray[np.uint8]]]:
        """Rows of the images that can be embedded, and their pixels."""
        good, pixels = [], []
        for i in rows:
            try:
                pixels.append(to_pixels(images[i], self._geometry))
                good.append(i)
            except InputError as error:
                if not skip_errors:
                    raise InputError(f"image {numbers[i]}: {error}") from error
                warnings.warn(f"image {numbers[i]}: {error}; its row is NaN", stacklevel=3)
        return good, pixels

    def _classified(self, emb: Floats, text_emb: Floats, labels: Sequence[str]) -> Classification:
        cosines = text_emb @ emb
        order, probabilities = ranked(cosines, self.logit_scale)
        return Classification(
            labels=[labels[i] for i in order],
            probabilities=probabilities[order].tolist(),
            cosines=cosines[order].tolist(),
        )

    def _given_back(self, emb: Floats, *, single: bool, as_tensor: bool) -> Any:
        result = emb[0] if single else emb
        if not as_tensor:
            return result
        import torch

        return torch.from_numpy(result).to(self.device)


def load(model: str | Path, pretrained: str | None = None, *, device: str | None = None) -> CLIP:
    """Load a CLIP: a folder that `clipglot export` wrote, or any other that open_clip knows.

    Args:
        model: folder of a merged CLIP, of its export in ONNX, or of any open_clip model, a hub repository (`ORG/NAME`),
            or a name of open_clip with its weights in `pretrained`.
        pretrained: tag or file of weights, for a name of open_clip.
        device: "cpu", "cuda", "cuda:1", …; by default the GPU if there is one.

    Raises:
        EncoderError: nothing there, a run that was not exported, or a model that does not load.

    >>> load("merged", device="cpu")
    CLIP('merged', dim=16, device='cpu')
    """
    name = str(model).removeprefix(LOCAL_PREFIX)
    folder, repository = Path(name), name.removeprefix(HUB_PREFIX)
    if (folder / "zarr.json").is_file():
        raise EncoderError(f"{folder} is a cache: open it with clipglot.open_cache")
    if pretrained is None and is_onnx(folder):
        if device not in (None, "cpu"):
            raise EncoderError(f"{folder} is an export in ONNX, which runs on the CPU: drop device={device!r}")
        return CLIP(OnnxClip(folder))
    if pretrained is None and (other := other_export(folder)):
        raise EncoderError(other)
    import torch

    from ..encoders.merged_clip import load_from_hub, load_merged, load_named

    if pretrained is not None:
        clip = load_named(name, pretrained)
    elif folder.is_dir():
        clip = load_merged(folder)
    elif re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", repository):
        clip = load_from_hub(repository)
    else:
        raise EncoderError(f"{name}: no such folder: pass the folder of a merged CLIP, or a hub repository ORG/NAME")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return CLIP(clip.placed(device))
    except (RuntimeError, AssertionError) as error:  # no such device, or none that has the memory
        raise EncoderError(f"device={device!r}: {str(error).splitlines()[0]}") from error


def _require_batch(batch_size: int) -> None:
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}: pass a number of at least 1")


def _opened_index(cache: Cache, index: Any) -> ExactIndex | IvfIndex:
    """What searches a cache.

    Args:
        cache: sealed.
        index: file, something opened, or None.
    """
    if isinstance(index, ExactIndex | IvfIndex):
        return index
    return open_index(cache, None if index is None else Path(index))


def search_index(cache: Cache, index: ExactIndex | IvfIndex, queries: Floats, k: int) -> list[Hits]:
    """The k images that an index finds for each of Q queries.

    Args:
        cache: of N images.
        index: of the cache.
        queries: `[Q, D] float32`, unit norm.
        k: at most so many; fewer if the cache has fewer.
    """
    return [
        Hits(
            Hit(row=row, key=cache.keys(row, row + 1)[0], score=score)
            for row, score in zip(rows.tolist(), scores.tolist(), strict=True)
        )
        for scores, rows in zip(*index.search(queries, k), strict=True)
    ]


def search_exactly(cache: Cache, queries: Floats, k: int) -> list[Hits]:
    """The k images with the largest cosine to each of Q queries, over all embedded images of a cache.

    Args:
        cache: of N images.
        queries: `[Q, D] float32`, unit norm.
        k: at most so many; fewer if the cache has fewer.
    """
    return search_index(cache, ExactIndex(cache), queries, k)


def html_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table for notebooks; texts of users are escaped."""
    from html import escape

    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"
