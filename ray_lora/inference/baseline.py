"""The baseline an adapter has to beat: the best head alone on the frozen base.

A logistic regression (scikit-learn) on the bare base's mean-pooled features, its strength chosen on the validation
rows.

    head_only(engine, task, train, validation)(test)     # a prediction for each test row
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ray_lora.engine import AdapterEngine
from ray_lora.inference.predict import embed
from ray_lora.recipe import Json
from ray_lora.tasks.classification import Classification
from ray_lora.tasks.task import Features

_STRENGTHS = (0.01, 0.1, 1.0, 10.0, 100.0)


def head_only(
    engine: AdapterEngine, task: Classification, train: Sequence[Features], validation: Sequence[Features]
) -> Callable[[Sequence[Features]], list[Json]]:
    """Fit the best linear head on frozen features; returns what predicts rows with it.

    Args:
        engine: any engine on the base; its adapters are not used.
        task: gives the collation, the targets and the answers.
        train, validation: rows with targets.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y = features_of(engine, task, train), task.targets(train)
    x_validation, y_validation = features_of(engine, task, validation), task.targets(validation)
    fitted = [
        make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000)).fit(x, y)
        for strength in _STRENGTHS
    ]
    best = max(fitted, key=lambda model: model.score(x_validation, y_validation))

    def answer(rows: Sequence[Features]) -> list[Json]:
        return task.answers([int(guess) for guess in best.predict(features_of(engine, task, rows))])

    return answer


def features_of(
    engine: AdapterEngine, task: Classification, rows: Sequence[Features], max_rows: int = 64
) -> NDArray[np.float32]:
    """Mean-pooled hidden states of the bare base, [rows, hidden], in the rows' order."""
    order = sorted(range(len(rows)), key=lambda row: task.size(rows[row]))  # type: ignore[attr-defined]
    found: dict[int, NDArray[np.float32]] = {}
    for at in range(0, len(order), max_rows):
        chunk = order[at : at + max_rows]
        pooled = embed(engine, task.collate([rows[row] for row in chunk]))  # type: ignore[attr-defined]
        found |= dict(zip(chunk, pooled.cpu().numpy(), strict=True))
    return np.stack([found[row] for row in range(len(rows))])
