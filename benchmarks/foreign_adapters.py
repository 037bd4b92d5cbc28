"""Which adapters of other savers are read, and whether they answer as in plain PEFT.

    python -m benchmarks.foreign_adapters --peft FOLDER [--only "ms-swift" ...]

FOLDER is where the versions of PEFT are put, each into a folder of its own (pip install --target, without what they
depend on, but with transformers 4 where they need it); those that it lacks are fetched. For every saver
(`foreign_savers.py`): a tiny random base, an adapter whose trained values are random, and two rows, one at a time. The
oracle is the PEFT that saved it.

    outcome      right: within 1e-5; wrong: not, and nobody said so; refused: an error of this library; not made: the
                 saver does not run here
    difference   the largest from the oracle

The table goes to docs/foreign-adapters.md.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks.foreign_savers import ANSWERS, IDS, SAVERS, by_peft
from benchmarks.machine import RESULTS, write
from benchmarks.model_types import MARKS as _MARKS
from benchmarks.model_types import _quiet
from ray_lora.adapters.adapter import Adapter
from ray_lora.bases.load import load_base
from ray_lora.engine import AdapterEngine
from ray_lora.errors import RayLoraError
from ray_lora.recipe import BaseSpec

VERSIONS = ("0.16.0", "0.17.1", "0.18.1", "0.19.1", "0.20.0", "0.21.2")  # the last of PEFT's last six minor versions
_OLD = ("transformers==4.57.6", "huggingface_hub==0.36.2", "tokenizers==0.22.2")
BESIDE = {"0.16.0": _OLD, "0.17.1": _OLD}  # what runs with transformers 4 only has it in its folder
PAGE = Path(__file__).parent.parent / "docs" / "foreign-adapters.md"
MARKS = "<!-- made by benchmarks/foreign_adapters.py -->", _MARKS[1]
TOLERANCE = 1e-5

Entry = dict[str, Any]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--peft", type=Path, required=True, metavar="FOLDER")
    options.add_argument("--only", nargs="+", default=[], metavar="SAVER")
    asked = options.parse_args()
    torch.set_num_threads(1)
    path = RESULTS / "foreign_adapters.json"
    known: dict[str, Entry] = json.loads(path.read_text())["savers"] if path.exists() else {}
    found: dict[str, Entry] = {}
    for name in [*(f"PEFT {version}" for version in VERSIONS), *SAVERS]:
        old = known.get(name)
        left = old is not None and asked.only and name not in asked.only
        found[name] = old if left and old is not None else examine(name, asked.peft)
        print(name, found[name], flush=True)
    write("foreign_adapters", {"what": __doc__, "savers": found})
    write_page(found)


def examine(name: str, peft: Path | None = None) -> Entry:
    """What becomes of one saver's adapter; `peft` holds PEFT's versions, but for the installed one."""
    with tempfile.TemporaryDirectory() as scratch, _quiet(), contextlib.redirect_stdout(io.StringIO()):
        work = Path(scratch)
        old = ", beside transformers 4.57" if name.removeprefix("PEFT ") in BESIDE else ""
        how = SAVERS[name][0] if name in SAVERS else f"`save_pretrained`, rank pattern and rsLoRA{old}"
        entry: Entry = {"how": how, "outcome": "not made", "difference": None, "note": ""}
        try:
            saved = _made(name, work, peft)
        except subprocess.CalledProcessError as error:
            lines = str(error.stderr).strip().splitlines() or ["no word"]
            return entry | {"note": lines[-1]}
        try:
            difference = compare(work, saved)
        except RayLoraError as error:
            return entry | {"outcome": "refused", "note": str(error).replace(f"{scratch}/", "")}
        outcome = "right" if difference <= TOLERANCE else "wrong"
        return entry | {"outcome": outcome, "difference": float(f"{difference:.0e}")}


def _made(name: str, work: Path, peft: Path | None) -> Path:
    if name in SAVERS:
        return SAVERS[name][1](work)
    from peft import __version__

    version = name.removeprefix("PEFT ")
    if version == __version__:
        return by_peft(work)
    if peft is None:
        raise LookupError(f"PEFT {version} is needed")
    target = peft / version
    if not target.exists():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target)]
        subprocess.run([*pip, f"peft=={version}", *BESIDE.get(version, ())], check=True)
    paths = os.pathsep.join([str(target), str(Path(__file__).parent.parent)])
    command = [sys.executable, "-m", "benchmarks.foreign_savers", str(work)]
    subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths})
    return work / "a"


def compare(work: Path, saved: Path) -> float:
    """The largest difference between the library's answers and the saver's."""
    engine = AdapterEngine(load_base(BaseSpec(model=str(work / "base"), dtype="float32")), slots=1, max_rank=4)
    try:
        slot = engine.load(Adapter.load(saved))
        apart = []
        for number, answer in load_file(work / ANSWERS).items():
            ids = IDS[int(number)][None]
            with torch.inference_mode():
                inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
                ((_, outputs),) = engine.forward(inputs, torch.tensor([slot]))
            apart.append(float((outputs.logits - answer).abs().max()))
        return max(apart)
    finally:
        engine.close()


def table(savers: Mapping[str, Entry]) -> str:
    """The result file as Markdown."""
    lines = ["| saved by | as | | difference | why |", "| --- | --- | --- | --- | --- |"]
    for name, entry in savers.items():
        difference = "" if entry["difference"] is None else f"{entry['difference']:.0e}"
        said = "read" if entry["outcome"] == "right" else entry["outcome"]
        note = str(entry["note"]).replace("|", "\\|")
        lines.append("| " + " | ".join([name, entry["how"], said, difference, note]) + " |")
    return "\n".join(lines)


def write_page(savers: Mapping[str, Entry], page: Path = PAGE) -> None:
    """Put the table between the page's two marks."""
    before, rest = page.read_text().split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    page.write_text(f"{before}{MARKS[0]}\n\n{table(savers)}\n\n{MARKS[1]}{after}")


if __name__ == "__main__":
    main()
