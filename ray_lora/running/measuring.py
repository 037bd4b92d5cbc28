"""A probe: a small pack of a recipe's real base, rows and adapters, timed for a few seconds.

    python -m ray_lora.running.measuring       # one line `Asked` in; a line when it is ready and one `Measured` out

Members are those that a run has, with its batches, lengths and ranks; nothing is written, and they learn nothing that
anybody keeps. The rows are some of the recipe's, spread over its files.
"""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ray_lora.uncollected import uncollected

with uncollected():  # a probe is a process that begins with these
    import numpy as np
    import psutil
    import pyarrow as pa
    import ray.train.torch  # noqa: F401  # a worker imports it: so a probe takes its time and its memory
    import torch

    from ray_lora.bases.load import load_base
    from ray_lora.data.files import File
    from ray_lora.data.pieces import cut
    from ray_lora.data.rows import settle_columns
    from ray_lora.data.through import table_of
    from ray_lora.distillation_spec import NO_TEACHER
    from ray_lora.engine import AdapterEngine
    from ray_lora.recipe import Json, Recipe, TaskSpec
    from ray_lora.running.probes import Asked, Measured
    from ray_lora.running.sources import files_of
    from ray_lora.tasks import Features, Task
    from ray_lora.training.evaluation import evaluate
    from ray_lora.training.head_start import HeadStarts, fits
    from ray_lora.training.head_teacher import HeadTeachers
    from ray_lora.training.job import Job
    from ray_lora.training.member import Member
    from ray_lora.training.pack import Pack, Split, Splits
    from ray_lora.training.shards import ALONE

_ROWS = 2048  # of each split, at most
_FIRST = 32  # rows that say how long others take
_ENCODE_S = 1.0  # in which rows of a split are encoded
_TIMED = 4  # steps with each number of members
_ALONE = 8  # with one: memory grows with every pass of another size, whoever is in it
_HEADS = (48, 144)  # rows on which a head is fitted for its time
_ANSWERED = (8, 64)  # validation rows of each member; the first of them warm up
_SHARE = 0.7  # of the time is for steps, the rest for the evaluation
_STEPS = 1_000_000  # of a member that never comes to its end


def main() -> None:
    """Answer one request from standard input on standard output, where nobody else may write meanwhile."""
    torch.set_num_threads(1)
    answers = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        answers.write(f"{time.time() - psutil.Process().create_time()}\n")
        answers.flush()
        line = sys.stdin.readline()
        if line:
            answers.write(measure(Asked.model_validate_json(line)).model_dump_json() + "\n")
            answers.flush()


def measure(asked: Asked) -> Measured:
    """Build the pack and time it."""
    recipe, spec = Recipe.model_validate_json(asked.recipe), TaskSpec.model_validate_json(asked.task)
    began, imports = time.perf_counter(), time.process_time()
    base, slots = load_base(recipe.base), max(asked.members)
    engine = AdapterEngine(base, slots=slots, max_rank=asked.max_rank, train=True, embeddings=asked.embeddings)
    load = time.perf_counter() - began
    whole, used = time.perf_counter(), time.process_time()  # the base was read from a disk, which is no computing
    pack = Pack(engine, {}, max_rows=asked.max_rows)
    task = pack.task(spec)
    engine.reserve_head(task.head)
    began = time.perf_counter()
    rows = {split: _some(recipe, files, task) for split, files in files_of(recipe).items()}
    encode_row = (time.perf_counter() - began) / sum(map(len, rows.values()))
    jobs = [_job(f"{number}", recipe, spec, config) for number, config in enumerate(asked.configs)]
    head, head_row = _heads(pack, jobs[0], recipe, rows)
    pack.data[recipe.name] = _splits(rows)
    steps = _steps(pack, jobs, asked.members, time.perf_counter() + asked.seconds * _SHARE)
    step, step_row = fitted([(step.rows, step.seconds) for step in steps])
    held = [step.bytes for step in steps if step.members == asked.members[0]]
    evaluate_row = _evaluate_row(pack, asked.seconds * (1 - _SHARE))
    return Measured(
        load=load,
        encode_row=encode_row,
        step=step,
        step_row=step_row,
        evaluate_row=evaluate_row,
        head=head,
        head_row=head_row,
        peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        grown_bytes=(held[-1] - held[0]) // max(1, len(held) - 1),
        members=max(step.members for step in steps),
        steps=len(steps),
        share=min(1.0, (time.process_time() - used) / (time.perf_counter() - whole)),
        imports=imports,
    )


def _some(recipe: Recipe, files: Sequence[File], task: Task) -> list[Features]:
    """Encoded rows, spread over a split's files: as many as a second is enough for."""
    pieces = settle_columns(cut(files), recipe.data, task.columns)
    chosen = [pieces[at] for at in sorted(set(np.linspace(0, len(pieces) - 1, 4).astype(int).tolist()))]
    table = pa.concat_tables([table_of(piece, recipe.data, task) for piece in chosen])
    places = np.random.default_rng(0).permutation(table.num_rows)[:_ROWS]
    began = time.perf_counter()
    rows = task.encode(table.take(places[:_FIRST]).to_pylist())
    each = (time.perf_counter() - began) / len(rows)
    more = places[_FIRST : _FIRST + int(_ENCODE_S / max(each, 1e-9))]
    return rows + (task.encode(table.take(more).to_pylist()) if len(more) else [])


def _splits(rows: Mapping[str, Sequence[Features]], train: int | None = None, held: int | None = None) -> Splits:
    """So many rows of both splits."""
    found = {
        name: Split(dict(enumerate(rows[name][:count])), len(rows[name][:count]))
        for name, count in (("train", train), ("validation", held))
        if name in rows
    }
    return Splits(found["train"], found.get("validation"))


def _job(name: str, recipe: Recipe, spec: TaskSpec, config: Mapping[str, Json]) -> Job:
    """A member of the pack; its teacher is left out, whose answers are computed before a run."""
    mine = recipe.override({**config, "training.max_steps": _STEPS})
    return Job(name, recipe.name, spec, mine.lora, mine.training, mine.augmentation, NO_TEACHER)


def _heads(pack: Pack, job: Job, recipe: Recipe, rows: Mapping[str, Sequence[Features]]) -> tuple[float, float]:
    """Seconds to fit heads on the frozen base, one to begin with and one that teaches, whatever the rows and for each
    row; none where none is fitted."""
    points = []
    for count in _HEADS:
        splits = _splits(rows, count * 2 // 3, count // 3)
        if not fits(job, splits) and not job.training.head_teacher:
            return 0.0, 0.0
        pack.data[recipe.name] = splits
        before = pack.seconds.get("head_start", 0.0)
        # the fit before is not kept for this one
        pack.starts = HeadStarts(pack.engine, pack.group, pack.max_rows)
        pack.teachers = HeadTeachers(pack.engine, pack.group, pack.max_rows)
        pack.join(job)
        pack.leave(job.name)
        fitted_on = splits.train.total + (splits.validation.total if splits.validation is not None else 0)
        points.append((float(fitted_on), pack.seconds["head_start"] - before))
    return fitted(points)


@dataclass(frozen=True)
class _Step:
    """One timed step; `rows` are of mean size, `bytes` what the process held afterwards."""

    members: int
    rows: float
    seconds: float
    bytes: int


def _steps(pack: Pack, jobs: Sequence[Job], counts: Sequence[int], ends: float) -> list[_Step]:
    """Steps with ever more members, as long as there is time."""
    found: list[_Step] = []
    for count in counts:
        rows = sum(job.training.per_device_train_batch_size for job in jobs[:count])
        rate = found[-1].seconds / found[-1].rows if found else 0.0
        if found and time.perf_counter() + 2 * rate * rows > ends:
            break
        for job in jobs[len(pack.members) : count]:
            pack.join(replace(job, training=job.training.model_copy(update={"head_start": "random"})))
        members = list(pack.members.values())
        warm, *timed = _typical(members[0], _ALONE if count == 1 else _TIMED)
        _timed(pack, members, warm)
        for step in timed:
            found.append(_timed(pack, members, step))
            if time.perf_counter() + found[-1].seconds > ends:
                break
    return found


def _typical(member: Member, count: int) -> list[int]:
    """The step of an epoch with the most to compute, which warms up, and then some of all sizes in their order."""
    whole = range(max(1, member.splits.train.total // member.batch))
    ordered = sorted(whole, key=lambda step: _size(member, step))
    return [ordered[-1], *sorted(ordered[int((number + 0.5) / count * len(ordered))] for number in range(count))]


def _timed(pack: Pack, members: Sequence[Member], step: int) -> _Step:
    train = members[0].splits.train
    mean = sum(train.sizes(members[0].task)) / len(train.rows)
    for member in members:
        member.step = step
    rows = sum(_size(member, step) for member in members) / mean
    began = time.perf_counter()
    pack.train(members)
    return _Step(len(members), rows, time.perf_counter() - began, psutil.Process().memory_info().rss)


def _size(member: Member, step: int) -> int:
    return sum(member.task.size(member.splits.train.rows[row]) for row in member.rows_of(step))


def _evaluate_row(pack: Pack, seconds: float) -> float:
    """Seconds that a validation row costs a member; 0 without validation rows."""
    due = list(pack.members.values())[:4]
    held = due[0].splits.validation
    if held is None:
        return 0.0
    ordered = sorted(held.rows.values(), key=due[0].task.size)
    each, began = 0.0, time.perf_counter()
    for count in _ANSWERED:
        if each * count * len(due) > seconds:
            break
        places = np.linspace(0, len(ordered) - 1, min(count, len(ordered))).astype(int).tolist()
        rows = {number: ordered[place] for number, place in enumerate(places)}
        for member in due:
            member.splits = Splits(member.splits.train, Split(rows, len(rows)))
        began = time.perf_counter()
        evaluate(pack.engine, due, ALONE, pack.max_rows)
        each = (time.perf_counter() - began) / (len(rows) * len(due))
    return each


def fitted(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Seconds whatever the rows, and for each row, of (rows, seconds): least squares, neither below 0."""
    rows, seconds = np.array(points).T
    spread = rows - rows.mean()
    slope = float(spread @ seconds / (spread @ spread)) if np.ptp(rows) > 0 else 0.0
    fixed = float(seconds.mean() - slope * rows.mean())
    if slope <= 0 or fixed < 0:  # as noise has it, or of one size
        return 0.0, float(seconds.sum() / rows.sum())
    return fixed, slope


if __name__ == "__main__":
    main()
