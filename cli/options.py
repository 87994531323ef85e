"""Click options from a settings dataclass: one definition for the library, the TOML file and the flags.

A field `name: Annotated[type, "help"] = default` becomes `--name`; fields given as arguments become positional.
Precedence: flags, then `--config FILE.toml`, then what the command itself knows, then the field's default.
"""

import os
import tomllib
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import click
from click.shell_completion import CompletionItem

from ..cache.location import Location, Url, did_you_mean, to_location
from ..distill.errors import DistillError
from ..inference.folders import other_export
from ..inference.onnx_layout import is_onnx
from .main import is_first_process
from .render import warn

Command = Callable[..., Any]


START = "Start with these"
"""Heading of the options that most users need, before all sections of a long help."""


class SectionedCommand(click.Command):
    """A command whose options have sections in its help, and their order; options of no section come last."""

    def __init__(self, *arguments: Any, sections: Mapping[str, str], start: str = "", **attributes: Any) -> None:
        """As of `click.Command`.

        Args:
            arguments: as there.
            sections: names of options, separated by spaces, under the heading of each section.
            start: names of options that come before all sections, instead of in theirs.
            attributes: as there.
        """
        super().__init__(*arguments, **attributes)
        first = dict.fromkeys(start.split(), START)
        others = {name: heading for heading, names in sections.items() for name in names.split() if name not in first}
        self._section = first | others
        listed = list(self._section)
        self.params.sort(key=lambda option: listed.index(option.name) if option.name in listed else len(listed))

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one block a section."""
        blocks: dict[str, list[tuple[str, str]]] = {heading: [] for heading in [*self._section.values(), "Others"]}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record and isinstance(parameter, click.Option):
                blocks[self._section.get(parameter.name or "", "Others")].append(record)
        for heading, records in blocks.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)


class Switch(click.Option):
    """An option `--x/--no-x`, of whose flags the help shows only `--x` where off is the default."""

    def __init__(self, *arguments: Any, is_on: bool, **attributes: Any) -> None:
        """As of `click.Option`.

        Args:
            arguments: as there.
            is_on: the default of the setting.
            attributes: as there.
        """
        super().__init__(*arguments, **attributes)
        self._is_on = is_on

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """As of `click.Option`."""
        record = super().get_help_record(ctx)
        return record if self._is_on or record is None else (record[0].partition(" / ")[0], record[1])


class LocationType(click.types.FuncParamType):  # type: ignore[type-arg]  # generic from click 8.4 on
    """A path or a URL; a shell completes it as a path."""

    def __init__(self) -> None:
        super().__init__(to_location)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Leave it to the shell."""
        return [CompletionItem(incomplete, type="file")]


class ExistingFile(click.Path):
    """A file that must exist; the message about one that does not names the most similar one."""

    def __init__(self) -> None:
        super().__init__(exists=True, dir_okay=False, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Check, as click does."""
        if not Path(value).exists():
            self.fail(f"{value}: no such file{did_you_mean(Path(value))}", param, ctx)
        return super().convert(value, param, ctx)


class LocalPath(click.Path):
    """A path; a URL would name an odd folder below the working directory, so it is refused."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Check, then do as click does."""
        if "://" in str(value):
            self.fail(f"{value} is a URL, expected a local path", param, ctx)
        return super().convert(value, param, ctx)


def settings_options(
    settings: type[Any],
    *arguments: str,
    known: Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]] = lambda merged, options: {},
    renamed: Mapping[str, str] = MappingProxyType({}),
    has_config: bool = True,
) -> Callable[[Command], Command]:
    """Decorate a click command with the options of a settings dataclass; it receives one instance as `settings`.

    Args:
        settings: the dataclass.
        arguments: names of positional fields, in order; a tuple takes all remaining arguments.
        known: values of fields that were not given, from those that were and from the command's other options.
        renamed: old names of fields and their new ones. The old ones still work as flags, hidden, and in files of
            settings, with a warning.
        has_config: whether the command takes `--config`.
    """

    def decorate(function: Command) -> Command:
        def command(**values: Any) -> Any:
            names = {*(field.name for field in fields(settings)), *renamed}
            given = {name: values.pop(name) for name in list(values) if name in names}
            merged = _merge(settings, arguments, given, values.pop("config", None), renamed)
            merged = known(merged, values) | merged
            _require_all(settings, merged)
            try:
                resolved = settings(**merged)
            except DistillError as error:  # a value that cannot be is bad usage
                raise click.UsageError(str(error)) from error
            return function(settings=resolved, **values)

        command.__name__, command.__doc__ = function.__name__, function.__doc__
        command.__click_params__ = list(getattr(function, "__click_params__", []))  # type: ignore[attr-defined]
        decorators: list[Callable[[Command], Command]] = [
            _parameter(field, hint, field.name in arguments) for field, hint in _hints(settings)
        ]
        types_ = {field.name: get_args(hint)[0] for field, hint in _hints(settings)}
        decorators += [
            click.option(
                _flag(old), old, type=_click_type(types_[new])[0], help=f"old name of {_flag(new)}", hidden=True
            )
            for old, new in renamed.items()
        ]
        if has_config:
            help_ = "TOML file with any of these settings; flags override it"
            decorators.append(click.option("--config", type=ExistingFile(), help=help_))
        decorated: Command = command
        for decorator in reversed(decorators):
            decorated = decorator(decorated)
        return decorated

    return decorate


def _hints(settings: type[Any]) -> list[tuple[Field[Any], Any]]:
    hints = get_type_hints(settings, include_extras=True)
    return [(field, hints[field.name]) for field in fields(settings)]


def _parameter(field: Field[Any], hint: Any, positional: bool) -> Callable[[Command], Command]:
    assert get_origin(hint) is Annotated, f"{field.name} has no help"
    type_, help_ = get_args(hint)[:2]
    click_type, multiple = _click_type(type_)
    if positional:
        num = -1 if multiple else 1
        return click.argument(field.name, type=click_type, nargs=num, required=field.default is MISSING)
    flag = field.name.replace("_", "-")
    flags = [f"--{flag}/--no-{flag}" if type_ is bool else _flag(field.name), field.name]
    if field.name == "output":
        flags.insert(0, "-o")
    if field.default is MISSING:
        help_ += "  [required]"
    elif field.default not in (None, ()) and "(default" not in help_:
        shown = ", ".join(field.default) if multiple else field.default
        if type_ is bool:
            shown = flag
        if field.default is not False:
            help_ += f"  [default: {shown}]"
    # No default here: what is not given must be told from what is given with the default's value.
    if type_ is bool:
        return click.option(*flags, cls=Switch, is_on=field.default is True, default=None, help=help_)
    return click.option(*flags, type=click_type, multiple=multiple, help=help_, metavar=_metavar(type_))


def _click_type(type_: Any) -> tuple[Any, bool]:
    """The click type of an annotation, and whether the option repeats."""
    origin, args = get_origin(type_), get_args(type_)
    if origin is Literal:
        return click.Choice(args), False
    if origin is tuple:
        return _click_type(args[0])[0], True
    if origin in (Union, types.UnionType):
        inner = [a for a in args if a is not type(None)]
        if Url in inner:
            return LocationType(), False
        return _click_type(str if str in inner else inner[0])  # a flag's text may be a number, too
    return (LocalPath(path_type=Path) if type_ is Path else type_), False


def _metavar(type_: Any) -> str | None:
    text = str(type_)
    return "PATH|URL" if "Url" in text else "PATH" if "Path" in text else None


def _merge(
    settings: type[Any],
    arguments: tuple[str, ...],
    given: dict[str, Any],
    config: Path | None,
    renamed: Mapping[str, str],
) -> dict[str, Any]:
    merged = _read_config(settings, arguments, config, renamed) if config else {}
    flags = {name: value for name, value in given.items() if value not in (None, ())}
    return merged | _with_new_names(flags, renamed, _flag)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _with_new_names(
    values: dict[str, Any], renamed: Mapping[str, str], shown: Callable[[str], str] = str, where: str = ""
) -> dict[str, Any]:
    """Put values of renamed settings under their new names, with a warning for each old name.

    Args:
        values: by name of setting.
        renamed: old names and their new ones.
        shown: how a message shows a name.
        where: the values come from, as a message begins.

    Raises:
        click.UsageError: a setting is given under both names.
    """
    for old in sorted(renamed.keys() & values.keys()):
        new = renamed[old]
        if new in values:
            raise click.UsageError(f"{where}{shown(old)} is the old name of {shown(new)}: give the new name alone")
        if is_first_process():
            warn(f"{where}{shown(old)} is now called {shown(new)}")
    return {renamed.get(name, name): value for name, value in values.items()}


def _require_all(settings: type[Any], merged: dict[str, Any]) -> None:
    for field in fields(settings):
        if field.default is MISSING and field.name not in merged:
            raise click.UsageError(f"Missing option '{_flag(field.name)}'.")


def _read_config(
    settings: type[Any], arguments: tuple[str, ...], config: Path, renamed: Mapping[str, str]
) -> dict[str, Any]:
    """Settings from a TOML file; unknown keys and wrong types are errors."""
    try:
        found = tomllib.loads(config.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise click.UsageError(f"{config}: {error}") from error
    known = {field.name: hint for field, hint in _hints(settings) if field.name not in arguments}
    by_name = {key.replace("-", "_"): (key, value) for key, value in found.items()}
    values: dict[str, Any] = {}
    for name, (key, value) in _with_new_names(by_name, renamed, where=f"{config}: ").items():
        if name not in known:
            near = get_close_matches(name, known, 1)
            instead = f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(known))}"
            raise click.UsageError(f"{config}: unknown setting {key!r}; {instead}")
        hint = get_args(known[name])[0]
        click_type, multiple = _click_type(hint)
        if hint == str | int and type(value) is int:
            value = str(value)
        items = value if multiple and isinstance(value, list) else [value]
        try:
            converted = tuple(_from_toml(click_type, item) for item in items)
        except click.BadParameter as error:
            raise click.UsageError(f"{config}: {key}: {error.message}") from error
        values[name] = converted if multiple else converted[0]
    return values


def _from_toml(click_type: Any, value: Any) -> Any:
    """What the flag would make of the value; a string is no number and a number no string."""
    expected = {int: (int,), float: (int, float), bool: (bool,)}.get(click_type, (str,))
    if not isinstance(value, expected) or (isinstance(value, bool) and click_type is not bool):
        raise click.BadParameter(f"{value!r} is no {' or '.join(kind.__name__ for kind in expected)}")
    return click.types.convert_type(click_type)(str(value), None, None)


Kind = Literal["cache", "run", "merged CLIP"]
# The file by which each kind is known, what to do with it, and how to make one.
_KINDS: dict[Kind, tuple[str, str, str]] = {
    "cache": ("zarr.json", "train on it with `clipglot train {} -o RUN`", "clipglot cache SOURCE -o {}"),
    "run": ("run.json", "merge it with `clipglot export {} -o MERGED`", "clipglot train CACHE -o {}"),
    "merged CLIP": (
        "open_clip_config.json",
        "`clipglot predict` and `clipglot eval` take it",
        "clipglot export RUN -o {}",
    ),
}


def require_kind(path: Location, expected: Kind) -> None:
    """Refuse a path that is absent or of another kind before anything slow is imported; URLs are left to the command.

    Raises:
        click.ClickException, CacheError: says what it is and what takes it, or how to make one.
    """
    if isinstance(path, Url):
        return
    found = [kind for kind, (mark, _, _) in _KINDS.items() if (path / mark).is_file()]
    if is_onnx(path):
        found.append("merged CLIP")
    if expected in found:
        return
    for kind in found:
        raise click.ClickException(f"{path} is a {kind}, expected a {expected}: {_KINDS[kind][1].format(path)}")
    if expected == "merged CLIP" and (other := other_export(path)):
        raise click.ClickException(other)
    if expected == "cache":
        from ..cache.storage.open import require_cache

        require_cache(path)
        return
    nearest = "" if os.path.lexists(path) else did_you_mean(path)
    raise click.ClickException(
        f"{path}: no {expected} here{nearest}: make one with `{_KINDS[expected][2].format(path)}`"
    )


def require_new(output: Path | None) -> None:
    """Refuse an output that exists, before anything slow is imported.

    Raises:
        click.ClickException: it exists.
    """
    if output is not None and os.path.lexists(output):
        raise click.ClickException(f"{output} exists: choose another -o")
