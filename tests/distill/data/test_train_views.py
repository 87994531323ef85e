"""Training on stored views: sampling, reading, and resuming with the same number of views."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clipglot.cache.read.cache import Cache
from clipglot.distill.data.batch_sampler import BatchSampler
from clipglot.distill.data.image_embeddings import OnDevice, open_images
from clipglot.distill.data.shuffle import ChunkShuffle
from clipglot.distill.errors import DistillError
from clipglot.distill.train_settings import EmbeddingSettings
from clipglot.distill.training.final import load_final
from clipglot.distill.training.run_folder import RunFolder
from clipglot.distill.training.setup import build_run
from clipglot.distill.training.train import train
from clipglot.jobs.export import export_run
from clipglot.jobs.settings.export import ExportSettings
from support.run_logs import logged
from support.runs import settings, stop_at

CPU = torch.device("cpu")
CAPTION_IMAGE = np.repeat(np.arange(400), 2)


@pytest.fixture(scope="module")
def viewed(manifest: Path, make_cache: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sealed cache of `manifest` with three views. Read only."""
    cache = tmp_path_factory.mktemp("viewed") / "cache.zarr"
    make_cache(manifest, cache, views=3)
    return cache


@pytest.fixture(scope="module")
def viewed_run(viewed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("viewed") / "run"
    train(settings(viewed, run))
    return run


def assert_same_run(ours: Path, theirs: Path) -> None:
    assert logged(ours) == logged(theirs)
    expected = load_final(RunFolder(theirs)).tower.state_dict()
    assert all(torch.equal(t, expected[name]) for name, t in load_final(RunFolder(ours)).tower.state_dict().items())


def drawn(sampler: BatchSampler, epoch: int) -> dict[int, int]:
    """The view of each image in an epoch."""
    batches = [sampler.batch(epoch, index) for index in range(len(sampler))]
    return {row: view for b in batches for row, view in zip(b.rows.tolist(), b.views.tolist(), strict=True)}


def test_the_view_of_an_image_depends_on_the_epoch_and_not_on_batches() -> None:
    sampler = BatchSampler(CAPTION_IMAGE, batch_size=8, seed=3, num_views=4)
    draws = [drawn(sampler, epoch) for epoch in range(12)]
    assert drawn(BatchSampler(CAPTION_IMAGE, batch_size=100, seed=3, num_views=4), 5) == draws[5]
    several = BatchSampler(CAPTION_IMAGE, batch_size=8, seed=3, num_views=4, captions_per_image=2)
    assert drawn(several, 5) == draws[5]
    assert drawn(BatchSampler(CAPTION_IMAGE, batch_size=8, seed=4, num_views=4), 5) != draws[5]
    table = np.array([[draw[row] for row in range(400)] for draw in draws])  # [epochs, N]
    for view in range(4):
        assert 0.2 < (table == view).mean() < 0.3
        assert 0.2 < (table[1:][table[:-1] == view] == view).mean() < 0.3  # no memory of the epoch before
        assert 0.2 < (table[:, 1:][table[:, :-1] == view] == view).mean() < 0.3  # nor of the image before


def test_all_images_of_a_chunk_have_the_same_view() -> None:
    chunk_shuffle = ChunkShuffle(chunk_rows=50, pool_chunks=2)
    sampler = BatchSampler(CAPTION_IMAGE, batch_size=40, seed=0, num_views=3, chunk_shuffle=chunk_shuffle)
    seen = set()
    for epoch in range(4):
        draw = drawn(sampler, epoch)
        of_chunk = {chunk: {draw[row] for row in range(50 * chunk, 50 * chunk + 50)} for chunk in range(8)}
        assert all(len(views) == 1 for views in of_chunk.values())
        seen |= set(draw.values())
        for index in range(len(sampler)):
            batch = sampler.batch(epoch, index)
            near = sampler.chunks_near(epoch, index, is_last=False)
            assert set(zip(batch.views.tolist(), (batch.rows // 50).tolist(), strict=True)) <= set(near)
    assert seen == {0, 1, 2}


@pytest.mark.parametrize("where", ["device", "mapped", "chunks"])
def test_a_step_has_the_sampled_views_and_plain_negatives(viewed: Path, tmp_path: Path, where: str) -> None:
    given = settings(viewed, tmp_path, embeddings=where, buffer_gb=1e-6, negatives="0" if where == "chunks" else "9")
    cache = Cache(viewed)
    emb = torch.from_numpy(np.stack([cache.image_emb(view) for view in range(3)])).float()
    loader, views = build_run(given, CPU).loader, set()
    for step, host_batch in enumerate(loader.batches(0, 2 * loader.steps_per_epoch)):
        epoch, index = divmod(step, loader.steps_per_epoch)
        batch = loader.sampler.batch(epoch, index)
        views |= set(batch.views.tolist())
        targets = host_batch.to(CPU).targets
        assert torch.equal(targets.image_emb, emb[batch.views, batch.rows])
        if loader.negatives is not None:
            assert targets.bank is not None
            rows = loader.negatives.draw(epoch, index, batch, batch.captions).rows
            assert torch.equal(targets.bank.emb.float(), emb[0, rows])
    assert (loader.negatives is None) == (where == "chunks")
    loader.close()
    assert views == {0, 1, 2}


def test_all_negatives_are_the_plain_views(viewed: Path) -> None:
    source = open_images(Cache(viewed), EmbeddingSettings(embeddings="device"), CPU)
    assert isinstance(source, OnDevice)
    rows = np.arange(40)
    plain = torch.from_numpy(Cache(viewed).image_emb())
    assert torch.equal(source.subset(rows), plain)
    assert torch.equal(source.subset(rows[::3]), plain[::3])


def test_mapped_views_give_the_same_run_and_resume_exactly(
    viewed: Path, viewed_run: Path, tiny_run: Path, tmp_path: Path
) -> None:
    broken = settings(viewed, tmp_path / "run", embeddings="mapped")
    assert not train(broken, on_progress=stop_at(11)).complete
    assert train(broken, resume=True).complete
    assert_same_run(tmp_path / "run", viewed_run)


def test_chunks_of_views_train_and_resume_exactly(viewed: Path, tmp_path: Path) -> None:
    chunk_gb = 2 * 8 * 16 / 1e9
    straight = settings(viewed, tmp_path / "straight", embeddings="chunks", buffer_gb=6 * chunk_gb, batch_size=4)
    train(straight)
    broken = replace(straight, output=tmp_path / "broken")
    assert not train(broken, on_progress=stop_at(13)).complete
    assert train(broken, resume=True).complete
    assert_same_run(tmp_path / "broken", tmp_path / "straight")


def test_one_view_gives_the_run_of_a_cache_without_views(
    viewed: Path, viewed_run: Path, tiny_cache: Path, tmp_path: Path
) -> None:
    train(settings(tiny_cache, tmp_path / "plain", val=tiny_cache))
    train(settings(viewed, tmp_path / "one", val=viewed, views="1"))
    assert_same_run(tmp_path / "one", tmp_path / "plain")
    assert logged(viewed_run) != logged(tmp_path / "plain")
    with pytest.raises(DistillError, match=r"--views 4: .*cache\.zarr has 3: run its `clipglot cache` command again"):
        train(settings(viewed, tmp_path / "four", views="4"))


def test_a_run_resumes_with_its_number_of_views_if_the_cache_has_more(
    viewed: Path, viewed_run: Path, manifest: Path, make_cache: Callable[..., Any], tmp_path: Path
) -> None:
    cache = Path(shutil.copytree(viewed, tmp_path / "cache.zarr"))
    given = settings(cache, tmp_path / "run")
    assert not train(given, on_progress=stop_at(11)).complete
    make_cache(manifest, cache, views=4)
    with pytest.raises(DistillError, match="begun on 3 stored views an image, now there are 4: pass --views 3"):
        train(given, resume=True)
    assert train(replace(given, views="3"), resume=True).complete
    assert_same_run(tmp_path / "run", viewed_run)
    exported = export_run(ExportSettings(run=tmp_path / "run", output=tmp_path / "merged"))
    assert exported.num_probes == 8


def test_views_with_another_augmentation_are_another_cache(
    viewed: Path, manifest: Path, make_cache: Callable[..., Any], tmp_path: Path
) -> None:
    given = settings(viewed, tmp_path / "run")
    assert not train(given, on_progress=stop_at(5)).complete
    make_cache(manifest, tmp_path / "other.zarr", views=3, augment_scale=0.9)
    with pytest.raises(DistillError, match="begun on another cache"):
        train(replace(given, cache=tmp_path / "other.zarr"), resume=True)
