"""Text targets: translations embedded beside the images or instead of them; a resumed pass gives the same bytes."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clipglot.cache.errors import CacheError
from clipglot.cache.format import TEACHER_EMB, TEACHER_STATUS, TEACHER_TEXT
from clipglot.cache.read.cache import Cache
from clipglot.cache.read.verify import verify
from clipglot.cache.sources.captions import align
from clipglot.cache.storage.ragged import RaggedReader
from clipglot.cache.write import text_targets as teaching
from clipglot.cache.write.text_targets import TextTargetStatus, missing_text_target_chunks
from clipglot.distill.errors import DistillError
from clipglot.distill.training.train import train
from clipglot.encoders.errors import EncoderError
from clipglot.encoders.image_tower import ImageTower
from clipglot.jobs.export import export_run
from clipglot.jobs.settings.export import ExportSettings
from support.translated_scenes import MODEL, english, settings

MakeCache = Callable[..., Any]


def test_each_caption_has_the_embedding_of_its_translation(
    translated_manifests: dict[str, Path], translated_caches: dict[str, Path]
) -> None:
    cache = Cache(translated_caches["train"])
    emb = cache.mapped(TEACHER_EMB).check().read()
    rows = [json.loads(line) for line in translated_manifests["train"].read_text().splitlines()]
    translations = [text for row in rows for text in row["en"]]
    assert cache.captions() == [text for row in rows for text in row["text"]]
    np.testing.assert_allclose(emb, english(translations), atol=1e-3)
    assert (cache.teacher_status() == TextTargetStatus.EMBEDDED).all()
    assert cache.info.teacher_sha256
    assert verify(cache) == []


def test_captions_without_translation_have_none(translated_caches: dict[str, Path]) -> None:
    cache = Cache(translated_caches["mixed"])
    has = cache.caption_image() % 2 == 1
    assert (cache.teacher_status() == np.where(has, TextTargetStatus.EMBEDDED, TextTargetStatus.NONE_GIVEN)).all()
    assert (cache.mapped(TEACHER_EMB).read().any(1) == has).all()


def test_lists_of_unequal_length_give_every_caption_the_mean(
    translated_manifests: dict[str, Path], make_cache: MakeCache, tmp_path: Path
) -> None:
    folder = translated_manifests["train"].parent
    rows = [
        {"image": "000.png", "text": ["кот", " ", "рыжий кот"], "en": ["a red\n circle", "two crosses"]},
        {"image": "001.png", "text": ["а", "б"], "en": ["one", ""]},
        {"image": "000.png", "text": "ещё кот", "en": "a star"},  # the same image, later in the manifest
    ]
    (folder / "odd.jsonl").write_text("\n".join(map(json.dumps, rows)))
    make_cache(folder / "odd.jsonl", tmp_path / "odd.zarr", model=MODEL, teacher_field=("en",))
    cache = Cache(tmp_path / "odd.zarr")
    assert cache.captions() == ["кот", "рыжий кот", "ещё кот", "а", "б"]
    both = "a red circle\ntwo crosses"
    assert RaggedReader(cache.arrays.root, TEACHER_TEXT).read() == [both, both, "a star", "one", ""]
    emb = cache.mapped(TEACHER_EMB).read().astype(np.float32)
    mean = english(["a red circle", "two crosses"]).sum(0)
    np.testing.assert_allclose(emb[:2], [mean / np.linalg.norm(mean)] * 2, atol=1e-3)
    np.testing.assert_allclose(emb[2:4], english(["a star", "one"]), atol=1e-3)
    assert cache.teacher_status().tolist() == [1, 1, 1, 1, 2]


def test_translations_are_aligned_by_place_or_shared() -> None:
    assert align(["а", "б"], []) == ["", ""]
    assert align([], ["one"]) == []
    assert align(["а", "б"], ["one", "two", ""]) == ["one\ntwo"] * 2


def test_an_interrupted_pass_resumes_to_the_same_bytes(
    translated_manifests: dict[str, Path],
    translated_caches: dict[str, Path],
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
        make_cache(translated_manifests["train"], tmp_path / "c", **given)
    assert Cache(tmp_path / "c").info.state == "planned"
    assert missing_text_target_chunks(Cache(tmp_path / "c"))[0] == 2
    make_cache(translated_manifests["train"], tmp_path / "c", **given)
    assert len(calls) == 3 + num_text_target_chunks(translated_caches["train"]) - 2
    for name in (TEACHER_EMB, TEACHER_STATUS, TEACHER_TEXT):
        ours, theirs = (
            {f.relative_to(c): f.read_bytes() for f in (c / name).rglob("*") if f.is_file()}
            for c in (tmp_path / "c", translated_caches["train"])
        )
        assert ours == theirs


def num_text_target_chunks(cache: Path) -> int:
    return len(list((cache / TEACHER_STATUS / "c").iterdir()))


def test_a_damaged_chunk_is_found_and_embedded_anew(
    translated_manifests: dict[str, Path], make_cache: MakeCache, tmp_path: Path
) -> None:
    given = {"model": MODEL, "batch_size": 64, "teacher_field": ("en",), "limit": 8}
    make_cache(translated_manifests["train"], tmp_path / "c", **given)
    chunk = tmp_path / "c" / TEACHER_EMB / "c" / "0" / "0" / "0"
    whole = chunk.read_bytes()
    chunk.write_bytes(whole[:10] + b"\xff" + whole[11:])
    (fault,) = map(str, verify(Cache(tmp_path / "c")))
    assert "teacher/emb/c/0/0/0" in fault
    assert "delete teacher/status/c/0 and run its `clipglot cache` command again" in fault
    (tmp_path / "c" / TEACHER_STATUS / "c" / "0").unlink()
    make_cache(translated_manifests["train"], tmp_path / "c", **given)
    assert chunk.read_bytes() == whole


def test_settings_without_a_usable_teacher_are_refused(
    translated_manifests: dict[str, Path], translated_caches: dict[str, Path], make_cache: MakeCache, tmp_path: Path
) -> None:
    with pytest.raises(EncoderError, match="timm/vit_tiny_patch16_224 has no text tower"):
        make_cache(
            translated_manifests["train"], tmp_path / "c", model="timm/vit_tiny_patch16_224", teacher_field=("en",)
        )
    with pytest.raises(Exception, match=r"no field 'fr'.*--teacher-field"):
        make_cache(translated_manifests["train"], tmp_path / "c", model=MODEL, teacher_field=("fr",))
    with pytest.raises(DistillError, match="teacher_fields was"):
        make_cache(
            translated_manifests["val"], translated_caches["val"], model=MODEL, batch_size=64, teacher_field=("en",)
        )
    with pytest.raises(DistillError, match="holds no teacher's embeddings: cache again with the --teacher-field"):
        train(settings(translated_caches["val"], tmp_path / "run", teacher_weight=0.5))
    with pytest.raises(DistillError, match=r"--teacher-weight 1.5"):
        settings(translated_caches["train"], tmp_path / "run", teacher_weight=1.5)
    with pytest.raises(DistillError, match=r"--teacher-weight 1 .* --similarity"):
        settings(translated_caches["train"], tmp_path / "run", teacher_weight=1.0, alignment=0.1)


def test_without_images_the_translations_are_the_targets(
    translated_manifests: dict[str, Path],
    translated_caches: dict[str, Path],
    make_cache: MakeCache,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ImageTower, "placed", None)  # it is not computed with, so it need not be on the device
    rows = [json.loads(line) for line in translated_manifests["train"].read_text().splitlines()]
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
    assert verify(cache) == []
    assert make_cache(tmp_path / "texts.jsonl", tmp_path / "texts.zarr", **given).report.num_pictures == 0

    monkeypatch.undo()
    learned = train(settings(cache.path, tmp_path / "run", val=translated_caches["val"], loss="cosine"))
    assert learned.validation is not None
    assert learned.validation["r_at_10"] > 0.8  # of images, and it has seen none
    exported = export_run(ExportSettings(run=tmp_path / "run", output=tmp_path / "merged"))
    assert exported.why_no_probes is not None
    assert "holds texts, no images" in exported.why_no_probes
    with pytest.raises(DistillError, match="are a teacher's already"):
        train(settings(cache.path, tmp_path / "other", teacher_weight=1.0))


def test_an_interrupted_pass_over_texts_resumes_to_the_same_bytes(
    translated_manifests: dict[str, Path], make_cache: MakeCache, tmp_path: Path
) -> None:
    given = {"model": MODEL, "batch_size": 16, "teacher_field": ("en",), "images": False, "limit": 64}
    straight = make_cache(translated_manifests["train"], tmp_path / "straight", **given).cache
    shutil.copytree(straight.path, tmp_path / "cut")
    for file in (tmp_path / "cut" / "images").rglob("c/*"):  # as after a kill between the first chunk and the second
        if file.is_file() and file.name != "0" and file.parts[-3] == "status":
            file.unlink()
    cut = Cache(tmp_path / "cut", read_only=False)
    cut.arrays.write_info(replace(cut.info, state="planned", counts={}))
    assert make_cache(translated_manifests["train"], tmp_path / "cut", **given).report.num_pictures == 48
    for file in straight.path.rglob("*"):
        if file.is_file() and file.name != "zarr.json":
            assert (tmp_path / "cut" / file.relative_to(straight.path)).read_bytes() == file.read_bytes()


def test_a_caption_without_translation_is_named_where_there_are_no_images(
    make_cache: MakeCache, tmp_path: Path
) -> None:
    (tmp_path / "texts.jsonl").write_text('{"text": "кот", "en": "a cat"}\n{"text": "пёс", "en": null}\n')
    with pytest.raises(CacheError, match=r"line 2 of the manifest: 'пёс' has no translation: drop the row"):
        make_cache(tmp_path / "texts.jsonl", tmp_path / "c", model=MODEL, teacher_field=("en",), images=False)
    with pytest.raises(DistillError, match=r"--no-images needs .* --teacher-field"):
        make_cache(tmp_path / "texts.jsonl", tmp_path / "c", model=MODEL, images=False)
