"""A text teacher: cached beside the pictures, resumed to the same bytes, followed beside pictures or alone."""

import json
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from clipglot.cache import teacher as teaching
from clipglot.cache.embed import write_info
from clipglot.cache.errors import CacheError
from clipglot.cache.format import TEACHER_EMB, TEACHER_STATUS, TEACHER_TEXT
from clipglot.cache.ragged import RaggedReader
from clipglot.cache.store import Cache
from clipglot.cache.teacher import TeacherStatus, align, missing_teacher_chunks
from clipglot.demo.captions import caption
from clipglot.demo.run import ENGLISH_CLIP
from clipglot.demo.scenes import draw, training_scenes
from clipglot.distill.errors import DistillError
from clipglot.distill.export import export_run
from clipglot.distill.losses import Objective
from clipglot.distill.run import Run
from clipglot.distill.settings import ExportSettings
from clipglot.distill.targets import Targets
from clipglot.distill.teacher import follow_teacher
from clipglot.distill.train import train
from clipglot.distill.train_settings import TrainSettings
from clipglot.encoders.errors import EncoderError
from logs import logged
from runs import stop_at

TRAIN, VAL = 320, 128
MODEL = f"local-dir:{ENGLISH_CLIP}"
MakeCache = Callable[..., Any]


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Scenes with Russian captions and their English translations; half of the pictures of `mixed` lack the latter."""
    folder, rng = tmp_path_factory.mktemp("scenes"), random.Random(0)
    scenes = training_scenes(TRAIN + VAL, seed=0)
    rows = []
    for i, scene in enumerate(scenes):
        draw(scene).save(folder / f"{i:03}.png")
        told = {language: [caption(scene, language, rng, complete=True) for _ in range(2)] for language in ("ru", "en")}
        rows.append({"image": f"{i:03}.png", "text": told["ru"], "en": told["en"]})
    mixed = [row | {"en": row["en"] if i % 2 else []} for i, row in enumerate(rows[:TRAIN])]
    for name, part in (("train", rows[:TRAIN]), ("val", rows[TRAIN:]), ("mixed", mixed)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, part)))
    return {name: folder / f"{name}.jsonl" for name in ("train", "val", "mixed")}


@pytest.fixture(scope="module")
def caches(
    manifests: dict[str, Path], make_cache: MakeCache, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("caches")
    for name in ("train", "mixed"):
        make_cache(manifests[name], folder / name, model=MODEL, batch_size=64, teacher_field=("en",))
    make_cache(manifests["val"], folder / "val", model=MODEL, batch_size=64)
    return {name: folder / name for name in manifests}


def settings(cache: Path, run: Path, **changes: Any) -> TrainSettings:
    small: dict[str, Any] = {"width": 64, "layers": 1, "heads": 4, "context_length": 40, "vocab_size": 400}
    pace: dict[str, Any] = {"batch_size": 64, "epochs": 16, "lr": 3e-3, "log_every": 1, "device": "cpu"}
    return TrainSettings(cache=cache, output=run, **small | pace | changes)


def english(texts: Sequence[str]) -> Any:
    """What plain open_clip makes of texts, unit norm."""
    clip, _, _ = open_clip.create_model_and_transforms(MODEL)
    with torch.no_grad():
        return F.normalize(clip.eval().encode_text(open_clip.get_tokenizer(MODEL)(list(texts))), dim=-1).numpy()


def test_each_caption_has_the_embedding_of_its_translation(manifests: dict[str, Path], caches: dict[str, Path]) -> None:
    cache = Cache(caches["train"])
    emb = cache.mapped(TEACHER_EMB).check().read()
    rows = [json.loads(line) for line in manifests["train"].read_text().splitlines()]
    translations = [text for row in rows for text in row["en"]]
    assert cache.captions() == [text for row in rows for text in row["text"]]
    np.testing.assert_allclose(emb, english(translations), atol=1e-3)
    assert (cache.teacher_status() == TeacherStatus.EMBEDDED).all()
    assert cache.info.teacher_sha256
    assert cache.verify() == []


def test_captions_without_translation_have_none(caches: dict[str, Path]) -> None:
    cache = Cache(caches["mixed"])
    has = cache.caption_image() % 2 == 1
    assert (cache.teacher_status() == np.where(has, TeacherStatus.EMBEDDED, TeacherStatus.NONE_GIVEN)).all()
    assert (cache.mapped(TEACHER_EMB).read().any(1) == has).all()


def test_lists_of_unequal_length_give_every_caption_the_mean(
    manifests: dict[str, Path], make_cache: MakeCache, tmp_path: Path
) -> None:
    folder = manifests["train"].parent
    rows = [
        {"image": "000.png", "text": ["кот", " ", "рыжий кот"], "en": ["a red\n circle", "two crosses"]},
        {"image": "001.png", "text": ["а", "б"], "en": ["one", ""]},
        {"image": "000.png", "text": "ещё кот", "en": "a star"},  # the same picture, later in the manifest
    ]
    (folder / "odd.jsonl").write_text("\n".join(map(json.dumps, rows)))
    make_cache(folder / "odd.jsonl", tmp_path / "odd.zarr", model=MODEL, teacher_field=("en",))
    cache = Cache(tmp_path / "odd.zarr")
    assert cache.captions() == ["кот", "рыжий кот", "ещё кот", "а", "б"]
    both = "a red circle\ntwo crosses"
    assert RaggedReader(cache.root, TEACHER_TEXT).read() == [both, both, "a star", "one", ""]
    emb = cache.mapped(TEACHER_EMB).read().astype(np.float32)
    mean = english(["a red circle", "two crosses"]).sum(0)
    np.testing.assert_allclose(emb[:2], [mean / np.linalg.norm(mean)] * 2, atol=1e-3)
    np.testing.assert_allclose(emb[2:4], english(["a star", "one"]), atol=1e-3)
    assert cache.teacher_status().tolist() == [1, 1, 1, 1, 2]


def test_translations_are_aligned_by_place_or_shared() -> None:
    assert align(["а", "б"], []) == ["", ""]
    assert align([], ["one"]) == []
    assert align(["а", "б"], ["one", "two", ""]) == ["one\ntwo"] * 2


def test_an_interrupted_pass_goes_on_to_the_same_bytes(
    manifests: dict[str, Path],
    caches: dict[str, Path],
    make_cache: MakeCache,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = {"model": MODEL, "batch_size": 64, "teacher_field": ("en",)}
    real, calls = teaching.embed_texts, []

    def dies(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(teaching, "embed_texts", dies)
    with pytest.raises(KeyboardInterrupt):
        make_cache(manifests["train"], tmp_path / "c", **given)
    assert Cache(tmp_path / "c").info.state == "planned"
    assert missing_teacher_chunks(Cache(tmp_path / "c"))[0] == 2
    make_cache(manifests["train"], tmp_path / "c", **given)
    assert len(calls) == 3 + len(missing_teacher_chunks_of(caches["train"])) - 2
    for name in (TEACHER_EMB, TEACHER_STATUS, TEACHER_TEXT):
        ours, theirs = (
            {f.relative_to(c): f.read_bytes() for f in (c / name).rglob("*") if f.is_file()}
            for c in (tmp_path / "c", caches["train"])
        )
        assert ours == theirs


def missing_teacher_chunks_of(cache: Path) -> range:
    """All chunks of a cache's captions."""
    return range(len(list((cache / TEACHER_STATUS / "c").iterdir())))


def test_a_damaged_chunk_is_found_and_embedded_anew(
    manifests: dict[str, Path], make_cache: MakeCache, tmp_path: Path
) -> None:
    given = {"model": MODEL, "batch_size": 64, "teacher_field": ("en",), "limit": 8}
    make_cache(manifests["train"], tmp_path / "c", **given)
    chunk = tmp_path / "c" / TEACHER_EMB / "c" / "0" / "0" / "0"
    whole = chunk.read_bytes()
    chunk.write_bytes(whole[:10] + b"\xff" + whole[11:])
    (fault,) = Cache(tmp_path / "c").verify()
    assert "teacher/emb/c/0/0/0" in fault
    assert "delete teacher/status/c/0 and run its `clipglot cache` command again" in fault
    (tmp_path / "c" / TEACHER_STATUS / "c" / "0").unlink()
    make_cache(manifests["train"], tmp_path / "c", **given)
    assert chunk.read_bytes() == whole


def test_what_cannot_teach_is_refused_by_name(
    manifests: dict[str, Path], caches: dict[str, Path], make_cache: MakeCache, tmp_path: Path
) -> None:
    with pytest.raises(EncoderError, match="timm/vit_tiny_patch16_224 has no text tower"):
        make_cache(manifests["train"], tmp_path / "c", model="timm/vit_tiny_patch16_224", teacher_field=("en",))
    with pytest.raises(Exception, match=r"no field 'fr'.*--teacher-field"):
        make_cache(manifests["train"], tmp_path / "c", model=MODEL, teacher_field=("fr",))
    with pytest.raises(DistillError, match="teacher_fields was"):
        make_cache(manifests["val"], caches["val"], model=MODEL, batch_size=64, teacher_field=("en",))
    with pytest.raises(DistillError, match="holds no teacher's embeddings: cache again with the --teacher-field"):
        train(settings(caches["val"], tmp_path / "run", teacher_weight=0.5))
    with pytest.raises(DistillError, match=r"--teacher-weight 1.5"):
        settings(caches["train"], tmp_path / "run", teacher_weight=1.5)


def test_a_teacher_alone_teaches_to_find_pictures(caches: dict[str, Path], tmp_path: Path) -> None:
    """No picture's embedding is used, and yet captions find pictures that nobody showed."""
    alone = train(settings(caches["train"], tmp_path / "run", val=caches["val"], teacher_weight=1.0))
    assert alone.validation is not None
    assert alone.validation["r_at_10"] > 0.8
    assert alone.findings == []
    losses = [line["loss"] for line in logged(tmp_path / "run") if "loss" in line]
    assert losses[-1] < 0.3 * losses[0]


def test_half_a_teacher_changes_half_of_the_loss(caches: dict[str, Path], tmp_path: Path) -> None:
    first = {}
    for weight in (0.0, 0.25, 1.0):
        run = tmp_path / str(weight)
        train(settings(caches["mixed"], run, teacher_weight=weight, epochs=1, temperature=0.07))
        first[weight] = next(line["loss"] for line in Run(run).metrics() if "loss" in line)
    assert first[0.25] == pytest.approx(0.75 * first[0.0] + 0.25 * first[1.0], rel=1e-5)


@pytest.mark.parametrize("loss", ["infonce", "siglip", "mse"])
def test_the_term_and_its_gradient_are_those_of_the_plain_form(loss: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    features = torch.randn(5, 8, dtype=torch.double, requires_grad=True)
    image_emb, teacher_emb = (F.normalize(torch.randn(5, 8, dtype=torch.double), dim=-1) for _ in range(2))
    teacher_emb[1] = 0
    targets = Targets(image_emb=image_emb, own=slice(0, 5), teacher_emb=teacher_emb)
    text_emb = F.normalize(features, dim=-1)
    has = torch.tensor([0, 2, 3, 4])
    plain = (text_emb[has] - teacher_emb[has]).square().sum(1).sum() / 2 / 5
    assert follow_teacher(text_emb, targets).item() == pytest.approx(plain.item())
    given = settings(tmp_path, tmp_path, loss=loss, temperature=0.07)
    picture = Objective(given).double()(features, targets)
    mixed = Objective(replace(given, teacher_weight=0.3)).double()(features, targets)
    grad, expected = (
        torch.autograd.grad(x, features, retain_graph=True)[0] for x in (mixed, 0.7 * picture + 0.3 * plain)
    )
    torch.testing.assert_close(grad, expected)


def test_a_stopped_run_with_a_teacher_resumes_exactly(caches: dict[str, Path], tmp_path: Path) -> None:
    straight = settings(caches["mixed"], tmp_path / "straight", teacher_weight=0.5, epochs=3, micro_batch=24)
    train(straight)
    broken = replace(straight, output=tmp_path / "broken")
    train(broken, on_progress=stop_at(7))
    with pytest.raises(DistillError, match=r"teacher_weight = 0\.5, now it is 0\.1"):
        train(replace(broken, teacher_weight=0.1), resume=True)
    assert train(broken, resume=True).complete
    assert logged(tmp_path / "broken") == logged(tmp_path / "straight")


def test_without_pictures_the_translations_are_the_targets(
    manifests: dict[str, Path], caches: dict[str, Path], make_cache: MakeCache, tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in manifests["train"].read_text().splitlines()]
    (tmp_path / "texts.jsonl").write_text("\n".join(json.dumps({"text": r["text"], "en": r["en"]}) for r in rows))
    given = {"model": MODEL, "batch_size": 64, "teacher_field": ("en",), "images": False}
    cache = make_cache(tmp_path / "texts.jsonl", tmp_path / "texts.zarr", **given).cache
    translations = [text for row in rows for text in row["en"]]
    assert sorted(cache.keys()) == sorted(set(translations))  # equal ones are one target with several captions
    np.testing.assert_allclose(cache.image_emb(), english(cache.keys()), atol=1e-3)
    keys = cache.keys()
    assert {(keys[row], text) for row, text in zip(cache.caption_image(), cache.captions(), strict=True)} == set(
        zip(translations, [text for row in rows for text in row["text"]], strict=True)
    )
    assert cache.verify() == []
    assert make_cache(tmp_path / "texts.jsonl", tmp_path / "texts.zarr", **given).report.num_pictures == 0

    learned = train(settings(cache.path, tmp_path / "run", val=caches["val"], loss="cosine"))
    assert learned.validation is not None
    assert learned.validation["r_at_10"] > 0.8  # of pictures, and it has seen none
    exported = export_run(ExportSettings(run=tmp_path / "run", output=tmp_path / "merged"))
    assert exported.why_no_probes is not None
    assert "holds texts, no pictures" in exported.why_no_probes
    with pytest.raises(DistillError, match="are a teacher's already"):
        train(settings(cache.path, tmp_path / "other", teacher_weight=1.0))


def test_a_pass_over_texts_that_was_cut_short_goes_on_to_the_same_bytes(
    manifests: dict[str, Path], make_cache: MakeCache, tmp_path: Path
) -> None:
    given = {"model": MODEL, "batch_size": 16, "teacher_field": ("en",), "images": False, "limit": 64}
    straight = make_cache(manifests["train"], tmp_path / "straight", **given).cache
    shutil.copytree(straight.path, tmp_path / "cut")
    for file in (tmp_path / "cut" / "images").rglob("c/*"):  # as after a kill between the first chunk and the second
        if file.is_file() and file.name != "0" and file.parts[-3] == "status":
            file.unlink()
    cut = Cache(tmp_path / "cut", read_only=False)
    write_info(cut, replace(cut.info, state="planned", counts={}))
    assert make_cache(manifests["train"], tmp_path / "cut", **given).report.num_pictures == 48
    for file in straight.path.rglob("*"):
        if file.is_file() and file.name != "zarr.json":
            assert (tmp_path / "cut" / file.relative_to(straight.path)).read_bytes() == file.read_bytes()


def test_a_caption_without_translation_is_named_where_there_are_no_pictures(
    make_cache: MakeCache, tmp_path: Path
) -> None:
    (tmp_path / "texts.jsonl").write_text('{"text": "кот", "en": "a cat"}\n{"text": "пёс", "en": null}\n')
    with pytest.raises(CacheError, match=r"line 2 of the manifest: 'пёс' has no translation: drop the row"):
        make_cache(tmp_path / "texts.jsonl", tmp_path / "c", model=MODEL, teacher_field=("en",), images=False)
    with pytest.raises(DistillError, match="--no-images needs the texts of a --teacher-field"):
        make_cache(tmp_path / "texts.jsonl", tmp_path / "c", model=MODEL, images=False)
