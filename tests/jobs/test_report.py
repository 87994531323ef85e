"""`clipglot report`: its figures against independent ones, and pages of runs of every state."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import clipglot
import numpy as np
import pytest
from click.testing import CliRunner
from clipglot.cache.read.cache import Cache
from clipglot.cli.main import main
from clipglot.demo.run import ENGLISH_CLIP
from clipglot.distill.errors import DistillError
from clipglot.encoders.errors import EncoderError
from clipglot.evals.errors import EvalError
from clipglot.inference.towers import load_towers
from clipglot.jobs.report import ReportResult, report
from clipglot.jobs.settings.report import ReportSettings
from clipglot.reports.figures import EVERYTHING
from hypothesis import strategies as st
from PIL import Image
from support.drawings import WORDS
from support.mutations import json_mutations, search
from support.report_pages import Page

ENGLISH = ("red", "green", "blue", "yellow")


def write(subjects: Path | tuple[Path, ...], output: Path, **settings: Any) -> tuple[ReportResult, Page]:
    given = subjects if isinstance(subjects, tuple) else (subjects,)
    result = report(ReportSettings(runs=given, output=output, **settings))
    return result, Page.read(output)


def require_self_contained(file: Path) -> None:
    """One file, no script, nothing from elsewhere, ids that are unique."""
    html, page = file.read_text(encoding="utf-8"), Page.read(file)
    assert len(html.encode()) < 3 * 10**6
    assert not {"script", "iframe", "object", "embed", "link", "form", "base"} & set(page.tags)
    assert len(page.ids) == len(set(page.ids))
    for name, value in page.attributes:
        assert not name.startswith("on")
        if name in ("src", "href", "xlink:href", "srcset", "action", "poster"):
            assert value.startswith(("data:image/webp;base64,", "#")), value
            assert not value.startswith("#") or value[1:] in page.ids, value
    assert "@import" not in html
    assert not re.search(r"url\((?!#)", html)
    for used in re.findall(r"url\(#([^)]*)\)", html):
        assert used in page.ids


@pytest.fixture(scope="module")
def class_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images of each of four classes."""
    folder, rng = tmp_path_factory.mktemp("classes"), np.random.default_rng(0)
    for word, colour in WORDS.items():
        (folder / word).mkdir()
        for i in range(6):
            noise = rng.normal(colour, 25, (40, 48, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(noise).save(folder / word / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def class_cache(class_folders: Path, make_cache: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("caches") / "classes.zarr"
    make_cache(class_folders, path)
    return path


@pytest.fixture(scope="module")
def of_run(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[ReportResult, Page]:
    """The report of a run, on the cache of its validation."""
    return write(tiny_run, tmp_path_factory.mktemp("reports") / "run.html")


def test_a_page_needs_nothing_else(of_run: tuple[ReportResult, Page]) -> None:
    result, page = of_run
    require_self_contained(result.file)
    assert result.size == result.file.stat().st_size
    assert len(set(page.images)) == result.num_thumbnails > 8
    assert page.text.count("chance") > 3


def test_recall_is_that_of_a_dense_ranking(
    of_run: tuple[ReportResult, Page], tiny_run: Path, tiny_cache: Path, tmp_path: Path
) -> None:
    result, page = of_run
    merged = clipglot.export(tiny_run, output=tmp_path / "merged", step="best").folder
    cache = Cache(tiny_cache)
    texts, owners = cache.captions(), cache.caption_image()
    cosines = load_towers(merged).encode_texts(texts) @ cache.image_emb().astype(np.float32).T
    right = np.array(
        [[text in cache.captions_by_image(slice(i, i + 1), owners)[0] for i in range(40)] for text in texts]
    )
    best = np.where(right, cosines, -np.inf).max(1, keepdims=True)
    ranks = 1 + ((cosines > best + 1e-6) & ~right).sum(1)
    (figures,) = result.report.caches
    (tower,) = figures.towers
    found = tower.retrieval[EVERYTHING].text_to_image
    for k in (1, 5, 10):
        assert getattr(found, f"r_at_{k}") == pytest.approx(float((ranks <= k).mean()), abs=0.02)
    row = page.table_with("text → image").rows[2]
    assert row[:4] == ["all captions", *(f"{100 * getattr(found, f'r_at_{k}'):.1f} %" for k in (1, 5, 10))]
    assert figures.num_captions == len(texts)
    (worst, *_), (best_found, *_) = tower.examples.worst, tower.examples.best  # type: ignore[union-attr]
    assert worst.rank == pytest.approx(ranks.max(), abs=1)
    assert best_found.rank == 1
    place = texts.index(best_found.caption)
    assert best_found.cosine == pytest.approx(float(cosines[place, best_found.image.row]), abs=1e-3)


def test_buckets_part_the_captions(of_run: tuple[ReportResult, Page]) -> None:
    (figures,) = of_run[0].report.caches
    (tower,) = figures.towers
    overall = tower.retrieval[EVERYTHING].text_to_image
    assert tower.buckets.keys() == {"caption length", "caption occurs"}  # each word is in ten captions or more
    for buckets in tower.buckets.values():
        assert sum(bucket.num_captions for bucket in buckets) == figures.num_captions
        mean = sum(bucket.num_captions * bucket.r_at_10 for bucket in buckets) / figures.num_captions
        assert mean == pytest.approx(overall.r_at_10)


def test_curves_findings_and_settings_are_those_of_the_run(of_run: tuple[ReportResult, Page], tiny_run: Path) -> None:
    result, page = of_run
    lines = [json.loads(line) for line in (tiny_run / "metrics.jsonl").read_text().splitlines()]
    (subject,) = result.report.subjects
    run = subject.run
    assert run is not None
    assert run.curves["loss"].values == [line["loss"] for line in lines if line["kind"] == "step"]
    assert run.curves["r_at_1"].values == [line["r_at_1"] for line in lines if line["kind"] == "validation"]
    steps = [line for line in lines if line["kind"] == "step"]
    assert run.curves["temperature"].last == pytest.approx(1 / steps[-1]["logit_scale"])
    assert run.chance_loss == pytest.approx(np.log(8))
    assert (run.step, run.num_steps, run.is_finished) == (10, 10, True)
    assert run.pairs_per_s == pytest.approx(10 * 8 / run.train_s)
    assert subject.settings == json.loads((tiny_run / "run.json").read_text())["settings"]
    assert "batch-size 8" in page.text
    assert "Loss" in page.text
    assert str(subject.facts["SHA-256 of its tensors"]) in page.text


def test_json_has_the_figures_of_the_page(tiny_run: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["report", str(tiny_run), "-o", str(tmp_path / "r.html"), "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    page = Page.read(tmp_path / "r.html")
    assert told["verdict"] in page.text
    ranks = told["caches"][0]["towers"][0]["retrieval"][EVERYTHING]
    assert f"{100 * ranks['mean_recall']:.1f} %" in page.table_with("mean recall").rows[2]
    for bucket in told["caches"][0]["towers"][0]["buckets"]["caption length"]:
        assert bucket["name"] in page.text
    matrix = told["caches"][0]["towers"][0]["examples"]["similarity"]
    assert f"{matrix['cosines'][0][0]:.2f}".replace("-", "−") in page.text
    assert told["size_bytes"] == (tmp_path / "r.html").stat().st_size


def test_two_reports_are_equal(tiny_run: Path, of_run: tuple[ReportResult, Page], tmp_path: Path) -> None:
    write(tiny_run, tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == of_run[0].file.read_bytes()


def test_classes_are_scored_and_confused_as_by_hand(merged: Path, class_cache: Path, tmp_path: Path) -> None:
    result, page = write(merged, tmp_path / "r.html", cache=(class_cache,), shots="1,2,all", seeds=2)
    require_self_contained(result.file)
    cache = Cache(class_cache)
    labels, names = cache.captions(), sorted(WORDS)
    emb = load_towers(merged).encode_texts(names)
    predicted = [names[i] for i in (cache.image_emb().astype(np.float32) @ emb.T).argmax(1)]
    (figures,) = result.report.caches
    score = figures.towers[0].zero_shot
    assert score is not None
    assert score.top1 == pytest.approx(np.mean([a == b for a, b in zip(labels, predicted, strict=True)]))
    cells = [["" if not (n := sum((a, b) == pair for pair in zip(labels, predicted, strict=True))) else str(n)
              for b in names] for a in names]  # fmt: skip
    rows = page.table_with(names[0]).rows
    matrix = next(table for table in page.tables if table.rows[0] == ["", *names])
    assert [row[1:] for row in matrix.rows[1:]] == cells
    assert rows
    assert figures.probe is not None
    assert [row[0] for row in page.table_with("training images a class").rows[1:]] == ["1", "2", "all"]
    assert "Few-shot accuracy" in page.text
    alone = clipglot.evaluate_probe(class_cache, shots="1,2,all", seeds=2, merged=merged)
    assert [point.accuracy for point in figures.probe.points] == [point.accuracy for point in alone.points]
    assert figures.towers[0].zero_shot_of_test == alone.zero_shot


def test_a_tower_is_compared_with_another(
    merged: Path, tiny_cache: Path, make_run: Callable[..., Path], class_cache: Path, tmp_path: Path
) -> None:
    other = clipglot.export(make_run(tiny_cache, tmp_path / "run", seed=1), output=tmp_path / "other").folder
    names = tmp_path / "en.txt"
    names.write_text("\n".join(f"{label}\t{name}" for label, name in zip(WORDS, ENGLISH, strict=True)))
    result, page = write(
        merged,
        tmp_path / "r.html",
        cache=(class_cache,),
        against=str(other),
        against_classes=names,
        against_templates=("a {} picture",),
    )
    ours, theirs = result.report.caches[0].towers
    assert theirs.is_reference
    assert ours.differences[0].sentence(ours.name, theirs.name).replace(" -", " −") in page.text
    assert {score.name for score in theirs.zero_shot.classes} == set(ENGLISH)  # type: ignore[union-attr]
    assert theirs.name in result.report.verdict


def test_class_folders_keep_their_classes_beside_a_table_of_another_cache(
    merged: Path, class_cache: Path, tiny_cache: Path, tmp_path: Path
) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("image,label\n" + "".join(f"images/{i:04}.png,{'ab'[i % 2]}\n" for i in range(10)))
    result, _ = write(merged, tmp_path / "r.html", cache=(tiny_cache, class_cache), labels=table)
    scores = [cache.towers[0].zero_shot for cache in result.report.caches]
    assert [score and len(score.classes) for score in scores] == [2, len(WORDS)]


def test_towers_that_read_other_classes_are_not_compared(merged: Path, class_cache: Path, tmp_path: Path) -> None:
    names = tmp_path / "more.txt"
    names.write_text("\n".join(f"{label}\t{label}" for label in [*WORDS, "пятый"]))
    settings = {"cache": (class_cache,), "classes": names, "against": str(merged), "distractors": True}
    result, page = write(merged, tmp_path / "r.html", **settings)
    score = result.report.caches[0].towers[0].zero_shot
    assert score is not None
    assert score.chance == 1 / 5
    matrix = next(table for table in page.tables if "text tower" not in table.rows[0] and len(table.rows[0]) >= 5)
    assert len(matrix.rows) == 1 + 4  # the fifth class has no image
    four = tmp_path / "four.txt"
    four.write_text("\n".join(f"{label}\t{label}" for label in WORDS))
    with pytest.raises(EvalError, match="--against-classes"):
        write(merged, tmp_path / "r.html", **settings, against_classes=four)


def test_several_runs_stand_side_by_side(
    tiny_cache: Path, tiny_run: Path, make_run: Callable[..., Path], tmp_path: Path
) -> None:
    other = make_run(tiny_cache, tmp_path / "other", val=tiny_cache, lr=3e-3, epochs=3)
    result, page = write((tiny_run, other), tmp_path / "r.html")
    require_self_contained(result.file)
    assert [subject.name for subject in result.report.subjects] == ["tiny", "other"]
    first, second = result.report.caches[0].towers
    assert (len(first.differences), len(second.differences)) == (0, 4)
    assert "other" in result.report.verdict
    settings = page.table_with("lr").rows
    assert ["lr", "0.001", "0.003"] in settings
    assert all(row[1] != row[2] for row in settings[1:])
    assert [row[0] for row in page.tables[0].rows[1:]] == ["tiny", "other"]


def test_runs_of_one_name_are_told_apart(tiny_run: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        shutil.copytree(tiny_run, tmp_path / name / "run")
    result, _ = write((tmp_path / "a" / "run", tmp_path / "b" / "run"), tmp_path / "r.html", thumbnails=0)
    assert [subject.name for subject in result.report.subjects] == ["a/run", "b/run"]


def test_a_run_without_a_step(tiny_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "empty"
    run.mkdir()
    shutil.copy(tiny_run / "run.json", run)
    result, page = write(run, tmp_path / "r.html")
    require_self_contained(result.file)
    assert result.report.verdict == "This run has no step yet."
    assert "svg" not in page.tags
    assert any("not finished" in note for note in result.report.notes)


def test_a_run_that_diverged(tiny_cache: Path, make_run: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(DistillError, match=r"at step \d+: lower --lr"):
        make_run(tiny_cache, tmp_path / "bad", lr=1e30, val=tiny_cache, log_every=1)
    (finding,) = [
        line
        for line in map(json.loads, (tmp_path / "bad" / "metrics.jsonl").read_text().splitlines())
        if line.get("finding") == "diverged"
    ]
    result, page = write(tmp_path / "bad", tmp_path / "r.html")
    require_self_contained(result.file)
    assert result.report.verdict.startswith(f"This run diverged at step {finding['step']:,}")
    assert finding["advice"] in page.text


def test_a_null_loss_of_an_older_run_is_a_gap(tiny_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "old"
    run.mkdir()
    shutil.copy(tiny_run / "run.json", run)
    losses = [3.0, 2.0, None]
    lines = [{"kind": "step", "step": i + 1, "loss": loss, "logit_scale": 14.0} for i, loss in enumerate(losses)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result, _ = write(run, tmp_path / "r.html")
    assert "diverged at step 3" in result.report.verdict
    assert json.loads(json.dumps(result.to_json(), allow_nan=False))["subjects"][0]["run"]["diverged_at"] == 3


def test_a_run_without_validation(tiny_cache: Path, make_run: Callable[..., Path], tmp_path: Path) -> None:
    run = make_run(tiny_cache, tmp_path / "plain")
    result, page = write(run, tmp_path / "r.html")
    assert result.report.verdict.startswith("This run has no validation (--val): its loss is ")
    assert "chance is 2.08" in result.report.verdict
    assert "own pairs" in page.text
    measured, _ = write(run, tmp_path / "measured.html", cache=(tiny_cache,))
    assert "finds the right image first" in measured.report.verdict


def test_an_absent_image_root_is_told(
    manifest: Path, make_cache: Callable[..., Any], merged: Path, tmp_path: Path
) -> None:
    shutil.copytree(manifest.parent, tmp_path / "pictures")
    make_cache(tmp_path / "pictures" / manifest.name, tmp_path / "c.zarr")
    (tmp_path / "pictures").rename(tmp_path / "elsewhere")
    result, page = write(merged, tmp_path / "r.html", cache=(tmp_path / "c.zarr",))
    assert (result.num_thumbnails, page.images) == (0, [])
    assert any("thumbnails" in note and note in page.text for note in result.report.notes)
    assert "images/0000.png" in page.text
    found, _ = write(
        merged, tmp_path / "r.html", cache=(tmp_path / "c.zarr",), image_root=str(tmp_path / "elsewhere"), thumbnails=5
    )
    assert found.num_thumbnails == 5
    (tmp_path / "elsewhere" / "images" / "0000.png").unlink()
    some, _ = write(merged, tmp_path / "r.html", cache=(tmp_path / "c.zarr",), image_root=str(tmp_path / "elsewhere"))
    assert any("0000.png (missing)" in note for note in some.report.notes)


HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</style></bdi>{{ 7*7 }}",
    "\u202egnp.\u2066exe",
    "a\x07b\x1b[31m",
    "عربي مع English",
    "👩‍👩‍👧 🇰🇷 кот",
    "고양이 猫 & <b>",
)


def test_hostile_captions_keys_and_names_are_text(make_cache: Callable[..., Any], merged: Path, tmp_path: Path) -> None:
    folder = tmp_path / "<i onclick=x>"
    (folder / "im").mkdir(parents=True)
    lines = []
    for i in range(16):
        name = f"im/{i}<b>\u202e'\".png"
        Image.fromarray(np.full((40, 40, 3), 15 * i, np.uint8)).save(folder / name)
        lines.append(json.dumps({"image": name, "text": [HOSTILE[i % 8] + f" {i}"]}))
    (folder / "t.jsonl").write_text("\n".join(lines) + "\n")
    make_cache(folder / "t.jsonl", folder / "c.zarr")
    result, page = write(merged, tmp_path / "r.html", cache=(folder / "c.zarr",))
    require_self_contained(result.file)
    assert not {"b", "i"} & {tag for tag in page.tags if tag == "script"}
    html = result.file.read_text(encoding="utf-8")
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202e\u2066]", html)
    for text in (HOSTILE[0], HOSTILE[1], HOSTILE[2], r"\u202egnp.\u2066exe", r"a\x07b\x1b[31m", *HOSTILE[5:]):
        assert " ".join(text.split()) in page.text
    assert "49" not in re.sub(r"[\d.,%]*\d{3,}", "", page.text) or "{{ 7*7 }}" in page.text


@pytest.mark.parametrize("num", [2, 1000])
def test_two_classes_and_a_thousand(make_cache: Callable[..., Any], merged: Path, tmp_path: Path, num: int) -> None:
    (tmp_path / "im").mkdir()
    for i in range(8):
        Image.fromarray(np.full((40, 40, 3), 30 * i, np.uint8)).save(tmp_path / "im" / f"{i}.png")
    rows = [{"image": f"im/{i % 8}.png", "text": [f"класс {i % num}"]} for i in range(max(16, 2 * num))]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    labels = tmp_path / "labels.jsonl"
    labels.write_text("".join(json.dumps({"image": f"im/{i}.png", "label": f"класс {i % 2}"}) + "\n" for i in range(8)))
    if num == 2:
        make_cache(tmp_path / "t.jsonl", tmp_path / "c.zarr")
        result, page = write(merged, tmp_path / "r.html", cache=(tmp_path / "c.zarr",), labels=labels)
        assert result.report.caches[0].towers[0].zero_shot.roc_auc is not None  # type: ignore[union-attr]
        assert any(row[1:] and row[0] == "класс 0" for table in page.tables for row in table.rows)
        return
    for i in range(2 * num):
        Image.fromarray(np.full((34, 34, 3), i % 256, np.uint8)).save(tmp_path / "im" / f"{i}.png")
    rows = [{"image": f"im/{i}.png", "text": [f"класс {i % num}"]} for i in range(2 * num)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    make_cache(tmp_path / "t.jsonl", tmp_path / "c.zarr", batch_size=64)
    result, page = write(merged, tmp_path / "r.html", cache=(tmp_path / "c.zarr",))
    require_self_contained(result.file)
    assert len(result.report.caches[0].towers[0].zero_shot.classes) == num  # type: ignore[union-attr]
    assert "Most confused classes" in page.text
    assert max(len(table.rows) for table in page.tables) <= 51


def test_the_function_and_the_command_say_the_same(tiny_run: Path, tmp_path: Path) -> None:
    result = clipglot.report(tiny_run, output=tmp_path / "r.html", thumbnails=0)
    done = CliRunner().invoke(main, ["report", str(tiny_run), "-o", str(tmp_path / "s.html"), "--thumbnails", "0"])
    assert done.exit_code == 0
    assert result.report.verdict in done.stdout
    assert str(tmp_path / "s.html") in done.stdout


def test_what_is_no_run_is_refused(
    tmp_path: Path, tiny_cache: Path, other_clip: Path, merged: Path, manifest: Path
) -> None:
    for arguments, told in (
        ([tmp_path / "absent"], "no such folder"),
        ([tiny_cache], "is a cache, expected a run"),
        ([tmp_path], "no run here"),
        ([merged, "--cache", tmp_path / "absent.zarr"], "absent.zarr"),
        ([merged, "--against-classes", tmp_path], "--against"),
        ([merged, "--shots", "0"], "--shots 0"),
        ([merged, "-o", tmp_path], "is a folder"),
        ([merged, "-o", "/dev/full"], "/dev/full is no file that can be replaced"),
        ([merged, "--cache", tiny_cache, "--cache", tiny_cache, "--labels", tmp_path / "absent.csv"], "absent.csv: no"),
        ([merged, "-o", "/proc/nowhere/r.html"], "/proc/nowhere/r.html"),
        ([merged, "--cache", tiny_cache, "--classes", tmp_path / "absent.txt"], "absent.txt"),
        ([merged, "--cache", tiny_cache, "--labels", manifest], "label"),
    ):
        output = () if "-o" in arguments else ("-o", str(tmp_path / "new" / "r.html"))
        done = CliRunner().invoke(main, ["report", *map(str, arguments), *output])
        assert done.exit_code in (1, 2), done.output
        assert told in done.output
        assert "Traceback" not in done.output
    with pytest.raises(EvalError, match="was made by"):
        write(other_clip, tmp_path / "r.html", cache=(tiny_cache,))


def test_a_missing_package_is_one_message(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(EvalError, match=r"pip install '.\[report\]'"):
        write(tiny_run, tmp_path / "r.html")


def test_forty_thumbnails_of_noise_stay_small(tmp_path: Path, make_cache: Callable[..., Any], merged: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "im").mkdir()
    rows = []
    for i in range(60):
        Image.fromarray(rng.integers(0, 256, (400, 400, 3), np.uint8)).save(tmp_path / "im" / f"{i}.png")
        rows.append({"image": f"im/{i}.png", "text": [f"шум номер {i}"]})
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    make_cache(tmp_path / "t.jsonl", tmp_path / "c.zarr")
    settings = ReportSettings(runs=(merged,), output=tmp_path / "r.html", cache=(tmp_path / "c.zarr",))
    result = report(replace(settings, thumbnails=40))
    assert result.num_thumbnails >= 18
    assert result.size < 3 * 10**6


def test_a_clip_alone_shows_where_it_came_from(merged: Path, tmp_path: Path) -> None:
    result, page = write(merged, tmp_path / "r.html")
    require_self_contained(result.file)
    assert "measured on no cache: pass --cache" in result.report.verdict
    assert result.report.subjects[0].facts["SHA-256 of the source"] in page.text
    assert "validation of the run, R@10" in page.text


def test_another_tower_reads_the_translations(
    translated_caches: dict[str, Path], make_run: Callable[..., Path], tmp_path: Path
) -> None:
    cache = translated_caches["train"]
    run = make_run(cache, tmp_path / "run", epochs=1, batch_size=64)
    other = clipglot.export(run, output=tmp_path / "other").folder
    result, page = write(run, tmp_path / "r.html", cache=(cache,), against=str(other), translations=True)
    ours, theirs = result.report.caches[0].towers
    assert theirs.name == "other with translations"
    opened = Cache(cache)
    emb = load_towers(other).encode_texts(opened.translations())
    images = opened.image_emb().astype(np.float32)
    owners = opened.caption_image()
    first = (emb @ images.T).argmax(1)
    texts = opened.translations()
    right = [texts[i] in [texts[j] for j in np.flatnonzero(owners == row)] for i, row in enumerate(first.tolist())]
    assert theirs.retrieval[EVERYTHING].text_to_image.r_at_1 == pytest.approx(np.mean(right), abs=0.01)
    assert "other with translations" in page.text
    assert ours.differences


def test_what_has_not_as_many_translations_or_no_images_is_said(
    make_cache: Callable[..., Any], manifest: Path, tmp_path: Path
) -> None:
    english, records = f"local-dir:{ENGLISH_CLIP}", [json.loads(line) for line in manifest.read_text().splitlines()]
    for name, lacking in (("some", ""), ("all", "noise")):
        lines = [{"image": r["image"], "text": f"шум {i}", "en": f"noise {i}"} for i, r in enumerate(records[:9])]
        table = manifest.parent / f"{name}.jsonl"
        table.write_text("".join(json.dumps(line) + "\n" for line in [*lines[:-1], lines[-1] | {"en": lacking}]))
    given = {"model": english, "teacher_field": ("en",)}
    some = make_cache(manifest.parent / "some.jsonl", tmp_path / "some.zarr", **given).cache.path
    with pytest.raises(EvalError, match="9 captions and 8 translations"):
        write(ENGLISH_CLIP, tmp_path / "r.html", cache=(some,), against=str(ENGLISH_CLIP), translations=True)
    texts = make_cache(manifest.parent / "all.jsonl", tmp_path / "texts.zarr", **given, images=False).cache.path
    result, _ = write(ENGLISH_CLIP, tmp_path / "r.html", cache=(texts,))
    assert any("texts.zarr has no images" in note for note in result.report.notes)


def test_each_language_is_in_the_tables(
    manifest: Path, make_cache: Callable[..., Any], merged: Path, tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    lines = [
        {"image": row["image"], "ru": row["text"], "ko": ["빨간 소음", "소음 번호"][: 1 + i % 2]}
        for i, row in enumerate(rows)
    ]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = {"image_root": manifest.parent, "text_field": ("ru", "ko"), "language": ("ru", "ko")}
    make_cache(tmp_path / "t.jsonl", tmp_path / "c.zarr", **settings)
    result, page = write(merged, tmp_path / "r.html", cache=(tmp_path / "c.zarr",))
    (tower,) = result.report.caches[0].towers
    assert set(tower.retrieval) == {EVERYTHING, "ru", "ko"}
    alone = clipglot.evaluate_retrieval(merged, cache=tmp_path / "c.zarr")
    assert tower.retrieval["ko"] == alone.languages["ko"]
    assert {"Cyrillic", "Hangul"} <= {bucket.name for bucket in tower.buckets["script"]}
    assert {"ru", "ko"} <= {row[0] for row in page.table_with("mean recall").rows if row}


@pytest.mark.slow
def test_speed_of_a_clip_is_shown(merged: Path, tmp_path: Path) -> None:
    result, page = write(merged, tmp_path / "r.html", speed=True)
    speed = result.report.subjects[0].speed
    assert speed is not None
    assert f"{speed.text_parameters:,} parameters" in page.text
    assert [row[:2] for row in page.table_with("batch").rows[1:]] == [[r.side, str(r.batch)] for r in speed.rates]


@pytest.mark.slow
def test_a_mutated_run_gets_a_page_or_is_refused(tiny_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    described = json.loads((run / "run.json").read_text())
    described["settings"]["val"] = None  # a page without measurements takes a moment
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    outcomes = {"shown": 0, "refused": 0}

    def check(example: tuple[Any, Any]) -> None:
        (run / "run.json").write_text(json.dumps(example[0]))
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in example[1]))
        try:
            result, _ = write(run, tmp_path / "r.html")
        except (DistillError, EncoderError):
            outcomes["refused"] += 1
        else:
            outcomes["shown"] += 1
            json.dumps(result.to_json(), allow_nan=False)

    either = st.one_of(
        st.tuples(json_mutations(described), st.just(lines)), st.tuples(st.just(described), json_mutations(lines))
    )
    search(either, check, 60)
    assert min(outcomes.values()) > 5
