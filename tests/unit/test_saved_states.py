"""What a search algorithm goes on from where a kill left its state and Tune's at different trials."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ray import tune
from ray.tune.experiment import Experiment, Trial
from ray.tune.search import Searcher

from ray_lora.search.saved_states import matching, trials_in
from ray_lora.search.steered import Steered

SESSION = "2026-11-30_22-00-00"
RATES = [1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8]


class Counting(Searcher):
    """Suggests 0, 1, 2, …"""

    def __init__(self) -> None:
        super().__init__(metric="loss", mode="min")
        self.count = 0

    def suggest(self, trial_id: str) -> dict[str, float]:
        self.count += 1
        return {"rate": float(self.count - 1)}

    def on_trial_complete(self, trial_id: str, result: object = None, error: bool = False) -> None: ...

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).write_text(str(self.count))

    def restore(self, checkpoint_path: str) -> None:
        self.count = int(Path(checkpoint_path).read_text())


def a_search(kind: str) -> Steered:
    found = Steered(Counting() if kind == "searcher" else None, at_once=99)
    space = {"rate": tune.grid_search(RATES)} if kind == "grid" else {"rate": tune.uniform(0, 1)}
    config = {} if kind == "searcher" else space
    count = 1 if kind == "grid" else len(RATES)
    found.set_search_properties("loss", "min", {})
    found.add_configurations(Experiment("it", lambda config: None, config=config, num_samples=count))
    return found


def tunes_state(folder: Path, trials: list[Trial]) -> None:
    told = {"trial_data": [[json.dumps({"trial_id": trial.trial_id}), ""] for trial in trials]}
    (folder / f"experiment_state-{SESSION}.json").write_text(json.dumps(told))


def made(search: Steered, count: int) -> list[Trial]:
    trials = [search.next_trial() for _ in range(count)]
    return [trial for trial in trials if trial is not None]


@pytest.mark.parametrize("knows", [3, 4, 5, 7])
@pytest.mark.parametrize("kind", ["grid", "random", "searcher"])
def test_no_trial_is_lost_and_none_is_there_twice(kind: str, knows: int, tmp_path: Path) -> None:
    """Tune knows of fewer trials than the algorithm's last state has made, of as many, or of more."""
    search = a_search(kind)
    trials = made(search, 3)
    search.save_to_dir(str(tmp_path), session_str=SESSION)
    trials += made(search, 2)
    search.save_to_dir(str(tmp_path), session_str=SESSION)
    trials += made(search, 2)
    tunes_state(tmp_path, trials[:knows])
    assert trials_in(tmp_path) == [trial.trial_id for trial in trials[:knows]]
    again = a_search(kind)
    again.restore_from_dir(str(tmp_path))
    rest = made(again, 20)
    if kind == "searcher":  # whose ids are drawn
        assert [trial.config["rate"] for trial in rest] == [float(at) for at in range(knows, len(RATES))]
        return
    assert [trial.trial_id for trial in rest] == [trial.trial_id for trial in trials[knows:]]
    if kind == "grid":
        assert [trial.config["rate"] for trial in (*trials[:knows], *rest)] == RATES
    assert again.is_finished()


def test_the_last_states_are_kept_and_those_of_a_later_session_come_first(tmp_path: Path) -> None:
    search = a_search("grid")
    for _ in range(6):
        made(search, 1)
        search.save_to_dir(str(tmp_path), session_str=SESSION)
    assert [path.name[-11:-5] for path in sorted(tmp_path.iterdir())] == ["000004", "000005", "000006"]
    search.save_to_dir(str(tmp_path), session_str="2026-11-30_23-00-00")
    (found,) = matching(tmp_path, 6)
    assert "23-00-00" in found.name
    (found,) = matching(tmp_path, 5)
    assert found.name.endswith(f"{SESSION}-made000005.json")
    assert matching(tmp_path, 3) == []
