"""People of one table: whose rows are whose, what they are called, and that each learns as if alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ray_lora.adapters.adapter import Adapter
from ray_lora.data.people import find_people
from ray_lora.engine import AdapterEngine
from ray_lora.errors import AdapterNotFoundError, DataError, RecipeError
from ray_lora.recipe import LoraSpec, PersonalSpec, TrainingSpec
from ray_lora.running.people_pool import parted
from ray_lora.store import open_store
from ray_lora.store.people import check_parent, group_name, person_name
from ray_lora.store.refs import is_name
from ray_lora.tasks.text_classification import TextClassificationSpec
from ray_lora.training.job import Job
from ray_lora.training.people import Outcome, Share, train_people
from tests.unit.bases import open_base, save_base
from tests.unit.packs import LABELS, ROWS, Letters
from tests.unit.serving_world import make_adapter

# -------------------------------------------------------------------- who works on whom


@pytest.mark.parametrize(("shares", "workers"), [(4, 2), (1, 2), (5, 4), (1024, 2), (256, 2), (0, 2), (129, 1)])
def test_every_worker_has_a_block_of_one_size(shares: int, workers: int) -> None:
    all_of_them = [Share(str(number), (0,), ()) for number in range(shares)]
    blocks = parted(all_of_them, workers, most=128)
    assert [share for block in blocks for share in block] == all_of_them
    sizes = [len(block) for block in blocks]
    assert len(blocks) >= min(shares, workers)
    assert all(0 < size <= 128 for size in sizes)
    assert not sizes or max(sizes) - min(sizes) <= 1


# -------------------------------------------------------------------- whose rows are whose


def table(folder: Path, rows: list[dict[str, Any]], name: str = "rows.jsonl") -> str:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_rows_are_parted_by_person_and_ordered_by_time(tmp_path: Path) -> None:
    rows = [
        {"who": "b", "city": "rome", "at": 5},
        {"who": "a", "city": "oslo", "at": 9},
        {"who": "b", "city": "rome", "at": 1},
        {"who": "a", "city": "oslo", "at": 2},
        {"who": "b", "city": "rome", "at": 5},
    ]
    spec = PersonalSpec(key="who", group="city", order="at")
    people = find_people(table(tmp_path, rows), spec)
    assert [(one.key, one.group, one.rows.tolist()) for one in people] == [
        ("a", "oslo", [3, 1]),
        ("b", "rome", [2, 0, 4]),
    ]
    unordered = find_people(table(tmp_path, rows), PersonalSpec(key="who"))
    assert [(one.group, one.rows.tolist()) for one in unordered] == [(None, [1, 3]), (None, [0, 2, 4])]


def test_numbers_of_several_files_are_of_the_whole_table(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    for number in range(3):
        table(tmp_path / "rows", [{"who": 7, "at": 9 - number}, {"who": number, "at": 0}], f"{number}.jsonl")
    people = find_people(str(tmp_path / "rows"), PersonalSpec(key="who", order="at"))
    assert {one.key: one.rows.tolist() for one in people} == {"0": [1], "1": [3], "2": [5], "7": [4, 2, 0]}


@pytest.mark.parametrize(
    ("rows", "spec", "said"),
    [
        ([{"who": "a"}, {"who": None}], {"key": "who"}, "row 2: who is empty"),
        ([{"who": "a"}, {"who": "  "}], {"key": "who"}, "row 2: who: label '  ' is blank"),
        ([{"who": "a"}], {"key": "whom"}, "no column 'whom'; it has who; did you mean 'who'"),
        ([{"who": "a", "of": "x"}, {"who": "a", "of": "y"}], {"key": "who", "group": "of"}, "'a' is in several groups"),
        ([{"who": "a", "at": 1}, {"who": "a", "at": None}], {"key": "who", "order": "at"}, "row 2: at is empty"),
        ([{"who": "a", "at": [1]}], {"key": "who", "order": "at"}, "order rows by times, dates or numbers"),
        ([{"who": "a" * 600}], {"key": "who"}, "600 characters"),
    ],
)
def test_wrong_rows_are_named(tmp_path: Path, rows: list[dict[str, Any]], spec: dict[str, str], said: str) -> None:
    with pytest.raises(DataError, match=said):
        find_people(table(tmp_path, rows), PersonalSpec(**spec))  # type: ignore[arg-type]


def test_a_recipe_says_whose_rows_they_are(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"personal\.key names no column"):
        find_people(table(tmp_path, [{"who": "a"}]), PersonalSpec())


# -------------------------------------------------------------------- names


@given(st.text(min_size=1, max_size=200), st.text(min_size=1, max_size=200))
def test_every_key_has_a_name_of_its_own(one: str, other: str) -> None:
    names = person_name("tweets", one), person_name("tweets", other)
    assert all(map(is_name, names))
    assert (names[0].lower() == names[1].lower()) == (one == other)
    assert group_name("tweets", one) != names[0]


def test_names_can_be_read() -> None:
    assert person_name("tweets", "shop-7") == "tweets.person.shop-7"
    assert person_name("tweets", "../A") == "tweets.person._2e_2e_2f_41"
    with pytest.raises(RecipeError, match="mark people's adapters"):
        check_parent("tweets.person.anna")
    with pytest.raises(RecipeError, match="at most 40"):
        check_parent("x" * 41)


# -------------------------------------------------------------------- training

SPEC: TextClassificationSpec = LABELS[2]
LORA = LoraSpec(r=3, lora_alpha=6)
TRAINING = TrainingSpec(
    num_train_epochs=3, learning_rate=2e-2, per_device_train_batch_size=4, lr_scheduler_type="constant", calibrate=False
)
JOB = Job("people", "people", SPEC, LORA, TRAINING)
ROW = dict(enumerate(ROWS[2]))
SHARES = [
    Share("ann", tuple(range(12)), (60, 61, 62, 63), "group"),
    Share("bob", tuple(range(12, 21)), (64, 65, 66), "group"),
    Share("cyd", tuple(range(30, 35)), (67, 68, 69), "group"),
    Share("dee", tuple(range(36, 43)), (44, 45), None),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base("bert", tmp_path_factory.mktemp("people") / "base")


@pytest.fixture(scope="module")
def parent(folder: Path) -> Adapter:
    """An adapter that has learnt a little from other rows."""
    (outcome,) = run(folder, [Share("all", tuple(range(20, 60)), (60, 61, 62, 63, 64, 65))], {None: None}, 1)
    assert outcome.adapter is not None
    return outcome.adapter


def run(
    folder: Path, shares: list[Share], begins: dict[str | None, Adapter | None], slots: int, job: Job = JOB
) -> list[Outcome]:
    engine = AdapterEngine(open_base(folder, torch.float64, Letters()), slots=slots, max_rank=4, train=True)
    found = list(train_people(engine, begins, job, ROW, shares))
    assert engine.resident_slots == []
    engine.close()
    return found


def same(one: Adapter | None, other: Adapter | None) -> bool:
    if one is None or other is None:
        return one is other
    return all(torch.allclose(one.tensors[key], other.tensors[key], atol=1e-6) for key in one.tensors)


def test_each_learns_as_if_alone(folder: Path, parent: Adapter) -> None:
    """Whoever shares the passes, and whoever waits for a slot."""
    begins = {"group": parent, None: None}
    alone = {share.name: run(folder, [share], begins, 1)[0] for share in SHARES}
    for slots in (2, 4):
        together = {outcome.name: outcome for outcome in run(folder, SHARES, begins, slots)}
        assert set(together) == set(alone)
        for name, outcome in together.items():
            assert outcome.epoch == alone[name].epoch
            assert outcome.loss_after == pytest.approx(alone[name].loss_after, abs=1e-5)
            assert same(outcome.adapter, alone[name].adapter)
    assert any(outcome.adapter is not None for outcome in alone.values())


def test_who_does_not_gain_keeps_what_was(folder: Path, parent: Adapter) -> None:
    wild = replace(JOB, training=TRAINING.model_copy(update={"learning_rate": 3.0}))
    outcomes = run(folder, SHARES[:3], {"group": parent}, 3, wild)
    for outcome in outcomes:
        gains = outcome.adapter is not None
        assert gains == (outcome.epoch > 0) == (outcome.loss_after < (outcome.loss_before or 0))
        assert outcome.after == (outcome.adapter.card.metrics if outcome.adapter else outcome.before)
    assert any(outcome.adapter is None for outcome in outcomes)


def test_the_beginning_is_what_the_parent_answers(folder: Path, parent: Adapter) -> None:
    """The loss before is the parent's own, and no rate changes it."""
    still = replace(JOB, training=TRAINING.model_copy(update={"learning_rate": 1e-12}))
    first, second = run(folder, SHARES[:1], {"group": parent}, 1, still), run(folder, SHARES[:1], {"group": parent}, 1)
    assert first[0].loss_before == pytest.approx(second[0].loss_before)
    assert first[0].loss_after == pytest.approx(first[0].loss_before, abs=1e-6)


def test_one_that_is_no_number_harms_nobody(folder: Path, parent: Adapter) -> None:
    broken = replace(parent, head={name: tensor * float("nan") for name, tensor in parent.head.items()})
    shares = [replace(SHARES[0], begin="broken"), *SHARES[1:3]]
    found = {one.name: one for one in run(folder, shares, {"group": parent, "broken": broken}, 3)}
    assert found["ann"].adapter is None
    assert "no finite numbers" in (found["ann"].error or "")
    whole = {one.name: one for one in run(folder, SHARES[1:3], {"group": parent}, 2)}
    assert all(same(found[name].adapter, whole[name].adapter) for name in ("bob", "cyd"))


def test_persons_are_in_no_list_unless_they_are_asked_for(tiny_bert_folder: Path, tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    adapter = Adapter.load(make_adapter(tiny_bert_folder, tmp_path / "one", seed=0))
    mine = person_name("shops", "anna")
    for name in ("shops", group_name("shops", "north"), mine):
        store.put(adapter, name)
    assert store.names() == ["shops", "shops.group.north", mine]
    assert [entry.name for entry in store.list()] == store.names()
    assert [entry.name for entry in store.list(people=False)] == ["shops", "shops.group.north"]
    assert [entry.ref for entry in store.list(mine)] == [f"{mine}@1"]
    with pytest.raises(AdapterNotFoundError) as raised:
        store.resolve(person_name("shops", "anno"))
    assert mine not in str(raised.value)  # who else there is is nobody's matter
    with pytest.raises(AdapterNotFoundError, match="did you mean 'shops'"):
        store.resolve("shop")
