"""The package as an index would hand it out: built from this folder, put elsewhere, and run from there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ("ray_lora", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "source").mkdir()
    for name in SOURCES:  # copied, because a build leaves files beside what it builds
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / "source" / name)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-q",
        "-w",
        folder,
        folder / "source",
    ]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


def test_it_holds_the_package_whole_and_nothing_else(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    files = {str(path.relative_to(ROOT)) for path in (ROOT / "ray_lora").rglob("*") if path.suffix in (".py", ".html")}
    assert files | {"ray_lora/py.typed"} == {name for name in held if not name.split("/")[0].endswith(".dist-info")}


def test_it_runs_where_it_was_put(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    told = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    program = (
        "import ray_lora, ray_lora.cli; print(ray_lora.__file__); print(ray_lora.__version__); ray_lora.cli.main()"
    )
    command = [sys.executable, "-c", program, "schema"]
    done = subprocess.run(command, cwd=tmp_path, env=told, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    where, version, *schema = done.stdout.splitlines()
    assert Path(where).is_relative_to(tmp_path / "site")
    assert f"-{version}-" in wheel.name
    assert any('"learning_rate"' in line for line in schema)
