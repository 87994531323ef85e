"""Runs on caption sets: several languages at once, their recalls, tokens and features, exact resumption."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clipglot.cache.location import to_location
from clipglot.cache.read.cache import Cache
from clipglot.cache.read.caption_sets import with_captions
from clipglot.cache.read.verify import verify
from clipglot.cache.write.convert import convert
from clipglot.distill.data import text_features, tokens
from clipglot.distill.errors import DistillError
from clipglot.distill.recipes import count_images
from clipglot.distill.train_settings import TrainSettings
from clipglot.distill.training.final import load_final
from clipglot.distill.training.run_folder import RunFolder
from clipglot.distill.training.setup import build_run
from clipglot.distill.training.train import train
from clipglot.encoders.tokenizer import train_bpe
from clipglot.evals.retrieval import number_texts, retrieve
from clipglot.jobs.captions import add_captions
from clipglot.jobs.export import export_run
from clipglot.jobs.settings.captions import CaptionsSettings
from clipglot.jobs.settings.export import ExportSettings
from clipglot.jobs.train import defaults
from huggingface_hub import ModelCard
from support.cache_bytes import files
from support.caption_tables import ENGLISH, english, german, key, write_table
from support.command_line import run, small
from support.run_logs import logged
from support.runs import settings, stop_at
from support.s3_server import Bucket

CPU = torch.device("cpu")
BOTH = {"captions": ("source", "en", "de"), "language": ("source=1", "en=0.5", "de=2")}


@pytest.fixture
def cache(tiny_cache: Path, tmp_path: Path) -> Path:
    """Forty images with Russian captions of their own and sets in English and German."""
    path = Path(shutil.copytree(tiny_cache, tmp_path / "c.zarr", ignore=shutil.ignore_patterns("tokens")))
    for name, table in (
        ("en", english(tmp_path / "en.csv", range(40))),
        ("de", german(tmp_path / "de.csv", range(30))),
    ):
        add_captions(CaptionsSettings(cache=path, file=table, language=(name,)))
    return path


def weights(run: Path) -> dict[str, Any]:
    return {name: tensor.clone() for name, tensor in load_final(RunFolder(run)).tower.state_dict().items()}


def texts_of_steps(given: Any, num_steps: int) -> list[list[str]]:
    """The captions of the first steps, as the run has them."""
    setup = build_run(given, CPU)
    cache = with_captions(Cache(given.cache), given.captions)
    texts, per_epoch = cache.captions(), setup.loader.steps_per_epoch
    batches = [setup.loader.sampler.batch(*divmod(step, per_epoch)) for step in range(num_steps)]
    setup.loader.close()
    return [[texts[i] for i in batch.captions.tolist()] for batch in batches]


def test_without_captions_and_languages_a_run_is_as_before(cache: Path, tiny_cache: Path, tmp_path: Path) -> None:
    train(settings(cache, tmp_path / "with"))
    train(settings(tiny_cache, tmp_path / "without"))
    assert [line["loss"] for line in logged(tmp_path / "with") if "loss" in line] == [
        line["loss"] for line in logged(tmp_path / "without") if "loss" in line
    ]
    before, after = (RunFolder(tmp_path / name).provenance() for name in ("without", "with"))
    assert before | {"cache": ""} == after | {"cache": ""}


def test_a_run_on_several_languages_resumes_exactly_and_measures_each(cache: Path, tmp_path: Path) -> None:
    whole = settings(cache, tmp_path / "whole", val=cache, **BOTH)
    train(whole)
    stopped = settings(cache, tmp_path / "stopped", val=cache, **BOTH)
    assert not train(stopped, on_progress=stop_at(6)).complete
    train(stopped, resume=True)
    ours, theirs = weights(tmp_path / "stopped"), weights(tmp_path / "whole")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)

    lines = [line for line in logged(tmp_path / "whole") if line["kind"] == "validation"]
    assert [set(line["languages"]) for line in lines] == [{"source", "en", "de"}] * 4
    assert lines == [line for line in logged(tmp_path / "stopped") if line["kind"] == "validation"]
    # Each language's recall is that of its captions over all images; the plain keys are of all captions.
    final = load_final(RunFolder(tmp_path / "whole"))
    chosen = with_captions(Cache(cache), whole.captions)
    tokenizer = final.tower.tokenizer_type.load(RunFolder(tmp_path / "whole").tokenizer)
    texts, tags = chosen.captions(), np.array(chosen.languages())
    with torch.inference_mode():
        emb = torch.nn.functional.normalize(final.tower.encode(tokenizer.encode(texts, 16)), dim=-1).numpy()
    image_emb = chosen.image_emb().astype(np.float32)
    for name in ("source", "en", "de", None):
        own = np.arange(len(texts)) if name is None else np.flatnonzero(tags == name)
        found = retrieve(
            emb[own], image_emb, chosen.caption_image()[own], number_texts([texts[i] for i in own.tolist()])
        ).text_to_image.summary()
        line = lines[-1] if name is None else lines[-1]["languages"][name]
        assert line["r_at_5"] == pytest.approx(found.r_at_5)
        assert line["median_rank"] == pytest.approx(found.median_rank)


def test_languages_left_out_never_occur_and_others_do_by_weight(cache: Path, tmp_path: Path) -> None:
    given = settings(cache, tmp_path / "run", captions=("source", "en", "de"), language=("en=1", "de=1"), seed=5)
    steps = texts_of_steps(given, 200)
    words = [text for step in steps for text in step]
    is_english, is_german = (sum("noise" in text for text in words), sum("Rauschen" in text for text in words))
    assert is_english + is_german == len(words)
    assert is_german / len(words) == pytest.approx(0.5 * 30 / 40, abs=0.03)  # thirty of forty images have both
    assert steps == texts_of_steps(given, 200)
    alone = settings(cache, tmp_path / "alone", captions=("de",))
    assert {"Rauschen" in text for step in texts_of_steps(alone, 20) for text in step} == {True}
    assert all(len(step) == len(set(step)) for step in texts_of_steps(alone, 20))
    with pytest.raises(DistillError, match=r"--language fr.*de, en, source"):
        build_run(settings(cache, tmp_path / "fr", captions=("source", "en", "de"), language=("fr",)), CPU)


@pytest.mark.parametrize("captions_per_picture", [1, 3])
def test_captions_of_an_image_in_other_languages_and_equal_captions_are_no_negatives(
    cache: Path, tmp_path: Path, captions_per_picture: int
) -> None:
    """Half of the English captions are on ten images each; a further set has one of them on three more images."""
    table = write_table(tmp_path / "loan.csv", [(key(i), ENGLISH[0]) for i in (1, 2, 3)])
    add_captions(CaptionsSettings(cache=cache, file=table, name="loan"))
    names = ("source", "en", "loan")
    given = settings(
        cache, tmp_path / "run", captions=names, language_temperature=0.5, captions_per_picture=captions_per_picture
    )
    setup = build_run(given, CPU)
    chosen = with_captions(Cache(cache), names)
    texts, rows = chosen.captions(), chosen.caption_image()
    carries = [{texts[i] for i in np.flatnonzero(rows == row)} for row in range(40)]
    num_masked = 0
    for step, batch in enumerate(setup.loader.batches(0, 40)):
        indices = setup.loader.sampler.batch(*divmod(step, setup.loader.steps_per_epoch))
        assert len(set(indices.rows.tolist())) == len(indices.rows)  # so no caption meets its image as a negative
        image = np.arange(len(indices.rows)) if indices.image is None else indices.image
        expected = {
            (caption, other)
            for caption, own in enumerate(image.tolist())
            for other, row in enumerate(indices.rows.tolist())
            if other != own and texts[indices.captions[caption]] in carries[row]
        }
        assert set(map(tuple, batch.equal.T.tolist())) == expected
        num_masked += len(expected)
    assert num_masked
    setup.loader.close()


def test_tokens_of_sets_lie_apart_and_go_with_them(cache: Path, tmp_path: Path) -> None:
    train(settings(cache, tmp_path / "own", epochs=1))
    tokenizer = tmp_path / "own/tokenizer"
    held = files(cache / "tokens")
    for name, captions in (("en", ("en",)), ("both", ("source", "en")), ("again", ("en", "source"))):
        train(settings(cache, tmp_path / name, epochs=1, captions=captions, tokenizer=tokenizer))
    folders = {path.name for path in (cache / "tokens").iterdir() if len(path.name) == 8}
    (en,) = [info for info in Cache(cache).arrays.caption_sets() if info.name == "en"]
    assert folders == {en.group.removeprefix("en-")}
    assert len(list((cache / "tokens" / folders.pop()).glob("*/ids"))) == 1  # the runs share them
    assert {name: content for name, content in files(cache / "tokens").items() if name in held} == held
    for name, captions in (("en", ("en",)), ("both", ("source", "en"))):  # from stored tokens, and from none
        before = weights(tmp_path / name)
        train(settings(cache, tmp_path / f"{name}-stored", epochs=1, captions=captions, tokenizer=tokenizer))
        after = weights(tmp_path / f"{name}-stored")
        assert all(torch.equal(before[each], after[each]) for each in before)
    add_captions(CaptionsSettings(cache=cache, name="en", drop=True))
    assert files(cache / "tokens") == held


def test_features_of_sets_lie_apart_and_equal_those_computed_live(
    cache: Path, lms: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"text": str(lms["bert"]), "train_layers": 0, "captions": ("source", "en"), "epochs": 2, "batch_size": 8}
    runs = {
        how: TrainSettings(cache=cache, output=tmp_path / how, val=cache, text_features=how, device="cpu", **given)
        for how in ("auto", "live")
    }
    for each in runs.values():
        train(each)
    (folder,) = [path for path in (cache / "tokens").iterdir() if len(path.name) == 8]
    assert len(list(folder.glob("features-*"))) == 1
    assert len(list((cache / "tokens").glob("features-*"))) == 1  # of its own captions
    stored, live = ([line for line in logged(tmp_path / how) if "loss" in line] for how in ("auto", "live"))
    for one, other in zip(stored, live, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=2e-3)
    monkeypatch.setattr(text_features, "fits_in_memory", lambda num_bytes, device: False)  # mapped, and stored before
    train(replace(runs["auto"], output=tmp_path / "mapped"))
    mapped = [line["loss"] for line in logged(tmp_path / "mapped") if "loss" in line]
    assert mapped == [line["loss"] for line in stored]
    assert verify(Cache(cache)) == []
    file = next(folder.glob("features-*/pooled/c/0/0/0"))
    file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])
    (fault,) = verify(Cache(cache))
    assert str(file.relative_to(cache)) in fault.message


@pytest.mark.slow
@pytest.mark.parametrize("how", [[], ["--captions-per-picture", "3", "--embeddings", "chunks"]], ids=str)
def test_two_processes_draw_the_languages_of_one(cache: Path, tmp_path: Path, how: list[str]) -> None:
    flags = [word for name in ("captions", "language") for value in BOTH[name] for word in (f"--{name}", value)]
    command = ["-m", "clipglot", *small(cache, tmp_path / "both"), *flags, *how, "--epochs", "2", "--log-every", "1"]
    command += ["--val", str(cache), "--recipe", "none"]
    launched = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*launched, *map(str, command)], check=True, capture_output=True, timeout=120)
    assert run(*[tmp_path / "alone" if word == tmp_path / "both" else word for word in command[2:]]).exit_code == 0
    for one, other in zip(logged(tmp_path / "both"), logged(tmp_path / "alone"), strict=True):
        if one["kind"] == "step":
            assert one["loss"] == pytest.approx(other["loss"], rel=2e-3)
        elif one["kind"] == "validation":
            assert set(one["languages"]) == set(other["languages"]) == {"source", "en", "de"}


def test_many_captions_are_tokenized_in_processes_as_in_one(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = train_bpe(Cache(cache).captions(), 300)
    chosen = with_captions(Cache(cache), ("source", "en"))
    expected = tokenizer.encode(chosen.captions(), 16)
    monkeypatch.setattr(tokens, "MANY_CAPTIONS", 1)
    monkeypatch.setattr(tokens, "CAPTIONS_PER_BLOCK", 50)
    table = tokens.open_tokens(chosen, tokenizer, 16, tmp_path / "beside", workers=2)
    assert [ids.tolist() for ids in table.take(np.arange(len(table)))] == [list(ids) for ids in expected]


def test_a_run_from_a_store_or_hdf5_equals_that_from_a_folder(cache: Path, bucket: Bucket, tmp_path: Path) -> None:
    convert(Cache(cache), tmp_path / "c.h5")
    copies = {"folder": cache, "h5": tmp_path / "c.h5", "url": to_location(bucket.upload(cache, "sets.zarr"))}
    for name, copy in copies.items():
        train(settings(copy, tmp_path / name, val=copy, epochs=2, embeddings="device", **BOTH))
    expected = weights(tmp_path / "folder")
    for name in ("h5", "url"):
        assert logged(tmp_path / name) == logged(tmp_path / "folder")
        assert all(torch.equal(tensor, expected[each]) for each, tensor in weights(tmp_path / name).items())
    assert verify(Cache(copies["url"])) == []


def test_a_changed_set_is_refused_on_resume_and_an_equal_one_is_not(cache: Path, tmp_path: Path) -> None:
    given = settings(cache, tmp_path / "run", captions=("source", "en"))
    assert not train(given, on_progress=stop_at(6)).complete
    add_captions(CaptionsSettings(cache=cache, name="en", drop=True))
    with pytest.raises(Exception, match="no captions 'en'"):
        train(given, resume=True)
    table = english(tmp_path / "other.csv", range(39))
    add_captions(CaptionsSettings(cache=cache, file=table, name="en"))
    with pytest.raises(DistillError, match="caption set en"):
        train(given, resume=True)
    with pytest.raises(DistillError, match="captions"):
        train(settings(cache, tmp_path / "run", captions=("source", "de")), resume=True)
    with pytest.raises(DistillError, match="language"):
        train(settings(cache, tmp_path / "run", captions=("source", "en"), language=("en",)), resume=True)
    table = english(tmp_path / "same.csv", range(40))
    add_captions(CaptionsSettings(cache=cache, file=table, name="en", language=("en",), replace=True))
    assert train(given, resume=True).complete


def test_the_held_out_captions_are_those_of_the_run_that_there_are(
    cache: Path, tiny_cache: Path, tmp_path: Path
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = run(
        *small(cache, tmp_path / "a"),
        "--captions",
        "source",
        "--captions",
        "en",
        "--val",
        tiny_cache,
        "--recipe",
        "none",
        "--epochs",
        1,
    )
    assert result.exit_code == 0, result.output
    assert "captions: source, en: en (80), source" in result.output.replace("\n", " ")
    with pytest.raises(DistillError, match=r"--val .* has no captions en.*clipglot captions"):
        train(settings(cache, tmp_path / "b", captions=("en",), val=tiny_cache))
    given = {"captions": ("en",), "val": cache, "val_captions": ("source", "de"), "log_to": ("tensorboard",)}
    train(settings(cache, tmp_path / "c", **given, epochs=1))
    (line,) = [line for line in logged(tmp_path / "c") if line["kind"] == "validation"]
    assert set(line["languages"]) == {"source", "de"}
    (event,) = EventAccumulator(str(tmp_path / "c/tensorboard")).Reload().Scalars("validation/r_at_10/de")
    assert event.value == pytest.approx(line["languages"]["de"]["r_at_10"])
    with pytest.raises(DistillError, match="--val-captions"):
        settings(cache, tmp_path / "d", val_captions=("en",))
    with pytest.raises(DistillError, match="--teacher-weight"):
        settings(cache, tmp_path / "d", captions=("en",), teacher_weight=0.5)


def test_the_tokenizer_of_several_languages_is_trained_on_each_alike(cache: Path, tmp_path: Path) -> None:
    rare = write_table(tmp_path / "rare.csv", [(key(0), "schmetterlingsflügel " * 3)])
    add_captions(CaptionsSettings(cache=cache, file=rare, name="rare"))
    given = {"captions": ("source", "rare"), "vocab_size": 330}
    balanced = build_run(settings(cache, tmp_path / "a", **given), CPU)
    alone = build_run(settings(cache, tmp_path / "b", **given, language=("source=1", "rare=0.001")), CPU)
    one, other = (len(each.tokenizer.encode(["schmetterlingsflügel"], 99)[0]) for each in (balanced, alone))
    assert one < other
    for each in (balanced, alone):
        each.loader.close()


def test_an_export_tells_the_languages_that_were_trained(cache: Path, tiny_clip: Path, tmp_path: Path) -> None:
    train(settings(cache, tmp_path / "run", captions=("en", "de"), language=("en=1", "de=0"), epochs=1))
    result = run("export", tmp_path / "run", "-o", tmp_path / "merged")
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "merged/open_clip_config.json").read_text())["clipglot"]
    assert record["languages"] == ["en"]
    measured = run("eval", "retrieval", tmp_path / "merged", cache, "--captions", "en", "--captions", "de", "--json")
    found = json.loads(measured.output)
    assert set(found["languages"]) == {"en", "de"}
    assert found["text_to_image"]["num_queries"] == 80 + 30
    own = json.loads(run("eval", "retrieval", tmp_path / "merged", cache, "--json").output)
    assert own["text_to_image"]["num_queries"] == Cache(cache).info.num_captions
    assert (
        "exclude" in run("eval", "retrieval", tmp_path / "merged", cache, "--captions", "en", "--queries", "q").output
    )


def test_a_recipe_is_chosen_by_the_images_that_have_a_caption(cache: Path) -> None:
    sealed = Cache(cache)
    assert [count_images(sealed, names) for names in ((), ("de",), ("source", "de"))] == [40, 30, 40]
    given = {"cache": cache, "output": "run", "captions": ("de",)}
    assert defaults(given)["batch_size"] == 30


def test_the_sample_of_a_run_without_held_out_images_has_all_languages(cache: Path, tmp_path: Path) -> None:
    given = settings(cache, tmp_path / "run", captions=("source", "de"), language=("source=1", "de=1"))
    setup = build_run(given, CPU)
    assert setup.sample is not None
    chosen = with_captions(Cache(cache), given.captions)
    tags = [chosen.languages(i, i + 1)[0] for i in setup.sample.captions.tolist()]
    assert set(tags) == {"source", "de"}


def test_the_name_of_a_set_is_no_language_of_the_card(cache: Path, tmp_path: Path) -> None:
    add_captions(CaptionsSettings(cache=cache, file=english(tmp_path / "alt.csv", range(40)), name="alt"))
    train(settings(cache, tmp_path / "run", captions=("alt", "de"), epochs=1))

    def languages(name: str) -> object:
        export_run(ExportSettings(run=tmp_path / "run", output=tmp_path / name))
        return ModelCard.load(tmp_path / name / "README.md").data.language

    assert languages("tagged") == ["de"]
    other = german(tmp_path / "other.csv", range(20))
    add_captions(CaptionsSettings(cache=cache, file=other, name="alt", replace=True))
    assert not languages("replaced"), "what the run was trained on is gone"
