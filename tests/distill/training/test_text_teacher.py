"""Training with a text teacher: with images or alone, resumed, and from a cache at a URL."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from clipglot.cache.format import TEACHER_EMB
from clipglot.cache.location import to_location
from clipglot.cache.read.cache import Cache
from clipglot.cache.read.verify import verify
from clipglot.distill.data.targets import Targets
from clipglot.distill.errors import DistillError
from clipglot.distill.losses.objective import Objective
from clipglot.distill.losses.text_teacher import text_teacher_loss
from clipglot.distill.train_settings import LossSettings
from clipglot.distill.training.run_folder import RunFolder
from clipglot.distill.training.setup import build_run
from clipglot.distill.training.train import train
from support.run_logs import logged
from support.runs import stop_at
from support.translated_scenes import settings

CPU = torch.device("cpu")


def test_a_text_teacher_alone_gives_image_retrieval(translated_caches: dict[str, Path], tmp_path: Path) -> None:
    """Captions retrieve held-out images although training uses no image embedding."""
    alone = train(
        settings(translated_caches["train"], tmp_path / "run", val=translated_caches["val"], teacher_weight=1.0)
    )
    assert alone.validation is not None
    assert alone.validation["r_at_10"] > 0.8
    assert alone.findings == []
    losses = [line["loss"] for line in logged(tmp_path / "run") if "loss" in line]
    assert losses[-1] < 0.3 * losses[0]


def test_the_loss_is_weighted_by_teacher_weight(translated_caches: dict[str, Path], tmp_path: Path) -> None:
    first = {}
    for weight in (0.0, 0.25, 1.0):
        run = tmp_path / str(weight)
        train(settings(translated_caches["mixed"], run, teacher_weight=weight, epochs=1, temperature=0.07))
        first[weight] = next(line["loss"] for line in RunFolder(run).metrics() if "loss" in line)
    assert first[0.25] == pytest.approx(0.75 * first[0.0] + 0.25 * first[1.0], rel=1e-5)


@pytest.mark.parametrize("loss", ["infonce", "siglip", "mse"])
def test_the_teacher_loss_and_its_gradient_equal_the_dense_form(loss: Any) -> None:
    torch.manual_seed(0)
    features = torch.randn(5, 8, dtype=torch.double, requires_grad=True)
    image_emb, teacher_emb = (F.normalize(torch.randn(5, 8, dtype=torch.double), dim=-1) for _ in range(2))
    teacher_emb[1] = 0
    targets = Targets(image_emb=image_emb, own=slice(0, 5), teacher_emb=teacher_emb)
    text_emb = F.normalize(features, dim=-1)
    has = torch.tensor([0, 2, 3, 4])
    plain = (text_emb[has] - teacher_emb[has]).square().sum(1).sum() / 2 / 5
    assert text_teacher_loss(text_emb, targets).item() == pytest.approx(plain.item())
    given = LossSettings(loss=loss, temperature=0.07)
    image = Objective(given).double()(features, targets)
    mixed = Objective(replace(given, teacher_weight=0.3)).double()(features, targets)
    grad, expected = (
        torch.autograd.grad(x, features, retain_graph=True)[0] for x in (mixed, 0.7 * image + 0.3 * plain)
    )
    torch.testing.assert_close(grad, expected)


@pytest.mark.parametrize("captions_per_picture", [1, 2])
def test_each_caption_is_compared_with_its_own_translation(
    translated_caches: dict[str, Path], tmp_path: Path, captions_per_picture: int
) -> None:
    """The reference is computed from the whole cache; half of the images have no translation, each has weight one."""
    cache = Cache(translated_caches["mixed"])
    given = settings(cache.path, tmp_path, teacher_weight=1.0, captions_per_picture=captions_per_picture)
    captions, image_index, teacher_emb = cache.captions(), cache.caption_image(), torch.from_numpy(cache.teacher_emb())
    setup = build_run(given, CPU)
    tokenizer, student, loader = setup.tokenizer, setup.student, setup.loader
    for step, host_batch in enumerate(loader.batches(0, 2)):
        shown = loader.sampler.batch(*divmod(step, loader.steps_per_epoch)).captions
        assert len(shown) == 64 * captions_per_picture
        text_emb = student.tower.encode(tokenizer.encode([captions[i] for i in shown], given.context_length))
        cosine = F.cosine_similarity(text_emb, teacher_emb[shown].float(), dim=-1)
        taught = (1 - cosine) * torch.from_numpy(image_index[shown] % 2)
        plain = torch.stack(
            [taught[torch.from_numpy(image_index[shown] == row)].mean() for row in np.unique(image_index[shown])]
        )
        batch = host_batch.to(CPU)
        loss = student.loss(student.tower(batch.packed[0]), batch.targets)
        torch.testing.assert_close(loss, plain.mean(), atol=1e-3, rtol=0)


def test_resume_with_a_text_teacher_equals_the_uninterrupted_run(
    translated_caches: dict[str, Path], tmp_path: Path
) -> None:
    straight = settings(translated_caches["mixed"], tmp_path / "straight", teacher_weight=0.5, epochs=3, micro_batch=24)
    train(straight)
    broken = replace(straight, output=tmp_path / "broken")
    train(broken, on_progress=stop_at(7))
    with pytest.raises(DistillError, match=r"teacher_weight = 0\.5, now it is 0\.1"):
        train(replace(broken, teacher_weight=0.1), resume=True)
    assert train(broken, resume=True).complete
    assert logged(tmp_path / "broken") == logged(tmp_path / "straight")


def test_text_targets_at_a_url_give_the_run_of_the_local_cache(
    translated_caches: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsspec.filesystem("memory").put(str(translated_caches["mixed"]), "/taught/mixed.zarr", recursive=True)
    url = to_location("memory://taught/mixed.zarr")
    assert verify(Cache(url)) == []
    assert np.array_equal(Cache(url).teacher_emb(), Cache(translated_caches["mixed"]).mapped(TEACHER_EMB).read())
    near = settings(translated_caches["mixed"], tmp_path / "near", teacher_weight=0.5, epochs=2)
    train(near)
    train(replace(near, cache=url, output=tmp_path / "far"))
    assert logged(tmp_path / "far") == logged(tmp_path / "near")
    monkeypatch.setattr("clipglot.distill.data.image_embeddings.free_bytes", lambda device: 1000)
    with pytest.raises(DistillError, match="more than half of the free memory: copy the cache to a local disk"):
        train(replace(near, cache=url, output=tmp_path / "small", embeddings="device"))
    fsspec.filesystem("memory").rm("/taught/mixed.zarr/teacher/emb/c/0/1/0")
    (fault,) = map(str, verify(Cache(url)))
    assert fault.startswith("teacher/emb/c/0/1/0: absent: upload it again")
