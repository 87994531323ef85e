"""`clipglot inspect`: what a cache contains, what failed, and how far its pass is."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from time import sleep
from typing import Any

from ..cache.format import CaptionSetInfo, Status
from ..cache.location import Location, is_hdf5
from ..cache.read.cache import Cache, Failure
from ..cache.read.caption_sets import CaptionSet
from ..cache.read.preview import CaptionedImage, sample_captioned_images
from ..cache.storage.atomic import PARTIAL
from ..cache.storage.local import ZARR_JSON
from ..cache.storage.open import store_at
from ..cache.write.text_targets import TextTargetStatus, missing_text_target_chunks
from ..cache.write.views import count_repeats, num_begun, num_chunks_done
from .captions import set_to_json
from .settings.inspect import InspectSettings

POLL_S = 3.0  # between two looks at a pass


@dataclass(frozen=True)
class CacheContents:
    """What a cache contains; each count is read from the cache when it is first needed."""

    cache: Cache

    @cached_property
    def num_by_status(self) -> dict[Status, int]:
        """Images of each status."""
        return self.cache.count_status()

    @property
    def num_failed(self) -> int:
        """Images that were tried and not embedded."""
        return sum(num for status, num in self.num_by_status.items() if status > Status.EMBEDDED)

    @cached_property
    def num_by_language(self) -> dict[str, int]:
        """Captions of each language, where the source tells it."""
        return self.cache.count_languages()

    @cached_property
    def caption_sets(self) -> list[tuple[CaptionSetInfo, dict[str, int]]]:
        """Further sets of captions, each with its captions of each language."""
        sets = self.cache.arrays.caption_sets()
        return [(info, CaptionSet(self.cache.arrays, info).count_languages()) for info in sets]

    @cached_property
    def num_views_begun(self) -> int:
        """Views that the cache has or that a pass has begun to add."""
        return num_begun(self.cache)

    @cached_property
    def num_repeated_views(self) -> int:
        """Further views that repeat the plain one because the image could not be read again."""
        return count_repeats(self.cache) if self.cache.info.num_views > 1 else 0

    @cached_property
    def num_taught(self) -> int:
        """Captions with an embedding of the text teacher; 0 while the cache is not sealed."""
        if not self.cache.info.source.has_teacher or self.cache.info.state != "sealed":
            return 0
        return int((self.cache.teacher_status() == TextTargetStatus.EMBEDDED).sum())

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        info = self.cache.info
        return {
            "path": str(self.cache.path),
            "state": info.state,
            "num_pictures": info.num_images,
            "num_captions": info.num_captions,
            "dropped_captions": info.dropped_captions,
            "left_out": info.left_out,
            "languages": self.num_by_language,
            "caption_sets": [set_to_json(info, languages) for info, languages in self.caption_sets],
            "num_views": info.num_views,
            "num_duplicates": info.num_duplicates,
            "augmentation": asdict(info.augmentation) if info.augmentation else None,
            "dim": info.encoder.dim,
            "chunk_rows": info.chunk_rows,
            "decoding": info.decoding,
            "status": {status.label: num for status, num in self.num_by_status.items()},
            "encoder": asdict(info.encoder),
            "source": asdict(info.source),
            "appended": [asdict(source) for source in info.appended],
            "libraries": info.libraries,
            "teacher_sha256": info.teacher_sha256,
        }


@dataclass(frozen=True, kw_only=True)
class PassState:
    """How far a pass is, as the store says.

    Attributes:
        state: of the cache.
        chunks_done: stored, in all views that are begun.
        num_chunks: of all.
        captions_left: chunks of captions that a teacher has still to embed.
    """

    state: str
    chunks_done: int
    num_chunks: int
    captions_left: int

    @classmethod
    def of(cls, cache: Cache) -> "PassState":
        """The state of a cache that was just opened."""
        is_laid_out = cache.info.is_laid_out
        has_teacher = cache.info.source.has_teacher and is_laid_out
        return cls(
            state=cache.info.state,
            chunks_done=num_chunks_done(cache),
            num_chunks=cache.num_chunks if is_laid_out else 0,
            captions_left=len(missing_text_target_chunks(cache)) if has_teacher else 0,
        )

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to do."""
        return self.state == "sealed" and self.chunks_done == self.num_chunks

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "state": self.state,
            "chunks_done": self.chunks_done,
            "num_chunks": self.num_chunks,
            "caption_chunks_left": self.captions_left,
        }


@dataclass(frozen=True, kw_only=True)
class InspectReport:
    """A cache as it is now.

    Attributes:
        contents: what it contains.
        pass_state: how far its pass is.
        num_uncaptioned: images without a caption.
        pairs: a few images with their first caption.
        failures: the first images that were not embedded.
    """

    contents: CacheContents
    pass_state: PassState
    num_uncaptioned: int
    pairs: list[CaptionedImage]
    failures: list[Failure]

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        failures = [{"row": f.row, "key": f.key, "status": f.status.label} for f in self.failures]
        return (
            self.contents.to_json()
            | self.pass_state.to_json()
            | {"num_uncaptioned": self.num_uncaptioned, "pairs": [asdict(pair) for pair in self.pairs]}
            | {"failures": failures}
        )


def inspect_cache(settings: InspectSettings) -> InspectReport:
    """Describe a cache, sealed or not.

    Raises:
        CacheError: no cache, one whose plan was cut short, or damage.
    """
    cache = Cache(settings.cache)
    cache.require_laid_out()
    num_listed = None if settings.failures < 0 else settings.failures
    failures = list(islice(cache.failures(), num_listed)) if num_listed != 0 else []
    pairs, num_uncaptioned = sample_captioned_images(cache, settings.pairs)
    return InspectReport(
        contents=CacheContents(cache),
        pass_state=PassState.of(cache),
        num_uncaptioned=num_uncaptioned,
        pairs=pairs,
        failures=failures,
    )


def watch_pass(location: Location) -> Iterator[PassState | None]:
    """The states of a pass, every few seconds, until it is over; None while no `clipglot cache` command has begun it.

    Raises:
        CacheError: no cache there, or a store that refuses.
    """
    while not _is_begun(location):
        yield None
        sleep(POLL_S)
    while True:
        yield (state := PassState.of(Cache(location)))
        if state.is_over:
            return
        sleep(POLL_S)


def _is_begun(location: Location) -> bool:
    """Whether a cache stands there, though its plan may not be whole. A pass makes no file, so a file is a cache."""
    if isinstance(location, Path) and is_hdf5(location):
        return True
    names = store_at(location, read_only=True).names("")
    return ZARR_JSON in names or not all(name.endswith(PARTIAL) for name in names)  # anything else there is refused
