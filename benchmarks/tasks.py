"""Every pipeline by several seeds, in one table: `benchmarks/results/tasks.json` and the README's. `make demo-all`.

    python -m benchmarks.tasks [--seeds 3] [--only NAME ...] [--again NAME ...]

A pipeline runs as a program of its own and gives one object (`pipelines.story`). What is known of the same code, recipe
and seeds is not run again unless `--again` names it; a killed run goes on with the pipelines that are missing. `--only`
says which are wanted now; the table shows all that are known.
`before` is what the source's adapter (or the bare base) scores on the target's held-out rows; `adapter`, `head only`
and `full` learnt from the target's training rows, mean ± standard deviation over seeds; `seconds` are the wall-clock of
the one training call in which all adapters of a pipeline on that base trained, those for the sources included. Adapters
train and answer on the base in its recipe's dtype (bfloat16 where the processor multiplies it natively); every weight
trains in float32, its products in that dtype too; a decoder's weights are trained by one seed, at one rate.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.machine import RESULTS, machine
from pipelines.lines import HEADERS, cells, markdown

PIPELINES = (
    "sentiment", "mails", "entities", "questions", "digits", "pictures", "inspection", "detection", "segmentation",
    "recommendation", "generation", "speech", "personal", "distill", "prune", "export", "explain",
)  # fmt: skip
ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
BEGIN, END = "<!-- tasks: written by benchmarks/tasks.py -->", "<!-- /tasks -->"


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--only", nargs="*", default=PIPELINES, choices=PIPELINES, help="pipelines to run")
    options.add_argument("--again", nargs="*", default=(), choices=PIPELINES, help="pipelines to run though known")
    asked = options.parse_args()
    path = RESULTS / "tasks.json"
    known: dict[str, Any] = json.loads(path.read_text())["pipelines"] if path.exists() else {}
    for name in asked.only:
        settings = {"seeds": asked.seeds, "code": code_of(name)}
        if name in asked.again or known.get(name, {}).get("settings") != settings:
            print(f"== {name}", flush=True)
            began = time.time()
            lines = run(name, asked.seeds)
            told = {"settings": settings, "seconds": round(time.time() - began), "machine": machine(), "lines": lines}
            known[name] = told
            RESULTS.mkdir(exist_ok=True)
            path.write_text(json.dumps({"what": __doc__, "pipelines": known}, indent=2, ensure_ascii=False) + "\n")
    found = [line for name in PIPELINES if name in known for line in known[name]["lines"]]
    put(README, markdown(found))
    table = Table(*HEADERS, title=f"{asked.seeds} seeds each")
    for line in found:
        table.add_row(*cells(line))
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def run(name: str, seeds: int) -> list[dict[str, Any]]:
    """A pipeline's lines; what it says goes on to standard output. SystemExit where it fails."""
    command = [sys.executable, "-m", f"pipelines.{name}", "--seeds", str(seeds), "--json"]
    last = ""
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        for line in program.stdout:
            if line.startswith("{"):
                last = line
            else:
                print(line, end="", flush=True)
    if program.returncode or not last:
        sys.exit(f"pipelines.{name} failed with {program.returncode}; the same command goes on where it was")
    first = json.loads(last)
    return [first, *first.pop("more", [])]


def code_of(name: str) -> str:
    """A hash of a pipeline's own modules and of its recipes."""
    left, seen = [f"pipelines.{name}"], set()
    while left:
        module = left.pop()
        path = ROOT / f"{module.replace('.', '/')}.py"
        if path not in seen and path.exists():
            seen.add(path)
            for line in re.findall(r"^from (pipelines\S*) import (.*)$", path.read_text(), re.MULTILINE):
                left += [line[0], *(f"{line[0]}.{part.strip()}" for part in line[1].strip("()").split(","))]
    recipes = [ROOT / f"examples/{word}" for path in seen for word in re.findall(r"(\w+\.yaml)", path.read_text())]
    files = sorted({path for path in [*seen, *recipes] if path.exists()})
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]


def put(path: Path, text: str) -> None:
    """Write between the two markers of a file; SystemExit where it has none."""
    before, begin, rest = path.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        sys.exit(f"{path.name} lacks the lines {BEGIN!r} and {END!r} between which the table stands")
    path.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


if __name__ == "__main__":
    main()
