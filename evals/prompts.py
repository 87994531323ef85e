"""Class names and prompt templates of zero-shot classification, from files of users."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..cache.sources.text_files import split_lines
from ..inference.prompts import PLAIN, TEMPLATES, has_place
from ..inference.text_files import read_text
from .errors import EvalError


@dataclass(frozen=True, kw_only=True)
class ClassNames:
    """Names of classes by label.

    Attributes:
        names: for each label its names, the first of which is shown.
        is_ordered: the labels are only positions, 0 on: the file lists names in the order of the sorted labels.
        origin: file that they come from, for messages.
        num_places: of a file of several languages, the classes that there are at least; 0 of other files.
    """

    names: dict[str, tuple[str, ...]]
    is_ordered: bool
    origin: str
    num_places: int = 0


def read_class_names(file: Path, language: str | None = None) -> ClassNames:
    """Class names from a file.

    A text file has one class a line: `label<TAB>name|synonym|…`, or names alone in the order of the sorted labels. A
    JSON file has a list of names (or lists of them), or an object from label to name or names. Of an object from
    language to `[indices, names]`, as Babel-ImageNet has it, `language` is taken; an index is the place of the label
    among the sorted ones.

    Raises:
        EvalError: an empty name, or a name of two classes; the message names the line.
        InputError: it cannot be read.
    """
    text, num_places = read_text(file, "a text or JSON file"), 0
    if file.suffix.lower() == ".json":
        names, is_ordered, num_places = _from_json(file, text, language)
    else:
        names, is_ordered = _from_lines(file, text)
    if not names:
        raise EvalError(f"{file} has no class: write one a line")
    owner: dict[str, str] = {}
    for label, synonyms in names.items():
        for name in synonyms:
            if not name.strip():
                raise EvalError(f"{file}: class {label!r} has an empty name: fill it in or delete it")
            if name in owner:
                raise EvalError(
                    f"{file}: {name!r} is a name of two classes, {owner[name]!r} and {label!r}: make them differ"
                )
            owner[name] = label
    return ClassNames(names=names, is_ordered=is_ordered, origin=str(file), num_places=num_places)


def read_templates(given: Sequence[str]) -> tuple[str, ...]:
    """Templates from languages with built-in ones (en, ru, zh, ko), files with one a line, and templates themselves.

    Raises:
        EvalError: an empty one, one without `{}`, or neither a file nor a known language.
        InputError: a file that cannot be read.

    >>> read_templates(["zh"])[0], read_templates(["a sketch of a {}"])
    ('一张{}的照片', ('a sketch of a {}',))
    """
    result: list[str] = []
    for item in given:
        if item in TEMPLATES:
            result += TEMPLATES[item]
        elif has_place(item):
            result.append(_template(item, "--templates"))
        elif Path(item).is_file():
            lines = split_lines(read_text(Path(item)))
            found = [_template(line, f"{item}:{number}") for number, line in enumerate(lines, 1)]
            if not found:
                raise EvalError(f"{item} has no template: write one a line, with {{}} in the place of the name")
            result += found
        else:
            raise EvalError(
                f"--templates {item!r}: no such file, and no language with built-in templates "
                f"({', '.join(TEMPLATES)}): pass one of these, a file, or a template with {{}} in it"
            )
    return tuple(result) or PLAIN


def _template(line: str, where: str) -> str:
    if not line.strip():
        raise EvalError(f"{where}: an empty template: delete the line")
    if not has_place(line):
        raise EvalError(f"{where}: {line!r} has no {{}} in the place of the class name: add it")
    return line


def parse_json(text: str) -> Any:
    """What a JSON text holds.

    Raises:
        ValueError: it is no JSON, nested too deeply, or has halves of characters.
    """
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    return value


def _from_lines(file: Path, text: str) -> tuple[dict[str, tuple[str, ...]], bool]:
    lines = split_lines(text.rstrip("\r\n"))
    for number, line in enumerate(lines, 1):
        if not line.strip():
            raise EvalError(f"{file}:{number} is empty: delete the line")
        if "\t" not in line and re.search(r"\S {2,}\S", line):
            raise EvalError(
                f"{file}:{number} has several spaces in a row: write a tab between label and names, or one space in a "
                "name"
            )
    labelled = sum("\t" in line for line in lines)
    if labelled not in (0, len(lines)):
        number = next(i for i, line in enumerate(lines, 1) if ("\t" in line) != (labelled > len(lines) / 2))
        raise EvalError(
            f"{file}:{number}: some lines have a label and a tab before the names, this one is otherwise: "
            "write all lines in one of the two forms"
        )
    pairs = [line.split("\t", 1) if labelled else (str(i), line) for i, line in enumerate(lines)]
    names: dict[str, tuple[str, ...]] = {}
    for number, (label, synonyms) in enumerate(pairs, 1):
        if label in names:
            raise EvalError(f"{file}:{number}: label {label!r} stands in an earlier line: join the two lines")
        names[label] = tuple(name.strip() for name in synonyms.split("|"))
    return names, not labelled


def _from_json(file: Path, text: str, language: str | None) -> tuple[dict[str, tuple[str, ...]], bool, int]:
    try:
        content = parse_json(text)
    except ValueError as error:
        raise EvalError(f"{file} is no JSON ({error}): mend it, or write a text file with one class a line") from error
    if isinstance(content, dict) and content and all(map(_is_babel, content.values())):
        if language not in content:
            known = ", ".join(sorted(content)[:20])
            raise EvalError(f"{file} has classes in several languages: pass --classes-language, one of {known}, …")
        indices, names = content[language]
        if len(set(indices)) < len(indices):
            raise EvalError(f"{file}: {language} has an index twice: keep one")
        num_places = 1 + max((i for places, _ in content.values() for i in places), default=-1)
        return {str(i): (name,) for i, name in zip(indices, names, strict=True)}, True, num_places
    items = list(enumerate(content)) if isinstance(content, list) else content
    if not isinstance(content, list | dict) or not all(map(_is_names, dict(items).values())):
        raise EvalError(f"{file}: expected a list of names, or an object from label to name or list of names")
    return (
        {str(label): (names,) if isinstance(names, str) else tuple(names) for label, names in dict(items).items()},
        isinstance(content, list),
        0,
    )


def _is_names(value: Any) -> bool:
    return isinstance(value, str) or (
        isinstance(value, list) and bool(value) and all(isinstance(name, str) for name in value)
    )


def _is_babel(value: Any) -> bool:
    """Whether a value is a list of indices and one of as many names."""
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(isinstance(part, list) for part in value)
        and len(value[0]) == len(value[1])
        and all(type(i) is int and i >= 0 for i in value[0])
        and all(isinstance(name, str) for name in value[1])
    )
