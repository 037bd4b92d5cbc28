"""A folder store of small adapters, 1,000 to 100,000 of them: what each look at it takes.

    python -m benchmarks.store [--sizes 1000 10000 100000] [--rank 4]

Names are people's, one version each with a champion; each is a folder of its own with MiniLM's size of a rank-4 adapter
on query and value. Every figure is of a fresh process, so nothing is known beforehand; the machine's file cache is
warm. `list` is what `/v1/models` shows, without single persons, `names` what an endpoint counts at its start, `list
everybody` is `ray-lora adapters list --people`; `resolve` is what an endpoint does for a person's first request,
`resolve again` for every later one; `nobody` is a name that is not there.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import write
from ray_lora.adapters.adapter import Adapter
from ray_lora.bases.load import load_base
from ray_lora.bases.plain import HeadSpec
from ray_lora.engine import AdapterEngine
from ray_lora.errors import AdapterNotFoundError
from ray_lora.recipe import BaseSpec, LoraSpec
from ray_lora.store import CHAMPION, open_store
from ray_lora.store.people import person_name

NAME = "shops"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--sizes", type=int, nargs="*", default=[1_000, 10_000, 100_000])
    options.add_argument("--rank", type=int, default=4)
    options.add_argument("--look", help="measure this store in this process and print milliseconds as JSON")
    asked = options.parse_args()
    if asked.look:
        print(json.dumps(look(Path(asked.look))))
        return
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        first = made(root, asked.rank)
        found, there = {}, 1
        for size in sorted(asked.sizes):
            for number in range(there, size):
                copied(first, root / "store" / person_name(NAME, f"person {number}"))
            there = size
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.store", "--look", str(root / "store")],
                stdout=subprocess.PIPE, text=True, check=True,
            )  # fmt: skip
            found[str(size)] = json.loads(done.stdout.splitlines()[-1])
            print(size, json.dumps(found[str(size)]), flush=True)
            one = sum(file.stat().st_size for file in first.rglob("*") if file.is_file())
            write("store", {"what": __doc__, "bytes of one": one, "milliseconds": found})


def made(root: Path, rank: int) -> Path:
    """The first adapter's folder in the store."""
    engine = AdapterEngine(load_base(BaseSpec(model="minilm")), slots=1, max_rank=rank)
    torch.manual_seed(0)
    lora = LoraSpec(r=rank, target_modules=("query", "value"))
    slot = engine.init(lora, HeadSpec("AutoModelForSequenceClassification", 2), seed=0)
    engine.export(slot).save(root / "one")
    store = open_store(str(root / "store"))
    entry = store.put(Adapter.load(root / "one"), person_name(NAME, "person 0"), aliases=(CHAMPION,))
    return root / "store" / entry.name


def copied(first: Path, target: Path) -> None:
    """Another person's folder with the same bytes of its own."""
    shutil.copytree(first, target)


def look(root: Path) -> dict[str, float]:
    """Milliseconds of each look, and the memory of this process at the end."""
    store = open_store(str(root))
    names = sorted(path.name for path in root.iterdir() if not path.name.startswith("."))
    some, other = names[len(names) // 2], names[len(names) // 3]
    found: dict[str, float] = {}

    def timed(what: str, call: Callable[[], Any], times: int = 1) -> Any:
        began = time.perf_counter()
        for _ in range(times):
            got = call()
        found[what] = round((time.perf_counter() - began) / times * 1e3, 3)
        return got

    def nobody() -> None:
        try:
            store.resolve(person_name(NAME, "nobody"))
        except AdapterNotFoundError:
            return
        raise AssertionError("there is somebody of that name")

    timed("open and resolve", lambda: open_store(str(root)).resolve(some))
    timed("resolve", lambda: store.resolve(other))
    timed("resolve again", lambda: store.resolve(other), 20)
    timed("load", lambda: store.load(some))
    timed("nobody", nobody)
    timed("nobody again", nobody)
    listed = {entry.name for entry in timed("list everybody", store.list)}
    assert listed == set(names), sorted(listed ^ set(names))[:3]
    timed("list everybody again", store.list)
    timed("list", lambda: store.list(people=False))
    timed("names", store.names)
    adapter = store.load(some)[1]
    entry = timed("put", lambda: store.put(adapter, some, aliases=(CHAMPION,)))
    timed("remove", lambda: store.remove(f"{some}@{entry.version - 1}"))
    timed("put somebody new", lambda: store.put(adapter, person_name(NAME, "new"), aliases=(CHAMPION,)))
    shutil.rmtree(root / person_name(NAME, "new"))  # for the next size
    found["memory in MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return found


if __name__ == "__main__":
    main()
