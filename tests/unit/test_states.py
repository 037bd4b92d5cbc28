"""What a replica knows of adapters does not grow with those that have gone."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from ray_lora.adapters.adapter import Adapter
from ray_lora.errors import AdapterNotFoundError
from ray_lora.serving.args import AppArgs
from ray_lora.serving.cluster.start import start_endpoint
from ray_lora.store import open_store
from ray_lora.store.folder import FolderStore
from ray_lora.store.states import States
from ray_lora.tasks.text_classification import TextClassificationSpec
from tests.unit.serving_world import make_adapter, make_base


def test_of_gone_versions_a_bounded_rest_is_known() -> None:
    states = States[str](versions=3, names=2)
    for version in range(1, 9):
        states.put("tweets", version, f"state {version}")
        states.keep("tweets", {7, 8})
    assert states.get("tweets", 8) == "state 8"
    assert len(states) == 2
    states.put("tweets", 9, "state 9")
    states.keep("tweets", {8, 9})  # 7 may be one that is just being replaced
    assert states.get("tweets", 7) == "state 7"


def test_of_gone_names_a_bounded_rest_is_known() -> None:
    states = States[int](versions=3, names=2)
    for name in ("a", "b", "c", "person"):
        states.put(name, 1, 1)
    states.keep_names(["a", "person"])
    assert len(states) == 4
    states.put("d", 1, 1)
    states.keep_names(["a"], lambda name: name != "person")
    assert [name for name in ("a", "b", "c", "d", "person") if states.get(name, 1)] == ["a", "person"]
    assert states.drop("a") == [1]
    assert states.drop("a") == []
    states.only(lambda state: state != 1)
    assert len(states) == 0


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Adapter:
    root = tmp_path_factory.mktemp("states")
    return Adapter.load(make_adapter(make_base(root / "base"), root / "adapter", seed=0, rank=1))


def test_a_replica_s_view_does_not_grow_as_others_publish_and_delete(adapter: Adapter, tmp_path: Path) -> None:
    publisher, replica = open_store(str(tmp_path)), open_store(str(tmp_path))
    assert isinstance(replica, FolderStore)
    for states in (replica._verified._known, replica._verified._said, replica._described._known):
        states._versions, states._names = 4, 4
    for _ in range(20):
        entry = publisher.put(adapter, "steady")
        assert replica.resolve("steady").ref == entry.ref
        if entry.version > 2:
            publisher.remove(f"steady@{entry.version - 2}")
    for number in range(20):
        publisher.put(adapter, f"guest-{number}")
        replica.resolve(f"guest-{number}")
        shutil.rmtree(tmp_path / f"guest-{number}")  # by another process, or another machine
        if number % 2:
            replica.list()
        else:
            with pytest.raises(AdapterNotFoundError):
                replica.resolve(f"guest-{number}")
    assert replica.resolve("steady").version == 20
    assert len(replica._verified._known) <= 2 + 4 + 4 + 1
    assert len(replica._described._known) <= 2 + 4 + 4 + 1


def test_a_replica_keeps_the_tasks_of_some_adapters_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray_lora.serving.machine._TASKS", 4)

    async def main() -> None:
        places = {name: str(tmp_path / name) for name in ("store", "results")}
        endpoint = start_endpoint(AppArgs(**places, base=str(make_base(tmp_path / "base")), dtype="float32", slots=1))
        specs = [TextClassificationSpec(labels=(f"no {number}", f"yes {number}")) for number in range(12)]
        for spec in specs:
            assert endpoint.machine.task(spec) is endpoint.machine.task(spec)
        assert endpoint.machine._task.cache_info().currsize == 4
        assert endpoint.machine.task(specs[0]).spec == specs[0]
        await endpoint.close()

    asyncio.run(main())
