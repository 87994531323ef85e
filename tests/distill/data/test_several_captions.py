"""Several captions of an image in one step: loss, gradients and resuming; each image has weight one."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from clipglot.cache.read.cache import Cache
from clipglot.distill.errors import DistillError
from clipglot.distill.training.setup import build_run
from clipglot.distill.training.train import train
from support.dense_losses import plain_infonce
from support.run_logs import logged
from support.runs import settings, stop_at

CPU = torch.device("cpu")


@pytest.mark.parametrize("changes", [{}, {"equal_captions": "positive", "label_smoothing": 0.1}], ids=str)
@pytest.mark.parametrize("captions_per_picture", [1, 2, 9])
def test_the_loss_of_a_step_equals_the_dense_form(
    tiny_cache: Path, tmp_path: Path, captions_per_picture: int, changes: dict[str, Any]
) -> None:
    """The reference is computed from all images and caption texts of the cache."""
    cache = Cache(tiny_cache)
    given = settings(
        tiny_cache, tmp_path, captions_per_picture=captions_per_picture, negatives="12", micro_batch=5, **changes
    )
    captions, image_index, image_emb = (
        cache.captions(),
        cache.caption_image(),
        torch.from_numpy(cache.image_emb()).float(),
    )
    setup = build_run(given, CPU)
    tokenizer, student, loader = setup.tokenizer, setup.student, setup.loader
    num_shared = 0
    for step, host_batch in enumerate(loader.batches(0, 6)):
        epoch, index = divmod(step, loader.steps_per_epoch)
        batch = loader.sampler.batch(epoch, index)
        image = np.arange(len(batch.rows)) if batch.image is None else batch.image
        texts = [captions[i] for i in batch.captions]
        carries = [{captions[i] for i in np.flatnonzero(image_index == row)} for row in range(len(image_emb))]
        equal = torch.tensor([[text in carries[row] for row in batch.rows] for text in texts])
        equal[np.arange(len(texts)), image] = False
        num_shared += int(equal.sum())
        assert loader.negatives is not None
        drawn = loader.negatives.draw(epoch, index, batch, batch.captions).rows
        allowed = [[row not in batch.rows and text not in carries[row] for row in drawn] for text in texts]
        text_emb = F.normalize(student.tower.encode(tokenizer.encode(texts, given.context_length)), dim=-1)
        expected = plain_infonce(
            text_emb.double(),
            image_emb[batch.rows].double(),
            student.loss.logit_scale.exp().double(),
            image=torch.from_numpy(image),
            equal=equal,
            positive="equal_captions" in changes,
            smoothing=given.label_smoothing,
            further=image_emb[drawn].double(),
            allowed=torch.tensor(allowed),
        )
        fed = host_batch.to(CPU)
        features = torch.cat([student.tower(part) for part in fed.packed])
        torch.testing.assert_close(student.loss(features, fed.targets).double(), expected, rtol=1e-4, atol=1e-5)
    assert num_shared, "no caption was shared within a batch"
    loader.close()


@pytest.mark.parametrize("loss", ["infonce", "siglip", "similarity", "mse"])
def test_micro_batches_equal_the_plain_run_up_to_rounding_and_resume_exactly(
    tiny_cache: Path, tmp_path: Path, loss: str
) -> None:
    whole = settings(tiny_cache, tmp_path / "whole", loss=loss, captions_per_picture=3, alignment=0.1)
    train(whole)
    straight = replace(whole, output=tmp_path / "straight", micro_batch=5)
    train(straight)
    ours, theirs = (
        [line["loss"] for line in logged(tmp_path / name) if "loss" in line] for name in ("straight", "whole")
    )
    assert ours == pytest.approx(theirs, rel=2e-3)
    broken = replace(straight, output=tmp_path / "broken")
    assert not train(broken, on_progress=stop_at(9)).complete
    assert train(broken, resume=True).complete
    assert logged(tmp_path / "broken") == logged(tmp_path / "straight")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"captions_per_picture": 0}, "--captions-per-picture 0"),
        ({"captions_per_picture": 2, "uniformity": 0.1}, "drop --captions-per-picture"),
        ({"captions_per_picture": 2, "simcse": 0.1, "dropout": 0.1}, "drop --captions-per-picture"),
        ({"equal_captions": "positive", "loss": "cosine"}, "--equal-captions positive: --loss cosine"),
    ],
)
def test_incompatible_settings_are_refused(wrong: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(DistillError, match=message):
        settings(tmp_path, tmp_path / "run", **wrong)
