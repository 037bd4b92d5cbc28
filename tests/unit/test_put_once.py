"""A command that is repeated makes no second version of the same adapter."""

from __future__ import annotations

from pathlib import Path

import torch

from ray_lora.adapters.adapter import Adapter
from ray_lora.adapters.peft_folder import LowRank
from ray_lora.recipe import LoraSpec
from ray_lora.store import open_store, put_once


def adapter(value: float) -> Adapter:
    pair = LowRank(torch.full((2, 4), float(value)), torch.ones(4, 2))
    return Adapter(LoraSpec(r=2, target_modules=("query",)), {"query": pair}, {})


def test_the_same_content_stays_one_version_and_takes_the_aliases(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    assert put_once(store, adapter(1), "tweets").version == 1
    assert put_once(store, adapter(2), "tweets", ["champion"]).version == 2
    assert put_once(store, adapter(1), "tweets", ["champion"]).version == 1
    assert store.resolve("tweets@champion").version == 1
    assert put_once(store, adapter(1), "other").version == 1
    assert [entry.ref for entry in store.list()] == ["other@1", "tweets@1", "tweets@2"]
