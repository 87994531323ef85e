"""`clipglot bench`: its report is consistent, with a cache and with synthetic data."""

import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from clipglot.cache.format import EMB
from clipglot.cache.read.cache import Cache
from clipglot.cache.read.verify import verify
from clipglot.cli.main import main
from clipglot.distill.errors import DistillError
from clipglot.encoders.text_scratch import ScratchConfig, ScratchTower
from clipglot.jobs.bench import bench
from clipglot.jobs.bench_data import copy_to_npy, query_texts, query_tokens, write_random_cache
from clipglot.jobs.bench_steps import tower_flops
from clipglot.jobs.settings.bench import BenchSettings
from torch.utils.flop_counter import FlopCounterMode

TINY: dict[str, Any] = {"width": 16, "heads": 2, "layers": 2, "vocab_size": 300, "context_length": 16, "device": "cpu"}


def tiny_config(**changes: Any) -> ScratchConfig:
    sizes: dict[str, Any] = {"embed_dim": 24, "vocab_size": 100, "context_length": 128, "width": 16, "heads": 2}
    return ScratchConfig(**sizes | {"layers": 3, "pad_id": 0, "eos_id": 99, "quick_gelu": False} | changes)


def test_a_report_is_consistent(tiny_cache: Path) -> None:
    report = bench(BenchSettings(cache=tiny_cache, batch_size=8, steps=3, **TINY))
    measures = {measure.what: measure for measure in report.measures}
    for measure in report.measures:
        assert len(measure.values) == len(measure.references) == 3
        assert min(measure.values) >= 0
        assert measure.ratio == pytest.approx(measure.value / measure.reference)
        assert measure.spread[0] <= measure.spread[1]
    step_ms = [8e3 / pairs_per_s for pairs_per_s in measures["step"].values]
    for what in ("feeding alone", "waiting for the feed", "loss"):
        assert measures[what].references == pytest.approx(step_ms)
    assert measures["step"].reference == pytest.approx(report.captions_per_s)
    assert report.tokens_per_s == pytest.approx(report.captions_per_s * report.tokens_per_caption)
    assert measures["loss in blocks"].values == measures["loss"].values
    assert 2 < report.tokens_per_caption <= 16
    assert (report.batch_size, report.precision, report.compiled) == (8, "fp32", False)


def test_a_synthetic_cache_is_removed_after_the_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    arguments = "--width 16 --heads 2 --layers 1 --vocab-size 300 --batch-size 4 --steps 1 --device cpu --json"
    result = CliRunner().invoke(main, ["bench", *arguments.split()])
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    report = json.loads(result.stdout)
    assert {measure["what"] for measure in report["measures"]} >= {"tower alone", "step", "loss", "random rows"}
    for measure in report["measures"]:
        assert measure["ratio"] == pytest.approx(measure["value"] / measure["reference"])
        assert measure["n"] == 1
    assert list(tmp_path.iterdir()) == []


def test_a_cache_is_not_changed(tiny_cache: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in tiny_cache.rglob("*")}
    config = "--width 16 --heads 2 --layers 1 --vocab-size 300 --batch-size 4 --steps 1 --device cpu"
    result = CliRunner().invoke(main, ["bench", str(tiny_cache), *config.split()])
    assert result.exit_code == 0, result.output
    for part in ("captions/s", "tokens/s", "np.memmap", "loss in blocks"):
        assert part in result.output
    assert {file: file.stat().st_mtime_ns for file in tiny_cache.rglob("*")} == before


def test_unsuitable_settings_and_caches_are_refused(tiny_cache: Path) -> None:
    with pytest.raises(DistillError, match="--width 10 is not a multiple"):
        BenchSettings(width=10, heads=4)
    with pytest.raises(DistillError, match="--steps 0"):
        BenchSettings(steps=0)
    with pytest.raises(DistillError, match="--batch-size 64 exceeds the 40"):
        bench(BenchSettings(cache=tiny_cache, batch_size=64, **TINY))


def test_a_synthetic_cache_is_valid_and_reproducible(tmp_path: Path) -> None:
    texts = list(query_texts(130, np.random.default_rng(0)))
    cache = write_random_cache(tmp_path / "c.zarr", ([text] for text in texts), 8)
    assert verify(cache.require_sealed()) == []
    assert cache.captions() == texts
    image_emb = Cache(tmp_path / "c.zarr").image_emb()
    assert np.linalg.norm(image_emb.astype(np.float32), axis=1) == pytest.approx(1, abs=1e-3)
    copy_to_npy(cache.mapped(EMB), tmp_path / "rows.npy", 100, 64)
    assert np.array_equal(np.load(tmp_path / "rows.npy"), image_emb[:100])


def test_queries_have_the_given_lengths_and_one_eos() -> None:
    tokens = query_tokens(5_000, 1_000, 20, np.random.default_rng(0))
    ids, lengths = tokens.gather(np.arange(len(tokens)))
    assert lengths.mean() == pytest.approx(8, abs=0.2)
    assert lengths.max() <= 20
    assert (np.flatnonzero(ids == 999) == np.cumsum(lengths) - 1).all()
    words = [len(text.split()) for text in query_texts(5_000, np.random.default_rng(0))]
    assert statistics.mean(words) + 2 == pytest.approx(8, abs=0.2)


@pytest.mark.parametrize("attention", ["lengths", "rows"])
def test_counted_operations_equal_those_of_torch(attention: Any) -> None:
    config = tiny_config()
    tower, lengths = ScratchTower(config), np.array([3, 128, 2])
    tower.attention = attention
    ids = np.concatenate([[1] * (length - 1) + [99] for length in lengths.tolist()])
    # Forward and backward, a key and a value of each pair: half of the square, and a row of it in the last block.
    pairs = (config.layers - 1) * (lengths**2).sum() / 2 + lengths.sum()
    expected = linear_flops(config, int(lengths.sum()), len(lengths)) + 3 * 2 * 2 * config.width * pairs
    assert tower_flops(config, tower.pack(ids, lengths)) == pytest.approx(expected)


def linear_flops(config: ScratchConfig, num_tokens: int, num_captions: int) -> float:
    """Operations that torch counts for the matrices of blocks and projection, the last block at EOS only."""
    text = ScratchTower(config).text
    x, eos = (torch.randn(rows, config.width, requires_grad=True) for rows in (num_tokens, num_captions))
    with FlopCounterMode(display=False) as counter:
        for block in text.transformer.resblocks:
            taken = eos if block is text.transformer.resblocks[-1] else x
            qkv = torch.nn.functional.linear(x, block.attn.in_proj_weight, block.attn.in_proj_bias)
            (qkv.sum() + block.attn.out_proj(taken).sum() + block.mlp(taken).sum()).backward()
        (eos @ text.text_projection).sum().backward()
    return float(counter.get_total_flops())
