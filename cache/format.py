"""The cache's format: array names, status codes, chunk sizes and the metadata kept in the group's attributes.

Everything that a second implementation would have to agree on stands in this file.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import IntEnum
from typing import Any, Literal, get_args

from .errors import CacheError

FORMAT_VERSION = 1
ATTRIBUTE = "clipglot"  # the group attribute that holds the metadata
CHECKSUM = f"{ATTRIBUTE}_crc32c"  # the one that holds their checksum, see `metadata.py`; older caches have none
EMB, NORM, STATUS = "images/emb", "images/norm", "images/status"
HASH = "images/hash"  # absent in older caches, and in those that no pass over images made
KEY, TEXT, CAPTION_IMAGE = "images/key", "captions/text", "captions/image"
LOCATOR, FILE, LANGUAGE = "images/locator", "source/file", "captions/language"  # where a source tells them
TOKENS = "tokens"
IMPORTED = "embeddings"  # the kind of source that embeddings come from that are there already
# What `clipglot cache` reads; any other is a source of one's own.
SOURCE_KINDS = frozenset({"table", "webdataset", "coco", "muge", "parquet", "arrow", "class folders"})
STAGED = "append"  # rows of an appended source on their way, see `append.py`
TEACHER_TEXT, TEACHER_EMB, TEACHER_STATUS = "teacher/text", "teacher/emb", "teacher/status"
TAUGHT_ARRAYS = (TEACHER_EMB, TEACHER_STATUS)  # filled by the pass over a teacher's texts
TEACHER_ARRAYS = (f"{TEACHER_TEXT}/bytes", f"{TEACHER_TEXT}/offsets", *TAUGHT_ARRAYS)
EMBEDDED_ARRAYS = (EMB, NORM, STATUS, HASH)  # filled by the pass, chunk by chunk
PLANNED_ARRAYS = (f"{KEY}/bytes", f"{KEY}/offsets", f"{TEXT}/bytes", f"{TEXT}/offsets", CAPTION_IMAGE)
OPTIONAL_ARRAYS = (HASH, LANGUAGE, LOCATOR, f"{FILE}/bytes", f"{FILE}/offsets")  # that not every source gives
CHUNK_BYTES = 16 * 2**20  # of an embedding chunk and of ragged bytes, where there are enough rows
MIN_CHUNKS = 16  # a small cache is still cut this often, so that a killed pass keeps most of its work
MAX_PIXELS = 100_000_000  # of an image, unless the plan says otherwise; 300 MB as RGB
LANGUAGE_TAG = re.compile(r"[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8})*")  # BCP 47, as far as its form goes
State = Literal["planning", "planned", "appending", "sealed"]
NOT_LAID_OUT = ("planning", "appending")
Decoding = Literal["exact", "scaled"]  # of JPEGs: at full size, or at a part of it that is enough for the tower


class Status(IntEnum):
    """What became of an image. Codes are part of the format: never renumber, only add."""

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
        """The name that users see, e.g. `not a picture`."""
        return self.name.lower().replace("_", " ")


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
    Status.UNSUPPORTED: "an image of a kind that is not read, or whose numbers have no known range (floats, signed)",
    Status.TOO_SLOW: "takes too long to decode: a JPEG of more than 100 scans, or over 120 s of processor time",
}


@dataclass(frozen=True, kw_only=True)
class EncoderInfo:
    """Which image tower made the embeddings; enough to rebuild it and to recognise a wrong one."""

    model: str
    pretrained: str | None
    weights_sha256: str
    preprocess: dict[str, Any]
    dim: int
    precision: str
    quick_gelu: bool

    def difference(self, other: "EncoderInfo") -> str | None:
        """The first field by which two towers embed differently, None if they are one (docs/decisions/006)."""
        for name in ("weights_sha256", "preprocess", "quick_gelu"):
            if _as_json(getattr(self, name)) != _as_json(getattr(other, name)):
                return name
        return None


@dataclass(frozen=True, kw_only=True)
class SourceInfo:
    """What was planned, and how it was read.

    Attributes:
        path: of the manifest, folder or file; absolute, or a URL.
        sha256: by which a changed source is recognised.
        image_root: the folder, or URL, below which images and the files that hold them lie.
        image_field: where a record names its image.
        text_fields: where it has its captions.
        limit: most images taken.
        teacher_fields: where it has translations.
        images: False where the translations stand in the place of images.
        kind: of source, see `sources.py`.
        where: the condition that a record must fulfil.
        split: the part that was asked for.
        languages: tags of all captions, one, or one for each text field.
        language_field: where a record has its tag.
        first_row: the row of its first image.
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
    first_row: int = 0

    @property
    def has_teacher(self) -> bool:
        """Whether captions have a teacher's embedding beside their image's."""
        return self.images and bool(self.teacher_fields)


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How the views beyond the plain one were made.

    Attributes:
        scale: least share of the image's area that a random resized crop keeps; 1 crops as the tower does.
        flip: chance of being mirrored.
        jitter: most relative change of brightness, contrast and saturation.
        grayscale: chance of losing all colour.
        seed: with row and view fixes all of it.
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
    """The metadata of a cache, as kept in the root group's attributes."""

    state: State
    encoder: EncoderInfo
    source: SourceInfo
    appended: list[SourceInfo] = field(default_factory=list)
    merged: bool = False  # of several caches, so that no pass makes its chunks
    num_views: int = 1
    augmentation: Augmentation | None = None
    teacher_sha256: str | None = None
    num_pictures: int = 0
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
    arrays: list[str] | None = None  # names of all but those of tokens; older caches do not tell
    format_version: int = FORMAT_VERSION

    @property
    def is_laid_out(self) -> bool:
        """Whether its arrays stand as the other fields say: not while they are planned or changed for more rows."""
        return self.state not in NOT_LAID_OUT

    @property
    def sources(self) -> list[SourceInfo]:
        """All sources, in the order of their rows; one that brought nothing new has none."""
        return [self.source, *self.appended]

    @property
    def maker(self) -> str | None:
        """What makes lost chunks anew when it is run again; None where nothing makes all of them."""
        kinds = {source.kind for source in self.sources}
        if self.merged or (self.appended and IMPORTED in kinds):
            return None
        if IMPORTED in kinds:
            return "its `clipglot import` command"
        return "its `clipglot cache` command" if kinds <= SOURCE_KINDS else "your program"

    @property
    def is_made_by_commands(self) -> bool:
        """Whether `clipglot cache` commands make all of its chunks."""
        return not self.merged and {source.kind for source in self.sources} <= SOURCE_KINDS

    def to_attributes(self) -> dict[str, Any]:
        """The JSON form that is written to the group's attributes."""
        return asdict(self) | {"status_names": {str(s.value): s.label for s in Status}}

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, Any], where: str) -> "CacheInfo":
        """Read the JSON form back.

        Raises:
            CacheError: no clipglot cache, one of another format, or damaged.
        """
        if ATTRIBUTE not in attributes:
            raise CacheError(f"{where} is a Zarr group but no clipglot cache (attribute {ATTRIBUTE!r} is absent)")
        found = attributes[ATTRIBUTE]
        if not isinstance(found, dict):
            raise CacheError(f"{where} has damaged metadata ({ATTRIBUTE!r} is {found!r:.40}): cache again")
        found = {name: value for name, value in found.items() if name != "status_names"}
        version = found.get("format_version")
        if version != FORMAT_VERSION:
            raise CacheError(
                f"{where} has cache format {version}, this clipglot reads format {FORMAT_VERSION}: "
                "install the clipglot version that wrote it, or cache again"
            )
        try:
            encoder, source = EncoderInfo(**found.pop("encoder")), SourceInfo(**found.pop("source"))
            appended = [SourceInfo(**further) for further in found.pop("appended", [])]
            augmentation = Augmentation(**given) if (given := found.pop("augmentation", None)) else None
            info = cls(encoder=encoder, source=source, appended=appended, augmentation=augmentation, **found)
            if info.state not in get_args(State):
                raise ValueError(f"state is {info.state!r}")
            if info.decoding not in get_args(Decoding):
                raise ValueError(f"decoding is {info.decoding!r}")
            if info.arrays is not None and not all(isinstance(name, str) for name in info.arrays):
                raise ValueError(f"arrays are {info.arrays!r}")
            sizes = {name: getattr(info, name) for name in ("num_views", "num_pictures", "chunk_rows", "batch_size")}
            if not all(type(size) is int for size in (*sizes.values(), info.num_captions)):
                raise ValueError(f"sizes are {sizes}, num_captions is {info.num_captions!r}")
            if info.state != "planning" and min(sizes.values()) < 1:
                raise ValueError(f"sizes are {sizes}")
        except (KeyError, TypeError, ValueError) as error:
            raise CacheError(f"{where} has damaged metadata ({error}): cache again") from error
        return info


def is_language_tag(tag: object) -> bool:
    """Whether it has the form of a tag of BCP 47.

    >>> [tag for tag in ("zh", "pt-BR", "zh-Hant-TW", "Chinese (simplified)", "r", 3) if is_language_tag(tag)]
    ['zh', 'pt-BR', 'zh-Hant-TW']
    """
    return isinstance(tag, str) and LANGUAGE_TAG.fullmatch(tag) is not None


def _as_json(value: Any) -> Any:
    """Tuples as lists, as JSON gives them back."""
    if isinstance(value, Mapping):
        return {k: _as_json(v) for k, v in value.items()}
    return [_as_json(v) for v in value] if isinstance(value, list | tuple) else value


def plan_chunk_rows(num_pictures: int, dim: int, batch_size: int) -> int:
    """Rows of one embedding chunk: about `CHUNK_BYTES`, fewer in a small cache, always whole batches.

    >>> plan_chunk_rows(3_700_000, 512, 64)
    16384
    >>> plan_chunk_rows(1_000, 512, 64)
    64
    """
    full = CHUNK_BYTES // (2 * dim)
    wanted = min(full, -(-num_pictures // MIN_CHUNKS))
    return max(1, -(-wanted // batch_size)) * batch_size
