"""How HAProxy is told to spread requests."""

from __future__ import annotations

import os
import sys

import pytest

from ray_lora.serving import ingress
from ray_lora.serving.app import _crowded
from ray_lora.serving.args import AppArgs
from ray_lora.store import StoreAwayError

BALANCE = "RAY_SERVE_HAPROXY_BALANCE_ALGORITHM"


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has not loaded Serve, and its environment given back at the end."""
    monkeypatch.setattr(os, "environ", {"PATH": os.environ["PATH"]})
    monkeypatch.delitem(sys.modules, "ray.serve", raising=False)


def test_only_a_replica_that_cannot_hold_all_adapters_has_its_own_share_of_them() -> None:
    ingress.prepare(crowded=False)
    assert os.environ[ingress.SWITCH] == "1"
    assert os.environ[BALANCE] == "leastconn"
    os.environ.clear()
    ingress.prepare(crowded=True)
    assert os.environ[BALANCE].startswith("hash req.body")


def test_what_the_environment_says_stands() -> None:
    os.environ[BALANCE] = "roundrobin"
    ingress.prepare(crowded=False)
    assert os.environ[BALANCE] == "roundrobin"
    os.environ.clear()
    os.environ[ingress.SWITCH] = "0"
    ingress.prepare(crowded=True)
    assert BALANCE not in os.environ


def test_a_store_is_crowded_when_it_has_more_names_than_a_replica_has_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    class Listed:
        name: str

    class Three:
        def list(self) -> list[Listed]:
            entries = [Listed() for _ in range(6)]
            for number, entry in enumerate(entries):
                entry.name = f"name-{number % 3}"
            return entries

    class Away:
        def list(self) -> list[Listed]:
            raise StoreAwayError("gone")

    def crowded(store: object, slots: int) -> bool:
        monkeypatch.setattr("ray_lora.serving.app.open_store", lambda *_: store)
        return _crowded(AppArgs(store="mlflow", slots=slots))

    assert crowded(Three(), 2)
    assert not crowded(Three(), 3)
    assert crowded(Away(), 64)
