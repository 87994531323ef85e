"""The caching pass: missing chunks are decoded, embedded and written; when none is missing, the cache is sealed.

The batches of a chunk depend on its images alone, so a resumed pass writes the same bytes as an undisturbed one, and so
do several processes that divide the chunks.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace

from ..errors import CacheError
from ..read.cache import Cache
from ..read.repair import MAKE_AGAIN
from .absent_images import CHECKED_IMAGES, AllAbsentError, forget_absent, require_some_image
from .chunk_assembly import ChunkAssembler
from .chunk_writer import chunk_writer
from .decode_pool import Block, BlockReader, DecodePool, ViewNumbers, decode_pool
from .encoder import EncodeImages, ImageEncoder, SynchronousEncoder
from .image_decode import ResizeCrop
from .report import PassReport
from .seal import seal_if_whole
from .shard import WHOLE, Shard
from .views import MissingViews, missing_views

OnReport = Callable[[int, PassReport], None]
"""Called with the images taken in by a pass so far, and its report."""


def embed_missing(
    cache: Cache,
    encode: EncodeImages | ImageEncoder,
    *,
    reader: BlockReader,
    num_workers: int,
    num_views: int = 1,
    shard: Shard = WHOLE,
    on_progress: OnReport = lambda done, report: None,
) -> PassReport:
    """Embed the missing chunks of a shard, then seal the cache if no other chunk is missing.

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
        shard: chunks to embed.
        on_progress: called after each block of images.

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
    missing = {chunk: views for chunk, views in missing_views(cache, num_views).items() if chunk in shard}
    report = PassReport()
    if missing:
        tower = SynchronousEncoder(encode) if callable(encode) else encode
        most_views = max(map(len, missing.values()))
        with (
            stop_if_all_absent(cache, lambda: reader, missing, on_progress) as checked,
            decoder_of(cache, reader, num_workers, most_views) as decoder,
        ):
            report = embed_chunks(cache, tower, decoder, missing, checked)
            if not shard.is_whole and report.num_pictures < CHECKED_IMAGES:  # sealing looks at those of all shards
                require_some_image(cache, lambda: reader, range(cache.num_chunks), report)
    seal_if_whole(cache, num_views, shard, changed=bool(missing))
    return replace(report, wall_s=time.perf_counter() - started)


@contextmanager
def stop_if_all_absent(
    cache: Cache, reader: Callable[[], BlockReader], missing: MissingViews, on_progress: OnReport
) -> Iterator[OnReport]:
    """Yield an `on_progress` that stops a pass whose first images are all absent; the next pass tries them again.

    Args:
        cache: of the pass.
        reader: opens its images, if they have to be looked for.
        missing: chunks of the pass.
        on_progress: called after the check.
    """
    is_checked = False

    def check(done: int, report: PassReport) -> None:
        nonlocal is_checked
        if not is_checked and report.num_pictures >= CHECKED_IMAGES:
            require_some_image(cache, reader, missing, report)
            is_checked = True
        on_progress(done, report)

    try:
        yield check
    except AllAbsentError:
        forget_absent(cache)
        raise


def decoder_of(
    cache: Cache, reader: BlockReader, num_workers: int, num_views: int
) -> AbstractContextManager[DecodePool]:
    """The decoding processes of a pass that makes up to so many views of an image."""
    return decode_pool(
        reader,
        ResizeCrop.from_preprocess(cache.info.encoder.preprocess),
        block_rows=cache.info.batch_size,
        num_workers=num_workers,
        max_pixels=cache.info.max_pixels,
        decoding=cache.info.decoding,
        num_views=num_views,
        augmentation=cache.info.augmentation,
    )


def embed_chunks(
    cache: Cache,
    tower: ImageEncoder,
    decoder: DecodePool,
    missing: MissingViews,
    on_progress: OnReport = lambda done, report: None,
) -> PassReport:
    """Embed and write chunks; tower and decoder may have done others before.

    Raises:
        CacheError: as `embed_missing`.
    """
    started, num_died, *before = time.perf_counter(), decoder.num_died, *_seconds(decoder, tower)
    with chunk_writer(cache) as writer:
        assembler = ChunkAssembler(cache, tower, max(map(len, missing.values())), writer.submit)

        def report() -> PassReport:
            read_s, decode_s, wait_s, transfer_s, forward_s = (
                now - then for now, then in zip(_seconds(decoder, tower), before, strict=True)
            )
            return PassReport(
                num_pictures=assembler.num_images,
                num_embedded=assembler.num_embedded,
                failed=dict(assembler.failed),
                num_copied=assembler.num_copied,
                num_died=decoder.num_died - num_died,
                wall_s=time.perf_counter() - started,
                read_s=read_s,
                decode_s=decode_s,
                wait_s=wait_s,
                transfer_s=transfer_s,
                forward_s=forward_s,
                tower_s=assembler.tower_s,
                write_s=writer.write_s,
                write_wait_s=writer.wait_s,
            )

        for block in decoder.decode(_blocks(cache, missing)):
            assembler.add(block)
            writer.raise_early()
            so_far = report()
            on_progress(so_far.num_pictures, so_far)
        assembler.finish()
        writer.join()
        return report()


def _seconds(decoder: DecodePool, tower: ImageEncoder) -> tuple[float, ...]:
    """What decoder and tower have counted since they began."""
    return decoder.read_s, decoder.decode_s, decoder.wait_s, tower.transfer_s, tower.forward_s


def _blocks(cache: Cache, missing: Mapping[int, ViewNumbers]) -> Iterator[Block]:
    """The blocks of some chunks, a batch each; the keys of one chunk are in memory."""
    for chunk, views in missing.items():
        rows = cache.chunk_slice(chunk)
        if 0 in views:  # rows before an appended source are kept, even if another process has just finished the chunk
            rows = slice(cache.appended_row(chunk) or rows.start, rows.stop)
        keys, locators = cache.keys(rows.start, rows.stop), cache.locators(rows.start, rows.stop)
        for offset in range(0, len(keys), cache.info.batch_size):
            batch = slice(offset, offset + cache.info.batch_size)
            yield Block(rows.start + offset, keys[batch], None if locators is None else locators[batch], views)
