"""People whose rows grow: whoever has new rows trains again, from what answers now, and is served at once.

    with PersonalUpdates(recipe) as updates:
        updates.add("rows/2026-11-28.parquet")       # a line for each of its people
        for lines in updates.follow("rows"): ... # as an endpoint takes rows, until it is interrupted

A person goes on from the own adapter, else from the group's, on all rows so far; the latest ones choose, so that whom
the new rows do not help keeps what answers now. Groups do not train again. What was taken is in the run's folder, and
is not taken twice; of a run that was killed the last rows may be.
"""

from __future__ import annotations

import csv
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from ray_lora.bases.load import describe_base
from ray_lora.data.check import check_tables, on_base
from ray_lora.data.files import find_files
from ray_lora.data.history import History
from ray_lora.errors import AdapterNotFoundError, DataError, RecipeError
from ray_lora.recipe import Json, Recipe
from ray_lora.running.claims import claimed
from ray_lora.running.forgotten import TRAIN, Forgotten
from ray_lora.running.local_ray import start_ray
from ray_lora.running.packs import Prepared
from ray_lora.running.people import as_parent, keep_newest, line_of, personal_training, share_of
from ray_lora.running.people_pool import SLOTS, PeoplePool
from ray_lora.running.plan import make_plan
from ray_lora.running.sources import Source
from ray_lora.store import open_store
from ray_lora.store.people import group_name, person_name
from ray_lora.tasks import task_of
from ray_lora.tracking.plain import table as written

_logger = logging.getLogger(__name__)
_LOOK_S = 0.2  # between two looks at a folder that is followed


class PersonalUpdates:
    """See the module; a context, in which no other process may write to the run's folder.

    Args:
        recipe: the one whose people were trained by `PersonalTrainer`.

    Raises:
        RecipeError: that run has not ended, or is another's.
        AdapterNotFoundError: the store does not hold its groups' adapters.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.store = open_store(recipe.store, recipe.tracking.uri)
        self._stack = ExitStack()
        self._pool: PeoplePool | None = None

    def __enter__(self) -> PersonalUpdates:
        with self._stack:  # what was claimed is given back where something is wrong
            self._open()
            self._stack = self._stack.pop_all()
        return self

    def _open(self) -> None:
        recipe = self.recipe
        self.output = self._stack.enter_context(claimed(recipe, "personal", recipe.model_dump_json()))
        self._log, self._table = self.output / "updates.jsonl", self.output / "people.csv"
        if not self._table.exists():
            raise RecipeError(f"{str(self.output)!r} has no people yet; run the same command without --update first")
        self._forgotten = Forgotten(self.output)
        self._forgotten.check()
        self._task = task_of(recipe.task)
        self.history = History(recipe.data, self._task.columns, recipe.personal)
        self.history.add(recipe.data.train or (), self._forgotten.among([TRAIN]))
        self._prepared = self._prepare()
        for known in self._taken():
            self._add_known(known)

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    # ---------------------------------------------------------------- what comes

    def add(self, given: str) -> list[dict[str, Json]]:
        """Take the rows of files that have the recipe's columns; a line for each person who has some.

        Raises:
            DataError: a row is wrong, or the files were taken before; nothing has been trained then.
        """
        files = [file.path for file in find_files(given, "train", self.recipe.data.images_of("train"))]
        known = {file for line in self._taken() for file in line["files"]}
        twice = [file for file in files if file in known]
        if twice:
            raise DataError(f"the rows of {twice[0]} were taken before; give those that came since")
        return self._take("files", files, self.history.add(files))

    def add_sent(self, files: Sequence[Path]) -> list[dict[str, Json]]:
        """The same of files that an endpoint wrote."""
        return self._take("sent", [str(file) for file in files], self.history.add_sent(files))

    def follow(self, folder: str | Path) -> Iterator[list[dict[str, Json]]]:
        """Lines of the people who have new rows, as soon as an endpoint has put these into its folder (`rows=`).

        A file that is wrong is told once and left out.
        """
        mine = Path(folder).absolute() / self.recipe.name
        seen = {file for line in self._taken() for file in line["files"]}
        while True:
            fresh = [file for file in sorted(mine.glob("*.jsonl")) if str(file) not in seen]
            for file in fresh:
                seen.add(str(file))
            if fresh:
                yield [line for batch in self._each(fresh) for line in batch]
            else:
                time.sleep(_LOOK_S)

    def _each(self, files: Sequence[Path]) -> Iterator[list[dict[str, Json]]]:
        """All together; one by one where some are wrong."""
        try:
            yield self.add_sent(files)
        except DataError as error:
            if len(files) == 1:
                _logger.warning("left out: %s", error)
                self._note("wrong", [str(files[0])], {"error": str(error)})
            else:
                for file in files:
                    yield from self._each([file])

    # ---------------------------------------------------------------- what is done with it

    def _take(self, kind: str, files: list[str], people: Sequence[str]) -> list[dict[str, Json]]:
        source = self._prepared.sources[self.recipe.name]
        try:
            check_tables(on_base(source.task, self._prepared.base.processor), source.task, self.history.newest)
        except DataError:
            self.history.forget_newest()
            raise
        began = time.perf_counter()
        lines = self._train(people)
        self._write(lines)
        seconds = round(time.perf_counter() - began, 3)
        self._note(kind, files, {"people": len(people), "seconds": seconds})
        return lines

    def _train(self, people: Sequence[str]) -> list[dict[str, Json]]:
        """Train those who have enough rows; a line for everyone."""
        recipe, metric = self._prepared.recipe, self._task.metric
        table, mine = self.history.rows_of(people)
        answers = {person: self._answers(person) for person in people}
        asked = [person for person in people if len(mine[person]) >= recipe.personal.min_rows]
        held_out = recipe.personal.held_out
        shares = [share_of(person, mine[person], held_out, answers[person]) for person in asked]
        found: dict[str, dict[str, Any]] = {}
        if shares:
            self._pool = self._pool or PeoplePool(self._prepared, len(shares))
            names = {person: person_name(recipe.name, person) for person in asked}
            for _, lines in self._pool.train(shares, names, personal_training(recipe), table=table):
                found |= {line["name"]: line for line in lines}
                keep_newest(self.store, recipe, lines)
        return [
            {"person": person, "group": self.history.groups[person], "rows": len(mine[person])}
            | line_of(found.get(person), answers[person], metric)
            for person in people
        ]

    def _answers(self, person: str) -> str:
        """The ref that answers for a person now."""
        try:
            return self.store.resolve(person_name(self.recipe.name, person)).ref
        except AdapterNotFoundError:
            return self._of_group(self.history.groups[person])

    def _of_group(self, group: str | None) -> str:
        name, parent = self.recipe.name, self.recipe.personal.parent
        own = name if group is None else group_name(name, group)
        for ref in (own,) if parent is None else (own, parent):
            with suppress(AdapterNotFoundError):
                return self.store.resolve(ref).ref
        raise AdapterNotFoundError(
            f"{own} is not in the store {self.recipe.store}, so people of {group!r} have nothing to begin from; run "
            "the same command without --update first"
        )

    def _prepare(self) -> Prepared:
        """What workers are to know: the task and the settings of the adapters that people go on from."""
        start_ray()
        group = next(iter(self.history.groups.values()))
        ref = self._of_group(group)
        recipe = as_parent(self.recipe, self.store.load(ref)[1], ref)
        base = describe_base(recipe.base, "cuda" if recipe.scaling.use_gpu else "cpu")
        source = Source(recipe.task, {}, {})
        return Prepared({recipe.name: recipe}, {recipe.name: source}, base, make_plan(recipe, recipe.task, base, SLOTS))

    # ---------------------------------------------------------------- what is kept

    def _taken(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._log.read_text().splitlines()] if self._log.exists() else []

    def _add_known(self, line: dict[str, Any]) -> None:
        gone = [file for file in line["files"] if line["kind"] == "sent" and not Path(file).exists()]
        if gone:
            raise DataError(f"{gone[0]} was taken before and is gone; put it back, or give the run another name=...")
        if line["kind"] == "files":
            self.history.add(line["files"], self._forgotten.among(line["files"]))
        elif line["kind"] == "sent":
            self.history.add_sent([Path(file) for file in line["files"]])

    def _note(self, kind: str, files: list[str], more: dict[str, Json]) -> None:
        with self._log.open("a") as file:
            file.write(json.dumps({"kind": kind, "files": files, "at": time.time()} | more) + "\n")

    def _write(self, lines: Sequence[dict[str, Json]]) -> None:
        """People's new lines in place of their old ones."""
        with self._table.open(newline="") as file:
            table: dict[str, dict[str, Any]] = {line["person"]: line for line in csv.DictReader(file)}
        table |= {str(line["person"]): line for line in lines}
        fresh = self._table.with_suffix(".tmp")
        fresh.write_text(written([table[person] for person in sorted(table)]))
        fresh.replace(self._table)


def update_personal(recipe: Recipe, given: str) -> dict[str, Json]:
    """Take new rows of a recipe's people: how many there are, how many gain, seconds."""
    began = time.perf_counter()
    with PersonalUpdates(recipe) as updates:
        lines = updates.add(given)
        table = str(updates.output / "people.csv")
    own = sum(line["why"] == "gains" for line in lines)
    seconds = round(time.perf_counter() - began, 1)
    return {"people": len(lines), "gain": own, "seconds": seconds, "table": table, "lines": lines}


def follow_personal(recipe: Recipe, folder: str, tell: Callable[[str], None]) -> dict[str, Json]:
    """Take rows as they come, and tell of each person, until interrupted (Ctrl-C)."""
    people, gain = 0, 0
    with PersonalUpdates(recipe) as updates:
        tell(f"{recipe.name}: waiting for rows in {folder}; Ctrl-C ends it")
        try:
            for lines in updates.follow(folder):
                for line in lines:
                    tell(f"{line['person']}: {line['why']}; {line['answers']} answers")
                people, gain = people + len(lines), gain + sum(line["why"] == "gains" for line in lines)
        except KeyboardInterrupt:
            pass
    return {"people": people, "gain": gain, "table": str(updates.output / "people.csv")}
