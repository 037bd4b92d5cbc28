"""The documents: their python blocks run, their links lead somewhere, and the recipe's page names every key."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel

from ray_lora.recipe import Recipe
from ray_lora.tasks import TASKS, task_class
from tests.documents import PAGES, ROOT, blocks, furnish, run_blocks
from tests.unit.speech import save_whisper

NEEDS_RAY = {"README.md"}  # tests/programs/test_stories.py


@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page) and page.name not in NEEDS_RAY], ids=lambda page: page.name
)
def test_blocks_run(page: Path, tmp_path: Path, tiny_bert_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    furnish(tmp_path, tiny_bert_folder)
    if page.name == "speech.md":
        save_whisper(tmp_path / "bases" / "whisper", seconds=3)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("RAY_LORA_ALLOW", "")
    monkeypatch.delitem(sys.modules, "ratings", raising=False)
    run_blocks(page)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        assert target.startswith("http") or (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_recipes_page_names_every_key() -> None:
    page = (ROOT / "docs" / "recipe.md").read_text()
    for name, field in Recipe.model_fields.items():
        section = field.annotation
        inner = section.model_fields if isinstance(section, type) and issubclass(section, BaseModel) else {}
        for key in [f"{name}.{part}" for part in inner] or [name]:
            assert f"`{key}`" in page, f"docs/recipe.md does not name {key}"
    for task in TASKS:
        for key in task_class(task).spec_type.model_fields:
            assert f"`task.{key}`" in page, f"docs/recipe.md does not name task.{key}"


def test_the_tree_answers_where_things_are() -> None:
    """The table "Where is ..." of the architecture page: each file is there and defines what the page names."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    places = re.findall(r"`(ray_lora/[\w/]+\.py)`: (`[\w.]+`(?:, `[\w.]+`)*)", page)
    assert len(places) >= 60
    for path, names in places:
        source = (ROOT / path).read_text()
        for name in re.findall(r"(\w+)`", names):
            assert re.search(rf"^\s*(async def|def|class) {name}\b|^{name}\b", source, flags=re.MULTILINE), (path, name)
    assert all((ROOT / path).exists() for path in re.findall(r"`?(ray_lora/[\w/]+\.py)", page))


ROOMS = sorted(folder.name for folder in (ROOT / "ray_lora").iterdir() if (folder / "__init__.py").exists())


def test_files_that_pages_and_comments_name_are_there() -> None:
    """`serving/gate.py` in a comment or on a page is `ray_lora/serving/gate.py`."""
    sources = [*(ROOT / "ray_lora").rglob("*.py"), *(ROOT / "docs").glob("*.md"), ROOT / "CONTRIBUTING.md"]
    named = re.compile(rf"(?<![\w/.])(?:ray_lora/)?((?:{'|'.join(ROOMS)})/[\w/]+\.py)\b")
    gone = {
        (source.name, path)
        for source in sources
        for path in named.findall(source.read_text())
        if not (ROOT / "ray_lora" / path).exists()
    }
    assert not gone


def test_every_503_is_said_where_the_page_says() -> None:
    page = (ROOT / "docs" / "reliability.md").read_text()
    rows = re.findall(r"^\| `(?:overloaded|unavailable)` \| (.+?) \| (.+?) \|", page, re.M)
    assert len(rows) >= 9
    for messages, files in rows:
        sources = "".join((ROOT / path).read_text() for path in re.findall(r"`(ray_lora/[\w/]+\.py)`", files))
        for message in re.findall(r"`(.+?)`", messages):
            assert message in sources, f"{message!r} is not in {files}"


FAULTS = {"A": 19, "B": 15, "C": 17, "D": 20, "E": 13, "F": 8, "G": 14, "H": 8, "I": 7}  # how many of each kind


def test_the_catalogue_has_every_fault_with_its_answer_and_a_test_or_the_reason_for_none() -> None:
    lines = re.findall(
        r"^\| ([A-I])(\d+) \| (.+?) \| (.+?) \| (.*?) ?\|$", (ROOT / "docs" / "faults.md").read_text(), re.M
    )
    wanted = [(kind, str(number + 1)) for kind, count in FAULTS.items() for number in range(count)]
    assert [(kind, number) for kind, number, *_ in lines] == wanted
    for kind, number, _, answer, tests in lines:
        assert ("no test:" in answer) == (not re.findall(r"`test_\w+`", tests)), f"{kind}{number}: {answer} {tests}"


@pytest.mark.parametrize("page", ["reliability.md", "faults.md", "reports.md"])
def test_every_test_that_the_pages_of_faults_name_is_there(page: str) -> None:
    named = set(re.findall(r"`(test_\w+?)(…?)`", (ROOT / "docs" / page).read_text()))
    sources = "\n".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
    there = set(re.findall(r"def (test_\w+)\(", sources))
    assert len(named) > 15
    for name, begun in named:
        found = any(test.startswith(name) for test in there) if begun else name in there
        assert found, f"docs/{page} names {name}, which is no test"
