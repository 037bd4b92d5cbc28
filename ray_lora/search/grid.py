"""Ray's ResultGrid of a search whose trials were scored on different parts of the validation rows."""

from __future__ import annotations

import copy

from ray.tune import Result, ResultGrid


class EvenGrid(ResultGrid):
    """A ResultGrid whose best result is one of those that were scored on the most rows: on a part of them a score may
    be better by chance alone."""

    def get_best_result(
        self,
        metric: str | None = None,
        mode: str | None = None,
        scope: str = "last",
        filter_nan_and_inf: bool = True,
    ) -> Result:
        """As Ray's own, among the trials whose last score was taken on the most validation rows."""
        analysis = copy.copy(self._experiment_analysis)
        rows = {trial.trial_id: (trial.last_result or {}).get("validation_rows", 0) for trial in analysis.trials}
        most = max(rows.values(), default=0)
        analysis.trials = [trial for trial in analysis.trials if rows[trial.trial_id] == most]
        return ResultGrid(analysis).get_best_result(metric, mode, scope, filter_nan_and_inf)
