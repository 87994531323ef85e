"""Format of a cache: array names, status codes, chunk sizes, and the metadata in the attributes of the group.

A second implementation would have to agree on everything in this file. docs/cache.md describes the same format.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import IntEnum
from typing import Any, Literal

from .errors import CacheError
from .typed import require_types

FORMAT_VERSION = 1
ATTRIBUTE = "clipglot"  # attribute of the group that holds the metadata
CHECKSUM = f"{ATTRIBUTE}_crc32c"  # attribute with the checksum of the metadata, see `metadata.py`; not in older caches
EMB, NORM, STATUS = "images/emb", "images/norm", "images/status"
HASH = "images/hash"  # absent in older caches, and in caches that no pass over images made
KEY, TEXT, CAPTION_IMAGE = "images/key", "captions/text", "captions/image"
LOCATOR, FILE, LANGUAGE = "images/locator", "source/file", "captions/language"  # if the source has them
TOKENS = "tokens"
CAPTION_SETS = "caption_sets"  # group with a group for each further set of captions, see `CaptionSetInfo`
SETS_ATTRIBUTE = f"{ATTRIBUTE}_caption_sets"  # attribute that names them; apart, for versions that know no sets
SETS_CHECKSUM = f"{SETS_ATTRIBUTE}_crc32c"
OWN_CAPTIONS = "source"  # name of the captions that the cache was made with, among those of its sets
IMPORTED = "embeddings"  # kind of source: embeddings made by other programs, see `clipglot import`
STAGED = "append"  # group with the rows of a source that is being appended, see `append.py`
TEACHER_TEXT, TEACHER_EMB, TEACHER_STATUS = "teacher/text", "teacher/emb", "teacher/status"
TEXT_TARGET_ARRAYS = (TEACHER_EMB, TEACHER_STATUS)  # written by the pass over translations
TEACHER_ARRAYS = (f"{TEACHER_TEXT}/bytes", f"{TEACHER_TEXT}/offsets", *TEXT_TARGET_ARRAYS)
EMBEDDED_ARRAYS = (EMB, NORM, STATUS, HASH)  # filled by the pass over images, chunk by chunk
PLANNED_ARRAYS = (f"{KEY}/bytes", f"{KEY}/offsets", f"{TEXT}/bytes", f"{TEXT}/offsets", CAPTION_IMAGE)
OPTIONAL_ARRAYS = (HASH, LANGUAGE, LOCATOR, f"{FILE}/bytes", f"{FILE}/offsets")  # not every source has them
CHUNK_BYTES = 16 * 2**20  # of a chunk of embeddings or of ragged bytes, if the cache has enough rows
MAX_CHUNK_BYTES = 2**30  # that are read; a chunk holds whole batches, however large these are
MAX_CHUNKS = 2**20  # of one array; 17 TB in chunks of 16 MB
MIN_CHUNKS = 16  # also of a small cache, so that a killed pass keeps most of its work
MAX_DECODE_S = 120  # of processor time for an image, in proportion more where more than MAX_PIXELS are allowed
MAX_PIXELS = 100_000_000  # default limit for an image; 300 MB as RGB
LANGUAGE_TAG = re.compile(r"[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8})*")  # the form of BCP 47; registered or not
SET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # of a caption set; no part of a path
State = Literal["planning", "planned", "appending", "sealed"]
NOT_LAID_OUT = ("planning", "appending")
Decoding = Literal[
    "exact", "scaled"
]  # of JPEGs: at full size, or at the smallest reduced size that suffices for the tower
STORED_NAMES = {"num_images": "num_pictures"}  # fields of `CacheInfo` that the metadata keep under another name


class Status(IntEnum):
    """Outcome of embedding an image. The codes are part of the format: never renumber, only add."""

    PENDING = 0
    EMBEDDED = 1
    MISSING = 2
    OUTSIDE_ROOT = 3
    UNREADABLE = 4
    NOT_A_PICTURE = 5
    DAMAGED = 6
    TOO_LARGE = 7
    NOT_FINITE = 8
    UNSUPPORTED = 9
    TOO_SLOW = 10

    @property
    def label(self) -> str:
        """The name that users see and that the metadata count by, e.g. `not a picture`."""
        return self.name.lower().replace("_", " ")


class RejectedImageError(Exception):
    """An image that costs its row: carries the status to record."""

    def __init__(self, status: Status) -> None:
        super().__init__(status.label)
        self.status = status


EXPLANATION: dict[Status, str] = {
    Status.PENDING: "not embedded yet: run the same `clipglot cache` command again to resume",
    Status.EMBEDDED: "in the cache",
    Status.MISSING: "no such file below the image root, or no image in its record",
    Status.OUTSIDE_ROOT: "the path leaves the image root: pass an --image-root that holds it",
    Status.UNREADABLE: "the file exists but could not be read (permissions, I/O error, not a regular file)",
    Status.NOT_A_PICTURE: "no known image format",
    Status.DAMAGED: "truncated or damaged: the decoder failed on it",
    Status.TOO_LARGE: "more pixels than --max-pixels allows (as stored or resized), a file over 1 GiB, or a thin line",
    Status.NOT_FINITE: "the tower's output was NaN, infinite or all zero",
    Status.UNSUPPORTED: "an image of a kind that is not read (HEIC is with `pip install pillow-heif`), or whose "
    "numbers have no known range (floats, signed)",
    Status.TOO_SLOW: f"takes long to decode: a JPEG of hundreds of scans, or over {MAX_DECODE_S} s of processor time",
}


@dataclass(frozen=True, kw_only=True)
class EncoderInfo:
    """The image tower that made the embeddings: enough to build it again and to recognise a wrong one."""

    model: str
    pretrained: str | None
    weights_sha256: str
    preprocess: dict[str, Any]
    dim: int
    precision: str
    quick_gelu: bool

    def difference(self, other: "EncoderInfo") -> str | None:
        """The first field that makes two towers embed differently; None if they are the same (docs/decisions/006)."""
        for name in ("weights_sha256", "preprocess", "quick_gelu"):
            if _as_json(getattr(self, name)) != _as_json(getattr(other, name)):
                return name
        return None


@dataclass(frozen=True, kw_only=True)
class SourceInfo:
    """A source of images and captions, and how it was read.

    Attributes:
        path: of the table, folder or file; absolute, or a URL.
        sha256: digest by which a changed source is recognised.
        image_root: folder or URL that image paths, and paths of files that hold images, are relative to.
        image_field: field of a record that names its image.
        text_fields: fields with its captions.
        limit: most images to take; None for all.
        teacher_fields: fields with translations for a text teacher.
        images: False if translations take the place of images.
        kind: of source, see `sources/kinds.py`.
        where: condition that records must fulfil.
        split: part of the dataset that was selected.
        languages: language tags of the captions: one for all, or one for each text field.
        language_field: field with the language tag of a record.
        encoding: of its text files.
        first_row: row of its first image in the cache.
    """

    path: str
    sha256: str
    image_root: str
    image_field: str
    text_fields: list[str]
    limit: int | None = None
    teacher_fields: list[str] = field(default_factory=list)
    images: bool = True
    kind: str = "table"
    where: str | None = None
    split: str | None = None
    languages: list[str] = field(default_factory=list)
    language_field: str | None = None
    encoding: str = "utf-8"
    first_row: int = 0

    def to_plain(self) -> dict[str, Any]:
        """Plain values, without the encoding where it is UTF-8: earlier versions know no such field."""
        values = asdict(self)
        if self.encoding == "utf-8":
            del values["encoding"]
        return values

    @property
    def has_teacher(self) -> bool:
        """Whether captions have a text teacher's embedding besides that of their image."""
        return self.images and bool(self.teacher_fields)


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Random augmentation of the views beyond the plain one.

    Attributes:
        scale: least share of the image's area that a random resized crop keeps; 1 crops as the tower does.
        flip: probability of a horizontal flip.
        jitter: largest relative change of brightness, contrast and saturation.
        grayscale: probability of conversion to grey.
        seed: of the random numbers, together with row and view.
    """

    scale: float = 0.5
    flip: float = 0.0
    jitter: float = 0.0
    grayscale: float = 0.0
    seed: int = 0

    def __str__(self) -> str:
        return ", ".join(f"{name} {value:g}" for name, value in asdict(self).items())


@dataclass(frozen=True, kw_only=True)
class CacheInfo:
    """Metadata of a cache, stored in the attributes of its root group.

    Attributes:
        state: "planning" or "appending" while arrays are laid out, "planned" until all chunks are embedded, then
            "sealed".
        encoder: the image tower.
        source: the first source.
        appended: sources that were appended, in order.
        merged: whether the cache was merged from others, so that no pass makes its chunks.
        num_views: views of each image, the plain one included.
        augmentation: of the further views; None without any.
        teacher_sha256: weights of the text teacher; None without one.
        num_images: N.
        num_captions: M.
        chunk_rows: rows of an embedding chunk.
        batch_size: images that the tower embeds at once.
        max_pixels: of an image; larger ones are refused.
        decoding: of JPEGs.
        counts: images of each status, by label; empty until sealed.
        num_duplicates: embedded images with the bytes of an earlier one; None without hashes.
        dropped_captions: captions of the source that the cache leaves out, by reason.
        left_out: records of the sources that the cache leaves out, by flag, and files, by what they are.
        languages: tags that the codes of `captions/language` stand for.
        libraries: versions of the libraries that decoded and embedded the images.
        arrays: names of all arrays but those of tokens; None in older caches.
        format_version: of the layout on disk.
    """

    state: State
    encoder: EncoderInfo
    source: SourceInfo
    appended: list[SourceInfo] = field(default_factory=list)
    merged: bool = False
    num_views: int = 1
    augmentation: Augmentation | None = None
    teacher_sha256: str | None = None
    num_images: int = 0
    num_captions: int = 0
    chunk_rows: int = 0
    batch_size: int = 0
    max_pixels: int = MAX_PIXELS
    decoding: Decoding = "exact"
    counts: dict[str, int] = field(default_factory=dict)
    num_duplicates: int | None = None
    dropped_captions: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    languages: list[str] = field(default_factory=list)
    libraries: dict[str, str] = field(default_factory=dict)
    arrays: list[str] | None = None
    format_version: int = FORMAT_VERSION

    @property
    def is_laid_out(self) -> bool:
        """Whether the arrays are as the other fields say, so not while they are laid out or resized."""
        return self.state not in NOT_LAID_OUT

    @property
    def sources(self) -> list[SourceInfo]:
        """All sources, in the order of their rows. A source that added no image has no rows."""
        return [self.source, *self.appended]

    def to_attributes(self) -> dict[str, Any]:
        """The JSON object that is stored."""
        stored = {STORED_NAMES.get(name, name): value for name, value in asdict(self).items()}
        stored |= {"source": self.source.to_plain(), "appended": [source.to_plain() for source in self.appended]}
        return stored | {"status_names": {str(status.value): status.label for status in Status}}

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, Any], where: str) -> "CacheInfo":
        """Read the JSON object back.

        Args:
            attributes: of the group.
            where: the path or URL of the cache, for messages.

        Raises:
            CacheError: no clipglot cache, one of another format, or damaged.
        """
        if ATTRIBUTE not in attributes:
            raise CacheError(f"{where} is a Zarr group but no clipglot cache (attribute {ATTRIBUTE!r} is absent)")
        stored = attributes[ATTRIBUTE]
        if not isinstance(stored, dict):
            raise CacheError(f"{where} has damaged metadata ({ATTRIBUTE!r} is {stored!r:.40}): cache again")
        field_names = {stored_name: name for name, stored_name in STORED_NAMES.items()}
        fields: dict[str, Any] = {
            field_names.get(name, str(name)): value for name, value in stored.items() if name != "status_names"
        }
        version = fields.get("format_version")
        if version != FORMAT_VERSION:
            raise CacheError(
                f"{where} has cache format {version}, this clipglot reads format {FORMAT_VERSION}: "
                "install the clipglot version that wrote it, or cache again"
            )
        try:
            encoder, source = EncoderInfo(**fields.pop("encoder")), SourceInfo(**fields.pop("source"))
            appended = [SourceInfo(**further) for further in fields.pop("appended", [])]
            augmentation = Augmentation(**given) if (given := fields.pop("augmentation", None)) else None
            info = cls(encoder=encoder, source=source, appended=appended, augmentation=augmentation, **fields)
            for part in (encoder, *info.sources, *([augmentation] if augmentation else ()), info):
                require_types(part)
            names = ("num_views", "num_images", "chunk_rows", "batch_size")
            sizes = {STORED_NAMES.get(name, name): getattr(info, name) for name in names} | {"dim": encoder.dim}
            if info.state != "planning" and (min(sizes.values()) < 1 or info.num_captions < 0):
                raise ValueError(f"sizes are {sizes}, num_captions is {info.num_captions}")
            if info.num_images > MAX_CHUNKS * max(1, info.chunk_rows):
                raise ValueError(f"sizes are {sizes}: more than {MAX_CHUNKS:,} chunks")
        except (KeyError, TypeError, ValueError) as error:
            raise CacheError(f"{where} has damaged metadata ({error}): cache again") from error
        return info


@dataclass(frozen=True, kw_only=True)
class CaptionSetInfo:
    """A further set of captions of a cache's images, in a group of its own below `caption_sets`.

    Attributes:
        name: by which users ask for it.
        group: name of its group: the set's name and eight random hex digits, so that no two sets ever share one.
        sources: tables that it was read from, in order.
        num_captions: m.
        languages: tags that the codes of its captions stand for; "" for none.
        sha256: digest of its captions, their images and languages (`captions_sha256`).
        num_unmatched: records of the tables whose key no image of the cache has.
        dropped_captions: captions of the tables that are left out, by reason.
    """

    name: str
    group: str
    sources: list[SourceInfo]
    num_captions: int
    languages: list[str]
    sha256: str
    num_unmatched: int = 0
    dropped_captions: dict[str, int] = field(default_factory=dict)

    @property
    def path(self) -> str:
        """The group in the cache."""
        return f"{CAPTION_SETS}/{self.group}"

    @property
    def array_names(self) -> list[str]:
        """Names of its arrays."""
        return [f"{self.path}/{name}" for name in ("text/bytes", "text/offsets", "image", "language")]

    def to_plain(self) -> dict[str, Any]:
        """The JSON object that is stored."""
        return asdict(self) | {"sources": [source.to_plain() for source in self.sources]}

    @classmethod
    def of_plain(cls, stored: Any) -> "CaptionSetInfo":
        """Read the JSON object back.

        Raises:
            KeyError, TypeError, ValueError: it is no description of a set.
        """
        fields = dict(stored)
        info = cls(sources=[SourceInfo(**source) for source in fields.pop("sources")], **fields)
        for part in (info, *info.sources):
            require_types(part)
        if not is_set_name(info.name) or not re.fullmatch(re.escape(info.name) + "-[0-9a-f]{8}", info.group):
            raise ValueError(f"set {info.name!r:.80} in group {info.group!r:.80}")
        if not info.num_captions > 0 or not 0 < len(info.languages) <= 2**16:
            raise ValueError(f"set {info.name} of {info.num_captions} captions in {len(info.languages)} languages")
        return info


def is_set_name(name: str) -> bool:
    """Whether a caption set may have a name.

    >>> [name for name in ("ru", "pt-BR.v2", "../ru", "source", "", "-x") if is_set_name(name)]
    ['ru', 'pt-BR.v2']
    """
    return SET_NAME.fullmatch(name) is not None and name != OWN_CAPTIONS


Layout = tuple[str, tuple[int | None, ...], tuple[int | None, ...]]
"""Type, shape and chunk shape of an array; None for a size that may be any."""


def layouts(info: CacheInfo) -> dict[str, Layout]:
    """Layout of each array of a cache, by name; not of those of tokens.

    The first axis of EMB and NORM may be longer than V, while a pass adds views.
    """
    N, M, D, R = info.num_images, info.num_captions, info.encoder.dim, info.chunk_rows
    texts: dict[str, Layout] = {}
    for name, num in ((KEY, N), (TEXT, M), (TEACHER_TEXT, M), (FILE, None)):
        texts[f"{name}/bytes"] = ("uint8", (None,), (None,))
        texts[f"{name}/offsets"] = ("int64", (None if num is None else num + 1,), (None,))
    return texts | {
        EMB: ("float16", (None, N, D), (1, R, D)),
        NORM: ("float32", (None, N), (1, R)),
        STATUS: ("uint8", (N,), (R,)),
        HASH: ("uint64", (N, 2), (R, 2)),
        LOCATOR: ("int64", (N, 3), (None, 3)),
        CAPTION_IMAGE: ("int64", (M,), (None,)),
        LANGUAGE: ("uint16", (M,), (None,)),
        TEACHER_EMB: ("float16", (1, M, D), (1, None, D)),
        TEACHER_STATUS: ("uint8", (M,), (None,)),
    }


def set_layouts(info: CaptionSetInfo) -> dict[str, Layout]:
    """Layout of each array of a caption set, by name."""
    text_bytes, offsets, image, language = info.array_names
    m = info.num_captions
    return {
        text_bytes: ("uint8", (None,), (None,)),
        offsets: ("int64", (m + 1,), (None,)),
        image: ("int64", (m,), (None,)),
        language: ("uint16", (m,), (None,)),
    }


def is_language_tag(tag: object) -> bool:
    """Whether a value has the form of a language tag of BCP 47.

    >>> [tag for tag in ("zh", "pt-BR", "zh-Hant-TW", "Chinese (simplified)", "r", 3) if is_language_tag(tag)]
    ['zh', 'pt-BR', 'zh-Hant-TW']
    """
    return isinstance(tag, str) and LANGUAGE_TAG.fullmatch(tag) is not None


def _as_json(value: Any) -> Any:
    """A value as JSON reads it back: tuples become lists."""
    if isinstance(value, Mapping):
        return {k: _as_json(v) for k, v in value.items()}
    return [_as_json(v) for v in value] if isinstance(value, list | tuple) else value


def plan_chunk_rows(num_images: int, dim: int, batch_size: int) -> int:
    """Rows of an embedding chunk: about `CHUNK_BYTES`, fewer in a small cache, always whole batches.

    >>> plan_chunk_rows(3_700_000, 512, 64)
    16384
    >>> plan_chunk_rows(1_000, 512, 64)
    64
    """
    full = CHUNK_BYTES // (2 * dim)
    rows = min(full, -(-num_images // MIN_CHUNKS))
    return max(1, -(-rows // batch_size)) * batch_size
