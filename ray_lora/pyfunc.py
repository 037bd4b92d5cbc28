"""How `mlflow.pyfunc` loads a registered adapter: the same encode, engine, predict and decode as the endpoint's.

    model = mlflow.pyfunc.load_model("models:/tweets@champion")
    model.predict(["what a lovely day"])                       # [{"label": "positive", "score": 0.98}]
    model.predict(pandas.DataFrame({"text": ["what a lovely day"]}))

The base is loaded by the name in the adapter's card; where it lies elsewhere on this machine, say so:
`load_model(uri, model_config={"base": "/path/to/base"})`. Nothing is unpickled.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray_lora.adapters.adapter import Adapter
from ray_lora.inference.predict import predict
from ray_lora.inference.stored import alone, local_row
from ray_lora.recipe import Json


class AdapterModel:
    """One adapter on its own base. Not for several threads at once."""

    def __init__(self, folder: Path, base: str | None = None, dtype: str = "auto") -> None:
        self._engine, self._slot, self.task = alone(Adapter.load(folder), str(folder), base, dtype)

    def predict(self, model_input: Any, params: Mapping[str, Json] | None = None) -> list[Json]:
        """An answer a row, in the shape of the Hugging Face pipeline of the task.

        Args:
            model_input: a value of the task's input, a list of them, rows as dicts, or a DataFrame.
            params: the task's parameters, such as {"top_k": 2}.

        Raises:
            RayLoraError: a row lacks a column, or cannot be read.
        """
        features = self.task.encode([local_row(self.task, value) for value in _values(model_input, self.task.input)])
        options = [dict(params or {})] * len(features)
        return predict(self._engine, {self._slot: self.task}, features, [self._slot] * len(features), options)


def _values(given: Any, column: str) -> list[Any]:
    if hasattr(given, "columns") and hasattr(given, "to_dict"):  # a DataFrame; its only column may have any name
        alone = len(given.columns) == 1 and column not in given.columns
        return list(given.iloc[:, 0]) if alone else list(given.to_dict(orient="records"))
    if hasattr(given, "tolist"):  # an array or a Series
        given = given.tolist()
    return list(given) if isinstance(given, (list, tuple)) else [given]


def _load_pyfunc(path: str, model_config: Mapping[str, Any] | None = None) -> AdapterModel:
    """What MLflow calls, by this name."""
    config = model_config or {}
    return AdapterModel(Path(path), config.get("base"), config.get("dtype") or "auto")
