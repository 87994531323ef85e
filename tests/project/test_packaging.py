"""Contents of the wheel, and a run of it outside the checkout."""

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import clipglot
import pytest

ROOT = Path(clipglot.__file__).parent


def folders() -> list[Path]:
    """Folders of the checkout that are packages of clipglot."""
    top = [file.parent for file in ROOT.glob("[a-z]*/__init__.py")]
    return sorted(file.parent for folder in top for file in folder.rglob("__init__.py"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the checkout, so that building leaves nothing in it."""
    source, out = tmp_path_factory.mktemp("packaging") / "source", tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__"))
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    subprocess.run(build, check=True, capture_output=True)
    (file,) = out.glob("*.whl")
    return file


def test_the_wheel_holds_the_modules_their_data_and_nothing_else(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    modules = {f"clipglot/{file.relative_to(ROOT)}" for folder in folders() for file in folder.glob("*.py")}
    weights = {f"clipglot/{file.relative_to(ROOT)}" for file in (ROOT / "demo" / "english_clip").glob("*")}
    page = {f"clipglot/{file.relative_to(ROOT)}" for file in (ROOT / "serve" / "static").glob("*")}
    own = {"clipglot/__init__.py", "clipglot/__main__.py", "clipglot/py.typed", "clipglot/reports/template.html.j2"}
    assert names == own | modules | weights | page
    assert not any("test" in name for name in names)


def test_the_installed_wheel_runs_away_from_the_checkout(wheel: Path, tmp_path: Path) -> None:
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--no-compile", "--quiet"]
    subprocess.run([*install, "--target", str(tmp_path / "site"), str(wheel)], check=True, capture_output=True)
    code = "import clipglot, clipglot.cli.main as m; print(clipglot.__file__); m.main(['--help'])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
    )
    assert done.stdout.startswith(str(tmp_path / "site" / "clipglot" / "__init__.py"))
    assert "Usage:" in done.stdout
    assert (tmp_path / "site" / "bin" / "clipglot").is_file()


def test_every_folder_is_listed_and_the_version_is_the_packages(wheel: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {".".join(["clipglot", *folder.relative_to(ROOT).parts]) for folder in folders()}
    assert sorted(project["tool"]["setuptools"]["packages"]) == ["clipglot", *sorted(packages)]
    assert wheel.name == f"clipglot-{clipglot.__version__}-py3-none-any.whl"
