"""`clipglot eval …` on real caches: figures against open_clip and scikit-learn, comparisons, bad input."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import clipglot
import numpy as np
import open_clip
import pytest
import torch
from clipglot.cache.read.cache import Cache
from clipglot.demo.run import ENGLISH_CLIP
from clipglot.encoders.interpolate import interpolate_clips
from clipglot.encoders.merged_clip import load_merged
from clipglot.encoders.text_scratch import ScratchTower
from sklearn.linear_model import LogisticRegression
from support.class_folders import CLASSES
from support.command_line import run

RUSSIAN = {"red": "красный", "green": "зелёный", "blue": "синий"}


def by_open_clip(folder: Path, texts: list[str]) -> np.ndarray:
    """Unit embeddings of texts as open_clip computes them."""
    clip, tokenizer = open_clip.create_model(f"local-dir:{folder}"), open_clip.get_tokenizer(f"local-dir:{folder}")
    with torch.inference_mode():
        emb: np.ndarray = clip.eval().encode_text(tokenizer(texts), normalize=True).numpy().astype(np.float64)
    return emb


def labels_of_keys(cache: Cache) -> list[str]:
    return [key.split("/")[0] for key in cache.keys(0)]


def result(*arguments: object) -> Any:
    """The JSON of a command."""
    done = run(*arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def classes_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Russian names by label."""
    file = tmp_path_factory.mktemp("names") / "classes.txt"
    file.write_text("".join(f"{label}\t{name}\n" for label, name in RUSSIAN.items()), encoding="utf-8")
    return file


def test_zero_shot_is_what_open_clip_computes(merged: Path, class_cache: Path, classes_file: Path) -> None:
    given = ["--classes", classes_file, "--templates", "это {}", "--templates", "{} шум"]
    found = result("eval", "zeroshot", merged, class_cache, *given)
    cache, labels = Cache(class_cache), sorted(CLASSES)
    prompts = np.array([by_open_clip(merged, [f"это {RUSSIAN[n]}", f"{RUSSIAN[n]} шум"]).mean(0) for n in labels])
    prompts /= np.linalg.norm(prompts, axis=1, keepdims=True)
    best = [labels[i] for i in (cache.image_emb().astype(np.float64) @ prompts.T).argmax(1)]
    truth = labels_of_keys(cache)
    assert found["top1"] == pytest.approx(np.mean([a == b for a, b in zip(best, truth, strict=True)]))
    assert [score["name"] for score in found["classes"]] == [RUSSIAN[label] for label in labels]
    cells = {(c["label"], c["predicted"]): c["num_images"] for c in found["confusion"]}
    assert cells == {pair: list(zip(truth, best, strict=True)).count(pair) for pair in cells}
    assert found["templates"] == ["это {}", "{} шум"]
    shown = run("eval", "zeroshot", merged, class_cache, *given).output
    assert f"{found['top1']:.1%}" in shown
    assert all(name in shown for name in RUSSIAN.values())


def test_labels_may_come_from_a_table(merged: Path, tiny_cache: Path, tmp_path: Path) -> None:
    words = ["красный", "зелёный", "синий", "жёлтый"]
    table = tmp_path / "labels.csv"
    table.write_text("file,kind\n" + "".join(f"images/{i:04}.png,{words[i % 4]}\n" for i in range(30)))
    found = result(
        "eval", "zeroshot", merged, tiny_cache, "--labels", table, "--key-field", "file", "--label-field", "kind"
    )
    assert (found["num_images"], found["num_unlabelled"]) == (30, 10)
    assert {score["label"]: score["num_images"] for score in found["classes"]} == {
        "красный": 8,
        "зелёный": 8,
        "синий": 7,
        "жёлтый": 7,
    }


def test_a_wrong_column_of_labels_is_named_with_the_flag_of_eval(
    merged: Path, tiny_cache: Path, tmp_path: Path
) -> None:
    (tmp_path / "labels.csv").write_text("image,kind\nimages/0000.png,a\n")
    done = run("eval", "zeroshot", merged, tiny_cache, "--labels", tmp_path / "labels.csv")
    assert done.exit_code == 1
    assert "--label-field" in done.stderr
    assert "--text-field" not in done.stderr


def test_a_clip_against_itself_and_another_prompt(merged: Path, class_cache: Path, classes_file: Path) -> None:
    itself = result("eval", "zeroshot", merged, class_cache, "--against", merged)
    assert [(d["low"], d["high"], d["significant"]) for d in itself["against"]["differences"]] == [(0, 0, False)]
    other = result(
        "eval", "zeroshot", merged, class_cache, "--classes", classes_file, "--against", merged,
        "--against-templates", "a {}",
    )  # fmt: skip
    alone = result("eval", "zeroshot", merged, class_cache, "--classes", classes_file, "--templates", "a {}")
    assert other["against"]["report"]["top1"] == alone["top1"]
    assert "cannot be told apart" in run("eval", "zeroshot", merged, class_cache, "--against", merged).output


@pytest.fixture(scope="module")
def fine_tuned(translated_manifests: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The demo's English CLIP, trained on with `--text clip` for a moment, and its cache."""
    folder = tmp_path_factory.mktemp("fine_tuned")
    commands = (
        ["cache", translated_manifests["val"], "-o", folder / "val.zarr", "--model", f"local-dir:{ENGLISH_CLIP}",
         "--text-field", "en", "--teacher-field", "en"],
        ["train", folder / "val.zarr", "-o", folder / "run", "--text", "clip", "--epochs", 1, "--batch-size", 32],
        ["export", folder / "run", "-o", folder / "merged"],
    )  # fmt: skip
    for command in commands:
        done = run(*command)
        assert done.exit_code == 0, done.output
    return {"cache": folder / "val.zarr", "merged": folder / "merged", "run": folder / "run"}


def test_between_two_text_towers_the_ends_are_these(fine_tuned: dict[str, Path], tmp_path: Path) -> None:
    start, end = load_merged(ENGLISH_CLIP), load_merged(fine_tuned["merged"])
    assert isinstance(end.text_tower, ScratchTower)
    own, old = ScratchTower.from_clip(f"local-dir:{ENGLISH_CLIP}", None)
    began = own.with_vocabulary(old, end.tokenizer, context_length=end.context_length, embed_dim=end.dim)
    texts = end.tokenizer.encode(["a red circle above a blue square", "one green star"], end.context_length)
    with torch.inference_mode():
        for share, tower in ((0, began.eval()), (1, end.text_tower)):
            between = interpolate_clips(start, end, share).text_tower
            assert torch.allclose(between.encode(texts), tower.encode(texts), atol=1e-6)
    half = interpolate_clips(start, end, 0.5)
    one, two, mean = (dict(tower.named_parameters()) for tower in (began, end.text_tower, half.text_tower))
    for name, value in mean.items():
        assert torch.allclose(value, (one[name] + two[name]) / 2, atol=1e-7)
    assert half.logit_scale == pytest.approx((start.logit_scale * end.logit_scale) ** 0.5)
    labels = tmp_path / "labels.jsonl"
    keys = Cache(fine_tuned["cache"]).keys()
    labels.write_text(
        "".join(json.dumps({"image": k, "label": ("a star", "a circle")[i % 2]}) + "\n" for i, k in enumerate(keys))
    )
    found = result(
        "eval", "zeroshot", fine_tuned["merged"], fine_tuned["cache"], "--labels", labels, "--against", ENGLISH_CLIP,
        "--interpolate", "0,0.5,1",
    )  # fmt: skip
    by_share = {each["share"]: each["top1"] for each in found["interpolated"]}
    assert list(by_share) == [0, 0.5, 1]
    assert by_share[1] == found["top1"]


def test_an_export_between_two_towers_is_loaded_by_open_clip(fine_tuned: dict[str, Path], tmp_path: Path) -> None:
    done = run("export", fine_tuned["run"], "-o", tmp_path / "half", "--interpolate", 0.5)
    assert done.exit_code == 0, done.output
    expected = interpolate_clips(load_merged(ENGLISH_CLIP), load_merged(fine_tuned["merged"]), 0.5)
    texts = ["a red circle"]
    assert by_open_clip(tmp_path / "half", texts) == pytest.approx(expected.encode_texts(texts), abs=1e-5)
    assert load_merged(tmp_path / "half").record["interpolate"] == 0.5


def test_towers_without_places_in_common_are_refused(
    merged: Path, class_cache: Path, tiny_cache: Path, tiny_run: Path, make_run: Callable[..., Path], tmp_path: Path
) -> None:
    wider = make_run(tiny_cache, tmp_path / "wider", width=24)
    assert run("export", wider, "-o", tmp_path / "other").exit_code == 0
    done = run("eval", "zeroshot", merged, class_cache, "--against", tmp_path / "other", "--interpolate", "0.5")
    assert done.exit_code == 1
    assert "--text clip" in done.stderr
    done = run("export", tiny_run, "-o", tmp_path / "m", "--interpolate", 0.5)
    assert done.exit_code == 1
    assert "--text clip" in done.stderr
    assert not (tmp_path / "m").exists()


def test_retrieval_against_the_tower_that_reads_translations(fine_tuned: dict[str, Path]) -> None:
    command = ["eval", "retrieval", fine_tuned["merged"], fine_tuned["cache"], "--against", ENGLISH_CLIP]
    found = result(*command, "--translations")
    plain = result("eval", "retrieval", ENGLISH_CLIP, fine_tuned["cache"])
    assert found["against"]["report"] == plain  # the translations are the captions here
    assert len(found["against"]["differences"]) == 6
    assert "text → image R@1" in run(*command).output


def test_languages_are_measured_one_by_one(
    merged: Path, tiny_cache: Path, manifest: Path, make_cache: Any, tmp_path: Path
) -> None:
    records = [json.loads(line) for line in manifest.read_text().splitlines()]
    table = manifest.parent / "languages.jsonl"
    table.write_text(
        "".join(
            json.dumps({"image": r["image"], "ru": r["text"], "ko": f"소음 {i}"}) + "\n" for i, r in enumerate(records)
        )
    )
    cache = make_cache(table, tmp_path / "c.zarr", text_field=("ru", "ko"), language=("ru", "ko")).cache
    found = result("eval", "retrieval", merged, cache.path)
    assert list(found["languages"]) == ["ru", "ko"]
    alone = result("eval", "retrieval", merged, tiny_cache)  # the same Russian captions and images
    assert found["languages"]["ru"]["text_to_image"] == alone["text_to_image"]
    assert found["languages"]["ru"]["image_to_text"] == alone["image_to_text"]
    assert found["languages"]["ko"]["text_to_image"]["num_queries"] == 40
    assert found["text_to_image"]["num_queries"] == cache.info.num_captions
    assert "ko" in run("eval", "retrieval", merged, cache.path).output


def test_queries_of_muge_count_once_and_make_a_submission(merged: Path, tiny_cache: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    keys, texts = Cache(tiny_cache).keys(), ["красный шум", "шум", "синий", "шум: жёлтый", "зелёный"]
    queries = [
        {"query_id": 10 + i, "query_text": text, "item_ids": [keys[j] for j in rng.choice(40, 1 + i, replace=False)]}
        for i, text in enumerate(texts)
    ]
    file = tmp_path / "queries.jsonl"
    file.write_text("".join(json.dumps(query, ensure_ascii=False) + "\n" for query in queries))
    found = result("eval", "retrieval", merged, tiny_cache, "--queries", file, "--submission", tmp_path / "out.jsonl")
    cosines = by_open_clip(merged, texts) @ Cache(tiny_cache).image_emb().astype(np.float64).T
    order = [[keys[j] for j in np.argsort(-row)] for row in cosines]
    recalls = [
        np.mean([bool(set(ranked[:k]) & set(query["item_ids"])) for ranked, query in zip(order, queries, strict=True)])
        for k in (1, 5, 10)
    ]
    assert [found["ranks"][f"r_at_{k}"] for k in (1, 5, 10)] == pytest.approx(recalls)
    assert found["mean_recall"] == pytest.approx(np.mean(recalls))
    assert found["ranks"]["num_queries"] == 5
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["query_id"] for line in lines] == [10, 11, 12, 13, 14]
    assert [line["item_ids"] for line in lines] == [ranked[:10] for ranked in order]
    secret = tmp_path / "secret.jsonl"
    secret.write_text("".join(json.dumps({"query_id": 1, "query_text": text}) + "\n" for text in texts))
    assert "nothing to measure" in run("eval", "retrieval", merged, tiny_cache, "--queries", secret).output
    file.write_text(json.dumps({"query_id": 3, "query_text": "x", "item_ids": [4711]}) + "\n{}\n")
    assert (
        "queries.jsonl:2: expected an object" in run("eval", "retrieval", merged, tiny_cache, "--queries", file).stderr
    )
    for item_ids in ('"47"', "[1.5]", "[" * 100_000):
        file.write_text(f'{{"query_id": 3, "query_text": "x", "item_ids": {item_ids}}}\n')
        done = run("eval", "retrieval", merged, tiny_cache, "--queries", file)
        assert "queries.jsonl:1: expected an object" in done.stderr
    file.write_text(json.dumps(queries[0] | {"query_text": "a\u2028b\x85c"}, ensure_ascii=False) + "\n")
    command = ["eval", "retrieval", merged, tiny_cache, "--queries", file]
    assert result(*command)["num_queries"] == 1
    assert "no file that can be replaced" in run(*command, "--submission", "/dev/full").stderr
    file.write_text(json.dumps({"query_id": 3, "query_text": "x", "item_ids": [4711]}) + "\n")
    assert "no image with key '4711'" in run("eval", "retrieval", merged, tiny_cache, "--queries", file).stderr


def test_a_probe_is_scikit_learns_on_the_same_images(merged: Path, class_cache: Path, classes_file: Path) -> None:
    found = result(
        "eval", "probe", class_cache, "--test", class_cache, "--shots", "2,all", "--merged", merged,
        "--classes", classes_file,
    )  # fmt: skip
    cache = Cache(class_cache)
    labels, emb = labels_of_keys(cache), cache.image_emb().astype(np.float32)
    last = found["points"][-1]
    theirs = LogisticRegression(C=last["penalties"][0], max_iter=10_000).fit(emb, labels)
    assert last["accuracy"] == pytest.approx(theirs.score(emb, labels), abs=0.05)
    assert [point["num_train"] for point in found["points"]] == [6, 24]
    zero_shot = result("eval", "zeroshot", merged, class_cache, "--classes", classes_file)
    assert found["zero_shot"] == zero_shot["top1"]
    held_out = result("eval", "probe", class_cache, "--shots", "1", "--test-share", 0.25)
    assert (held_out["num_train"], held_out["num_test"]) == (18, 6)
    assert "zero-shot" in run("eval", "probe", class_cache, "--shots", "1", "--merged", merged).output
    assert "--device nowhere: not usable here" in run("eval", "probe", class_cache, "--device", "nowhere").stderr


def test_speed_and_size_are_measured(merged: Path, tiny_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "clipglot.evals.speed.measure_speed.__kwdefaults__", {"seconds": 0.01, "rounds": 2, "on_progress": print}
    )
    found = result_of_speed = clipglot.evaluate_speed(merged, cache=tiny_cache, batch_sizes="1,4", device="cpu")
    assert [(rate.side, rate.batch) for rate in found.rates] == [("text", 1), ("text", 4), ("image", 1), ("image", 4)]
    assert all(0 < rate.low <= rate.per_s <= rate.high for rate in found.rates)
    clip = open_clip.create_model(f"local-dir:{merged}")
    parameters = {name: p.numel() for name, p in clip.named_parameters()}
    assert result_of_speed.image_parameters == sum(n for name, n in parameters.items() if name.startswith("visual."))
    assert found.text_parameters == sum(n for name, n in parameters.items() if name.startswith("text."))
    assert found.num_bytes == sum(file.stat().st_size for file in merged.iterdir())


@pytest.mark.parametrize(
    ("command", "flag"),
    [
        (["probe", "CACHE", "--shots", "0"], "--shots 0"),
        (["probe", "CACHE", "--shots", "1,many"], "--shots 1,many"),
        (["probe", "CACHE", "--shots", "9" * 5000], "--shots 999"),
        (["probe", "CACHE", "--classes", "x"], "need --merged"),
        (["speed", "MERGED", "--batch-sizes", "1,,2"], "--batch-sizes 1,,2"),
        (["zeroshot", "MERGED", "CACHE", "--interpolate", "0.5"], "--interpolate needs --against"),
        (["zeroshot", "MERGED", "CACHE", "--against", "x", "--interpolate", "2"], "--interpolate 2"),
        (["retrieval", "MERGED", "CACHE", "--submission", "x"], "--submission needs --queries"),
        (["retrieval", "MERGED", "CACHE", "--translations"], "--translations needs --against"),
    ],
)
def test_flags_that_do_not_fit_are_bad_usage(command: list[str], flag: str, merged: Path, class_cache: Path) -> None:
    done = run("eval", *({"MERGED": merged, "CACHE": class_cache}.get(part, part) for part in command))
    assert (done.exit_code, "Traceback" in done.output) == (2, False)
    assert flag in done.stderr
