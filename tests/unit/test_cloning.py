"""Where a cloned trial begins, and which clones are refused before anything of them is written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ray_lora.errors import AdapterError, RecipeError
from ray_lora.recipe import LoraSpec, Recipe
from ray_lora.search.asking import Request
from ray_lora.search.cloning import Searched, begin_clone
from ray_lora.search.origin import Origin, read_origin
from ray_lora.training.job import Job
from ray_lora.training.state import step_of
from tests.unit.bases import save_base
from tests.unit.packs import make_job, make_pack

RATE = "training.learning_rate"
PARENT = {"lora.r": 4, RATE: 1e-2}


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders of `a`, with a checkpoint of step 6, and `torn`; of `early` there is none yet."""
    base = save_base("bert", tmp_path_factory.mktemp("bases") / "bert")
    output = tmp_path_factory.mktemp("jobs")
    pack = make_pack(base, slots=2, output=output)
    pack.join(make_job("a", 3, LoraSpec(r=4), max_steps=10))
    for _ in range(6):
        pack.step()
    pack.save("a")
    (output / "torn/state").mkdir(parents=True)
    (output / "torn/state/state.safetensors").write_bytes((output / "a/state/state.safetensors").read_bytes()[:99])
    return output


@pytest.fixture
def searched() -> Searched:
    recipe = Recipe.parse({"task": {"labels": ["no", "yes"]}, "data": {"train": "rows.jsonl"}, "lora": {"r": 8}})
    return Searched(recipe, recipe.task, False, "accuracy", "max", 40, 8, False, lambda training: training.max_steps)


def cloned(
    searched: Searched, jobs: Path, parent: str = "a", fresh: bool = False, of: dict[str, Any] = PARENT, **changes: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    told = {"training.max_steps": 10} | {key.replace("__", "."): value for key, value in changes.items()}
    return begin_clone(
        searched, jobs, parent, of, f"{parent}-1", Request(do="clone", changes=told, trials=(parent,), fresh=fresh)
    )


def test_a_clone_of_the_same_form_goes_on_from_its_parents_checkpoint(searched: Searched, jobs: Path) -> None:
    config, told = cloned(searched, jobs, training__learning_rate=1e-3, lora__lora_dropout=0.1)
    assert config == PARENT | {RATE: 1e-3, "training.max_steps": 10, "lora.lora_dropout": 0.1}
    assert (told["begins"], told["why"]) == ("from step 6 of a", "the last checkpoint of its parent")
    assert (jobs / "a-1/state/state.safetensors").read_bytes() == (jobs / "a/state/state.safetensors").read_bytes()
    origin = read_origin(jobs / "a-1")
    assert origin is not None
    assert (origin.trial, origin.step, origin.training["learning_rate"], origin.before) == ("a", 6, 1e-2, None)
    _, told = cloned(searched, jobs, "a-1", of=config, training__learning_rate=1e-4)
    again = read_origin(jobs / "a-1-1")
    assert again is not None
    assert again.before == origin.card  # all that its numbers have learnt by
    assert isinstance(Job("x", "d", searched.task, LoraSpec(), searched.recipe.training, origin=again.card), Job)


@pytest.mark.parametrize(
    ("parent", "changes", "why"),
    [
        ("a", {"fresh": True}, "it was asked for"),
        ("a", {"lora__r": 2}, "its lora.r differs"),
        ("a", {"lora__lora_alpha": 3.0}, "its lora.lora_alpha differs"),
        ("a", {"lora__batch_norms": "own"}, "its lora.batch_norms differs"),
        ("a", {"lora__target_modules": ["query"]}, "its lora.target_modules differs"),
        ("early", {}, "early has no checkpoint yet"),
    ],
)
def test_other_clones_begin_from_nothing(
    searched: Searched, jobs: Path, parent: str, changes: dict[str, Any], why: str
) -> None:
    _, told = cloned(searched, jobs, parent, training__learning_rate=1e-3, **changes)
    assert (told["begins"], told["step"]) == ("from nothing", 0)
    assert why in told["why"]
    assert step_of(jobs / f"{parent}-1/state") is None
    assert read_origin(jobs / f"{parent}-1") == Origin(parent, 0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lora__rank": 2}, "'lora.rank' is not a key of the recipe; did you mean 'lora.r'"),
        ({"base__model": "other"}, "not base.model; run one search for each value"),
        ({"lora__r": 9}, "rank 9 exceeds this search's max_rank 8"),
        ({"lora__rank_pattern": {"query": 16}}, "rank 16 exceeds"),
        ({"lora__r": 0}, "greater than or equal to 1"),
        ({"training__max_steps": 6}, "has a checkpoint of step 6 and the clone would have 6 steps"),
        ({"lora__target_modules": ["word_embeddings"]}, "hold no adapters of embeddings"),
        ({"distillation__weight": 0.5}, "weight without a teacher"),
    ],
)
def test_what_no_pack_of_the_search_can_train_is_refused(
    searched: Searched, jobs: Path, changes: dict[str, Any], said: str
) -> None:
    before = sorted(jobs.rglob("*"))
    with pytest.raises(RecipeError) as caught:
        cloned(searched, jobs, **changes)
    assert said in str(caught.value)
    assert sorted(jobs.rglob("*")) == before


def test_a_clone_that_changes_nothing_is_refused(searched: Searched, jobs: Path) -> None:
    with pytest.raises(RecipeError, match="at least one key=value that differs"):
        cloned(searched, jobs, of=PARENT | {"training.max_steps": 10})


def test_rungs_leave_no_room_for_other_evaluations(searched: Searched, jobs: Path) -> None:
    with pytest.raises(RecipeError, match=r"evaluated at rungs; leave training\.eval_steps out"):
        cloned(replace(searched, rungs=True), jobs, training__eval_steps=3)


def test_a_torn_checkpoint_is_said(searched: Searched, jobs: Path) -> None:
    with pytest.raises(AdapterError, match="is torn or no checkpoint"):
        cloned(searched, jobs, "torn", training__learning_rate=1e-3)
