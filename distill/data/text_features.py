"""Features that a frozen language model gives the captions of a cache: computed once, then read by row.

M captions, W features of each, b captions of a read.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ...cache.errors import DamagedCacheError, Fault
from ...cache.progress import OnProgress, Progress, ignore_progress
from ...cache.read.cache import Cache
from ...cache.read.caption_sets import CaptionOrigin, ChosenCaptions
from ...cache.storage import feature_arrays, token_arrays
from ...cache.storage.mmap import MmapRows
from ...encoders.packing import PooledCaptions
from ...encoders.text_lm import LMHead
from ..device import Precision, autocast
from ..errors import DistillError
from .image_embeddings import EmbeddingSource, HostRows, OnDevice, OnHost, copy_to_device, fits_in_memory
from .tokens import CAPTIONS_PER_BLOCK, Tokens, TokenTable

CAPTIONS_AT_A_TIME = {"cpu": 256, "cuda": 2048}
NUM_PROBES = 8  # captions that are computed again before stored features are trusted
MIN_COSINE = 0.999  # of a probe; bfloat16 on one device and float32 on another stay above it


@dataclass(frozen=True, slots=True)
class HostFeatures:
    """Features of a micro-batch, read ahead of the step."""

    rows: HostRows

    def to(self, device: torch.device, non_blocking: bool = False) -> PooledCaptions:
        """Features on the device, as a head takes them."""
        return PooledCaptions(pooled=self.rows.to(device, non_blocking=non_blocking).float())


class TextFeatures:
    """Features of all captions of a cache, on the device where they fit, else mapped from disk."""

    def __init__(self, stored: Sequence[MmapRows], device: torch.device, origin: CaptionOrigin | None = None) -> None:
        """Take mapped features.

        Args:
            stored: `[m, W] float16` of each set of captions.
            device: where they are needed.
            origin: of each caption, where there are several sets.
        """
        self._stored, self._origin = stored, origin
        self._source: EmbeddingSource | None = None
        num, width = sum(map(len, stored)), stored[0].shape[1]
        if fits_in_memory(2 * num * width, device):
            tables = [copy_to_device([rows], feature_arrays.CHUNK_ROWS, device) for rows in stored]
            self._source = OnDevice(tables[0] if len(tables) == 1 else torch.cat(tables, 1))
        self._from_host = OnHost([self.take], device)
        self._starts = np.cumsum([0, *map(len, stored)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, captions: NDArray[np.int64]) -> HostFeatures:
        """Features of some captions, `[b, W]`, as far as the host can read them ahead of the step."""
        if self._source is None:
            return HostFeatures(self._from_host.read(captions))
        if self._origin is not None:
            captions = self._starts[self._origin.part[captions]] + self._origin.place[captions]
        return HostFeatures(self._source.read(captions))

    def take(self, captions: NDArray[np.int64]) -> NDArray[np.float16]:
        """Features of some captions, `[b, W]`, on the host."""
        if self._origin is None:
            return self._stored[0].take(captions)
        features = np.empty((len(captions), self._stored[0].shape[1]), np.float16)
        for part, at, places in self._origin.split(captions):
            features[at] = self._stored[part].take(places)
        return features


def open_features(
    cache: Cache,
    tokens: Tokens,
    head: LMHead,
    fingerprint: str,
    precision: Precision,
    device: torch.device,
    fallback: Path,
    *,
    on_progress: OnProgress = ignore_progress,
) -> TextFeatures:
    """Features of all captions of a cache; those that are not stored yet are computed now.

    Args:
        cache: that holds the captions; the features of each set are stored beside its tokens.
        tokens: of its captions.
        head: whose frozen model gives the features.
        fingerprint: of tokenizer and context length.
        precision: of the model's forward.
        device: of that forward, and of the features.
        fallback: folder for features of this cache alone, if the cache cannot be written or is not a local folder.
        on_progress: called while features are computed.

    Raises:
        CacheError: features are damaged or not those of this model, or there is no room to write.
        DistillError: the model gives features that float16 cannot hold.
    """
    given = (head, fingerprint, precision, device)
    if isinstance(tokens, TokenTable):
        return TextFeatures([_open_stored(cache, tokens, *given, fallback, on_progress)], device)
    assert isinstance(cache, ChosenCaptions), "of whose sets the tokens are"
    stored = [
        _open_stored(part, table, *given, fallback / part.caption_names[0], on_progress)
        for part, table in zip(cache.parts, tokens.tables, strict=True)
    ]
    return TextFeatures(stored, device, tokens.origin)


def _open_stored(
    cache: Cache,
    tokens: TokenTable,
    head: LMHead,
    fingerprint: str,
    precision: Precision,
    device: torch.device,
    fallback: Path,
    on_progress: OnProgress,
) -> MmapRows:
    """Features of the captions of one set, mapped."""
    description = {
        **head.feature_identity,
        "tokenizer": fingerprint,
        "captions_sha256": tokens_sha256(tokens),
        "precision": precision,
    }
    name, size = feature_arrays.group_name(description), (len(tokens), head.whole.pooled_width)
    in_cache = [cache.tokens_folder] if cache.tokens_folder else []
    group = next((folder / name for folder in (*in_cache, fallback) if (folder / name).exists()), None)
    if group is None:
        group = next(filter(token_arrays.can_write, in_cache), fallback) / name
    elif (
        group.is_dir()
        and not token_arrays.can_write(group)
        and feature_arrays.num_written(group, description, *size) < len(tokens)
    ):
        group = fallback / name
    done = num_stored = feature_arrays.num_written(group, description, *size)
    embed = _Embedder(head, tokens, precision, device)

    def compute(rows: slice) -> NDArray[np.float16]:
        nonlocal done
        captions = np.arange(rows.start, rows.stop)
        pooled = embed(captions, lambda now: on_progress(Progress("features", done + now, len(tokens))))
        done += rows.stop - rows.start
        return pooled

    if num_stored < len(tokens):
        feature_arrays.write_features(group, description, *size, compute)
    stored = feature_arrays.map_features(group, description, *size)
    if num_stored:  # perhaps by a stranger
        probes = np.unique(np.linspace(0, len(tokens) - 1, NUM_PROBES).astype(np.int64))
        _require_close(stored.take(probes), embed(probes), group)
    embed.leave_device()
    return stored


class _Embedder:
    """The frozen model, which moves to the device only where something must be computed."""

    def __init__(self, head: LMHead, tokens: TokenTable, precision: Precision, device: torch.device) -> None:
        self._tower, self._tokens, self._device = head.whole, tokens, device
        self._autocast = autocast(precision, device)

    @torch.inference_mode()
    def __call__(
        self, captions: NDArray[np.int64], on_done: Callable[[int], None] = lambda done: None
    ) -> NDArray[np.float16]:
        """Features `[b, W]` of captions, packed without padding, in the order given.

        Raises:
            DistillError: a feature that float16 cannot hold.
        """
        tower = self._tower
        tower.transformer.to(self._device).eval()
        result = np.empty((len(captions), tower.pooled_width), np.float16)
        # By length, so that a model that takes one length at a time meets few of them.
        lengths = self._tokens.gather(captions)[1]
        order, done = np.argsort(lengths, kind="stable"), 0
        size = CAPTIONS_AT_A_TIME.get(self._device.type, 256)
        for positions in np.split(order, range(size, len(order), size)):
            packed = tower.pack(*self._tokens.gather(captions[positions])).to(self._device)
            with self._autocast:
                pooled = tower.pooled(packed).half()
            if not pooled.isfinite().all():
                raise DistillError(
                    f"{tower.config.name} gives a caption features beyond float16: pass --text-features live, or other "
                    "--text-layers"
                )
            result[positions] = pooled.cpu().numpy()
            done += len(positions)
            on_done(done)
        return result

    def leave_device(self) -> None:
        """Free the device's memory."""
        self._tower.transformer.to("cpu")


def tokens_sha256(tokens: TokenTable) -> str:
    """Digest of the ids of all captions."""
    digest = hashlib.sha256(len(tokens).to_bytes(8, "little"))
    for start in range(0, len(tokens), CAPTIONS_PER_BLOCK):
        ids, lengths = tokens.gather(np.arange(start, min(start + CAPTIONS_PER_BLOCK, len(tokens))))
        digest.update(lengths.astype("<i8").tobytes())
        digest.update(ids.astype("<i8").tobytes())
    return digest.hexdigest()


def _require_close(stored: NDArray[np.float16], computed: NDArray[np.float16], group: Path) -> None:
    """Refuse stored features that the model does not give.

    Raises:
        DamagedCacheError: they point elsewhere.
    """
    ours, theirs = (each.astype(np.float64) for each in (stored, computed))
    norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    cosine = float(((ours * theirs).sum(1) / np.maximum(norms, 1e-12)).min())
    if not cosine >= MIN_COSINE:
        raise DamagedCacheError(
            Fault(
                f"{group}: the features of a caption have cosine {cosine:.4f} with those that the language model gives",
                f"delete {group}: training writes it again",
            )
        )
