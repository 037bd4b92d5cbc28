"""`import ray_lora` is light, and its public names are all there."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ray_lora

ROOT = Path(ray_lora.__file__).parent
HEAVY = ("torch", "transformers", "peft", "mlflow", "ray", "pyarrow", "pandas", "sklearn")


def loaded_by(statement: str) -> set[str]:
    script = f"import sys; {statement}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import ray_lora",
        "from ray_lora import Recipe, RecipeError",
        "import ray_lora.cli",
        "import ray_lora.training.job",
        "from ray_lora import Recipe; Recipe.parse({'task': {'type': 'image-classification', 'labels': ['a', 'b']}})",
        "import ray_lora.tasks.text_classification, ray_lora.tasks.image_classification, ray_lora.tasks.rows",
    ],
)
def test_import_is_light(statement: str) -> None:
    assert loaded_by(statement).isdisjoint(HEAVY)


def test_the_check_for_light_imports_can_fail() -> None:
    assert "pyarrow" in loaded_by("import pyarrow")


def test_public_names_are_sorted_and_all_there() -> None:
    assert ray_lora.__all__ == sorted(ray_lora.__all__)
    assert set(ray_lora.__all__) - {"__version__"} == set(ray_lora._HOME)
    assert set(ray_lora.__all__) <= set(dir(ray_lora))


@pytest.mark.parametrize("name", ray_lora.__all__)
def test_public_name_loads(name: str) -> None:
    assert getattr(ray_lora, name) is not None


def test_type_checkers_see_the_public_names() -> None:
    tree = ast.parse((ROOT / "__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == ray_lora._HOME


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="LoraTrainr"):
        _ = ray_lora.LoraTrainr


def test_version_is_the_packages() -> None:
    text = (ROOT.parent / "pyproject.toml").read_text()
    assert re.search(r'^version = "(.*)"$', text, re.M).group(1) == ray_lora.__version__


def test_every_library_that_is_imported_is_declared() -> None:
    names = {
        "PIL": "pillow",
        "sklearn": "scikit-learn",
        "yaml": "pyyaml",
        "huggingface_hub": "transformers",
        "python_multipart": "python-multipart",
    }
    served = {"fastapi", "starlette", "uvicorn"}  # ray[serve] brings them
    declared = re.findall(r'"([A-Za-z0-9_-]+)(?:\[[^"]*\])?>=', (ROOT.parent / "pyproject.toml").read_text())
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for module in modules:
                library = module.split(".")[0]
                known = library in sys.stdlib_module_names or library in {"ray_lora", *served}
                assert known or names.get(library, library) in declared, f"{path.name} imports {library}"
