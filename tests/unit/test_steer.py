"""Splits, shadows, promotions and rollbacks in every kind of store, and who is sent where."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_lora.cli import main
from ray_lora.errors import AdapterError, AdapterNotFoundError, RayLoraError, RecipeError
from ray_lora.store import Store, Traffic, open_store, steer
from ray_lora.store.mlflow_store import MlflowStore
from tests.mlflow_world import MLFLOW_WARNINGS, database
from tests.unit.test_store import adapter, bucket

pytestmark = [pytest.mark.filterwarnings(known) for known in MLFLOW_WARNINGS]
USERS = [f"user-{number}" for number in range(4000)]


@pytest.fixture(params=["folder", "bucket", "mlflow"])
def stores(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Store, Store]:
    """Two views of one store that holds tweets@1, @2 and @3, as two replicas have them."""
    monkeypatch.setenv("RAY_LORA_CACHE", str(tmp_path / "cache"))
    if request.param == "folder":
        pair: tuple[Store, Store] = (open_store(str(tmp_path / "store")), open_store(str(tmp_path / "store")))
    elif request.param == "bucket":
        pair = (bucket(tmp_path / "bucket"), bucket(tmp_path / "bucket"))
    else:
        uri = database(tmp_path)
        pair = (MlflowStore(uri), MlflowStore(uri))
    for seed in range(3):
        pair[0].put(adapter(seed), "tweets")
    return pair


def test_a_split_is_seen_by_everyone_who_asks_the_store(stores: tuple[Store, Store]) -> None:
    mine, other = stores
    assert other.resolve("tweets").traffic == Traffic()
    mine.point("tweets", steer.split({2: 90, 3: 10}))
    mine.point("tweets", steer.shadow(1, share=0.2))
    seen = other.resolve("tweets").traffic
    assert (seen.split, seen.shadow, seen.share) == ({2: 90, 3: 10}, 1, 0.2)
    assert [entry.traffic for entry in other.list()] == [seen] * 3
    assert other.resolve("tweets@2").traffic == seen
    mine.point("tweets", steer.shadow(None))
    began = other.resolve("tweets").traffic.began
    mine.point("tweets", steer.split({2: 50, 3: 50}))
    assert other.resolve("tweets").traffic.began == began  # the same versions: the same trial
    mine.point("tweets", steer.split({}))
    assert other.resolve("tweets").traffic == Traffic()


def test_a_promotion_ends_the_split_and_can_be_taken_back(stores: tuple[Store, Store]) -> None:
    mine, other = stores
    mine.alias("tweets", "champion", 1)
    mine.point("tweets", steer.split({1: 90, 2: 10}))
    mine.point("tweets", steer.shadow(3))
    mine.point("tweets", steer.promote(2))
    entry = other.resolve("tweets")
    assert (entry.version, entry.aliases, entry.traffic.split, entry.traffic.shadow) == (2, ("champion",), {}, 3)
    mine.point("tweets", steer.promote(3))
    assert other.resolve("tweets").traffic.shadow is None  # a champion shadows nobody
    mine.point("tweets", steer.split({1: 1, 3: 1}))
    mine.point("tweets", steer.rollback)
    assert (other.resolve("tweets").version, other.resolve("tweets").traffic.split) == (2, {})
    mine.point("tweets", steer.rollback)
    assert other.resolve("tweets").version == 1
    with pytest.raises(AdapterError, match="no champion to go back to"):
        mine.point("tweets", steer.rollback)
    assert other.resolve("tweets").version == 1


def test_where_there_was_no_champion_the_newest_is_gone_back_to(stores: tuple[Store, Store]) -> None:
    mine, other = stores
    mine.point("tweets", steer.promote(1))
    mine.put(adapter(7), "tweets")
    mine.point("tweets", steer.rollback)
    assert other.resolve("tweets").version == 3  # what answered then, not what came since


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (steer.split({1: 1, 9: 1}), AdapterNotFoundError, "no version 9"),
        (steer.split({1: 1, 2: -1}), RecipeError, "must not be negative"),
        (steer.split({1: 0, 2: 0}), RecipeError, "more than 0"),
        (steer.split({1: float("nan")}), RecipeError, "finite"),
        (steer.shadow(9), AdapterNotFoundError, "no version 9"),
        (steer.shadow(1, share=0), RecipeError, "greater than 0"),
        (steer.shadow(1, share=1.5), RecipeError, "less than or equal to 1"),
        (steer.promote(9), AdapterNotFoundError, "no version 9"),
        (steer.rollback, AdapterError, "no champion to go back to"),
    ],
)
def test_wrong_changes_change_nothing(
    change: steer.Change, error: type[RayLoraError], words: str, tmp_path: Path
) -> None:
    store = open_store(str(tmp_path / "store"))
    for seed in range(2):
        store.put(adapter(seed), "tweets")
    store.point("tweets", steer.split({1: 1, 2: 2}))
    before = store.resolve("tweets")
    with pytest.raises(error, match=words):
        store.point("tweets", change)
    assert store.resolve("tweets") == before
    with pytest.raises(AdapterNotFoundError, match="not in the store"):
        store.point("twets", change)
    assert not (tmp_path / "store" / "twets").exists()


def test_a_version_on_trial_is_not_removed(stores: tuple[Store, Store]) -> None:
    mine, _ = stores
    mine.point("tweets", steer.split({1: 90, 2: 10}))
    mine.point("tweets", steer.shadow(3))
    for version in (1, 2, 3):
        with pytest.raises(AdapterError, match=f"tweets@{version} is on trial"):
            mine.remove(f"tweets@{version}")
    mine.point("tweets", steer.promote(2))
    mine.remove("tweets@1")
    mine.point("tweets", steer.shadow(None))
    mine.remove("tweets@3")
    with pytest.raises(AdapterError, match="version 3, which is gone"):
        mine.point("tweets", steer.rollback)


@pytest.mark.parametrize("text", ["{", "[]", '{"split": {"a": 1}}', '{"split": {"1": -1}}', '{"sprit": {}}'])
def test_spoilt_traffic_is_named_and_other_names_go_on(text: str, tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    good = store.put(adapter(0), "good")
    store.put(adapter(1), "tweets")
    (tmp_path / "store/tweets/traffic.json").write_text(text)
    with pytest.raises(AdapterError, match=r"tweets/traffic\.json"):
        store.resolve("tweets")
    assert store.list() == [good]


def test_promotions_at_once_come_one_after_the_other(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    for seed in range(6):
        store.put(adapter(seed), "tweets")
    start = threading.Barrier(5)

    def promote(version: int) -> None:
        start.wait()
        open_store(str(tmp_path / "store")).point("tweets", steer.promote(version))

    threads = [threading.Thread(target=promote, args=(version,)) for version in range(1, 6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    entry = store.resolve("tweets")
    assert sorted([*entry.traffic.previous, entry.version]) == [1, 2, 3, 4, 5, 6]  # none was lost
    assert entry.traffic.previous[0] == 6


def test_known_traffic_outlives_the_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_LORA_CACHE", str(tmp_path / "cache"))
    uri = database(tmp_path)
    store = MlflowStore(uri)
    store.put(adapter(0), "tweets")
    store.put(adapter(1), "tweets")
    store.point("tweets", steer.split({1: 1, 2: 1}))
    seen = store.resolve("tweets").traffic
    (tmp_path / "mlflow.db").unlink()
    (tmp_path / "mlflow.db").mkdir()  # a database that cannot be opened
    assert MlflowStore(uri).resolve("tweets").traffic == seen


@pytest.mark.parametrize("change", [steer.promote(1), steer.promote(2), steer.promote(4), steer.rollback])
@pytest.mark.parametrize("split", [{}, {1: 1, 2: 1}])
def test_no_reader_meets_a_version_that_neither_end_names(change: steer.Change, split: dict[int, float]) -> None:
    def answering(traffic: Traffic, aliases: Mapping[str, int]) -> set[int]:
        return set(traffic.split) or {aliases["champion"]}

    before = steer.Pointers("n", [1, 2, 3, 4], {"champion": 3}, Traffic(split=split, previous=(4,)))
    after = change(before)
    writes = [before, *steer.steps(before, after)]
    assert writes[-1] == after
    allowed = answering(before.traffic, before.aliases) | answering(after.traffic, after.aliases)
    for number, first in enumerate(writes):  # traffic is read first, aliases at any later time
        for second in writes[number:]:
            assert answering(first.traffic, second.aliases) <= allowed
    for cut_short in writes[1:]:
        if cut_short.aliases["champion"] != 3 and change is not steer.rollback:
            assert steer.rollback(cut_short).champion == 3


# ------------------------------------------------------------------------------------------------- who is sent where


def shares(traffic: Traffic, name: str = "tweets") -> dict[int, float]:
    counts = Counter(traffic.pick(name, user) for user in USERS)
    return {version: count / len(USERS) for version, count in counts.items() if version is not None}


def test_shares_follow_the_weights() -> None:
    for split in ({1: 90, 2: 10}, {1: 1, 2: 1, 3: 2}, {4: 0.5, 7: 0.0}):
        traffic, total = Traffic(split=split), sum(split.values())
        found = shares(traffic)
        drawn = Counter(traffic.pick("tweets") for _ in USERS)
        for version, weight in split.items():
            assert found.get(version, 0) == pytest.approx(weight / total, abs=0.035)  # over 4 standard deviations
            assert drawn[version] / len(USERS) == pytest.approx(weight / total, abs=0.035)


WEIGHTS = st.dictionaries(st.integers(1, 9), st.floats(0.01, 100), min_size=2, max_size=5)


@settings(max_examples=60, deadline=None)
@given(WEIGHTS, st.data())
def test_only_users_who_must_move_do(split: dict[int, float], data: st.DataObject) -> None:
    grown = data.draw(st.sampled_from(sorted(split)))
    before = Traffic(split=split)
    after = Traffic(split=split | {grown: split[grown] * data.draw(st.floats(1, 20))})
    for user in USERS[:300]:
        old, new = before.pick("n", user), after.pick("n", user)
        assert old == before.pick("n", user)
        assert new in (old, grown)
    scaled = Traffic(split={version: weight * 7 for version, weight in split.items()})
    assert all(before.pick("n", user) == scaled.pick("n", user) for user in USERS[:300])


def test_a_new_version_takes_its_share_and_no_user_moves_elsewhere() -> None:
    before, after = Traffic(split={1: 50, 2: 50}), Traffic(split={1: 45, 2: 45, 3: 10})
    moved = [(before.pick("n", user), after.pick("n", user)) for user in USERS]
    assert all(new in (old, 3) for old, new in moved)
    assert sum(old != new for old, new in moved) / len(USERS) == pytest.approx(0.1, abs=0.025)


def test_names_are_split_independently() -> None:
    traffic = Traffic(split={1: 1, 2: 1})
    same = sum(traffic.pick("a", user) == traffic.pick("b", user) for user in USERS)
    assert same / len(USERS) == pytest.approx(0.5, abs=0.035)


# -------------------------------------------------------------------------------------------------- the command line


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    store = open_store(str(tmp_path / "store"))
    for seed in range(5):
        store.put(adapter(seed), "tweets", ["champion"] if seed == 2 else [])

    def command(*arguments: str) -> tuple[int, dict[str, Any], str]:
        code = main(["adapters", *arguments, "--store", str(tmp_path / "store"), "--json"])
        said = capsys.readouterr()
        return code, json.loads(said.out.splitlines()[-1]) if code == 0 else {}, said.err

    return command


def test_one_command_each(run: Any) -> None:
    code, said, _ = run("split", "tweets", "champion=90", "4=10")
    assert (code, said["split"], said["champion"]) == (0, {"3": 90.0, "4": 10.0}, 3)
    code, said, _ = run("shadow", "tweets", "5", "--share", "0.2")
    assert (code, said["shadow"], said["share"]) == (0, 5, 0.2)
    assert run("shadow", "tweets", "--off")[1]["shadow"] is None
    code, said, _ = run("promote", "tweets", "4")
    assert (code, said["champion"], said["split"], said["previous"]) == (0, 4, {}, [3])
    assert run("split", "tweets", "4=1", "5=1")[1]["split"] == {"4": 1.0, "5": 1.0}
    assert run("split", "tweets", "--off")[1]["split"] == {}
    code, said, _ = run("rollback", "tweets")
    assert (code, said["champion"], said["previous"]) == (0, 3, [])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["split", "tweets"], "--off"),
        (["split", "tweets", "3=1", "--off"], "--off"),
        (["split", "tweets", "3"], "VERSION=WEIGHT"),
        (["split", "tweets", "3=many"], "VERSION=WEIGHT"),
        (["split", "tweets", "3=1", "champion=2"], "second weight"),
        (["split", "tweets", "9=1"], "no version 9"),
        (["split", "tweets", "3=-1", "4=2"], "must not be negative"),
        (["split", "tweets", "3=0", "4=0"], "more than 0"),
        (["split", "twets", "3=1"], "did you mean 'tweets'"),
        (["shadow", "tweets"], "--off"),
        (["shadow", "tweets", "4", "--share", "2"], "less than or equal to 1"),
        (["promote", "tweets", "9"], "no version 9"),
        (["rollback", "tweets"], "no champion to go back to"),
    ],
)
def test_wrong_input_is_code_two(run: Any, arguments: list[str], words: str) -> None:
    code, _, said = run(*arguments)
    assert code == 2
    assert words in said
    assert "Traceback" not in said
