"""Teach a frozen CLIP a new language or domain on cached image embeddings.

::

    import clipglot

    clipglot.cache_images("pairs.jsonl", output="train.zarr", model="ViT-B-32", pretrained="openai")
    clipglot.train("train.zarr", output="run", val="val.zarr")
    clipglot.export("run", output="merged")

    clip = clipglot.load("merged")
    clip.encode_text(["a red bicycle", "два человека у моря"])  # [2, D] float32, unit norm
    clip.classify("photo.jpg", ["cat", "dog"]).label
    clip.search("train.zarr", "a red bicycle", k=5)

    cache = clipglot.open_cache("train.zarr")
    cache.image_emb[:100]  # [100, D] float16

Nothing heavy is imported until it is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any
from warnings import catch_warnings, filterwarnings

if TYPE_CHECKING:
    from collections.abc import Callable

    from .cache.read.cache import Cache
    from .distill.training.train import TrainResult
    from .evals.duplicates import DuplicatesReport
    from .evals.linear_probe import ProbeReport
    from .evals.predict import Prediction
    from .evals.speed import SpeedReport
    from .inference.clip import CLIP, Classification, Hit, Hits, load
    from .inference.opened_cache import OpenedCache, open_cache
    from .jobs.bench import BenchReport
    from .jobs.cache import CacheResult
    from .jobs.captions import CaptionsResult
    from .jobs.convert import ConvertResult
    from .jobs.evaluate import QueriesResult, RetrievalResult, ZeroShotResult
    from .jobs.export import ExportResult
    from .jobs.import_embeddings import ImportResult
    from .jobs.index import IndexResult
    from .jobs.inspect import InspectReport
    from .jobs.report import ReportResult
    from .jobs.search import SearchResult
    from .jobs.serve import Served
    from .jobs.tokenizer import TokenizerReport
    from .jobs.verify import VerifyResult

    add_captions: Callable[..., CaptionsResult]
    bench: Callable[..., BenchReport]
    build_index: Callable[..., IndexResult]
    cache_images: Callable[..., CacheResult]
    convert_cache: Callable[..., ConvertResult]
    evaluate_probe: Callable[..., ProbeReport]
    evaluate_retrieval: Callable[..., RetrievalResult | QueriesResult]
    evaluate_speed: Callable[..., SpeedReport]
    evaluate_zeroshot: Callable[..., ZeroShotResult]
    export: Callable[..., ExportResult]
    find_duplicates: Callable[..., DuplicatesReport]
    import_embeddings: Callable[..., ImportResult]
    inspect_cache: Callable[..., InspectReport]
    inspect_tokenizer: Callable[..., TokenizerReport]
    merge_caches: Callable[..., Cache]
    predict: Callable[..., list[Prediction]]
    report: Callable[..., ReportResult]
    serve_caches: Callable[..., Served]
    search_images: Callable[..., list[SearchResult]]
    train: Callable[..., TrainResult]
    train_tokenizer: Callable[..., TokenizerReport]
    verify_cache: Callable[..., VerifyResult]

__version__ = "0.2.0"

_INFERENCE = {
    "CLIP": "clip",
    "Classification": "clip",
    "Hit": "clip",
    "Hits": "clip",
    "load": "clip",
    "OpenedCache": "opened_cache",
    "open_cache": "opened_cache",
}
__all__ = [
    "CLIP",
    "Classification",
    "Hit",
    "Hits",
    "OpenedCache",
    "add_captions",
    "bench",
    "build_index",
    "cache_images",
    "convert_cache",
    "evaluate_probe",
    "evaluate_retrieval",
    "evaluate_speed",
    "evaluate_zeroshot",
    "export",
    "find_duplicates",
    "import_embeddings",
    "inspect_cache",
    "inspect_tokenizer",
    "load",
    "merge_caches",
    "open_cache",
    "predict",
    "report",
    "search_images",
    "serve_caches",
    "train",
    "train_tokenizer",
    "verify_cache",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with catch_warnings():
        filterwarnings("ignore", "IProgress not found")  # of tqdm, in notebooks without widgets, which need none here
        if name in _INFERENCE:
            value = getattr(import_module(f".inference.{_INFERENCE[name]}", __name__), name)
        else:
            value = import_module(".jobs.functions", __name__).command(name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
