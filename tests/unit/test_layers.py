"""Imports go down the layers of docs/architecture.md, and the heavy libraries stay where they belong."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import ray_lora

ROOT = Path(ray_lora.__file__).parent

LAYERS = [
    {"errors", "bounds", "expressions", "atomic", "allowed", "html_policy", "recipe", "recipe_text"}
    | {"task_spec", "transform_spec", "distillation_spec", "search_spec", "uncollected"},
    {"bases", "adapters", "store", "engine", "tasks"},
    {"data", "inference", "augmentation", "training", "explain", "export", "pruning"},
    {"running", "tracking", "pyfunc"},
    {"search", "serving"},
    {"cli", "__main__"},
]
LAYER = {part: number for number, parts in enumerate(LAYERS) for part in parts}
BESIDE = {  # imports between rooms of one layer; all others go strictly down
    "atomic": {"errors"},
    "expressions": {"bounds"},
    "allowed": {"bounds", "errors"},
    "task_spec": {"tasks.table"},  # names of tasks; the table imports none of them before it is asked for
    "transform_spec": {"errors", "task_spec", "augmentation.table"},  # as of tasks
    "distillation_spec": {"task_spec"},
    "search_spec": {"task_spec"},
    "recipe_text": {"errors", "bounds", "task_spec"},
    "recipe": {"errors", "bounds", "task_spec", "transform_spec", "distillation_spec", "search_spec", "recipe_text"},
    "store": {"adapters"},
    "engine": {"adapters", "bases"},
    # the kind of head a task asks for, how texts are padded, whether a base tells two of them apart
    "tasks": {"bases.plain", "bases.queries", "bases.padding", "bases.segments", "bases.speech"},
    "inference": {"data"},
    "training": {"inference", "augmentation"},
    "explain": {"inference"},
    "export": {"inference", "data"},
    "pruning": {"inference", "data"},
    "running": {"tracking"},
    "__main__": {"cli"},
}
RAY_FROM = 3
MLFLOW = ("tracking", "store.mlflow_store", "store.mlflow_client", "store.mlflow_signature", "pyfunc")
TORCH_FREE = {
    "errors",
    "bounds",
    "expressions",
    "allowed",
    "task_spec",
    "transform_spec",
    "distillation_spec",
    "search_spec",
    "recipe",
    "recipe_text",
    "uncollected",
    "cli",
    "training.job",
    "running.allocator",
    "bases.plain",
    "bases.identity",
    "adapters.card",
    "store.described",
}


def modules() -> list[str]:
    names = (path.relative_to(ROOT).with_suffix("").parts for path in ROOT.rglob("*.py"))
    return sorted(".".join(name).removesuffix(".__init__") for name in names if name != ("__init__",))


def imports(module: str, *, running: bool = True) -> Iterator[str]:
    """Dotted names a module imports, inside functions too; those for type checkers only when not `running`."""
    path = ROOT / (module.replace(".", "/") + ".py")
    tree = ast.parse((path if path.exists() else ROOT / module.replace(".", "/") / "__init__.py").read_text())
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if running and isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) not in skipped and isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if id(node) not in skipped and isinstance(node, ast.ImportFrom):
            for alias in node.names:
                joined = f"{node.module}.{alias.name}"
                inner = ROOT.parent / joined.replace(".", "/")
                yield joined if inner.is_dir() or inner.with_suffix(".py").exists() else str(node.module)


def uses(module: str, library: str, *, running: bool = True) -> bool:
    return any(name.split(".")[0] == library for name in imports(module, running=running))


@pytest.mark.parametrize("module", modules())
def test_imports_go_down(module: str) -> None:
    part = module.split(".")[0]
    assert part in LAYER, f"{part} has no layer: add it to LAYERS and to docs/architecture.md"
    for name in imports(module, running=False):
        if not name.startswith("ray_lora."):
            assert name != "ray_lora", f"{module} imports the package itself; import the module that holds the name"
            continue
        inner = name.removeprefix("ray_lora.")
        target = inner.split(".")[0]
        beside = target == part or bool({target, inner} & BESIDE.get(part, set()))
        assert beside or LAYER[target] < LAYER[part], f"{module} (L{LAYER[part]}) imports {inner} (L{LAYER[target]})"
        assert not (part == "serving" and target == "train"), f"{module}: serving never imports train"


@pytest.mark.parametrize("module", [m for m in modules() if LAYER.get(m.split(".")[0], 9) < RAY_FROM])
def test_ray_stays_above_layer_two(module: str) -> None:
    assert not uses(module, "ray"), f"{module} imports Ray below L{RAY_FROM}"


@pytest.mark.parametrize("module", [m for m in modules() if not m.startswith(MLFLOW)])
def test_mlflow_stays_in_its_files(module: str) -> None:
    assert not uses(module, "mlflow"), f"{module} imports MLflow; only {', '.join(MLFLOW)} do"


@pytest.mark.parametrize("module", [m for m in modules() if {m, m.split(".")[0]} & TORCH_FREE])
def test_light_modules_do_not_name_torch(module: str) -> None:
    assert not uses(module, "torch")


def test_no_module_reaches_itself() -> None:
    """Modules import each other in one direction, those for type checkers included."""
    known = set(modules())
    arrows: dict[str, set[str]] = {}
    for module in known:
        names = (name.removeprefix("ray_lora.") for name in imports(module, running=False))
        arrows[module] = {name for name in names if name in known and name != module}
    done: set[str] = set()

    def walk(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, f"circle: {' -> '.join([*way[way.index(module) :], module])}"
        if module in done:
            return
        for other in sorted(arrows[module]):
            walk(other, (*way, module))
        done.add(module)

    for module in sorted(known):
        walk(module, ())
