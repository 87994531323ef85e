"""How far a pass is: its chunks and its workers, as they say themselves and as they are seen from here."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from ..cache.location import Location, is_hdf5
from ..cache.read.cache import Cache
from ..cache.storage.atomic import PARTIAL
from ..cache.storage.local import ZARR_JSON
from ..cache.storage.open import store_at
from ..cache.write.text_targets import missing_text_target_chunks
from ..cache.write.views import num_chunks_done
from ..cache.write.work_sharing import SILENT_S, Heartbeat, Liveness, read_signs

POLL_S = 3.0  # between two states


@dataclass(frozen=True, kw_only=True)
class PassState:
    """A pass at one moment.

    Attributes:
        state: of the cache.
        chunks_done: stored, in all views that are begun.
        num_chunks: of all.
        captions_left: chunks of captions that a teacher has still to embed.
        signs: of the workers that have not left.
        silence_s: seconds without a new sign, by worker, as watched from here.
        changed: workers of which a new sign was seen.
    """

    state: str
    chunks_done: int
    num_chunks: int
    captions_left: int
    signs: dict[str, Heartbeat]
    silence_s: dict[str, float]
    changed: set[str]

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to do and no worker is active; a dead worker may have left its sign."""
        living = any(silence < SILENT_S for silence in self.silence_s.values())
        return self.state == "sealed" and not living and self.chunks_done == self.num_chunks

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "state": self.state,
            "chunks_done": self.chunks_done,
            "num_chunks": self.num_chunks,
            "caption_chunks_left": self.captions_left,
            "workers": [
                asdict(sign) | {"seen_alive": name in self.changed, "silent_s": round(self.silence_s[name], 1)}
                for name, sign in self.signs.items()
            ],
        }


def pass_state(cache: Cache, liveness: Liveness | None = None) -> PassState:
    """The pass over a cache that was just opened.

    Args:
        cache: as its metadata are now.
        liveness: of the workers, from the states before; None if this is the first.
    """
    liveness = liveness or Liveness()
    planning = not cache.info.is_laid_out
    signs, now = {} if cache.arrays.is_hdf5 else read_signs(cache.arrays.store), monotonic()
    liveness.look({name: (sign.host, sign.pid, sign.counter) for name, sign in signs.items()}, now)
    return PassState(
        state=cache.info.state,
        chunks_done=num_chunks_done(cache),
        num_chunks=0 if planning else cache.num_chunks,
        captions_left=len(missing_text_target_chunks(cache)) if cache.info.source.has_teacher and not planning else 0,
        signs=signs,
        silence_s={name: liveness.silence_s(name, now) for name in signs},
        changed={name for name in signs if liveness.was_seen_to_change(name)},
    )


def pass_states(location: Location) -> Iterator[PassState]:
    """The states of a pass, every few seconds, until the caller stops; the first comes at once.

    Raises:
        CacheError: no cache there, or a store that refuses.
    """
    liveness = Liveness()
    while True:
        yield pass_state(Cache(location), liveness)
        sleep(POLL_S)


def wait_until_begun(location: Location) -> None:
    """Return when a `clipglot cache` command has begun a cache."""
    while not is_begun(location):
        sleep(POLL_S)


def is_begun(location: Location) -> bool:
    """Whether a cache stands there, though its plan may not be whole. A pass makes no file, so a file is a cache."""
    if isinstance(location, Path) and is_hdf5(location):
        return True
    names = store_at(location, read_only=True).names("")
    return ZARR_JSON in names or not all(name.endswith(PARTIAL) for name in names)  # anything else there is refused
