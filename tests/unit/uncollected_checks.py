"""Imports while the garbage collector waits: for an interpreter that has imported nothing else (`test_uncollected`)."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Iterator
from types import ModuleType

import pytest

from ray_lora.uncollected import uncollected


@pytest.fixture(autouse=True)
def as_a_program_begins() -> Iterator[None]:
    """Nothing is frozen."""
    yield
    gc.enable()
    gc.unfreeze()


def test_nothing_is_collected_inside_and_what_is_imported_is_old_then(monkeypatch: pytest.MonkeyPatch) -> None:
    before = gc.get_stats()
    with uncollected():
        assert not gc.isenabled()
        monkeypatch.setitem(sys.modules, "imported_here", ModuleType("imported_here"))
        made = [[number] for number in range(100_000)]  # else a hundred collections
        assert gc.get_stats() == before
    assert gc.isenabled()
    assert any(one is made[0] for one in gc.get_objects(generation=2))


def test_what_is_made_where_all_was_imported_before_stays_young() -> None:
    gc.collect()
    with uncollected():
        made = [[number] for number in range(10)]
    assert not any(one is made[0] for one in gc.get_objects(generation=2))


def test_garbage_of_the_imports_is_collected_later() -> None:
    class Node:
        def __init__(self) -> None:
            self.itself = self

    with uncollected():
        left = weakref.ref(Node())
    assert left() is not None
    gc.collect()
    assert left() is None


def test_the_collector_is_as_it_was_whatever_happens() -> None:
    with pytest.raises(ImportError), uncollected():
        raise ImportError("no such module")
    assert gc.isenabled()
    gc.disable()
    with uncollected():
        pass
    assert not gc.isenabled()


def test_one_inside_another_leaves_the_collector_off_until_the_outer_ends() -> None:
    with uncollected():
        with uncollected():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()


def test_what_somebody_has_frozen_stays_frozen() -> None:
    gc.freeze()
    kept = [[number] for number in range(10)]
    gc.freeze()
    with uncollected():
        pass
    frozen = {id(one) for one in kept}  # frozen objects are in no generation
    assert not any(id(one) in frozen for one in gc.get_objects())
