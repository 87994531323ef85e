"""`--warm-start ridge`: a run starts at the closed-form fit, resumes exactly, and can fit a part of a cache."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from clipglot.cache.read.cache import Cache
from clipglot.distill.data.image_embeddings import OnDevice
from clipglot.distill.data.pairs import TrainData
from clipglot.distill.data.tokens import TokenTable, group_equal_captions, tokenize
from clipglot.distill.errors import DistillError
from clipglot.distill.training import token_bag
from clipglot.distill.training.final import load_final
from clipglot.distill.training.run_folder import RunFolder
from clipglot.distill.training.token_bag import PENALTIES, SHRINKAGES, TokenBag, fit_bag
from clipglot.distill.training.train import train
from clipglot.encoders.errors import EncoderError
from clipglot.encoders.tokenizer import CaptionTokenizer, train_bpe
from clipglot.evals.retrieval import retrieve
from support.drawings import draw_images
from support.run_logs import logged
from support.runs import settings, stop_at


def fitted(cache: Cache, caption_image: Any) -> tuple[TokenBag, TokenTable, CaptionTokenizer]:
    tokenizer = train_bpe(cache.captions(), 300)
    tokens = tokenize(tokenizer, cache.captions(), 24)
    special = {"pad_id": tokenizer.pad_id, "bos_id": tokenizer.bos_id, "eos_id": tokenizer.eos_id}
    data = TrainData(
        images=OnDevice(torch.from_numpy(cache.image_emb())),
        tokens=tokens,
        caption_image=caption_image,
        caption_group=group_equal_captions(tokens),
    )
    bag = fit_bag(cache, data, vocab_size=tokenizer.vocab_size, **special, device=torch.device("cpu"))
    return bag, tokens, tokenizer


def test_before_the_first_step_a_run_has_the_recall_of_the_closed_form(tiny_cache: Path, tmp_path: Path) -> None:
    train(settings(tiny_cache, tmp_path / "run", val=tiny_cache, warm_start="ridge", context_length=24, epochs=1))
    first = logged(tmp_path / "run")[0]
    assert (first["step"], first["epoch"]) == (0, 0)

    cache = Cache(tiny_cache)
    image_index = cache.caption_image()
    bag, tokens, _ = fitted(cache, image_index)
    text_emb = torch.stack([bag.weights[torch.from_numpy(ids)].sum(0) for ids in tokens.take(np.arange(len(tokens)))])
    text_emb = F.normalize(text_emb + bag.bias, dim=-1)
    ranks = retrieve(text_emb.numpy(), cache.image_emb().astype(np.float32), image_index).report().text_to_image
    assert first["r_at_10"] == pytest.approx(ranks.r_at_10, abs=0.03)  # near ties
    assert first["r_at_10"] > 2 * 10 / 40  # twice chance
    assert bag.alpha in PENALTIES
    assert bag.shrinkage in SHRINKAGES


def test_resume_equals_the_uninterrupted_run(tiny_cache: Path, tmp_path: Path) -> None:
    straight = settings(tiny_cache, tmp_path / "straight", val=tiny_cache, warm_start="ridge", lr=1e-4)
    train(straight)
    for step in (3, 12):
        broken = replace(straight, output=tmp_path / f"broken-{step}")
        train(broken, on_progress=stop_at(step))
        assert train(broken, resume=True).complete
        assert logged(broken.output) == logged(straight.output)
        ours, theirs = (load_final(RunFolder(path)).tower.state_dict() for path in (broken.output, straight.output))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_restarting_before_the_first_checkpoint_gives_the_same_start(tiny_cache: Path, tmp_path: Path) -> None:
    straight = settings(tiny_cache, tmp_path / "straight", val=tiny_cache, warm_start="ridge", epochs=1)
    train(straight)
    broken = replace(straight, output=tmp_path / "broken")

    def die(line: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(broken, on_metrics=die)
    assert [line["step"] for line in logged(broken.output)] == [0]
    train(broken, resume=True)
    assert logged(broken.output) == logged(straight.output)


def test_failed_images_are_not_fitted(tiny_cache: Path) -> None:
    cache = Cache(tiny_cache)
    some = np.where(cache.caption_image() < 20, cache.caption_image(), -1)
    of_some, of_all = fitted(cache, some)[0], fitted(cache, cache.caption_image())[0]
    assert not torch.allclose(of_some.weights, of_all.weights)
    with pytest.raises(DistillError, match="captions of 1 images: --warm-start ridge needs two or more"):
        fitted(cache, np.where(some == 0, some, -1))


def test_a_large_cache_is_sampled_in_whole_chunks(tiny_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(tiny_cache)
    read: list[Any] = []
    monkeypatch.setattr(token_bag, "MAX_CAPTIONS", cache.info.num_captions // 2)
    monkeypatch.setattr(Cache, "emb_rows", lambda self, rows, view=0: (read.append(rows), self.image_emb()[rows])[1])
    bag, _, tokenizer = fitted(cache, cache.caption_image())
    (rows,) = read
    assert cache.num_chunks > 1
    assert 0 < len(rows) < len(cache)
    assert len(rows) % cache.info.chunk_rows == 0
    assert torch.equal(bag.weights[[tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id]], torch.zeros(3, 16))


def test_a_trained_tower_is_not_overwritten(tiny_run: Path, tiny_cache: Path, tmp_path: Path) -> None:
    given = {"tokenizer": None, "width": 512, "layers": 6, "heads": 8, "vocab_size": 16_384, "context_length": 24}
    again = settings(tiny_cache, tmp_path / "run", text=str(tiny_run), warm_start="ridge", **given)
    with pytest.raises(EncoderError, match=r"--warm-start ridge: .* has learned already"):
        train(again)
    with pytest.raises(DistillError, match="--warm-start ridge fits a scratch tower"):
        settings(tiny_cache, tmp_path / "run", text="clip", warm_start="ridge", **given)


@pytest.mark.parametrize("text", ["scratch", "bert"])
def test_images_that_are_all_the_same_are_refused_with_the_cause(
    text: str, lm_settings: Any, make_cache: Callable[..., Any], tmp_path: Path
) -> None:
    manifest = draw_images(tmp_path, 16)
    first = (tmp_path / "images" / "0000.png").read_bytes()
    for file in (tmp_path / "images").iterdir():
        file.write_bytes(first)
    cache = make_cache(manifest, tmp_path / "same.zarr").cache
    given = settings(cache.path, tmp_path / "run") if text == "scratch" else replace(lm_settings, cache=cache.path)
    with pytest.raises(DistillError, match=r"same\.zarr: all 16 images .* same embedding.*drop --warm-start"):
        train(replace(given, warm_start="ridge"))
    assert not given.output.exists()


def test_captions_that_are_all_the_same_are_refused_with_the_cause(
    lm_settings: Any, make_cache: Callable[..., Any], tmp_path: Path
) -> None:
    manifest = draw_images(tmp_path, 16)
    lines = [json.loads(line) | {"text": "шум"} for line in manifest.read_text(encoding="utf-8").splitlines()]
    manifest.write_text("\n".join(map(json.dumps, lines)))
    cache = make_cache(manifest, tmp_path / "same.zarr").cache
    with pytest.raises(DistillError, match=r"same\.zarr: all 16 captions .* same embedding.*drop --warm-start"):
        train(replace(lm_settings, cache=cache.path, warm_start="ridge"))
