"""Processes that try out, for a few seconds, what a pack of a recipe costs on this machine.

    with Probes(2) as probes:                # as many as there will be workers: they share the machine's memory bus
        probed = probes.ask(asked)

A probe is a process of its own with a worker's environment, so its memory is what a worker's will be. This module knows
how probes are asked; what they do is in `measuring`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from types import TracebackType

from pydantic import BaseModel, ValidationError

from ray_lora.allowed import environment
from ray_lora.errors import RayLoraError
from ray_lora.recipe import Json, Recipe
from ray_lora.running.allocator import WORKER_ENV

_LONGEST = 300  # letters of a reason


class ProbeError(RayLoraError, RuntimeError):
    """A probe came to no end; the message is the last line that it wrote."""


class Asked(BaseModel):
    """What a probe is to try.

    Attributes:
        recipe, task: as JSON; the task is completed by its training rows.
        configs: recipe keys of each member, as a search sets them.
        members: how many of them step together: the counts that are tried, ascending.
        max_rank, max_rows, embeddings: of the engine and its passes.
        seconds: after which nothing further is begun.
    """

    recipe: str
    task: str
    configs: list[dict[str, Json]]
    members: list[int]
    max_rank: int
    max_rows: int
    embeddings: bool = False
    seconds: float = 6.0


class Measured(BaseModel):
    """What a probe found, in seconds and bytes.

    Attributes:
        load: until the base stood in an engine.
        encode_row: of reading and encoding a row.
        step: of one step of all members, whatever their rows; step_row: of each row that it trains on.
        evaluate_row: of a validation row and adapter.
        head, head_row: of fitting heads on the frozen base before, and of each row that does it; 0 where none is.
        peak_bytes: the most that the process held, while `members` trained; grown_bytes: what each step added.
        steps: how many were timed.
        share: of a processor that the probe had while it computed; less than 1 where others use the machine.
        imports: processor seconds that it took to import what a worker imports.
    """

    load: float
    encode_row: float
    step: float
    step_row: float
    evaluate_row: float
    head: float
    head_row: float
    peak_bytes: int
    grown_bytes: int
    members: int
    steps: int
    share: float = 1.0
    imports: float = 0.0


@dataclass(frozen=True)
class Probed:
    """What all probes found; `start` is the seconds until the slowest of them had imported what a worker imports."""

    start: float
    found: tuple[Measured, ...]

    def mean(self, name: str) -> float:
        """The mean over the probes."""
        return float(sum(getattr(one, name) for one in self.found) / len(self.found))


def packs_of(recipe: Recipe) -> int:
    """Packs of a search on this machine, where there are as many trials."""
    return recipe.scaling.packs or max(1, (os.cpu_count() or 1) // recipe.scaling.num_workers)


def processes_of(recipe: Recipe) -> int:
    """Workers that there will be on this machine, as far as the recipe alone says."""
    return recipe.scaling.num_workers * (1 if recipe.search.space is None else packs_of(recipe))


class Probes:
    """So many probes, started at once, so that they import while somebody reads files; they end with the `with`."""

    def __init__(self, count: int) -> None:
        told = {**os.environ, **WORKER_ENV, **environment()} | {"OMP_NUM_THREADS": "1"}
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed with the probes
        command, pipe = [sys.executable, "-m", "ray_lora.running.measuring"], subprocess.PIPE
        self._processes = [
            subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=self._errors, text=True, env=told)
            for _ in range(count)
        ]

    def __enter__(self) -> Probes:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for process in self._processes:
            process.kill()
            process.communicate()
        self._errors.close()

    def ask(self, asked: Asked, count: int) -> Probed:
        """Have so many of the probes try the same at the same time; once.

        Raises:
            ProbeError: a probe failed; the message says with what.
        """
        chosen = self._processes[:count]
        started = [self._number(process) for process in chosen]
        for process in chosen:
            assert process.stdin is not None
            process.stdin.write(asked.model_dump_json() + "\n")
            process.stdin.flush()
        return Probed(max(started), tuple(self._answer(process) for process in chosen))

    def _number(self, process: subprocess.Popen[str]) -> float:
        """A probe's first line: how many seconds after its start it was ready."""
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise self._failed()
        return float(line)

    def _answer(self, process: subprocess.Popen[str]) -> Measured:
        assert process.stdout is not None
        try:
            return Measured.model_validate_json(process.stdout.readline())
        except ValidationError:
            raise self._failed() from None

    def _failed(self) -> ProbeError:
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors.read().splitlines() if line.strip()]
        return ProbeError(lines[-1][:_LONGEST] if lines else "a probe's process was ended, perhaps for its memory")
