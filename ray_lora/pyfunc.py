"""How `mlflow.pyfunc` loads a registered adapter: the same encode, engine, predict and decode as the endpoint's.

    model = mlflow.pyfunc.load_model("models:/tweets@champion")
    model.predict(["what a lovely day"])                       # [{"label": "positive", "score": 0.98}]
    model.predict(pandas.DataFrame({"text": ["what a lovely day"]}))      # a DataFrame with columns label and score
    model.predict(["what a lovely day"], params={"top_k": 2})  # parameters that its signature names
    labels = {"answer": "label"}                               # of each answer this part alone, as classifiers give it
    mlflow.models.evaluate(uri, rows, targets="truth", model_type="classifier", model_config=labels)

The base is loaded by the name in the adapter's card; where it lies elsewhere on this machine, say so:
`load_model(uri, model_config={"base": "/path/to/base"})`. Nothing is unpickled.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray_lora.adapters.adapter import Adapter
from ray_lora.errors import RecipeError
from ray_lora.inference.predict import predict
from ray_lora.inference.stored import alone, local_row
from ray_lora.recipe import Json


class AdapterModel:
    """One adapter on its own base. Not for several threads at once.

    Args:
        answer: the part of each answer that is given alone, such as `label`; None for whole answers.
    """

    def __init__(self, folder: Path, base: str | None = None, dtype: str = "auto", answer: str | None = None) -> None:
        self._answer = answer
        self._engine, self._slot, self.task = alone(Adapter.load(folder), str(folder), base, dtype)

    def predict(self, model_input: Any, params: Mapping[str, Json] | None = None) -> Any:
        """An answer a row, in the shape of the Hugging Face pipeline of the task; of a DataFrame's rows a DataFrame of
        the same index, with a column for each part of an answer, or `prediction` where an answer has no named parts.
        With the setting `answer` that part of each, of a DataFrame's rows as a Series.

        Args:
            model_input: a value of the task's input, a list of them, rows as dicts, or a DataFrame.
            params: the task's parameters, such as {"top_k": 2}, and `answer`, which goes before the setting. None is as
                if it were not given: that is what MLflow makes of a parameter that nobody names.

        Raises:
            RayLoraError: a row lacks a column, or cannot be read; or an answer has no part of that name.
        """
        said = {name: value for name, value in (params or {}).items() if value is not None}
        part = said.pop("answer", self._answer)
        features = self.task.encode([local_row(self.task, value) for value in _values(model_input, self.task.input)])
        options = [said] * len(features)
        answers = predict(self._engine, {self._slot: self.task}, features, [self._slot] * len(features), options)
        if part is not None:
            answers = [_part(answer, part) for answer in answers]
        return _framed(answers, model_input.index, part) if _is_frame(model_input) else answers


def _values(given: Any, column: str) -> list[Any]:
    if _is_frame(given):  # its only column may have any name
        alone = len(given.columns) == 1 and column not in given.columns
        return list(given.iloc[:, 0]) if alone else list(given.to_dict(orient="records"))
    if hasattr(given, "tolist"):  # an array or a Series
        given = given.tolist()
    return list(given) if isinstance(given, (list, tuple)) else [given]


def _is_frame(given: Any) -> bool:
    return hasattr(given, "columns") and hasattr(given, "to_dict")


def _part(answer: Json, name: str) -> Json:
    if not isinstance(answer, dict) or name not in answer:
        parts = ", ".join(answer) if isinstance(answer, dict) else "no parts with names"
        raise RecipeError(f"answer {name!r} is no part of this adapter's answers; they have {parts}")
    return answer[name]


def _framed(answers: list[Json], index: Any, part: str | None = None) -> Any:
    import pandas as pd

    if part is not None:
        return pd.Series(answers, index=index, name=part)
    if answers and all(isinstance(answer, dict) for answer in answers):
        return pd.DataFrame(answers, index=index)
    return pd.DataFrame({"prediction": pd.Series(answers, index=index, dtype=object)})


def _load_pyfunc(path: str, model_config: Mapping[str, Any] | None = None) -> AdapterModel:
    """What MLflow calls, by this name."""
    config = model_config or {}
    return AdapterModel(Path(path), config.get("base"), config.get("dtype") or "auto", config.get("answer"))
