"""The desk of a running search: takes what people ask, between two steps of Tune, and answers.

    desk = Desk(folder, searched, run, common)
    algorithm.desk = desk            # Tune gives it its turns (`search.steered`)
    ...
    desk.close()

A stopped trial is halted by the coordinator: its pack writes the adapter of its last evaluation, and the trial tells
Tune that it has ended. A clone and a resumed trial are Tune trials that wait in `ready`. The desk decides nothing about
trials that nobody has asked for.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayActorError
from ray.tune.experiment import Trial

from ray_lora.errors import RayLoraError, RecipeError, did_you_mean
from ray_lora.recipe import Json
from ray_lora.search import asking
from ray_lora.search.asking import Request
from ray_lora.search.cloning import Searched, begin_clone
from ray_lora.search.ledger import Ledger
from ray_lora.search.standing import standing
from ray_lora.search.trial import Common, flat

if TYPE_CHECKING:
    from ray_lora.running.packs import PackRun

_LOOK_S = 0.2  # how often requests are looked for
_TELL_S = 1.0  # and how often the search says how it stands
_LIVE = (Trial.PENDING, Trial.RUNNING, Trial.PAUSED)


class Desk:
    """See the module.

    Args:
        folder: the search's run's.
        run: its packs; what was stopped before a kill is halted at once.

    Attributes:
        ready: trials that Tune is to run next.
    """

    def __init__(self, folder: Path, searched: Searched, run: PackRun, common: Common) -> None:
        self.folder, self.searched, self._common = folder, searched, common
        self.ledger = Ledger.read(folder)
        self.ready: deque[Trial] = deque()
        self._run = run
        self._trials: list[Trial] = []
        self._seen: set[str] = set()  # trials that were announced, or need not be
        self._recovered = not (self.ledger.clones or self.ledger.resumed)
        self._looked = self._told = 0.0
        self._ending = False
        self._halt(None if self.ledger.over else self.ledger.stopped)

    @property
    def is_busy(self) -> bool:
        """Whether trials will come that somebody has asked for, as far as that is not known."""
        return bool(self.ready) or not self._recovered or asking.is_asked(self.folder)

    def turn(self, trials: list[Trial] | None = None) -> None:
        """Look whether anything is asked, and say how the search stands.

        Args:
            trials: Tune's own list; None for the one of the turn before.
        """
        if trials is not None:
            self._trials = trials
        if self._trials and not self._recovered:
            self._recover()
        self._announce()
        self._excuse()
        now = time.monotonic()
        if now - self._looked < _LOOK_S:
            return
        self._looked = now
        asked = asking.take(self.folder)
        for identity, request in asked:
            asking.answer(self.folder, identity, self._answer(request))
        if asked or now - self._told >= _TELL_S:
            self._told = now
            self._tell()

    def _announce(self) -> None:
        """Have the packs begin new trials while their processes start: that takes longer than some steps do."""
        new = [trial for trial in self._trials if trial.trial_id not in self._seen]
        self._seen |= {trial.trial_id for trial in new}
        jobs = []
        for trial in new:
            begun = trial.has_checkpoint() or self._common.folder(trial.trial_id).exists()
            if trial.status == Trial.PENDING and not begun:
                with contextlib.suppress(RayLoraError):  # its process will say so
                    jobs.append((self._common.job(trial.trial_id, trial.config), flat(trial.config)))
        if jobs:
            with contextlib.suppress(RayActorError):  # nor do its trials find it, and they say so
                ray.get(self._run.coordinator.announce.remote(jobs))

    def _excuse(self) -> None:
        """Of a trial that ends without an evaluation Tune asks for the metric, unless its end is all that is known."""
        if self.ledger.over or self.ledger.stopped:
            for trial in self._trials:
                halted = self.ledger.over or trial.trial_id in self.ledger.stopped
                if halted and trial.status in _LIVE and not trial.run_metadata.last_result.keys() - {"trial_id"}:
                    trial.run_metadata.last_result = {"trial_id": trial.trial_id, "done": True}

    def ended(self, name: str, failed: bool = False) -> None:
        """Tune has ended a trial; a failed one it begins anew, under another name, when the search goes on."""
        if name in self.ledger.resumed:
            self.ledger.resumed.remove(name)
            self.ledger.write()
        if not failed:
            return
        with contextlib.suppress(RayActorError):  # it may have failed because the coordinator has
            ray.get(self._run.coordinator.stop.remote(name))  # its process may never have come
        if self.ledger.clones.pop(name, None) is not None:
            self.ledger.write()

    def drop(self) -> None:
        """Tune ends the search: no trial will come any more."""
        self.ready.clear()
        self._ending = self._recovered = True

    def close(self) -> None:
        """The search has ended: say so, also to those who wait."""
        self._ending = True
        for identity, request in asking.take(self.folder):
            asking.answer(self.folder, identity, self._answer(request))
        self._tell("stopped" if self.ledger.over else "finished")

    def _answer(self, request: Request | str) -> dict[str, Json]:
        try:
            if isinstance(request, str):
                raise RecipeError(request)
            if self._ending or self.ledger.over:
                raise RecipeError(f"search {self.folder.name!r} is ending; nothing more can be asked of it")
            if request.do == "stop":
                return self._stop(request.trials)
            [name] = request.trials if len(request.trials) == 1 else [None]
            if name is None:
                raise RecipeError(f"one trial can be {request.do}d at a time; got {len(request.trials)}")
            if request.do == "clone":
                return self._clone(self._trial(name), request)
            return self._resume(self._trial(name))
        except RayLoraError as error:
            return {"error": str(error)}

    def _stop(self, names: Sequence[str]) -> dict[str, Json]:
        live = [trial.trial_id for trial in [*self._trials, *self.ready] if trial.status in _LIVE]
        for name in names:
            if self._trial(name).trial_id not in live:
                raise RecipeError(f"trial {name!r} has ended already; {_listed('those that run or wait', live)}")
        if names:
            self.ledger.stopped += [name for name in names if name not in self.ledger.stopped]
        else:
            self.ledger.over, self.ledger.ended = True, live
        self.ledger.write()
        self._excuse()
        self._halt(names or None)
        return {"stopped": list(names) or live, "search": not names}

    def _clone(self, parent: Trial, request: Request) -> dict[str, Json]:
        begun = [trial.trial_id for trial in [*self._trials, *self.ready]]
        number = 1
        while (name := f"{parent.trial_id}-{number}") in begun or name in self.ledger.clones:
            number += 1
        config, told = begin_clone(
            self.searched, self.folder / "jobs", parent.trial_id, dict(parent.config), name, request
        )
        self.ledger.clones[name] = config
        self.ledger.write()
        self._begin(_cloned(parent, name, config))
        return told

    def _resume(self, trial: Trial) -> dict[str, Json]:
        name, last = trial.trial_id, trial.last_result or {}
        if trial.status in _LIVE:
            raise RecipeError(f"trial {name!r} has not ended; it runs or waits")
        if trial.status == Trial.ERROR:
            raise RecipeError(f"trial {name!r} has failed; clone it with other values")
        if _is_whole(last):
            raise RecipeError(
                f"trial {name!r} has made all its {last['total_steps']} steps; clone it with a larger "
                "training.num_train_epochs to go on from there"
            )
        if name in self.ledger.stopped:
            self.ledger.stopped.remove(name)
        self.ledger.resumed.append(name)
        self.ledger.write()
        ray.get(self._run.coordinator.release.remote([name]))
        self._run_again(trial)
        return {"trial": name, "step": last.get("step", 0)}

    def _recover(self) -> None:
        """Have Tune run what its own checkpoint has not got: it is some seconds older than a kill."""
        self._recovered = True
        known = {trial.trial_id: trial for trial in self._trials}
        for name, config in self.ledger.clones.items():
            if name not in known:
                self._begin(_cloned(self._trials[0], name, config))
        for name in list(self.ledger.resumed):
            trial = known.get(name)
            if trial is None or trial.status in _LIVE:
                continue
            if trial.status == Trial.TERMINATED and not _is_whole(trial.last_result or {}):
                self._run_again(trial)
            else:
                self.ledger.resumed.remove(name)
        self.ledger.write()

    def _begin(self, clone: Trial) -> None:
        self.ready.append(clone)
        self._run.expect_more()

    def _run_again(self, trial: Trial) -> None:
        """A trial that has ended becomes a new one of the same name, in its place among Tune's trials."""
        again = trial.reset()
        again.trial_id = trial.trial_id
        last = {key: value for key, value in (trial.last_result or {}).items() if key != "done"}
        again.run_metadata.last_result = last
        self._trials.remove(trial)
        self.ready.append(again)

    def _trial(self, name: str) -> Trial:
        known = {trial.trial_id: trial for trial in [*self._trials, *self.ready]}
        if name not in known:
            raise RecipeError(
                f"no trial {name!r} in this search{did_you_mean(name, known)}; {_listed('it has', known)}"
            )
        return known[name]

    def _halt(self, names: Sequence[str] | None) -> None:
        if names is None or names:
            ray.get(self._run.coordinator.halt.remote(None if names is None else list(names)))

    def _tell(self, ended: str = "") -> None:
        trials = standing(self._trials, list(self.ready), self._run.records, self.searched, self.folder / "jobs")
        told: dict[str, Any] = {
            "name": self.folder.name,
            "metric": self.searched.metric,
            "mode": self.searched.mode,
            "rows": self.searched.rows,
            "ended": ended,
            "left": "" if ended else self._run.left(),
            "trials": trials,
        }
        asking.tell(self.folder, told)


def _cloned(template: Trial, name: str, config: dict[str, Any]) -> Trial:
    """A Tune trial as another one, of another name and configuration."""
    made = template.reset()
    made.trial_id, made.config, made.evaluated_params = name, dict(config), dict(config)
    made.experiment_tag = f"clone_{name}"
    return made


def _is_whole(result: dict[str, Any]) -> bool:
    return "step" in result and result["step"] == result.get("total_steps")


def _listed(what: str, names: Any) -> str:
    names = list(names)
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return f"{what}: {', '.join(names[:20])}{more}" if names else f"{what}: none"
