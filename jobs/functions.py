"""The commands as Python functions with keyword arguments: what `import clipglot` offers.

Each takes the command's settings, or the fields of them as keyword arguments, and shows progress in a terminal or a
notebook.
"""

import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields
from functools import wraps
from importlib import import_module
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ..cache.location import Url, to_location
from ..inference.progress import stages

# Function: function of the job, dataclass of its settings, and what gives defaults that depend on what is given.
FUNCTIONS = {
    "cache_images": ("cache.cache_images", "settings.cache.CacheSettings"),
    "add_captions": ("captions.add_captions", "settings.captions.CaptionsSettings"),
    "import_embeddings": ("import_embeddings.import_embeddings", "settings.import_embeddings.ImportSettings"),
    "merge_caches": ("merge.merge_caches", "settings.merge.MergeSettings"),
    "convert_cache": ("convert.convert_cache", "settings.convert.ConvertSettings"),
    "inspect_cache": ("inspect.inspect_cache", "settings.inspect.InspectSettings"),
    "verify_cache": ("verify.verify_cache", "settings.verify.VerifySettings"),
    "find_duplicates": ("duplicates.find_duplicates", "settings.duplicates.DuplicatesSettings"),
    "build_index": ("index.build_index", "settings.index.IndexSettings"),
    "train_tokenizer": ("tokenizer.train_tokenizer", "settings.tokenizer.TokenizerSettings"),
    "train": ("train.train", "..distill.train_settings.TrainSettings", "train.defaults"),
    "export": ("export.export_run", "settings.export.ExportSettings"),
    "predict": ("predict.predict", "settings.predict.PredictSettings"),
    "search_images": ("search.search_images", "settings.search.SearchSettings"),
    "inspect_tokenizer": ("tokenizer.inspect_tokenizer", "settings.tokenizer.TokenizerSettings"),
    "bench": ("bench.bench", "settings.bench.BenchSettings"),
    "report": ("report.report", "settings.report.ReportSettings"),
    "serve_caches": ("serve.serve", "settings.serve.ServeSettings"),
    "evaluate_retrieval": ("evaluate.evaluate_retrieval", "settings.evaluate.RetrievalSettings"),
    "evaluate_zeroshot": ("evaluate.evaluate_zeroshot", "settings.evaluate.ZeroShotSettings"),
    "evaluate_probe": ("evaluate.evaluate_probe", "settings.evaluate.ProbeSettings"),
    "evaluate_speed": ("evaluate.evaluate_speed", "settings.evaluate.SpeedSettings"),
}
# What gives the callbacks that tell more than bars do, given a function that shows a line.
LINES = {"train": "train.told_by_lines"}


def command(name: str) -> Callable[..., Any]:
    """The function of a command, by its key in `FUNCTIONS`."""
    run, settings, *defaults = (_attribute(path) for path in FUNCTIONS[name])
    takes_progress = "on_progress" in inspect.signature(run).parameters

    @wraps(run)
    def call(given: Any = None, /, *, progress: bool | None = None, **values: Any) -> Any:
        hints = get_type_hints(settings)
        others = {key: values[key] for key in values.keys() & (_parameters(run, *defaults) - hints.keys())}
        if not isinstance(given, settings):
            first = {} if given is None else {_first(settings): given}
            if first.keys() & values.keys():
                raise TypeError(f"{name}() got {_first(settings)} twice")
            plain = _plain(settings, first | {key: values[key] for key in values.keys() - others.keys()}, name)
            for choose in defaults:
                asked = {key: others[key] for key in others.keys() & _parameters(choose)}
                plain = choose(plain, **asked) | plain
            given = settings(**plain)
        elif unused := values.keys() - (_parameters(run) - hints.keys()):
            raise TypeError(f"{name}() got settings and {min(unused)!r} besides: use dataclasses.replace(settings, …)")
        others = {key: value for key, value in others.items() if key in _parameters(run)}
        if not takes_progress or "on_progress" in others:
            return run(given, **others)
        with stages(progress) as shown:
            if shown is None:
                return run(given, **others)
            told = {"on_progress": lambda at: shown.show(*at)}
            if name in LINES:
                told |= _attribute(LINES[name])(shown.print)
            return run(given, **(told | others))

    call.__name__ = call.__qualname__ = name
    call.__signature__ = _signature(settings)  # type: ignore[attr-defined]
    call.__doc__ = f"{run.__doc__}\n\nKeyword arguments are the fields of `{settings.__name__}`; `progress` shows bars."
    return call


def _attribute(path: str) -> Any:
    module, _, attribute = path.rpartition(".")
    relative = module if module.startswith("..") else f".{module}"
    return getattr(import_module(relative, __package__), attribute)


def _parameters(*functions: Callable[..., Any]) -> set[str]:
    return {name for function in functions for name in inspect.signature(function).parameters}


def _plain(settings: type[Any], values: dict[str, Any], name: str) -> dict[str, Any]:
    """Values as the fields of the settings hold them.

    Raises:
        TypeError: an unknown setting, or a missing one.
    """
    hints = get_type_hints(settings)
    if unknown := values.keys() - hints.keys():
        raise TypeError(f"{name}() has no setting {min(unknown)!r}; known are {', '.join(sorted(hints))}")
    missing = [f.name for f in fields(settings) if f.default is MISSING and f.name not in values]
    if missing:
        raise TypeError(f"{name}() needs {missing[0]}")
    return {key: _converted(value, hints[key]) for key, value in values.items()}


def _converted(value: Any, hint: Any) -> Any:
    """A value as a field of this type holds it."""
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if isinstance(value, str) and str not in kinds:
        if Url in kinds:
            return to_location(value)
        if Path in kinds:
            return Path(value)
    if value is None and type(None) in kinds:
        return None
    if isinstance(value, list | tuple) and not any(get_origin(kind) is tuple for kind in kinds):
        if str not in kinds:
            raise TypeError(f"{value!r}: expected a single value")
        value = ",".join(map(str, value))  # numbers that the command line takes with commas between them
    if several := [kind for kind in kinds if get_origin(kind) is tuple]:
        items = value if isinstance(value, list | tuple) else () if value is None else (value,)
        return tuple(_converted(item, get_args(several[0])[0]) for item in items)
    choices = [choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
    if choices and value not in choices and not any(type(value) is kind for kind in kinds):
        raise TypeError(f"{value!r}: expected one of {', '.join(map(repr, choices))}")
    return value


def _first(settings: type[Any]) -> str:
    """The setting that may be given without its name: the first that must be given."""
    required = [field.name for field in fields(settings) if field.default is MISSING]
    return required[0] if required else fields(settings)[0].name


def _signature(settings: type[Any]) -> inspect.Signature:
    kinds = inspect.Parameter
    parameters = []
    for field in sorted(fields(settings), key=lambda field: field.name != _first(settings)):
        default = kinds.empty if field.default is MISSING else field.default
        kind = kinds.POSITIONAL_OR_KEYWORD if field.name == _first(settings) else kinds.KEYWORD_ONLY
        parameters.append(kinds(field.name, kind, default=default, annotation=field.type))
    parameters.append(kinds("progress", kinds.KEYWORD_ONLY, default=None, annotation=bool | None))
    return inspect.Signature(parameters)
