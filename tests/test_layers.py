"""Who may import whom (docs/decisions/002)."""

import ast
from pathlib import Path

import clipglot
import pytest

PACKAGE = Path(clipglot.__file__).parent
MAY_IMPORT = {
    "cache": set(),
    "encoders": set(),
    "evals": {"cache", "encoders"},
    "distill": {"cache", "encoders", "evals"},
    "demo": {"cache", "encoders", "evals", "distill"},
    "cli": {"cache", "encoders", "evals", "distill", "demo"},
}
MUST_NOT_IMPORT = {"cache": {"torch", "open_clip", "timm", "transformers"}, "encoders": {"zarr", "h5py"}}


def imports(file: Path) -> set[str]:
    """Absolute names of everything that a module imports, also inside its functions."""
    names = set()
    package = ["clipglot", *file.parent.relative_to(PACKAGE).parts]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            names |= {origin, *(f"{origin}.{alias.name}" for alias in node.names)}
    return names


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_a_folder_imports_only_those_below_it(folder: str) -> None:
    found = {name for file in (PACKAGE / folder).glob("*.py") for name in imports(file)}
    assert found, "no module there"
    siblings = {name.split(".")[1] for name in found if name.startswith("clipglot.")} - {folder}
    assert siblings <= MAY_IMPORT[folder] | {"__version__"}
    assert not {name.split(".")[0] for name in found} & MUST_NOT_IMPORT.get(folder, set())


def test_every_folder_of_the_package_has_its_place() -> None:
    assert {file.parent.name for file in PACKAGE.glob("*/__init__.py")} == set(MAY_IMPORT)


def test_folders_stay_flat_and_files_short() -> None:
    for folder in MAY_IMPORT:
        assert not [sub for sub in (PACKAGE / folder).glob("*/*.py") if "__pycache__" not in sub.parts]
        for file in (PACKAGE / folder).glob("*.py"):
            assert len(file.read_text(encoding="utf-8").splitlines()) <= 300, file
