"""How the versions of a name did, over all replicas, and whether they differ. Reads the files that `results.py` writes.

compare(folder, "tweets")["versions"]   # a row a version and variant: requests, errors, times, labels, feedback
compare(folder, "tweets")["tests"]      # [{"metric": "feedback", "test": "two-proportion z-test", "p_value": 0.03, …}]
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ray_lora.recipe import Json
from ray_lora.serving.trials.tally import Arm, Tally

_logger = logging.getLogger(__name__)
_FEW = 5  # expected counts below this make the normal approximation poor (Cochran 1954)


@dataclass
class Outcome:
    """What one arm did and what people said of it."""

    tally: Tally = field(default_factory=Tally)
    feedback: dict[str, tuple[float, bool | float]] = field(default_factory=dict)  # request id -> (time, value)

    @property
    def values(self) -> list[bool | float]:
        """The feedback, one value an answer."""
        return [value for _, value in self.feedback.values()]


def read_results(folder: Path) -> dict[Arm, Outcome]:
    """What all replicas wrote; lines that cannot be read are left out with a warning."""
    found: dict[Arm, Outcome] = {}
    for path in sorted(folder.glob("*.jsonl")):
        for told in _lines(path):
            try:
                arm = Arm(str(told["name"]), int(told["version"]), told["variant"], str(told["began"]))
                outcome = found.setdefault(arm, Outcome())
                if "value" not in told:
                    outcome.tally.add(Tally.load(told))
                elif told["time"] >= outcome.feedback.get(told["id"], (0.0, False))[0]:
                    outcome.feedback[told["id"]] = (told["time"], told["value"])
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                _logger.warning("left out a line of %s: %s", path, error)
    return found


def compare(results: dict[Arm, Outcome], name: str) -> dict[str, Json]:
    """The last trial of a name, and its answers outside of any trial, with the tests between the versions of its split.

    The lowest version is the one that the others are held against. Of several p-values of one metric each is adjusted
    after Holm (1979).
    """
    mine = {arm: outcome for arm, outcome in sorted(results.items()) if arm.name == name}
    began = max((arm.began for arm in mine), default="")
    shown = {arm: outcome for arm, outcome in mine.items() if arm.began in ("", began)}
    split = {arm.version: outcome for arm, outcome in shown.items() if arm.variant == "split"}
    return {
        "name": name,
        "began": began or None,
        "versions": [_row(arm, outcome) for arm, outcome in shown.items()],
        "tests": [*_adjusted(_errors(split)), *_adjusted(_feedback(split))],
    }


def _row(arm: Arm, outcome: Outcome) -> dict[str, Json]:
    tally, values = outcome.tally, [float(value) for value in outcome.values]
    return {
        "version": arm.version,
        "variant": arm.variant,
        "requests": tally.requests,
        "errors": tally.errors,
        "dropped": tally.dropped,
        "mean_ms": _ms(tally.mean),
        "p50_ms": _ms(tally.quantile(0.5)),
        "p95_ms": _ms(tally.quantile(0.95)),
        "labels": dict(tally.labels.most_common()),
        "scores": {f"{place / 10:.1f}": tally.scores[place] for place in sorted(tally.scores)},
        "feedback": len(values),
        "feedback_mean": math.fsum(values) / len(values) if values else None,
    }


def _errors(split: dict[int, Outcome]) -> list[dict[str, Json]]:
    tallies = {version: outcome.tally for version, outcome in split.items() if outcome.tally.requests}
    first, *others = sorted(tallies) or [0]
    return [
        {"metric": "errors", "versions": [first, other]}
        | _proportions(
            *(tallies[first].errors, tallies[first].requests), *(tallies[other].errors, tallies[other].requests)
        )
        for other in others
    ]


def _feedback(split: dict[int, Outcome]) -> list[dict[str, Json]]:
    given = {version: outcome.values for version, outcome in split.items() if outcome.values}
    boolean = all(isinstance(value, bool) for values in given.values() for value in values)
    first, *others = sorted(given) or [0]
    tests = []
    for other in others:
        one, two = given[first], given[other]
        if boolean:
            found = _proportions(sum(one), len(one), sum(two), len(two))
        else:
            found = _welch([float(value) for value in one], [float(value) for value in two])
        tests.append({"metric": "feedback", "versions": [first, other]} | found)
    return tests


def _proportions(hits: float, count: int, other_hits: float, other_count: int) -> dict[str, Json]:
    """Fisher's exact test where an expected count is small, else the two-proportion z-test with pooled variance."""
    from scipy.stats import fisher_exact, norm

    pooled = (hits + other_hits) / (count + other_count)
    if min(count, other_count) * min(pooled, 1 - pooled) < _FEW:
        grid = [[int(hits), int(count - hits)], [int(other_hits), int(other_count - other_hits)]]
        return {"test": "Fisher's exact test", "statistic": None, "p_value": float(fisher_exact(grid)[1])}
    z = (other_hits / other_count - hits / count) / math.sqrt(pooled * (1 - pooled) * (1 / count + 1 / other_count))
    return {"test": "two-proportion z-test", "statistic": z, "p_value": float(2 * norm.sf(abs(z)))}


def _welch(one: Sequence[float], two: Sequence[float]) -> dict[str, Json]:
    """Welch's t-test; no p-value where it is not defined: fewer than two values, or none that differ."""
    from scipy.stats import ttest_ind

    defined = min(len(one), len(two)) > 1 and (len(set(one)) > 1 or len(set(two)) > 1)
    found = ttest_ind(two, one, equal_var=False) if defined else None
    return {
        "test": "Welch's t-test",
        "statistic": float(found.statistic) if found else None,
        "p_value": float(found.pvalue) if found else None,
    }


def _adjusted(tests: list[dict[str, Json]]) -> list[dict[str, Json]]:
    """Holm's adjustment over the comparisons of one metric; of one comparison it changes nothing."""
    known = sorted((test for test in tests if test["p_value"] is not None), key=lambda test: test["p_value"])
    least = 0.0
    for rank, test in enumerate(known):
        least = max(least, min(1.0, test["p_value"] * (len(known) - rank)))
        test["p_value"] = least
    return tests


def _lines(path: Path) -> Iterator[dict[str, Json]]:
    try:
        text = path.read_text()
    except OSError as error:
        _logger.warning("%s cannot be read: %s", path, error)
        return
    for line in text.splitlines():
        try:
            told = json.loads(line)
        except json.JSONDecodeError:
            continue  # being written
        if isinstance(told, dict):
            yield told


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(1000 * seconds, 3)
