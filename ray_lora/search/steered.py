"""Ray Tune's search algorithm with the trials between its own that people ask for, and the callback that hears Tune's
steps.

Tune runs those trials as any other, and its scheduler decides on them. Between two steps of Tune the callback gives the
desk its turn, which answers people. Neither knows what is asked.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import tune
from ray.tune import Tuner
from ray.tune.experiment import Trial
from ray.tune.search import ConcurrencyLimiter, Searcher, SearchGenerator
from ray.tune.search.basic_variant import BasicVariantGenerator
from ray.tune.search.search_algorithm import SearchAlgorithm

from ray_lora.errors import RecipeError
from ray_lora.search.saved_states import drop_older, made_by, matching, numbered, trials_in

if TYPE_CHECKING:
    from ray_lora.search.desk import Desk


class Steered(BasicVariantGenerator):
    """A search algorithm and the trials that the desk has ready.

    It is finished when the inner one is and nobody has asked for anything. A BasicVariantGenerator to Tune, which
    starts several trials' processes at a time for these alone; but all is done by the inner one.
    """

    _made: int = 0  # the inner one's trials
    _known: frozenset[str] = frozenset()  # those of them that a killed search had

    def __init__(self, inner: SearchAlgorithm | Searcher | None, at_once: int) -> None:
        if inner is None:
            inner = BasicVariantGenerator(max_concurrent=at_once)
        elif isinstance(inner, BasicVariantGenerator):
            inner.max_concurrent = inner.max_concurrent or at_once
        elif isinstance(inner, Searcher):  # as `tune.run` does
            limited = isinstance(inner, ConcurrencyLimiter)
            inner = SearchGenerator(inner if limited else ConcurrencyLimiter(inner, max_concurrent=at_once))
        self.inner: SearchAlgorithm = inner
        self.desk: Desk | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"desk": None}  # of this process alone

    def next_trial(self) -> Trial | None:
        """A trial that somebody has asked for, or the inner algorithm's next one."""
        if self.desk is not None:
            self.desk.turn()  # Tune may ask here, and nowhere else, until there is a trial
            if self.desk.ready:
                return self.desk.ready.popleft()
            if self.desk.ledger.over:
                return None
        trial = self.inner.next_trial()
        while trial is not None and trial.trial_id in self._known:  # made again from an older state
            trial = self.inner.next_trial()
        self._made += trial is not None
        return trial

    def is_finished(self) -> bool:
        """Whether no trial will come."""
        if self.desk is None:
            return self.inner.is_finished()
        return not self.desk.is_busy and (self.desk.ledger.over or self.inner.is_finished())

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Passed on of trials that are the inner algorithm's own."""
        if not self._asked_for(trial_id):
            self.inner.on_trial_result(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """As `on_trial_result`."""
        if not self._asked_for(trial_id):
            self.inner.on_trial_complete(trial_id, result, error)

    def _asked_for(self, trial_id: str) -> bool:
        return self.desk is not None and self.desk.ledger.steered(trial_id)

    # ---------------------------------------------------------------- the inner one's alone

    @property
    def metric(self) -> Any:
        return self.inner.metric

    @property
    def total_samples(self) -> Any:
        return self.inner.total_samples

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        return self.inner.set_search_properties(metric, mode, config, **spec)

    def add_configurations(self, experiments: Any) -> None:
        self.inner.add_configurations(experiments)

    def set_finished(self) -> None:
        self.inner.set_finished()
        if self.desk is not None:
            self.desk.drop()

    def has_checkpoint(self, dirpath: str) -> bool:
        return self.inner.has_checkpoint(dirpath)

    def save_to_dir(self, dirpath: str, session_str: str = "", **_: Any) -> None:
        self.inner.save_to_dir(dirpath, session_str=numbered(session_str, self._made))
        for folder in (Path(dirpath), *([] if self.desk is None else [self.desk.folder / "tune"])):
            drop_older(folder)

    def restore_from_dir(self, dirpath: str) -> None:
        """Go on from the state that was saved when there were as many trials as Tune now knows."""
        self._known = frozenset(name for name in trials_in(Path(dirpath)) if not self._asked_for(name))
        self._made = len(self._known)
        with tempfile.TemporaryDirectory() as place:
            states = matching(Path(dirpath), self._made)
            for path in states:
                shutil.copy(path, place)
            self.inner.restore_from_dir(place if states else dirpath)
        if states and not isinstance(self.inner, BasicVariantGenerator):  # that one makes the same trials again
            for _ in range(self._made - made_by(states[0])):
                trial = self.inner.next_trial()
                if trial is not None:
                    self.inner.on_trial_complete(trial.trial_id, error=True)


def attach(tuner: Tuner, desk: Desk) -> None:
    """Give a search its desk. Tune has the algorithm from its own file, where the search goes on after a kill.

    Raises:
        RecipeError: an earlier version of this library began the search.
    """
    local: Any = tuner._local_tuner
    between = [one for one in local.get_run_config().callbacks or [] if isinstance(one, Between)]
    if not between:
        raise RecipeError(
            "an earlier version of ray_lora began this search, and it cannot be gone on with by this one; go on with "
            "that version, or give the search its own name=..."
        )
    between[0].algorithm.desk = desk


class Between(tune.Callback):
    """Gives the desk its turn between two of Tune's steps."""

    def __init__(self, algorithm: Steered) -> None:
        self.algorithm = algorithm

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        if self.algorithm.desk is not None:
            self.algorithm.desk.turn(trials)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        if self.algorithm.desk is not None:
            self.algorithm.desk.ended(trial.trial_id)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        if self.algorithm.desk is not None:
            self.algorithm.desk.ended(trial.trial_id, failed=True)
