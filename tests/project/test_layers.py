"""Import rules: folders by `MAY_IMPORT`, sub-packages by `STAGES`, no import circles; docs/decisions/002."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import clipglot
import pytest

PACKAGE = Path(clipglot.__file__).parent
MAY_IMPORT = {
    "cache": set(),
    "encoders": set(),
    "search": {"cache"},
    "inference": {"cache", "encoders", "search"},
    "exports": {"cache", "encoders", "inference"},
    "evals": {"cache", "encoders", "inference"},
    "distill": {"cache", "encoders", "evals"},
    "reports": {"cache", "encoders", "inference", "evals", "distill"},
    "serve": {"cache", "encoders", "search", "inference"},
    "jobs": {"cache", "encoders", "search", "inference", "exports", "evals", "distill", "reports", "serve"},
    "demo": {"cache", "encoders", "evals", "distill", "jobs"},
    "cli": {"cache", "encoders", "search", "inference", "exports", "evals", "distill", "serve", "jobs", "demo"},
}
# Sub-packages of a folder, lowest first: each imports only those before it. All of them import the folder's errors.
STAGES = {
    "cache": ["cache", "cache.storage", "cache.sources", "cache.read", "cache.write"],
    "encoders": ["encoders.loading", "encoders"],
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
    """Absolute names of all imports of a module, also inside its functions."""
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


def own_imports(name: str) -> set[str]:
    """Modules of clipglot that a module imports."""
    names = {imported.removeprefix("clipglot.") for imported in imports(name) if imported.startswith("clipglot.")}
    return (names & set(MODULES)) - {name}


def package_of(name: str) -> str:
    return name.rpartition(".")[0]


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_a_folder_imports_only_those_below_it(folder: str) -> None:
    modules = [name for name in MODULES if name.startswith(f"{folder}.")]
    assert modules, "empty folder"
    assert {imported.split(".")[0] for name in modules for imported in own_imports(name)} <= MAY_IMPORT[folder] | {
        folder
    }


@pytest.mark.parametrize("folder", STAGES)
def test_a_stage_imports_only_those_before_it(folder: str) -> None:
    stages = STAGES[folder]
    assert {package_of(name) for name in MODULES if name.split(".")[0] == folder} == set(stages)
    for name in MODULES:
        if package_of(name) in stages:
            at = stages.index(package_of(name))
            imported = own_imports(name) - {f"{folder}.errors"}
            assert {package_of(other) for other in imported} & set(stages) <= set(stages[: at + 1]), name


@pytest.mark.parametrize("package", MUST_NOT_IMPORT)
def test_a_package_does_not_import_heavy_libraries_of_others(package: str) -> None:
    modules = [name for name in MODULES if name.startswith(f"{package}.")]
    assert modules, "empty folder"
    assert not {imported.split(".")[0] for name in modules for imported in imports(name)} & MUST_NOT_IMPORT[package]


def test_one_module_imports_dask_and_commands_load_it_for_a_cluster_alone() -> None:
    dask = {"dask", "distributed"}
    assert [name for name in MODULES if {imported.split(".")[0] for imported in imports(name)} & dask] == [
        "jobs.dask_cluster"
    ]
    on_cluster = {name for name in MODULES if name.startswith("jobs.dask_")}
    assert {name for name in MODULES if "jobs.dask_cluster" in own_imports(name)} == on_cluster - {"jobs.dask_cluster"}
    for name in MODULES.keys() - on_cluster:
        at_once = [node for node in ast.parse(MODULES[name].read_text()).body if isinstance(node, ast.ImportFrom)]
        imported = [f"{node.module}.{alias.name}" for node in at_once for alias in node.names]
        assert not [name for name in imported if "dask_" in name], name


def test_decoding_workers_load_pillow_and_numpy_alone_and_pyarrow_for_its_files() -> None:
    modules = ["cache.write.decode_pool", *(f"cache.sources.{name}" for name in ("image_files", "tar_reader", "muge"))]
    modules.append("cache.sources.source")  # a source of one's own
    script = f"import sys, {', '.join('clipglot.' + name for name in modules)}; print(*sys.modules); "
    script += "import clipglot.cache.sources.parquet_files; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    loaded, with_parquet = map(set, map(str.split, done.stdout.splitlines()))
    assert {"PIL.Image", "numpy", "clipglot.cache.format"} <= loaded
    assert not {"zarr", "h5py", "pyarrow", "fsspec", "torch"} & loaded  # each costs every worker's start
    assert not {"zarr", "h5py", "fsspec", "torch"} & with_parquet


def test_no_modules_import_each_other_in_a_circle() -> None:
    TopologicalSorter({name: own_imports(name) for name in MODULES}).prepare()  # raises CycleError


def test_every_folder_is_in_the_table() -> None:
    assert {file.parent.name for file in PACKAGE.glob("*/__init__.py")} == set(MAY_IMPORT)
