"""Who may import whom: folders by `MAY_IMPORT`, their sub-packages by `STAGES`, and no import circle anywhere."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import clipglot
import pytest

PACKAGE = Path(clipglot.__file__).parent
MAY_IMPORT = {
    "cache": set(),
    "encoders": set(),
    "evals": {"cache", "encoders"},
    "distill": {"cache", "encoders", "evals"},
    "jobs": {"cache", "encoders", "evals", "distill"},
    "demo": {"cache", "encoders", "evals", "distill", "jobs"},
    "cli": {"cache", "encoders", "evals", "distill", "jobs", "demo"},
}
# Inside a folder, lowest first: a sub-package imports those before it. The folder's own modules stand lowest.
STAGES = {
    "cache": ["cache", "cache.storage", "cache.sources", "cache.read", "cache.write"],
    "distill": ["distill", "distill.data", "distill.losses", "distill.training"],
    "jobs": ["jobs.settings", "jobs"],
}
MUST_NOT_IMPORT = {
    "cache": {"torch", "open_clip", "timm", "transformers"},
    "encoders": {"zarr", "h5py"},
    "jobs.settings": {"torch", "open_clip", "timm", "transformers"},  # `--help` answers at once
}
MODULES = {
    ".".join(file.relative_to(PACKAGE).with_suffix("").parts): file
    for folder in MAY_IMPORT
    for file in sorted((PACKAGE / folder).rglob("*.py"))
}


def imports(name: str) -> set[str]:
    """Absolute names of everything that a module imports, also inside its functions."""
    names = set()
    package = ["clipglot", *name.split(".")[:-1]]
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            names |= {origin, *(f"{origin}.{alias.name}" for alias in node.names)}
    return names


def own(name: str) -> set[str]:
    """The modules of clipglot that a module imports."""
    found = {imported.removeprefix("clipglot.") for imported in imports(name) if imported.startswith("clipglot.")}
    return (found & set(MODULES)) - {name}


def package_of(name: str) -> str:
    return name.rpartition(".")[0]


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_a_folder_imports_only_those_below_it(folder: str) -> None:
    modules = [name for name in MODULES if name.startswith(f"{folder}.")]
    assert modules, "no module there"
    assert {found.split(".")[0] for name in modules for found in own(name)} <= MAY_IMPORT[folder] | {folder}


@pytest.mark.parametrize("folder", STAGES)
def test_a_stage_imports_only_those_before_it(folder: str) -> None:
    stages = STAGES[folder]
    assert {package_of(name) for name in MODULES if name.split(".")[0] == folder} == set(stages)
    for name in MODULES:
        if package_of(name) in stages:
            at = stages.index(package_of(name))
            assert {package_of(found) for found in own(name)} & set(stages) <= set(stages[: at + 1]), name


@pytest.mark.parametrize("package", MUST_NOT_IMPORT)
def test_a_package_does_without_what_is_not_its_own(package: str) -> None:
    modules = [name for name in MODULES if name.startswith(f"{package}.")]
    assert modules, "no module there"
    found = {imported.split(".")[0] for name in modules for imported in imports(name)}
    assert not found & MUST_NOT_IMPORT[package]


def test_no_modules_import_each_other_in_a_circle() -> None:
    TopologicalSorter({name: own(name) for name in MODULES}).prepare()  # raises CycleError


def test_every_folder_of_the_package_has_its_place() -> None:
    assert {file.parent.name for file in PACKAGE.glob("*/__init__.py")} == set(MAY_IMPORT)
