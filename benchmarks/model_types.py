"""Which model types of transformers work here: the library beside plain PEFT, type by type.

    python -m benchmarks.model_types [--only bert swin ...] [--fresh]

For every type with a class for classification: a tiny random base, three PEFT adapters of unlike ranks on its linear
layers (of images: its convolutions too), and rows of unlike lengths through one `predict`. The oracle is plain PEFT on
the plain class, one adapter and one row at a time, unpadded, in float32.

    outcome      right: within 1e-5 (of the largest answer where that is above 1); wrong: not, and nobody said so;
                 refused: an error of this library; fails: an error from below; not built: no tiny model, or the plain
                 class itself does not answer
    way          how rows shared a pass
    difference   the largest from the oracle, over the largest answer where that is above 1
    padding      whether the plain class answers a padded row as it answers the row alone

Types that the result file has are not run again; `--only` and `--fresh` run them. The table goes to
docs/model-types.md.
"""

from __future__ import annotations

import argparse
import json
import signal
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import RESULTS, write
from benchmarks.model_oracle import RANKS, TOLERANCE, Oracle, Rows, apart, said
from benchmarks.tiny_models import Kind
from ray_lora.adapters.adapter import Adapter
from ray_lora.bases.load import load_base
from ray_lora.engine import AdapterEngine
from ray_lora.errors import RayLoraError
from ray_lora.inference.predict import predict
from ray_lora.recipe import BaseSpec

LIMIT = 20  # for one type
PAGE = Path(__file__).parent.parent / "docs" / "model-types.md"
MARKS = "<!-- made by benchmarks/model_types.py -->", "<!-- end -->"

Entry = dict[str, Any]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--only", nargs="+", default=[], metavar="TYPE")
    options.add_argument("--fresh", action="store_true")
    asked = options.parse_args()
    torch.set_num_threads(1)
    path = RESULTS / "model_types.json"
    known: dict[str, dict[str, Entry]] = {"text": {}, "image": {}}
    if path.exists() and not asked.fresh:
        known |= json.loads(path.read_text())["types"]
    for kind, model_type in candidates():
        if model_type not in asked.only if asked.only else model_type in known[kind]:
            continue
        began = time.perf_counter()
        known[kind][model_type] = entry = examine(model_type, kind)
        known[kind] = dict(sorted(known[kind].items()))
        print(f"{time.perf_counter() - began:5.1f} s  {kind} {model_type}: {line(entry)}", flush=True)
        write("model_types", {"what": __doc__, "types": known})
    write_page(known)


def candidates() -> list[tuple[Kind, str]]:
    """Every type for which transformers has a class that classifies texts or images."""
    from transformers.models.auto import modeling_auto as auto

    text, image = (
        auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    )
    return [("text", name) for name in sorted(text)] + [("image", name) for name in sorted(image)]


def class_of(model_type: str, kind: Kind) -> str:
    """The plain class's name by transformers' own table."""
    from transformers.models.auto import modeling_auto as auto

    known = {
        "text": auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        "image": auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    }[kind][model_type]
    return str(known if isinstance(known, str) else known[0])


def line(entry: Entry) -> str:
    """What is said of a type on one line."""
    told = [entry["outcome"], entry["way"], entry["difference"], f"padding {entry['padding']}", entry["note"]]
    return ", ".join(str(part) for part in told if part)


# ---------------------------------------------------------------- one type


def examine(model_type: str, kind: Kind) -> Entry:
    """What becomes of one type; whatever goes wrong with it is part of the answer."""
    entry: Entry = {"class": class_of(model_type, kind), "outcome": "not built"}
    entry |= {"way": None, "difference": None, "padding": None, "note": ""}
    with tempfile.TemporaryDirectory() as scratch, _quiet(), _within(LIMIT):
        try:
            oracle = Oracle(model_type, kind, Path(scratch))
            entry["note"] = oracle.doubt()
            entry["padding"] = oracle.padding() if kind == "text" else None
            entry["outcome"] = "fails"
            entry |= beside(oracle)
        except RayLoraError as error:
            entry |= {"outcome": "refused", "note": str(error).replace(f"{scratch}/", "")}
        except Exception as error:
            entry["note"] = said(error)
    return entry


def beside(oracle: Oracle) -> Entry:
    """The library on the oracle's base, adapters and rows; in float64 too, where float32 rounds the two apart."""
    difference, how = _compare(oracle, torch.float32)
    told: Entry = {"outcome": "right", "way": how, "difference": float(f"{difference:.1e}")}
    if difference <= TOLERANCE:
        return told
    with oracle.in_float64(), suppress(Exception):  # some classes compute in float32 only
        exact, _ = _compare(oracle, torch.float64)
        if exact <= TOLERANCE:
            return told | {"difference": float(f"{exact:.1e}"), "note": f"in float64; {difference:.0e} in float32"}
    return told | {"outcome": "wrong"}


def _compare(oracle: Oracle, dtype: torch.dtype) -> tuple[float, str]:
    """The largest difference between the library's answers and the oracle's, and how rows shared a pass."""
    base = load_base(BaseSpec(model=str(oracle.folder), dtype="float32"))
    base.backbone.to(dtype)
    engine = AdapterEngine(replace(base, dtype=dtype), slots=len(RANKS), max_rank=max(RANKS))
    try:
        slots = [engine.load(Adapter.load(folder)) for folder in oracle.saved]
        of_row = [slots[row % len(slots)] for row in range(len(oracle.rows))]
        tasks: Any = dict.fromkeys(slots, Rows(oracle))
        answers = predict(engine, tasks, oracle.rows, of_row)
        return max(map(apart, [torch.tensor(row, dtype=dtype) for row in answers], oracle.answers())), way(engine)
    finally:
        engine.close()


def way(engine: AdapterEngine) -> str:
    """How rows of unlike adapters and lengths shared a pass of this engine."""
    shares = {engine.sharing_of(slot).lengths for slot in engine.resident_slots}
    lengths = max(shares, key=["joined", "padded", "equal"].index)
    lone = any(engine.passes_alone(slot) for slot in engine.resident_slots)
    return _WAYS[lengths] + (", one adapter a pass" if lone else "")


_WAYS = {"joined": "end to end", "padded": "padded", "equal": "at equal lengths"}


# ---------------------------------------------------------------- errors, warnings, time


class _TooLong(Exception):
    """One type took longer than its share."""


@contextmanager
def _quiet() -> Iterator[None]:
    """Heads are new on purpose, and PEFT and transformers warn of it."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.set_verbosity(level)


@contextmanager
def _within(seconds: int) -> Iterator[None]:
    def ring(*_: Any) -> None:
        raise _TooLong(f"took longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# ---------------------------------------------------------------- the page


def table(types: Mapping[str, Mapping[str, Entry]]) -> str:
    """The result file's types as Markdown, texts first."""
    parts = []
    for kind, entries in types.items():
        counts: dict[str, int] = {}
        for entry in entries.values():
            counts[_way(entry)] = counts.get(_way(entry), 0) + 1
        told = ", ".join(f"{number} {name}" for name, number in sorted(counts.items(), key=lambda item: -item[1]))
        parts += [f"### {kind.capitalize()} types", "", f"{len(entries)} types: {told}.", ""]
        parts += ["| type | class | way | difference | padding | note |", "| --- | --- | --- | --- | --- | --- |"]
        for name, entry in entries.items():
            difference = "" if entry["difference"] is None else f"{entry['difference']:.0e}"
            note = str(entry["note"]).replace("|", "\\|")
            cells = [f"`{name}`", entry["class"] or "", _way(entry), difference, entry["padding"] or "", note]
            parts.append("| " + " | ".join(cells) + " |")
        parts.append("")
    return "\n".join(parts)


def _way(entry: Entry) -> str:
    """What the table says in the column `way`: how rows share a pass when the answers are right, else the outcome."""
    return str(entry["way"] if entry["outcome"] == "right" else entry["outcome"])


def write_page(types: Mapping[str, Mapping[str, Entry]], page: Path = PAGE) -> None:
    """Put the table between the page's two marks."""
    text = page.read_text()
    before, rest = text.split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    page.write_text(f"{before}{MARKS[0]}\n\n{table(types)}\n{MARKS[1]}{after}")


if __name__ == "__main__":
    main()
