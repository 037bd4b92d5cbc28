"""What rows may share is found by comparing: hard classes answer as alone or are refused in words; and it is kept."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from benchmarks import model_types
from ray_lora.bases.load import describe_base, load_base
from ray_lora.bases.plain import HeadSpec
from ray_lora.engine import AdapterEngine, probe, sharing
from ray_lora.engine.sharing import Sharing
from ray_lora.errors import AdapterError, CapacityError
from ray_lora.inference.predict import of_one_size, passes
from ray_lora.recipe import BaseSpec, LoraSpec, Recipe
from ray_lora.running.plan import make_plan
from ray_lora.tasks.text_classification import TextClassificationSpec

TEXT = "AutoModelForSequenceClassification"
SMALL = {"vocab_size": 40, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 0}
WAYS = {
    "bert": "end to end",
    "xlnet": "at equal lengths, one adapter a pass",  # rows on axis 1
    "deberta": "padded, one adapter a pass",  # relative positions pass through target layers
    "deberta-v2": "padded, one adapter a pass",
    "fnet": "at equal lengths",  # padding is read
    "convbert": "at equal lengths",
    "mobilebert": "at equal lengths",
    "nystromformer": "at equal lengths",
    "yoso": "at equal lengths",
    "canine": "at equal lengths",
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing is known from earlier."""
    monkeypatch.setenv("RAY_LORA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("model_type", WAYS)
def test_hard_classes_equal_plain_peft_alone(model_type: str) -> None:
    entry = model_types.examine(model_type, "text")
    assert (entry["outcome"], entry["way"]) == ("right", WAYS[model_type])
    assert entry["difference"] <= 1e-5


def test_relative_positions_of_pictures_pass_alone() -> None:
    entry = model_types.examine("swinv2", "image")
    assert (entry["outcome"], entry["way"]) == ("right", "padded, one adapter a pass")


def test_a_class_that_hands_its_backbone_more_is_refused() -> None:
    entry = model_types.examine("longformer", "text")
    assert entry["outcome"] == "refused"
    assert "it hands its backbone global_attention_mask" in entry["note"]


# -------------------------------------------------------------------- what short rows cannot show


def base_of(kind: str, folder: Path, **config: Any) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(kind, **(SMALL | config)))
    model.save_pretrained(folder)
    return folder


def opened(folder: Path) -> Iterator[AdapterEngine]:
    engine = AdapterEngine(load_base(BaseSpec(model=str(folder), dtype="float32")), slots=1, max_rank=2)
    yield engine
    engine.close()


def test_a_window_that_the_class_keeps_to_itself_is_not_joined(tmp_path: Path) -> None:
    """Its rows are shorter than the window here, so nothing else could tell."""
    odd = {"num_key_value_heads": 2, "intermediate_size": 32, "moe_intermediate_size": 16, "num_experts": 2}
    window = {"use_sliding_window": True, "sliding_window": 4096, "max_window_layers": 1, "num_experts_per_tok": 1}
    more = {"shared_expert_intermediate_size": 16}
    for engine in opened(base_of("qwen2_moe", tmp_path / "b", **odd, **window, **more)):
        assert engine.sharing.lengths == "padded"
        assert "hands no sliding window" in engine.sharing.reason
    for engine in opened(base_of("mistral", tmp_path / "m", num_key_value_heads=2, intermediate_size=32)):
        assert engine.sharing == Sharing("joined")


def test_positions_that_follow_from_the_longest_row_share_no_pass(tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    folder = base_of("llama", tmp_path / "b", intermediate_size=32, rope_parameters=rope)
    for engine in opened(folder):
        assert engine.sharing.lengths == "equal"
        assert "rotary positions (dynamic) follow from the longest row" in engine.sharing.reason


def test_a_class_that_changes_for_good_is_refused(tmp_path: Path) -> None:
    folder = base_of("big_bird", tmp_path / "b", intermediate_size=32, attention_type="block_sparse", block_size=2)
    for engine in opened(folder):
        with pytest.raises(AdapterError, match="set attention_type to original_full"):
            engine.init(LoraSpec(r=2), None, seed=0)


# -------------------------------------------------------------------- kept, and used


def test_what_was_found_is_kept_and_a_torn_file_is_found_again(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, asked = base_of("bert", tmp_path / "b", intermediate_size=32), []
    find = probe.BaseProbe.find
    monkeypatch.setattr(probe.BaseProbe, "find", lambda self: asked.append(1) or find(self))
    for count in (1, 1):
        for engine in opened(folder):
            assert engine.sharing.lengths == "joined"
        assert len(asked) == count
    for file in (cache / "sharing").iterdir():
        file.write_text('{"lengths": "joi')
    for engine in opened(folder):
        assert engine.sharing.lengths == "joined"
    assert len(asked) == 2
    monkeypatch.setattr(sharing, "_code", lambda: "other code")
    for _ in opened(folder):
        assert len(asked) == 3


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_takes_nothing_costs_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_LORA_CACHE", "/dev/full")
    for engine in opened(base_of("bert", tmp_path / "b", intermediate_size=32)):
        assert engine.sharing.lengths == "joined"


class _Rows:
    def size(self, features: Any) -> int:
        return len(features["input_ids"])


def test_passes_hold_only_what_may_share_one(tmp_path: Path) -> None:
    tasks: Any = dict.fromkeys((0, 1, 2), _Rows())
    features = [{"input_ids": [1] * size} for size in (3, 5, 3, 5, 4, 3)]
    slots = [1, 2, 0, 1, 2, 1]
    relative = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "max_relative_positions": 8}
    folder = base_of("deberta-v2", tmp_path / "d", intermediate_size=32, **relative)
    engine = AdapterEngine(load_base(BaseSpec(model=str(folder), dtype="float32")), slots=2, max_rank=2)
    assert engine.sharing.apart
    everywhere = engine.init(LoraSpec(r=2, target_modules="all-linear"), None, seed=0)
    beside = engine.init(LoraSpec(r=2, target_modules=("intermediate.dense",)), None, seed=0)
    assert engine.passes_alone(everywhere)
    assert not engine.passes_alone(beside)
    found = passes(engine, tasks, features, slots)
    assert sorted(row for held in found for row in held) == list(range(6))
    for held in found:
        owners = {slots[row] for row in held}
        assert len(owners) == 1 or everywhere not in owners
    assert any({slots[row] for row in held} == {0, beside} for held in found)
    with pytest.raises(CapacityError, match="share no pass with others on base"):
        engine.forward({"input_ids": torch.ones(2, 3, dtype=torch.long)}, torch.tensor([everywhere, beside]))
    engine.close()


def test_an_engine_is_given_rows_of_one_length_where_padding_would_be_read(tmp_path: Path) -> None:
    for engine in opened(base_of("fnet", tmp_path / "f", intermediate_size=32)):
        mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
        with pytest.raises(CapacityError, match="rows of different lengths share no pass"):
            engine.hidden({"input_ids": mask, "attention_mask": mask}, torch.tensor([0, 0]))
        assert engine.hidden({"input_ids": mask[:1]}, torch.tensor([0])).last_hidden_state.shape == (1, 3, 24)


def test_rows_of_one_size_pass_together() -> None:
    sizes = [3, 5, 3, 5, 3]
    found = of_one_size(sizes, [2, 1, 1, 1, 2], 2)
    assert sorted(row for held in found for row in held) == list(range(5))
    assert all(len({sizes[row] for row in held}) == 1 for held in found)
    assert sorted(map(len, found)) == [1, 2, 2]


def test_a_plan_refuses_a_base_that_cannot_be_used(tmp_path: Path, tiny_bert_folder: Path) -> None:
    """It loads the base to see, once; the second time it only looks up what was found."""
    folder = base_of("longformer", tmp_path / "l", vocab_size=200, intermediate_size=32, attention_window=[4, 4])
    transformers.AutoTokenizer.from_pretrained(tiny_bert_folder).save_pretrained(folder)
    recipe = Recipe.parse({"base": {"model": str(folder), "dtype": "float32"}})
    task = TextClassificationSpec(labels=("no", "yes"))
    for known in (False, True):
        base = describe_base(recipe.base)
        assert probe.is_known(base, HeadSpec(TEXT, 2)) == known
        with pytest.raises(AdapterError, match="hands its backbone global_attention_mask"):
            make_plan(recipe, task, base)
