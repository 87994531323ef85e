"""The caching pass: missing chunks are decoded, embedded and written; when none is missing, the cache is sealed.

The batches of a chunk depend on its images alone, so a resumed pass writes the same bytes as an undisturbed one.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from ..errors import CacheError
from ..read.cache import Cache
from ..read.repair import MAKE_AGAIN
from .absent_images import CHECKED_IMAGES, AllAbsentError, forget_absent, require_some_image
from .chunk_assembly import ChunkAssembler
from .chunk_writer import ChunkWriter, chunk_writer
from .decode_pool import Block, BlockReader, DecodedBlock, DecodePool, ViewNumbers, decode_pool
from .encoder import EncodeImages, ImageEncoder, SynchronousEncoder
from .image_decode import ResizeCrop
from .report import PassReport
from .seal import seal
from .views import MissingViews, missing_views
from .work_sharing import ALONE, Worker, WorkerLease, sharing


def embed_missing(
    cache: Cache,
    encode: EncodeImages | ImageEncoder,
    *,
    reader: BlockReader,
    num_workers: int,
    num_views: int = 1,
    worker: Worker = ALONE,
    on_progress: Callable[[int, PassReport], None] = lambda done, report: None,
) -> PassReport:
    """Embed the missing chunks, then seal the cache; several workers share the chunks.

    An image is decoded once for all its missing views. Each view runs through the tower in batches of its own, of the
    same rows, so that the plain view has the bytes that it would have alone.

    A script that calls this needs `if __name__ == "__main__":` around its own work, because the decoding processes
    import the main module.

    Args:
        cache: a planned cache, open for writing.
        encode: the frozen tower, or a function that computes at once.
        reader: of the images, see `image_reader.reader_of`.
        num_workers: decoding processes.
        num_views: views that the cache shall have; never fewer than it has. Its arrays have room for them.
        worker: this one, of those that share the pass.
        on_progress: called with the images taken in by this pass: after each block of them, and about every second
            while it waits for other workers.

    Raises:
        AllAbsentError: the first images are all absent.
        CacheError: the tower's output has another width than planned, decoding processes die one after another, the
            disk is full, or the cache does not say how its views are made.
    """
    started = time.perf_counter()
    num_views = max(num_views, cache.info.num_views)
    if num_views > 1 and cache.info.augmentation is None:
        raise CacheError(
            f"{cache.path} has no record of how its views are made (zarr.json, augmentation): {MAKE_AGAIN}"
        )
    missing, report = missing_views(cache, num_views), PassReport()
    if missing:
        tower = SynchronousEncoder(encode) if callable(encode) else encode
        try:
            report = _embed(cache, tower, reader, missing, num_workers, num_views, worker, on_progress)
        except AllAbsentError:
            forget_absent(cache)
            raise
    seal(cache, num_views, worker, changed=bool(missing))
    return replace(report, wall_s=time.perf_counter() - started)


def _embed(
    cache: Cache,
    tower: ImageEncoder,
    reader: BlockReader,
    missing: MissingViews,
    num_workers: int,
    num_views: int,
    worker: Worker,
    on_progress: Callable[[int, PassReport], None],
) -> PassReport:
    """Embed the missing chunks."""
    started, others_s = time.perf_counter(), 0.0
    most_views = max(map(len, missing.values()))
    with (
        decode_pool(
            reader,
            ResizeCrop.from_preprocess(cache.info.encoder.preprocess),
            block_rows=cache.info.batch_size,
            num_workers=num_workers,
            max_pixels=cache.info.max_pixels,
            decoding=cache.info.decoding,
            num_views=most_views,
            augmentation=cache.info.augmentation,
        ) as decoder,
        sharing(cache.arrays.store, worker, "embed") as share,
        chunk_writer(cache, share.wrote) as writer,
    ):
        assembler = ChunkAssembler(cache, tower, most_views, writer.submit)

        def report() -> PassReport:
            return PassReport(
                num_pictures=assembler.num_images,
                num_embedded=assembler.num_embedded,
                failed=dict(assembler.failed),
                num_copied=assembler.num_copied,
                num_died=decoder.num_died,
                wall_s=time.perf_counter() - started,
                read_s=decoder.read_s,
                decode_s=decoder.decode_s,
                wait_s=decoder.wait_s,
                others_s=others_s,
                transfer_s=tower.transfer_s,
                forward_s=tower.forward_s,
                tower_s=assembler.tower_s,
                write_s=writer.write_s,
                write_wait_s=writer.wait_s,
            )

        def wait_for_others(waited_s: float) -> None:
            nonlocal others_s
            others_s += waited_s
            on_progress(assembler.num_images, report())

        is_checked = False
        for block in _decoded_blocks(cache, decoder, assembler, writer, share, num_views, wait_for_others):
            assembler.add(block)
            writer.raise_early()
            so_far = report()
            if not is_checked and so_far.num_pictures >= CHECKED_IMAGES:
                require_some_image(cache, reader, missing, so_far)
                is_checked = True
            share.note(so_far.num_pictures, so_far.wall_s, so_far.bottleneck)
            on_progress(so_far.num_pictures, so_far)
    return report()


def _decoded_blocks(
    cache: Cache,
    decoder: DecodePool,
    assembler: ChunkAssembler,
    writer: ChunkWriter,
    share: WorkerLease,
    num_views: int,
    on_wait: Callable[[float], None],
) -> Iterator[DecodedBlock]:
    """The blocks of this worker's chunks, decoded, until no chunk is missing."""
    while share.has_more(lambda: missing_views(cache, num_views), on_wait):
        yield from decoder.decode(_blocks(cache, share.chunks(lambda: missing_views(cache, num_views))))
        assembler.finish()
        writer.join()


def _blocks(cache: Cache, chunks: Iterable[tuple[int, ViewNumbers]]) -> Iterator[Block]:
    """The blocks of some chunks, a batch each; the keys of one chunk are in memory."""
    for chunk, views in chunks:
        rows = cache.chunk_slice(chunk)
        if 0 in views:  # rows before an appended source are kept, even if another worker has just finished the chunk
            rows = slice(cache.appended_row(chunk) or rows.start, rows.stop)
        keys, locators = cache.keys(rows.start, rows.stop), cache.locators(rows.start, rows.stop)
        for offset in range(0, len(keys), cache.info.batch_size):
            batch = slice(offset, offset + cache.info.batch_size)
            yield Block(rows.start + offset, keys[batch], None if locators is None else locators[batch], views)
