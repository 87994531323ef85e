"""Planning: a source becomes an empty cache, whose rows and their order are fixed before an image is opened."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from types import MappingProxyType

import zarr

from ..errors import CacheError
from ..format import EMB, FILE, HASH, NORM, STATUS, TEXT_TARGET_ARRAYS, CacheInfo, plan_chunk_rows
from ..location import Location
from ..metadata import with_checksum, write_metadata
from ..read.cache import Cache
from ..sources.source import RowBatch
from ..storage.atomic import PARTIAL
from ..storage.encoding import create_array
from ..storage.local import ZARR_JSON
from ..storage.open import CacheStore, store_at
from ..storage.ragged import RaggedWriter
from ..storage.ragged_bytes import RaggedBytes
from .row_writer import RowWriter
from .text_targets import add_text_target_arrays


def open_planned(path: Location) -> Cache | None:
    """Open a planned cache for writing; None where nothing exists, or only the remains of an interrupted plan.

    A cache to which a source is being appended is planned, because it has its old rows.

    Raises:
        CacheError: `path` is something else, which planning must not replace; or the store refuses.
    """
    names = store_at(path, read_only=True).names("")
    if ZARR_JSON in names:
        cache = Cache(path, read_only=False)
        return None if cache.info.state == "planning" else cache
    if not all(name.endswith(PARTIAL) for name in names):
        raise CacheError(f"{path} exists and is not a cache: choose another -o")
    return None


def is_planned(path: Location) -> bool:
    """Whether `path` is a planned cache; raises as `open_planned`."""
    return open_planned(path) is not None


def plan_cache(
    path: Location,
    batches: Iterable[RowBatch],
    info: CacheInfo,
    *,
    files: Callable[[], Sequence[str]] = list,
    left_out: Mapping[str, int] = MappingProxyType({}),
    chunk_rows: int | None = None,
    hashed: bool = False,
    on_progress: Callable[[int], None] = lambda done: None,
) -> CacheInfo:
    """Lay out a cache: keys, captions and empty embedding arrays.

    An interrupted plan leaves the state "planning" behind and is planned again from the start; one that fails leaves
    nothing.

    Args:
        path: of the cache; absent, or left by an interrupted plan.
        batches: the source's rows, in order. Rows with the same key are one image. With a limit, reading stops after
            the first batch without a caption for the images within it.
        info: encoder, source and batch size; counts and state are filled in here.
        files: called once the rows are read; gives the names of the files that locators count.
        left_out: read once the rows are read; records left out, by flag, and files passed over, by what they are.
        chunk_rows: rows of an embedding chunk; by default about 16 MB, less in a small cache.
        hashed: whether the pass stores a hash of each image's bytes.
        on_progress: called with the number of rows read.

    Returns:
        The metadata as written, in state "planned".

    Raises:
        CacheError: the source has no images or cannot be read (from `batches`), or the disk is full.
    """
    if is_planned(path):
        raise CacheError(f"{path} is planned already")
    if chunk_rows is not None and chunk_rows % info.batch_size:
        raise CacheError(f"chunk rows ({chunk_rows}) must be a multiple of the batch size ({info.batch_size})")
    store = store_at(path, read_only=False)
    try:
        return _lay_out(store, batches, info, files, left_out, chunk_rows, hashed, on_progress)
    except CacheError:
        with suppress(CacheError):  # the remains of a plan do no harm
            store.empty(for_good=True)
        raise


def _lay_out(
    store: CacheStore,
    batches: Iterable[RowBatch],
    info: CacheInfo,
    files: Callable[[], Sequence[str]],
    left_out: Mapping[str, int],
    chunk_rows: int | None,
    hashed: bool,
    on_progress: Callable[[int], None],
) -> CacheInfo:
    store.empty()
    # Metadata and attributes in one write: a kill leaves a folder that is recognised as an unfinished plan.
    root = zarr.create_group(
        store,
        zarr_format=3,
        attributes=with_checksum(replace(info, state="planning", arrays=None).to_attributes()),
    )

    writer, done = RowWriter(root, has_text_targets=info.source.has_teacher, limit=info.source.limit), 0
    for batch in batches:
        is_within = writer.append(batch)
        done += len(batch)
        on_progress(done)
        if not is_within:
            break
    num, num_captions = writer.close()
    if not num:
        by_flag = {flag: count for flag, count in left_out.items() if flag.startswith("-")}
        flags = "".join(f"; {flag} left out {count:,} records" for flag, count in by_flag.items())
        flags += "".join(f"; {count:,} {what}" for what, count in left_out.items() if what not in by_flag)
        raise CacheError(f"{info.source.path}: no images in it{flags}")
    dim, views = info.encoder.dim, info.num_views
    chunk_rows = chunk_rows or plan_chunk_rows(num, dim, info.batch_size)
    create_array(root, EMB, (views, num, dim), (1, chunk_rows, dim), "float16")
    create_array(root, NORM, (views, num), (1, chunk_rows), "float32")
    create_array(root, STATUS, (num,), (chunk_rows,), "uint8")
    if hashed:
        create_array(root, HASH, (num, 2), (chunk_rows, 2), "uint64")
    file_arrays = write_files(root, files())
    if info.source.has_teacher:
        add_text_target_arrays(root, info, num_captions)
    planned = replace(
        info,
        state="planned",
        num_images=num,
        num_captions=num_captions,
        chunk_rows=chunk_rows,
        dropped_captions=dict(writer.dropped),
        left_out=dict(left_out),
        languages=list(writer.codes),
        arrays=[
            EMB,
            NORM,
            STATUS,
            *[HASH] * hashed,
            *writer.names,
            *file_arrays,
            *TEXT_TARGET_ARRAYS * info.source.has_teacher,
        ],
    )
    write_metadata(root, planned)  # last: a plan without it never counts as complete
    return planned


def write_files(root: zarr.Group, names: Sequence[str]) -> list[str]:
    """Write the names of the files that locators count, if any; returns the names of the arrays."""
    if not names:
        return []
    ragged = RaggedWriter(root, FILE)
    ragged.append(RaggedBytes.of([name.encode() for name in names]))
    ragged.close()
    return [f"{FILE}/bytes", f"{FILE}/offsets"]
