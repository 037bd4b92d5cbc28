"""Answer files of rows with Ray Data: pieces of the files in, one file of answers for each piece out.

    answer_files("rows/", "answers/", adapter_column="customer", store="./store")
    # {"output": "answers/", "rows": 1000000, "errors": 3, ...}

Actors take pieces as they come, and come and go with the work; a piece whose actor or node dies is begun again
elsewhere. A part's file is there when it is whole, so the same command goes on with the pieces that are missing. It
knows pieces and parts, and no tensors.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import ray.data
from ray.data import ActorPoolStrategy
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_lora.allowed import environment
from ray_lora.data.files import find_files
from ray_lora.data.pieces import cut
from ray_lora.errors import RayLoraError, RecipeError
from ray_lora.inference.pinned import SLOTS
from ray_lora.recipe import Json
from ray_lora.running.allocator import WORKER_ENV
from ray_lora.running.answer_plan import Asked, begin, check_apart, done_before, work_of
from ray_lora.running.local_ray import quiet_data, start_ray
from ray_lora.running.parts import Parts
from ray_lora.running.rows_progress import RowsProgress
from ray_lora.running.tally import Done, Tally, Work

MOST_ROWS = 32_768  # of a piece, and so of a file of answers
_POLL_S = 0.5
_IN_FLIGHT = 2  # pieces that an actor has before it: one more than it computes, so that it does not wait


def answer_files(
    wanted: Asked,
    *,
    workers: int | None = None,
    gpu: bool = False,
    slots: int = SLOTS,
    dtype: str = "auto",
    max_errors: int | None = None,
    most_rows: int = MOST_ROWS,
    quiet: bool = False,
) -> dict[str, Json]:
    """Answer all rows; a run that was begun in the output goes on.

    Args:
        workers: actors at most, a CPU each; None: as many as the cluster has CPUs, or GPUs.
        gpu: each actor has a GPU.
        max_errors: rows that may have errors; None: 1 % of them, and at least 100.
        most_rows: of a piece, where a file can be read in pieces.

    Returns:
        `{"output", "rows", "errors", "cut", "parts", "adapters": {ref: answered rows}, "seconds", "rows_per_second"}`;
        the last two are of this pace.

    Raises:
        RayLoraError: something is wrong with what is asked, or more rows have errors than may.
    """
    began = time.perf_counter()
    parts = Parts(wanted.output, wanted.format)
    check_apart(wanted.data, parts)
    files = find_files(list(wanted.data))
    progress = RowsProgress("predict", quiet=quiet)
    progress.say(f"{len(files):,} files, {sum(file.size for file in files) / 1e6:,.1f} MB")
    with parts.claimed():
        pieces = cut(files, most_rows)
        pinned = begin(wanted, parts, files, pieces, most_rows, progress)
        work = work_of(wanted, pinned, pieces, slots, dtype)
        done = done_before(parts, pieces, wanted.prefix)
        rows = sum(piece.rows or 0 for piece in pieces) if all(piece.rows is not None for piece in pieces) else None
        before = sum(one.rows for one in done.values())
        progress.rows, progress.before = rows, before
        told = _run(work, done, rows, Pace(workers, gpu, max_errors), progress)
        missing = set(range(len(pieces))) - parts.there()
    if missing:
        raise RecipeError(
            f"{len(missing)} of {len(pieces)} parts are not in {parts.name!r} although workers wrote them; give an "
            "output that all nodes share: a folder on a shared file system, or a bucket"
        )
    seconds = time.perf_counter() - began
    fresh = told["rows"] - before
    return {
        "output": parts.name,
        **{key: told[key] for key in ("rows", "errors", "cut", "adapters")},
        "parts": len(pieces),
        "seconds": seconds,
        "rows_per_second": fresh / seconds,
        "wrong": told["wrong"],
    }


@dataclass(frozen=True)
class Pace:
    """How a run goes about it, which changes none of its answers."""

    workers: int | None
    gpu: bool
    max_errors: int | None


# -------------------------------------------------------------------- on the cluster


def _run(work: Work, done: Mapping[int, Done], rows: int | None, pace: Pace, progress: RowsProgress) -> dict[str, Any]:
    """Answer the pieces that are not done; the tally's state at the end."""
    missing = [number for number in range(len(work.pieces)) if number not in done]
    state = Tally(pace.max_errors, rows, done).state()
    if missing and not state["exceeded"]:
        progress.say(f"{len(done):,} of {len(work.pieces):,} pieces are there; answering {len(missing):,}")
        start_ray()
        state = _answer(work, done, missing, rows, pace, progress)
    if state["exceeded"]:
        raise _too_many(state, work.output)
    return state


def _answer(
    work: Work, done: Mapping[int, Done], missing: Sequence[int], rows: int | None, pace: Pace, progress: RowsProgress
) -> dict[str, Any]:
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor: Any = ray.remote(Tally)
    tally = actor.options(num_cpus=0, scheduling_strategy=here).remote(pace.max_errors, rows, done)
    watch = _Watch(tally, progress)
    try:
        _map(work, tally, missing, pace)
    except Exception as error:
        if not (state := _state(tally))["exceeded"]:
            raise _plain(error) from error
    else:
        state = _state(tally)
    finally:
        watch.close()
    ray.kill(tally)
    return state


def _state(tally: Any) -> dict[str, Any]:
    state: dict[str, Any] = ray.get(tally.state.remote())
    return state


def _map(work: Work, tally: Any, missing: Sequence[int], pace: Pace) -> None:
    from ray_lora.running.answering import Answering  # torch and all of it: not in every process of the run

    devices = ray.cluster_resources().get("GPU" if pace.gpu else "CPU", 0)
    if pace.gpu and devices < 1:
        raise RecipeError("--gpu is asked for, and the cluster has no GPU; leave it out")
    most = max(1, min(pace.workers or int(devices), len(missing)))
    with quiet_data():
        numbers = ray.data.from_items([{"piece": number} for number in missing], override_num_blocks=len(missing))
        answered = numbers.map_batches(
            Answering,
            fn_constructor_kwargs={"work": _with(work, tally)},
            batch_format="pyarrow",
            batch_size=1,
            compute=ActorPoolStrategy(min_size=1, max_size=most, max_tasks_in_flight_per_actor=_IN_FLIGHT),
            num_cpus=1,
            num_gpus=1 if pace.gpu else None,
            runtime_env={"env_vars": {**WORKER_ENV, **environment()}},
        )
        for _ in answered.iter_batches(batch_size=None, batch_format="pyarrow"):
            pass


def _with(work: Work, tally: Any) -> Work:
    return Work(**{**work.__dict__, "tally": tally})


def _too_many(state: Mapping[str, Any], output: str) -> RayLoraError:
    """No input is wrong that was checked before, so it is a run that failed."""
    more = state["errors"] - len(state["wrong"])
    lines = [
        f"{state['errors']:,} of {state['rows']:,} rows have errors, more than the {state['allowed']:,} that may "
        "(--max-errors):",
        *state["wrong"],
        *([f"and {more:,} more"] if more > 0 else []),
        f"what is answered is in {output!r}, and the same command goes on",
    ]
    return RayLoraError("\n".join(lines))


def _plain(error: BaseException) -> BaseException:
    """The user's error in what Ray makes of it."""
    seen: list[BaseException] = []
    at: BaseException | None = error
    while at is not None and at not in seen:
        seen.append(at)
        inner = getattr(at, "cause", None)
        if isinstance(inner, RayLoraError):
            return inner
        if type(at).__module__.startswith("ray_lora."):
            return at
        at = inner or at.__cause__
    return error


class _Watch:
    """Shows what the tally counts until closed."""

    def __init__(self, tally: Any, progress: RowsProgress) -> None:
        self._tally, self._progress = tally, progress
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._ended.set()
        self._thread.join()
        self._progress.close()

    def _watch(self) -> None:
        while not self._ended.wait(_POLL_S):
            try:
                state = ray.get(self._tally.state.remote(), timeout=5)
            except Exception:  # it ends with the run, or the cluster is busy
                continue
            self._progress.show(state["rows"], state["errors"])
