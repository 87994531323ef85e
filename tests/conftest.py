"""Real things, small: images on disk, a tiny open_clip model with random weights, a cache of both."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing here may reach for a hub
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line sets it, before torch is imported

import json
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import open_clip
import pytest
import torch
from safetensors.torch import save_file
from support.drawings import draw_images
from support.s3_server import Bucket, serving
from support.worker_processes import Started, ask, launching
from zarr.core.sync import sync

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"

TINY_CONFIG: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real photographs, captions and ViT weights, where this checkout has them beside it."""
    if not SHARED_DATA.is_dir():
        pytest.skip("needs the data folder beside the checkout")
    return SHARED_DATA


def save_tiny_clip(folder: Path, seed: int) -> Path:
    """Write a folder that `local-dir:` loads: a two-layer CLIP with random weights, 32 px, 16 features."""
    torch.manual_seed(seed)
    clip = open_clip.CLIP(**TINY_CONFIG)
    save_file(clip.state_dict(), folder / "open_clip_model.safetensors")
    preprocess = {
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.3, 0.25],
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY_CONFIG, "preprocess_cfg": preprocess}))
    return folder


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The frozen CLIP of most tests."""
    return save_tiny_clip(tmp_path_factory.mktemp("tiny_clip"), seed=0)


@pytest.fixture(scope="session")
def other_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with other weights."""
    return save_tiny_clip(tmp_path_factory.mktemp("other_clip"), seed=1)


@pytest.fixture(scope="session")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty images with captions. Read only; tests that break things draw their own."""
    return draw_images(tmp_path_factory.mktemp("pictures"), 40)


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    """A bucket in an S3 server of our own, to which the environment leads."""
    with serving(tmp_path_factory.mktemp("s3")) as served, pytest.MonkeyPatch.context() as patch:
        for name, value in served.environment.items():
            patch.setenv(name, value)
        yield served
        shared = fsspec.filesystem("s3", asynchronous=True)  # by all stores of this process
        if hasattr(shared, "_s3creator"):  # it was used
            sync(shared._s3creator.__aexit__(None, None, None))
        shared.clear_instance_cache()  # the next server is another


@pytest.fixture(scope="session")
def make_cache(tiny_clip: Path) -> Callable[..., Any]:
    """`make_cache(manifest, output, **settings)`: the pass with the tiny tower; returns the `CacheResult`."""
    from clipglot.jobs.cache import cache_images
    from clipglot.jobs.settings.cache import CacheSettings

    def make(source: Path, output: Path, **settings: Any) -> Any:
        defaults = {"model": f"local-dir:{tiny_clip}", "batch_size": 8, "workers": 1}
        return cache_images(CacheSettings(source=source, output=output, **defaults | settings))

    return make


@pytest.fixture(scope="session")
def tiny_cache(manifest: Path, make_cache: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sealed cache of `manifest`. Read only."""
    path = tmp_path_factory.mktemp("caches") / "tiny.zarr"
    make_cache(manifest, path)
    return path


@pytest.fixture(scope="session")
def make_run() -> Callable[..., Path]:
    """`make_run(cache, output, **settings)`: train a tiny text tower for a moment; returns the run folder."""
    from clipglot.distill.train_settings import TrainSettings
    from clipglot.distill.training.train import train

    def make(cache: Path, output: Path, **settings: Any) -> Path:
        small = {"width": 16, "heads": 2, "layers": 1, "vocab_size": 300, "context_length": 24, "batch_size": 8}
        train(TrainSettings(cache=cache, output=output, **small | {"epochs": 2, "device": "cpu"} | settings))
        return output

    return make


@pytest.fixture(scope="session")
def tiny_run(tiny_cache: Path, make_run: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on `tiny_cache`, validated on it too. Read only."""
    return make_run(tiny_cache, tmp_path_factory.mktemp("runs") / "tiny", val=tiny_cache)


@pytest.fixture(scope="session")
def merged(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export of `tiny_run`. Read only."""
    from clipglot.jobs.export import export_run
    from clipglot.jobs.settings.export import ExportSettings

    return export_run(ExportSettings(run=tiny_run, output=tmp_path_factory.mktemp("exports") / "merged")).folder


@pytest.fixture(scope="session")
def taught_manifests(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Scenes with captions and translations: `train`, `val`, and `mixed`, which has translations of half. Read only."""
    from support.translated_scenes import draw_scenes

    return draw_scenes(tmp_path_factory.mktemp("scenes"))


@pytest.fixture(scope="session")
def taught_caches(
    taught_manifests: dict[str, Path], make_cache: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Their caches, with a teacher but for `val`. Read only."""
    from support.translated_scenes import MODEL

    folder = tmp_path_factory.mktemp("caches")
    for name in ("train", "mixed"):
        make_cache(taught_manifests[name], folder / name, model=MODEL, batch_size=64, teacher_field=("en",))
    make_cache(taught_manifests["val"], folder / "val", model=MODEL, batch_size=64)
    return {name: folder / name for name in taught_manifests}


@pytest.fixture(scope="module")
def lms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each family. Read only."""
    from support.tiny_lms import FAMILIES, save_tiny_lm

    return {family: save_tiny_lm(tmp_path_factory.mktemp("lm") / family, family) for family in FAMILIES}


@pytest.fixture
def lm_settings(lms: dict[str, Path], tiny_cache: Path, tmp_path: Path) -> Any:
    """The settings of a run with the tiny BERT."""
    from support.runs import settings
    from support.tiny_lms import CONTEXT

    base = settings(tiny_cache, tmp_path / "run")
    shape = {"width": 512, "layers": 6, "heads": 8}  # the defaults: a language model has its own
    return replace(base, text=str(lms["bert"]), context_length=CONTEXT, lm_lr=1e-3, **shape)


@pytest.fixture(scope="session")
def with_tokens(tiny_cache: Path, make_run: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of `tiny_cache` that was trained on. Read only."""
    folder = tmp_path_factory.mktemp("zarr")
    shutil.copytree(tiny_cache, folder / "own.zarr", ignore=lambda *_: ["tokens"])
    make_run(folder / "own.zarr", folder / "run", epochs=1)
    return folder / "own.zarr"


@pytest.fixture(scope="session")
def h5(with_tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in one HDF5 file. Read only."""
    from clipglot.cache.read.cache import Cache
    from clipglot.cache.write.convert import convert

    path = tmp_path_factory.mktemp("h5") / "own.h5"
    convert(Cache(with_tokens), path)
    return path


@pytest.fixture(scope="session")
def many_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manifest of 160 images: 20 chunks of 8."""
    return draw_images(tmp_path_factory.mktemp("many"), 160)


@pytest.fixture(scope="session")
def alone(many_images: Path, make_cache: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache that one worker makes of them. Read only."""
    cache = tmp_path_factory.mktemp("alone") / "cache.zarr"
    make_cache(many_images, cache, chunk_rows=8)
    return cache


@pytest.fixture(scope="module")
def launcher() -> Iterator[Any]:
    """The process that workers are forked from."""
    with launching() as process:
        yield process


@pytest.fixture
def start_worker(launcher: Any, many_images: Path, tiny_clip: Path, tmp_path: Path) -> Iterator[Any]:
    """`start_worker(output, "0/2")`: a worker on `many_images`, which does not outlive the test."""
    started: list[int] = []

    def begin(output: object, worker: str, script: str = "", *options: str) -> Started:
        arguments = ["cache", many_images, "-o", output, "--model", f"local-dir:{tiny_clip}", "--device", "cpu"]
        arguments += ["--batch-size", 8, "--chunk-rows", 8, "--workers", 1, "--worker", worker, *options]
        messages = tmp_path / f"messages{len(started)}"
        for stream in (1, 2):
            Path(f"{messages}.{stream}").touch()
        task: dict[str, Any] = {"arguments": [str(a) for a in arguments], "messages": str(messages), "script": script}
        task["environment"] = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
        started.append(ask(launcher, task))
        return Started(started[-1], messages, launcher)

    yield begin
    for pid in started:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
