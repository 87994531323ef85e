"""Examples in docstrings run, and everything public has a docstring."""

import ast
import doctest
import importlib
from collections.abc import Iterator
from pathlib import Path

import clipglot
import pytest

PACKAGE = Path(clipglot.__file__).parent
FILES = sorted(file for folder in PACKAGE.glob("[a-z]*/__init__.py") for file in folder.parent.rglob("*.py"))
NAMES = [".".join(["clipglot", *file.relative_to(PACKAGE).with_suffix("").parts]) for file in FILES]
MODULES = ["clipglot", *(name.removesuffix(".__init__") for name in NAMES)]


def test_examples_in_docstrings_run(
    merged: Path, tiny_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "merged").symlink_to(merged)
    (tmp_path / "train.zarr").symlink_to(tiny_cache)
    monkeypatch.chdir(tmp_path)
    failed, attempted = {}, 0
    for name in MODULES:
        result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
        attempted += result.attempted
        if result.failed:
            failed[name] = result.failed
    assert not failed
    assert attempted > 10


Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def public(node: ast.Module | ast.ClassDef, prefix: str) -> Iterator[tuple[str, Documented]]:
    yield prefix, node
    for child in node.body:
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) and not child.name.startswith("_"):
            yield f"{prefix}.{child.name}", child
        elif isinstance(child, ast.ClassDef) and not child.name.startswith("_"):
            yield from public(child, f"{prefix}.{child.name}")


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_everything_public_has_a_docstring(file: Path) -> None:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    assert not [name for name, node in public(tree, file.stem) if not ast.get_docstring(node)]
