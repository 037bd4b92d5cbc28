"""One adapter for each person of one table: groups first, then everyone from the group's.

    found = PersonalTrainer(Recipe.load("examples/personal.yaml")).fit()
    found.summary["own"], found.table            # how many have an adapter of their own, the table of all people

Workers hold the base and as many people at a time as fit; a person comes when another one goes. Everyone's latest rows
choose: who does not gain keeps the group's adapter, and the table says so. Adapters go into the store under
`store.people`'s names. The same command goes on where it was killed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ray_lora.adapters.adapter import Adapter
from ray_lora.data.people import Person, check_apart, find_people
from ray_lora.errors import AdapterError, RecipeError
from ray_lora.recipe import Json, Recipe, TrainingSpec
from ray_lora.running.claims import claimed
from ray_lora.running.forgotten import TRAIN, Forgotten
from ray_lora.running.packs import Prepared, check
from ray_lora.running.people_pool import SLOTS, PeoplePool
from ray_lora.running.people_worker import Began
from ray_lora.running.rows_progress import RowsProgress
from ray_lora.store import Store, open_store
from ray_lora.store.expire import expire
from ray_lora.store.people import check_parent, group_name, person_name
from ray_lora.tasks import task_of
from ray_lora.tracking import Tracker
from ray_lora.training.people import Share

_BLOCK = 128  # people whose results are kept together, at most


@dataclass(frozen=True)
class PersonalResult:
    """What became of all people.

    Attributes:
        summary: how many, how many gained, mean scores before and after, seconds.
        table: a line for each person, by key.
        folder: of the run.
    """

    summary: dict[str, Json]
    table: list[dict[str, Json]]
    folder: Path
    link: str


class PersonalTrainer:
    """See the module.

    Args:
        recipe: `personal` says whose rows are whose.
        quiet: show no progress.
    """

    def __init__(self, recipe: Recipe, *, quiet: bool = False) -> None:
        check_parent(recipe.name)
        if recipe.data.validation is not None:
            raise RecipeError("data.validation is given; of everyone's rows the latest choose (personal.held_out)")
        if recipe.training.load_best_model_at_end:
            raise RecipeError(
                "training.load_best_model_at_end is of an adapter that is evaluated while it trains, and people's are "
                "not: leave it out"
            )
        if recipe.distillation.teacher is not None:
            raise RecipeError("distillation.teacher is given; people learn from their own rows alone: leave it out")
        if recipe.training.head_teacher > 0:
            raise RecipeError("training.head_teacher is given; people go on from their group's adapter: leave it out")
        self.recipe, self.quiet = recipe, quiet

    def fit(self) -> PersonalResult:
        """Train everyone and put the adapters into the store.

        Raises:
            RayLoraError: something is wrong with the recipe or its rows; raised before any worker starts.
        """
        recipe, started = self.recipe, time.perf_counter()
        everyone = find_people(recipe.data.train or (), recipe.personal)
        check_apart(everyone, recipe.data.train or ())
        store = open_store(recipe.store, recipe.tracking.uri)
        parent = None
        if recipe.personal.parent is not None:
            entry, adapter = store.load(recipe.personal.parent)
            parent = Began(entry.ref, entry.name)
            recipe = as_parent(recipe, adapter, recipe.personal.parent)
        prepared = check({recipe.name: recipe}, most_slots=SLOTS, quiet=self.quiet)
        with claimed(recipe, "personal", self.recipe.model_dump_json()) as output:
            forgotten = Forgotten(output)
            forgotten.check()
            gone = forgotten.among([TRAIN])
            run = _Run(recipe, prepared, store, output, self.quiet)
            return run.all([person for person in everyone if not gone(person.key)], parent, started)


def as_parent(recipe: Recipe, parent: Adapter, ref: str) -> Recipe:
    """The recipe with the parent's task and LoRA settings, which those who begin as it share."""
    task = parent.card.task
    if task is None:
        raise AdapterError(
            f"{ref} says no task; people begin as one that was trained here, or imported with its labels"
        )
    if task.type != recipe.task.type:
        raise RecipeError(f"{ref} is an adapter for {task.type}; task.type is {recipe.task.type}")
    return recipe.model_copy(update={"task": task, "lora": parent.config})


class _Run:
    """One run: its workers, its folder, what it has found so far."""

    def __init__(self, recipe: Recipe, prepared: Prepared, store: Store, output: Path, quiet: bool) -> None:
        self.recipe, self.prepared, self.store, self.output, self.quiet = recipe, prepared, store, output, quiet
        self.source = prepared.sources[recipe.name]

    def all(self, people: Sequence[Person], parent: Began | None, started: float) -> PersonalResult:
        recipe = self.recipe
        tracker = Tracker(recipe.tracking.uri, recipe.tracking.experiment or recipe.name, record=self._mlflow)
        tracker.open_parent(str(self.output), recipe, self.source.identity)
        pool = PeoplePool(self.prepared, len(people))
        groups = self._groups(pool, people, parent)
        least = recipe.personal.min_rows
        asked = [person for person in people if len(person.rows) >= least]
        begins = {person.key: groups[person.group] for person in asked}
        held_out = recipe.personal.held_out
        shares = [share_of(one.key, one.rows.tolist(), held_out, begins[one.key].ref) for one in asked]
        names = {person.key: person_name(recipe.name, person.key) for person in asked}
        lines = {line["name"]: line for line in self._train(pool, "people", shares, names, personal_training(recipe))}
        table = []
        for person in people:
            known = {"person": person.key, "group": person.group, "rows": len(person.rows)}
            table.append(known | line_of(lines.get(person.key), groups[person.group].ref, self.metric))
        summary = summarise(table, self.metric) | {"seconds": round(time.perf_counter() - started, 1)}
        self._write(table, summary, tracker)
        return PersonalResult(summary, table, self.output, tracker.link())

    @property
    def metric(self) -> str:
        """The score that the table shows."""
        return task_of(self.source.task).metric

    @property
    def _mlflow(self) -> Path:
        return self.output / "mlflow.jsonl"

    # ---------------------------------------------------------------- the two stages

    def _groups(self, pool: PeoplePool, people: Sequence[Person], parent: Began | None) -> dict[str | None, Began]:
        """What each group's people begin as."""
        members: dict[str | None, list[Person]] = {}
        for person in people:
            members.setdefault(person.group, []).append(person)
        if parent is not None and self.recipe.personal.group is None:
            return dict.fromkeys(members, parent)
        shares, names = [], {}
        for group, mine in members.items():
            parts = [share_of(one.key, one.rows.tolist(), self.recipe.personal.held_out) for one in mine]
            rows, later = (tuple(row for part in parts for row in getattr(part, which)) for which in ("rows", "later"))
            key = "" if group is None else group
            shares.append(Share(key, rows, later, parent.ref if parent is not None else None))
            names[key] = self.recipe.name if group is None else group_name(self.recipe.name, group)
        lines = {line["name"]: line for line in self._train(pool, "groups", shares, names, self.recipe.training)}
        found = {}
        for group in members:
            line = lines["" if group is None else group]
            ref = line["adapter"] or (parent.ref if parent is not None else None)
            if ref is None:
                raise AdapterError(f"group {group!r} could not be trained: {line['error']}")
            found[group] = Began(ref, names["" if group is None else group] if line["adapter"] else str(ref))
        return found

    def _train(
        self, pool: PeoplePool, stage: str, shares: Sequence[Share], names: Mapping[str, str], training: TrainingSpec
    ) -> list[dict[str, Any]]:
        """A line for each share; those of blocks that an earlier run has done are read."""
        kept = sorted(self.output.glob(f"{stage}-*.jsonl"))
        lines = [line for file in kept for line in _read(file)]
        known, first = {line["name"] for line in lines}, 1 + max((_number(file) for file in kept), default=-1)
        left = [share for share in shares if share.name not in known]
        ordered = sorted(left, key=lambda share: (-len(share.rows), share.name))  # of like length, together
        before = sum(line["rows"] for line in lines)
        total = before + sum(len(share.rows) for share in ordered)
        progress = RowsProgress(f"{self.recipe.name}: {stage}", rows=total, done=before, quiet=self.quiet, parts=True)
        done = before
        progress.show(done)
        for number, found in pool.train(ordered, names, training, _BLOCK):
            file = self.output / f"{stage}-{first + number:06}.jsonl"
            fresh = file.with_suffix(".tmp")
            fresh.write_text("".join(json.dumps(line) + "\n" for line in found))
            fresh.replace(file)
            lines += found
            if stage == "people":
                keep_newest(self.store, self.recipe, found)
            done += sum(line["rows"] for line in found)
            own = sum(line["adapter"] is not None for line in lines)
            progress.show(done, more=f"; {own:,} of {len(lines):,} gain", last=done == total)
        progress.close()
        return lines

    # ---------------------------------------------------------------- what is told

    def _write(self, table: Sequence[Mapping[str, Json]], summary: dict[str, Json], tracker: Tracker) -> None:
        from ray_lora.running.people_figures import gains
        from ray_lora.tracking.plain import table as written

        (self.output / "people.csv").write_text(written(table))
        (self.output / "summary.json").write_text(json.dumps(summary, indent=2))
        tracker.log_artifact(self.output / "people.csv")
        figure = gains(table, self.metric)
        figure.savefig(self.output / "gains.png", dpi=120)
        tracker.log_artifact(self.output / "gains.png")
        numbers = {key: float(value) for key, value in summary.items() if isinstance(value, (int, float))}
        tracker.finish_parent("FINISHED", metrics=numbers)
        tracker.close()


def personal_training(recipe: Recipe) -> TrainingSpec:
    """A person's training."""
    spec = recipe.personal
    given = {"learning_rate": spec.learning_rate, "per_device_train_batch_size": spec.per_device_train_batch_size}
    told = {key: value for key, value in given.items() if value is not None}
    return recipe.training.model_copy(update=told | {"num_train_epochs": spec.num_train_epochs, "max_steps": -1})


def line_of(line: dict[str, Any] | None, began: str, metric: str) -> dict[str, Json]:
    """What the table says of a person: which adapter answers, why, and how well.

    Args:
        line: a worker's; None where there were too few rows. began: the ref that answers where nothing is gained.
    """
    if line is None:
        return {"answers": began, "why": "too few rows"}
    own = line["adapter"] is not None
    scores = {f"{metric} before": line["before"].get(metric), f"{metric} after": line["after"].get(metric)}
    why = "gains" if own else line["error"] or "does not gain"
    losses = {"loss before": line["loss_before"], "loss after": line["loss_after"]}
    return {"answers": line["adapter"] or began, "why": why, "epoch": line["epoch"]} | losses | scores


def share_of(key: str, rows: Sequence[int], held_out: float, begin: str | None = None) -> Share:
    """A person's rows, earliest first, parted by time; of fewer than two rows none is later."""
    later = max(1, round(len(rows) * held_out)) if len(rows) > 1 else 0
    first = len(rows) - later
    return Share(key, tuple(rows[:first]), tuple(rows[first:]), begin)


def summarise(table: Sequence[Mapping[str, Json]], metric: str) -> dict[str, Json]:
    """How many people there are, how many have an adapter of their own, and mean scores on the later rows of all that
    were trained: of the group's adapter, and of the one that answers now."""
    trained = [line for line in table if line["why"] != "too few rows"]
    found: dict[str, Json] = {
        "people": len(table),
        "trained": len(trained),
        "own": sum(line["why"] == "gains" for line in trained),
        "too few rows": len(table) - len(trained),
        "failed": sum(line["why"] not in ("gains", "does not gain", "too few rows") for line in trained),
    }
    for what in ("loss", metric):
        pairs = [
            (line[f"{what} before"], line[f"{what} after"]) for line in trained if line[f"{what} before"] is not None
        ]
        if pairs:
            before, after = np.mean(np.asarray(pairs, float), axis=0).tolist()
            found |= {f"{what} before": before, f"{what} after": after}
    return found


def keep_newest(store: Store, recipe: Recipe, lines: Sequence[Mapping[str, Any]]) -> None:
    """Have those whose lines name a new version no more than `personal.keep` of them."""
    if recipe.personal.keep is not None:
        for line in lines:
            if line["adapter"] is not None:
                expire(store, recipe.personal.keep, str(line["adapter"]).partition("@")[0])


def _number(file: Path) -> int:
    return int(file.stem.rpartition("-")[2])


def _read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def personal_recipe(recipe: Recipe, quiet: bool = False) -> dict[str, Json]:
    """Train a recipe's people: the summary, where the table is, and a link."""
    found = PersonalTrainer(recipe, quiet=quiet).fit()
    return found.summary | {"table": str(found.folder / "people.csv"), "folder": str(found.folder), "link": found.link}
