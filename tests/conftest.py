"""Fixtures of several areas: images, a tiny random CLIP, its cache, run and export, an S3 server, commands.

The process that only hands tests to others imports this module, too, so torch and zarr are imported in the fixtures.
"""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing here may reach for a hub
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line sets it, before torch is imported
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny tensors gain nothing from more threads, which cost a third more

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.class_folders import draw_classes
from support.drawings import draw_images
from support.launcher import Launcher, Process, kill_all, launching

if TYPE_CHECKING:
    from support.s3_server import Bucket


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The frozen CLIP of most tests."""
    from support.tiny_clip import save_tiny_clip

    return save_tiny_clip(tmp_path_factory.mktemp("tiny_clip"), seed=0)


@pytest.fixture(scope="session")
def other_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with other weights."""
    from support.tiny_clip import save_tiny_clip

    return save_tiny_clip(tmp_path_factory.mktemp("other_clip"), seed=1)


@pytest.fixture(scope="session")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty images with captions. Read only; tests that break things draw their own."""
    return draw_images(tmp_path_factory.mktemp("pictures"), 40)


@pytest.fixture(scope="session")
def launcher() -> Iterator[Launcher]:
    """The process that commands are forked from."""
    with launching() as launcher:
        yield launcher


@pytest.fixture
def start_command(launcher: Launcher, tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """`start_command("cache", …, script="")`: a `clipglot` command in `tmp_path`, which does not outlive the test."""
    folder, started = tmp_path.with_name(f"{tmp_path.name}_output"), list[Process]()
    folder.mkdir()

    def start(*arguments: object, **options: Any) -> Process:
        credentials = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
        environment = credentials | options.pop("environment", {})
        started.append(launcher.start(list(arguments), folder, environment=environment, **options))
        return started[-1]

    yield start
    kill_all(started)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Bucket]":
    """An S3 server in a process of its own. Tests take `bucket`."""
    from support.s3_server import serving

    with serving(tmp_path_factory.mktemp("s3")) as bucket:
        yield bucket


@pytest.fixture(scope="module")
def bucket(s3_server: "Bucket") -> "Iterator[Bucket]":
    """An empty bucket, which the environment names to every client."""
    from support.s3_server import close_connections

    s3_server.reset()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_server.environment.items():
            patch.setenv(name, value)
        yield s3_server
        close_connections()


@pytest.fixture(scope="session")
def make_cache(tiny_clip: Path) -> Callable[..., Any]:
    """`make_cache(manifest, output, **settings)`: the pass with the tiny tower; returns the `CacheResult`."""
    from clipglot.jobs.cache import cache_images
    from clipglot.jobs.settings.cache import CacheSettings

    def make(source: Path, output: Path, **settings: Any) -> Any:
        defaults = {"model": f"local-dir:{tiny_clip}", "batch_size": 8, "num_workers": 1}
        return cache_images(CacheSettings(source=source, output=output, **defaults | settings))

    return make


@pytest.fixture(scope="session")
def many_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manifest of 80 images: 10 chunks of 8."""
    return draw_images(tmp_path_factory.mktemp("many"), 80)


@pytest.fixture(scope="session")
def alone(many_images: Path, make_cache: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache that one process makes of them. Read only."""
    cache = tmp_path_factory.mktemp("alone") / "cache.zarr"
    make_cache(many_images, cache, chunk_rows=8)
    return cache


@pytest.fixture(scope="session")
def tiny_cache(manifest: Path, make_cache: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sealed cache of `manifest`. Read only."""
    path = tmp_path_factory.mktemp("caches") / "tiny.zarr"
    make_cache(manifest, path)
    return path


@pytest.fixture(scope="session")
def class_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three class folders of images. Read only."""
    return draw_classes(tmp_path_factory.mktemp("classes") / "images")


@pytest.fixture(scope="session")
def class_cache(class_folders: Path, make_cache: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sealed cache of `class_folders`. Read only."""
    path = tmp_path_factory.mktemp("caches") / "classes.zarr"
    make_cache(class_folders, path)
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
def translated_manifests(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Scenes with captions and translations: `train`, `val`, and `mixed`, where half lack translations. Read only."""
    from support.translated_scenes import draw_scenes

    return draw_scenes(tmp_path_factory.mktemp("scenes"))


@pytest.fixture(scope="session")
def translated_caches(
    translated_manifests: dict[str, Path], make_cache: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Caches of `translated_manifests`; all but `val` have text targets. Read only."""
    from support.translated_scenes import MODEL

    folder = tmp_path_factory.mktemp("caches")
    for name in ("train", "mixed"):
        make_cache(translated_manifests[name], folder / name, model=MODEL, batch_size=64, teacher_field=("en",))
    make_cache(translated_manifests["val"], folder / "val", model=MODEL, batch_size=64)
    return {name: folder / name for name in translated_manifests}
