"""The README.md of an adapter's folder, as the hub reads it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard

from ray_lora.adapters.adapter import Adapter, Card
from ray_lora.adapters.peft_folder import LowRank
from ray_lora.adapters.readme import readme as written
from ray_lora.recipe import LoraSpec, TaskSpec


def adapter(**card: object) -> Adapter:
    task = TaskSpec.recall(
        {"type": "text-classification", "labels": card.pop("labels", ["no", "yes"]), "max_length": 16}
    )
    told = Card.model_validate({"task": task, "base": "Org/Model", **card})
    pair = LowRank(torch.zeros(2, 4), torch.zeros(3, 2))
    return Adapter(LoraSpec(r=2, target_modules="all-linear"), {"encoder.query": pair}, {}, told)


def readme(one: Adapter) -> str:
    return written(one.card, one.config, one.layers, one.num_parameters)


def test_the_hub_reads_base_task_and_scores() -> None:
    learnt = {
        "data": {"train.rows": "649", "train.sha256": "ab12", "validation.rows": "239", "validation.sha256": "cd34"}
    }
    told = ModelCard(readme(adapter(metrics={"accuracy": 0.94}, recipe=learnt)))
    data = told.data.to_dict()
    assert data["base_model"] == "Org/Model"
    assert data["library_name"] == "peft"
    assert data["pipeline_tag"] == "text-classification"
    assert "base_model:adapter:Org/Model" in data["tags"]
    (result,) = told.data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_revision) == ("accuracy", 0.94, "cd34")
    assert "649 rows, sha256 `ab12`" in told.text
    assert "rank 2" in told.text


def test_it_is_written_beside_the_weights_and_is_the_same_for_the_same_adapter(tmp_path: Path) -> None:
    one = adapter(metrics={"accuracy": 0.5})
    one.save(tmp_path / "a")
    Adapter.load(tmp_path / "a").save(tmp_path / "b")
    text = (tmp_path / "a/README.md").read_text()
    assert text == (tmp_path / "b/README.md").read_text()
    assert one.sha256 in text


def test_labels_from_outside_stay_inside_their_cell() -> None:
    text = readme(adapter(labels=["a|b\n---\n# title", "<script>", *(str(n) for n in range(40))]))
    assert "a\\|b --- \\# title" in text
    assert "\\<script\\>" in text
    assert "and 30 more" in text


@pytest.mark.parametrize("base", ["/home/me/secret/base", "./base", "minilm", None])
def test_a_base_that_is_no_hub_id_is_not_claimed_to_be_one(base: str | None) -> None:
    data = ModelCard(readme(adapter(base=base))).data.to_dict()
    assert "base_model" not in data
    assert data["tags"] == ["lora", "ray_lora"]


@pytest.mark.parametrize(
    "recipe", [None, {}, {"data": None}, {"data": []}, {"data": {"train.rows": "many", "train.sha256": "x"}}]
)
def test_a_card_that_says_nothing_of_its_rows_is_no_fault(recipe: object) -> None:
    assert "trained on" not in readme(adapter(recipe=recipe))
