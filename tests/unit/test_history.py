"""People's rows, from the table that they began with and from what came since."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ray_lora.data.history import History
from ray_lora.errors import DataError
from ray_lora.recipe import DataSpec, PersonalSpec
from ray_lora.tasks import Column

COLUMNS = {"text": Column(("text",), about="what is read"), "label": Column(("label",), "training", about="its label")}


def rows(path: Path, lines: Sequence[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def line(who: str, at: int, **more: Any) -> dict[str, Any]:
    return {"text": f"{who} {at}", "label": "yes", "who": who, "city": "north", "at": at} | more


@pytest.fixture
def history(tmp_path: Path) -> History:
    known = History(DataSpec(), COLUMNS, PersonalSpec(key="who", group="city", order="at"))
    given = rows(tmp_path / "first.jsonl", [line("bob", 3), line("alice", 2), line("bob", 1), line("alice", 1)])
    assert known.add(given) == ["alice", "bob"]
    return known


def texts(history: History, *people: str) -> dict[str, list[str]]:
    table, mine = history.rows_of(people)
    found = table.column("text").to_pylist()
    return {person: [found[row] for row in rows] for person, rows in mine.items()}


def test_what_is_added_later_is_later(history: History, tmp_path: Path) -> None:
    given = rows(tmp_path / "second.jsonl", [line("bob", 0), line("carol", 9), line("bob", -1)])
    assert history.add(given) == ["bob", "carol"]
    sent = tmp_path / "third.jsonl"
    rows(sent, [{"person": "bob", "text": "bob sent", "label": "no"}])
    assert history.add_sent([sent]) == ["bob"]
    assert texts(history, "bob", "carol", "alice") == {
        "bob": ["bob 1", "bob 3", "bob 0", "bob -1", "bob sent"],
        "carol": ["carol 9"],
        "alice": ["alice 1", "alice 2"],
    }
    assert history.groups == dict.fromkeys(["alice", "bob", "carol"], "north")
    history.forget_newest()
    assert texts(history, "bob")["bob"][-1] == "bob -1"


@pytest.mark.parametrize(("first", "other"), [("Jos\u00e9", "Jose\u0301"), ("dan", "dan ")])
def test_one_person_under_two_keys_is_refused_whichever_way_it_comes(
    history: History, tmp_path: Path, first: str, other: str
) -> None:
    both = rows(tmp_path / "both.jsonl", [line(first, 7), line(other, 8)])
    with pytest.raises(DataError, match=r"both\.jsonl: '.*' and another person differ only in blanks around them or"):
        history.add(both)
    assert history.add(rows(tmp_path / "one.jsonl", [line(first, 7)])) == [first]
    sent = tmp_path / "sent.jsonl"
    rows(sent, [{"person": other, "group": "north", "text": "d", "label": "no"}])
    with pytest.raises(DataError, match="write them alike"):
        history.add_sent([sent])
    assert set(history.groups) == {"alice", "bob", first}
    rows(sent, [{"person": first, "text": "d", "label": "no"}, {"person": "Bob", "group": "north", "text": "e"}])
    assert history.add_sent([sent]) == [first, "Bob"]  # large letters differ


def test_who_is_new_says_the_group_and_nobody_moves(history: History, tmp_path: Path) -> None:
    given = rows(tmp_path / "moved.jsonl", [line("bob", 5, city="south")])
    with pytest.raises(DataError, match=r"moved\.jsonl: 'bob' is in city 'south' and was in 'north'; give each"):
        history.add(given)
    sent = tmp_path / "new.jsonl"
    rows(sent, [{"person": "dan", "text": "d", "label": "no"}])
    with pytest.raises(DataError, match=r"new\.jsonl: 'dan' is new; say the group too \(city\)"):
        history.add_sent([sent])
    rows(sent, [{"person": "dan", "group": "south", "text": "d", "label": "no"}])
    assert history.add_sent([sent]) == ["dan"]
    assert history.groups["dan"] == "south"
    with pytest.raises(DataError, match="label"):
        history.add_sent([Path(rows(tmp_path / "no.jsonl", [{"person": "dan", "text": "d"}]))])
    assert texts(history, "dan") == {"dan": ["d"]}
