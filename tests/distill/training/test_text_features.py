"""Features of a frozen language model, computed once: equal to live ones, resumed after a kill, no others."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clipglot.cache.errors import DamagedCacheError
from clipglot.cache.progress import Progress
from clipglot.cache.read.cache import Cache
from clipglot.cache.read.verify import verify
from clipglot.cache.storage import feature_arrays
from clipglot.distill.data import text_features
from clipglot.distill.data.text_features import TextFeatures, open_features
from clipglot.distill.data.tokens import open_tokens
from clipglot.distill.errors import DistillError
from clipglot.distill.training.final import load_final
from clipglot.distill.training.outline import RunOutline
from clipglot.distill.training.run_folder import RunFolder
from clipglot.distill.training.train import train
from clipglot.encoders.text_lm import LMHead, LMTower
from clipglot.encoders.tokenizer_lm import LMTokenizer
from support.run_logs import logged
from support.runs import stop_at
from support.tiny_lms import CONTEXT, FAMILIES, save_tiny_lm

CPU = torch.device("cpu")


@pytest.fixture
def cache(tiny_cache: Path, tmp_path: Path) -> Cache:
    """A cache without tokens."""
    path = Path(shutil.copytree(tiny_cache, tmp_path / "cache.zarr", ignore=shutil.ignore_patterns("tokens")))
    return Cache(path)


@pytest.fixture
def frozen(lm_settings: Any, cache: Cache) -> Any:
    """Settings of a run with a frozen model."""
    return replace(lm_settings, cache=cache.path, val=cache.path, train_layers=0, lr=1e-2)


def groups(cache: Cache) -> list[Path]:
    return sorted((cache.path / "tokens").glob("features-*"))


def head_of(folder: Path, **options: Any) -> LMHead:
    head = LMTower.from_pretrained(str(folder), 16, context_length=CONTEXT, **options)
    head.freeze(train_layers=0, word_embeddings=False)
    alone = head.head_alone()
    assert alone is not None
    return alone


def features_of(cache: Cache, head: LMHead, tmp_path: Path, tokenizer: LMTokenizer, **options: Any) -> TextFeatures:
    tokens = open_tokens(cache, tokenizer, CONTEXT, tmp_path / "tokens")
    fingerprint = tokenizer.fingerprint(CONTEXT)
    return open_features(cache, tokens, head, fingerprint, "fp32", CPU, tmp_path / "tokens", **options)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("pooler", "layers"), [("mean", ()), ("cls", (1, 3)), ("eos", (2,))], ids=str)
def test_stored_features_are_those_of_one_caption_at_a_time(
    family: str, pooler: Any, layers: tuple[int, ...], lms: dict[str, Path], cache: Cache, tmp_path: Path
) -> None:
    head, tokenizer = head_of(lms[family], pooler=pooler, layers=layers), LMTokenizer.load(lms[family])
    features = features_of(cache, head, tmp_path, tokenizer)
    captions = cache.captions()
    model = head.transformer.eval()
    for number in (0, len(captions) // 2, len(captions) - 1):
        ids = torch.tensor(tokenizer.encode([captions[number]], CONTEXT))
        with torch.inference_mode():
            output = model(input_ids=ids, output_hidden_states=True)
        states = [*output.hidden_states[:-1], output.last_hidden_state]
        pooled = [
            {"mean": state[0].mean(0), "cls": state[0, 0], "eos": state[0, -1]}[pooler]
            for state in (states[layer] for layer in layers or (3,))
        ]
        stored = torch.from_numpy(features.take(np.array([number]))[0]).float()
        torch.testing.assert_close(stored, torch.cat(pooled), rtol=2e-3, atol=2e-3)  # float16


@pytest.mark.parametrize("changes", [{}, {"head": "deep", "dropout": 0.0, "loss": "siglip"}], ids=["linear", "deep"])
def test_training_by_features_equals_training_live(frozen: Any, cache: Cache, changes: dict[str, Any]) -> None:
    runs = {}
    for how in ("auto", "live"):
        given = replace(frozen, output=frozen.output / how, text_features=how, **changes)
        train(given)
        runs[how] = RunFolder(given.output)
        assert len(groups(cache)) == 1  # the live run made none
    lines = [[line for line in run.metrics() if "loss" in line] for run in runs.values()]
    for cached, live in zip(*lines, strict=True):
        assert cached["loss"] == pytest.approx(live["loss"], rel=2e-3)
    assert lines[0][-1]["loss"] < lines[0][0]["loss"]
    towers = [load_final(run).tower for run in runs.values()]
    assert all(torch.equal(*pair) for pair in zip(*(t.text["transformer"].parameters() for t in towers), strict=True))
    captions = LMTokenizer.load(frozen.text).encode(cache.captions(), CONTEXT)
    with torch.inference_mode():
        ours, theirs = (torch.nn.functional.normalize(tower.encode(captions), dim=-1) for tower in towers)
    assert float((ours * theirs).sum(-1).min()) > 0.999


def test_later_runs_take_the_features_that_are_stored(
    frozen: Any, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(frozen)
    calls = []
    monkeypatch.setattr(feature_arrays, "write_features", lambda *_: calls.append(1))
    for number, change in enumerate(({"head": "glu"}, {"loss": "cosine"}, {"seed": 1, "epochs": 2}, {"ema": 0.5})):
        train(replace(frozen, output=frozen.output.with_name(f"run_{number}"), **change))
    assert (calls, len(groups(cache))) == ([], 1)


def test_no_step_runs_the_language_model(frozen: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []

    def refuse(*_: Any) -> Any:
        raise AssertionError("the language model ran")

    def listen(progress: Progress) -> None:
        if progress.stage == "train":
            steps.append(progress.done)
            monkeypatch.setattr("clipglot.encoders.text_lm.hidden_states_of", refuse)

    train(replace(frozen, simcse=0.1, head="deep", ema=0.9, micro_batch=3, captions_per_picture=1), on_progress=listen)
    assert len(steps) > 2


def test_token_dropout_runs_the_model_in_every_step(frozen: Any, cache: Cache) -> None:
    given = replace(frozen, token_dropout=0.2)
    assert (given.live_because, frozen.live_because) == ("--token-dropout 0.2", "")
    train(given)
    assert groups(cache) == []


def test_a_checkpoint_holds_the_head_alone_and_the_final_tower_all(frozen: Any) -> None:
    train(replace(frozen, warm_start="ridge", ema=0.9))
    run = RunFolder(frozen.output)
    checkpoint = run.load_checkpoint()
    assert checkpoint is not None
    for state in (checkpoint["tower"], checkpoint["best"]["weights"]["tensors"]):
        assert set(state) == {"text.proj.weight"}
    whole = LMTower.from_pretrained(frozen.text, 16, context_length=CONTEXT).state_dict()
    for which in ("last", "best"):
        final = load_final(run, which).tower.state_dict()
        assert final.keys() == whole.keys()
        assert all(torch.equal(final[name], whole[name]) for name in whole if "proj" not in name)


def test_resume_equals_the_uninterrupted_run(frozen: Any, tmp_path: Path) -> None:
    for name, listen in (("straight", lambda progress: None), ("broken", stop_at(9))):
        given = replace(frozen, output=tmp_path / name, head="deep", dropout=0.1, ema=0.9, warm_start="ridge")
        train(given, on_progress=listen)
    assert train(given, resume=True).complete
    assert logged(tmp_path / "broken") == logged(tmp_path / "straight")
    ours, theirs = (load_final(RunFolder(tmp_path / name)).tower.state_dict() for name in ("broken", "straight"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_killed_writer_loses_no_chunk(
    lms: dict[str, Path], cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_arrays, "CHUNK_ROWS", 16)
    head, tokenizer = head_of(lms["bert"]), LMTokenizer.load(lms["bert"])

    def stop_in_the_third_chunk(progress: Progress) -> None:
        if progress.stage == "features" and progress.done > 32:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        features_of(cache, head, tmp_path, tokenizer, on_progress=stop_in_the_third_chunk)
    (group,) = groups(cache)
    chunks = {file: file.read_bytes() for file in sorted((group / "pooled").rglob("c/*/*/*"))}
    assert len(chunks) == 2
    (group / "pooled" / "c" / "0" / "2" / "").mkdir(parents=True, exist_ok=True)
    (group / "pooled" / "c" / "0" / "2" / f".0.{'0' * 32}.partial").write_bytes(b"half")
    assert verify(cache) == []
    done = []
    features = features_of(cache, head, tmp_path, tokenizer, on_progress=lambda progress: done.append(progress.done))
    assert min(done) > 32
    assert {file: file.read_bytes() for file in chunks} == chunks
    assert not list(group.rglob("*.partial"))
    straight = tmp_path / "straight.zarr"
    shutil.copytree(cache.path, straight, ignore=shutil.ignore_patterns("tokens"))
    uninterrupted = features_of(Cache(straight), head, tmp_path, tokenizer)
    everything = np.arange(len(features))
    assert np.array_equal(features.take(everything), uninterrupted.take(everything))


# Computes the first two chunks of four, says so, and hangs in the third.
WRITER = """
import sys, time
from pathlib import Path
import numpy as np
from clipglot.cache.storage import feature_arrays
feature_arrays.CHUNK_ROWS = 8
def compute(rows):
    if rows.start == 16 and sys.argv[2] == "hang":
        print("half", flush=True)
        time.sleep(60)
    return np.arange(rows.start, rows.stop, dtype=np.float16)[:, None].repeat(3, axis=1)
feature_arrays.write_features(Path(sys.argv[1]), {"made": "by a test"}, 30, 3, compute)
"""


def test_chunks_outlive_a_writer_that_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group, described = tmp_path / feature_arrays.group_name({"made": "by a test"}), {"made": "by a test"}
    command = [sys.executable, "-c", WRITER, str(group)]
    killed = subprocess.Popen([*command, "hang"], stdout=subprocess.PIPE, text=True)
    assert killed.stdout is not None
    assert killed.stdout.readline() == "half\n"
    killed.kill()
    killed.wait()
    killed.stdout.close()
    assert feature_arrays.num_written(group, described, 30, 3) == 16
    with pytest.raises(DamagedCacheError, match="absent"):
        feature_arrays.map_features(group, described, 30, 3)
    subprocess.run([*command, "to the end"], check=True)
    stored = feature_arrays.map_features(group, described, 30, 3).read()
    assert np.array_equal(stored, np.arange(30, dtype=np.float16)[:, None].repeat(3, axis=1))
    with pytest.raises(DamagedCacheError, match="30 captions, 3 features each, expected 31 captions"):
        feature_arrays.map_features(group, described, 31, 3)


def test_another_model_prompt_layer_or_caption_has_features_of_its_own(
    frozen: Any, cache: Cache, lms: dict[str, Path], tmp_path: Path, make_cache: Callable[..., Any]
) -> None:
    train(frozen)
    other = save_tiny_lm(tmp_path / "other", "bert")
    model = LMTower.from_pretrained(str(other), 16, context_length=CONTEXT).transformer
    with torch.no_grad():
        model.embeddings.word_embeddings.weight[5] += 1
    model.save_pretrained(str(other))
    changes: list[dict[str, Any]] = [
        {"text": str(other)},
        {"text_prompt": "query: "},
        {"text_layers": "1,2"},
        {"pooler": "cls"},
        {"context_length": 8},
        {"precision": "bf16"},
    ]
    for number, change in enumerate(changes, 2):
        train(replace(frozen, output=tmp_path / f"run_{number}", **change))
        assert len(groups(cache)) == number, change


def test_forged_features_are_refused(frozen: Any, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    train(frozen)
    (group,) = groups(cache)
    described = group / "zarr.json"
    stored = json.loads(described.read_text())
    stored["attributes"]["clipglot"]["weights_sha256"] = "0" * 64
    described.write_text(json.dumps(stored))
    again = replace(frozen, output=frozen.output.with_name("again"))
    with pytest.raises(DamagedCacheError, match="another language model or for other captions"):
        train(again)
    shutil.rmtree(group)
    # Features that are whole and named rightly, but not of this model.
    rng = np.random.default_rng(0)
    monkeypatch.setattr(
        text_features._Embedder,
        "__call__",
        lambda self, captions, on_done=None: rng.normal(size=(len(captions), 16)).astype(np.float16),
    )
    train(replace(frozen, output=frozen.output.with_name("forged"), epochs=1, val=None))
    monkeypatch.undo()
    with pytest.raises(DamagedCacheError, match="cosine"):
        train(again)


def test_a_flipped_byte_is_found(frozen: Any, cache: Cache) -> None:
    train(frozen)
    (chunk,) = groups(cache)[0].rglob("c/*/*/*")
    content = bytearray(chunk.read_bytes())
    content[7] ^= 1
    chunk.write_bytes(content)
    (fault,) = verify(cache)
    assert str(chunk) in fault.message
    again = replace(frozen, output=frozen.output.with_name("again"))
    with pytest.raises(DamagedCacheError, match="training computes it again"):
        train(again)
    chunk.unlink()
    train(again)


def test_a_run_whose_model_changed_is_not_resumed(frozen: Any, lms: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(lms["bert"], tmp_path / "lm"))
    given = replace(frozen, text=str(folder))
    train(given, on_progress=stop_at(5))
    model = LMTower.from_pretrained(str(folder), 16, context_length=CONTEXT).transformer
    with torch.no_grad():
        model.embeddings.word_embeddings.weight[5] += 1
    model.save_pretrained(str(folder))
    with pytest.raises(DistillError, match="other weights than when the run was begun"):
        train(given, resume=True)


def test_features_of_a_cache_that_cannot_be_written_lie_in_the_run(
    frozen: Any, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_outside_the_cache(folder: Path) -> bool:
        return cache.path not in folder.parents

    monkeypatch.setattr("clipglot.cache.storage.token_arrays.can_write", is_outside_the_cache)
    train(frozen)
    assert not (cache.path / "tokens").exists()
    assert len(list(frozen.output.glob("tokens/*/features-*"))) == 1


def test_a_frozen_run_of_an_earlier_version_goes_on_live(frozen: Any, cache: Cache) -> None:
    given = replace(frozen, text_features="live")
    train(given, on_progress=stop_at(5))
    described = frozen.output / "run.json"
    begun = json.loads(described.read_text())
    for name in ("text_layers", "text_prompt", "text_features"):
        del begun["settings"][name]
    described.write_text(json.dumps(begun))
    again = RunFolder(frozen.output).settings_to_resume()
    assert again["text_features"] == "live"
    assert train(replace(frozen, **{k: again[k] for k in ("text_features",)}), resume=True).complete
    assert groups(cache) == []


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_a_head_on_another_device_than_its_model_has_one_learning_rate(family: str, lms: dict[str, Path]) -> None:
    head = head_of(lms[family], head="glu").to("meta")  # as on a GPU, while the model is on the CPU
    factors = head.learning_rate_factors(pretrained=0.1, layer_decay=0.9)
    assert factors == {name: 1.0 for name, _ in head.named_parameters()}
    assert len(factors) > 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_head_learns_on_a_gpu(frozen: Any, cache: Cache) -> None:
    result = train(replace(frozen, device="cuda", warm_start="ridge", head="glu", ema=0.9))
    assert result.complete
    losses = [line["loss"] for line in RunFolder(frozen.output).metrics() if line["kind"] == "step"]
    assert losses[-1] < losses[0]
    assert len(groups(cache)) == 1


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({}, True),
        ({"train_layers": 0}, False),
        ({"train_layers": 0, "text_features": "live"}, False),
        ({"lora_rank": 2}, False),
        ({"train_layers": 1}, True),
    ],
    ids=["whole", "stored", "live", "lora", "last layer"],
)
def test_advice_names_the_rate_of_a_model_that_is_trained(
    changes: dict[str, Any], named: bool, lm_settings: Any
) -> None:
    given = replace(lm_settings, lr=1e-9, lm_lr=1e-9, epochs=20, **changes)
    (finding,) = (finding for finding in train(given).findings if finding.kind == "loss_at_chance")
    assert "--lr (now 1e-09" in finding.advice
    assert ("--lm-lr" in finding.advice) == named


@pytest.mark.parametrize(
    "changes", [{}, {"text_features": "live"}, {"head": "deep", "warm_start": "ridge", "ema": 0.9}]
)
def test_a_run_says_how_much_of_the_whole_tower_it_trains(frozen: Any, changes: dict[str, Any]) -> None:
    outlines = list[RunOutline]()
    result = train(replace(frozen, epochs=1, **changes), on_outline=outlines.append)
    tower = load_final(result.run).tower
    assert isinstance(tower, LMTower)
    sizes = [sum(p.numel() for p in part.parameters()) for part in (tower.text["proj"], tower)]
    assert [result.num_trained, result.num_parameters] == sizes
    assert f"{sizes[0]:,} of {sizes[1]:,} parameters trained" in outlines[0].facts()["text tower"]
    assert result.text_features == ("live" if "text_features" in changes else "stored")


@pytest.mark.parametrize("what", ["pipe", "file", "views"])
def test_what_is_no_group_of_features_is_named(what: str, frozen: Any, cache: Cache) -> None:
    train(replace(frozen, epochs=1))
    (group,) = groups(cache)
    if what == "views":
        described = group / "pooled" / "zarr.json"
        stored = json.loads(described.read_text())
        stored["chunk_grid"]["configuration"]["chunk_shape"][0] = 5
        described.write_text(json.dumps(stored))
    else:
        shutil.rmtree(group)
        os.mkfifo(group) if what == "pipe" else group.write_text("")
    with pytest.raises(DamagedCacheError, match=rf"{group.name}.* delete .*{group.name}"):
        train(replace(frozen, output=frozen.output.with_name("again")))
    (fault,) = verify(cache)
    assert group.name in fault.message


def test_writers_on_a_filesystem_without_locks_leave_each_other_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipglot.cache.storage.atomic.lock", lambda *_: False)
    monkeypatch.setattr(feature_arrays, "CHUNK_ROWS", 8)
    described = {"made": "by a test"}
    group = tmp_path / feature_arrays.group_name(described)
    nested: list[Path] = []

    def compute(rows: slice) -> Any:
        if not nested:
            nested.append(group / "pooled" / f".0.{'0' * 32}.partial")
            nested[0].write_bytes(b"of another writer")
            feature_arrays.write_features(group, described, 30, 3, compute)  # as another process would meanwhile
        return np.arange(rows.start, rows.stop, dtype=np.float16)[:, None].repeat(3, axis=1)

    feature_arrays.write_features(group, described, 30, 3, compute)
    assert nested[0].exists()
    stored = feature_arrays.map_features(group, described, 30, 3).read()
    assert np.array_equal(stored, np.arange(30, dtype=np.float16)[:, None].repeat(3, axis=1))


@pytest.mark.parametrize("prompt", [" ", "▁", "\n", "query\udcff: "])
def test_a_prompt_that_is_no_text_is_refused(prompt: str, frozen: Any) -> None:
    with pytest.raises(DistillError, match="--text-prompt"):
        replace(frozen, text_prompt=prompt)


def test_a_prompt_that_fills_the_context_is_refused(frozen: Any) -> None:
    with pytest.raises(DistillError, match=r"--text-prompt .* leaves no room"):
        train(replace(frozen, text_prompt="query " * 50))
    assert not frozen.output.exists()
