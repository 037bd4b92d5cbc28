"""Code by name: imported when it is on the user's list, never before."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import ray_lora
from ray_lora.allowed import ENV, environment, listed, load
from ray_lora.errors import RecipeError


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An installed package whose import leaves a mark."""
    (tmp_path / "shop_of_test").mkdir()
    (tmp_path / "shop_of_test" / "__init__.py").write_text("")
    (tmp_path / "shop_of_test" / "parts.py").write_text("class Shelf: ...\n")
    (tmp_path / "shop_of_test" / "torn.py").write_text("import no_such_library_here\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv(ENV, "")
    yield "shop_of_test"
    for name in [name for name in sys.modules if name.startswith("shop_of_test")]:
        del sys.modules[name]


def test_what_is_not_allowed_is_never_imported(shop: str) -> None:
    with pytest.raises(
        RecipeError, match=r"'shop_of_test.parts:Shelf' is not allowed; allowed are no modules"
    ) as error:
        load(f"{shop}.parts:Shelf")
    assert "RAY_LORA_ALLOW=shop_of_test.parts" in str(error.value)
    assert not any(name.startswith(shop) for name in sys.modules)


@pytest.mark.parametrize("allowed", ["shop_of_test", "shop_of_test.parts", " other, shop_of_test.parts "])
def test_a_module_on_the_list_is_loaded(shop: str, allowed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENV, allowed)
    assert load(f"{shop}.parts:Shelf").__name__ == "Shelf"


@pytest.mark.parametrize("allowed", ["shop_of", "shop_of_test.part", "parts", "shop_of_test.parts.inner"])
def test_a_name_that_only_looks_alike_is_not_on_the_list(
    shop: str, allowed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENV, allowed)
    with pytest.raises(RecipeError, match=f"allowed are {allowed}"):
        load(f"{shop}.parts:Shelf")


def test_allow_adds_to_the_list(shop: str) -> None:
    assert environment() == {}
    ray_lora.allow("other")
    ray_lora.allow(f"{shop}.parts", "other")
    assert listed() == ("other", f"{shop}.parts")
    assert environment() == {ENV: f"other,{shop}.parts"}
    assert load(f"{shop}.parts:Shelf").__name__ == "Shelf"


@pytest.mark.parametrize("module", ["", "a,b", "a b", "shop:Shelf", "../shop"])
def test_what_is_no_module_cannot_be_allowed(shop: str, module: str) -> None:
    with pytest.raises(RecipeError, match="not a module's name"):
        ray_lora.allow(module)


@pytest.mark.parametrize(
    "name", ["Shelf", "shop_of_test.parts", "a:b:c", "shop_of_test.parts:Shelf.x", "os:", ":x", "a:b "]
)
def test_other_forms_name_no_code(shop: str, name: str) -> None:
    ray_lora.allow(shop)
    with pytest.raises(RecipeError, match=r"write package.module:Name"):
        load(name)


def test_what_is_allowed_but_not_there_says_so(shop: str) -> None:
    ray_lora.allow(shop)
    with pytest.raises(RecipeError, match=r"no module named 'shop_of_test.gone'|No module named"):
        load(f"{shop}.gone:Shelf")
    with pytest.raises(RecipeError, match="no_such_library_here"):
        load(f"{shop}.torn:Shelf")
    with pytest.raises(RecipeError, match="has no 'Shelves'"):
        load(f"{shop}.parts:Shelves")
