"""A base with a trained head: its labels are the answers', fresh heads begin from it, adapters without one use it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from ray_lora.adapters.adapter import Adapter
from ray_lora.adapters.peft_folder import PREFIX
from ray_lora.bases.load import load_base
from ray_lora.bases.transformers_base import label_names
from ray_lora.engine import AdapterEngine, HeadSpec
from ray_lora.errors import AdapterError
from ray_lora.inference.adopt import adopt
from ray_lora.inference.stored import alone
from ray_lora.recipe import BaseSpec, LoraSpec
from tests.unit.bases import TEXT, quiet_peft, token_batch
from tests.unit.serving_world import make_base

NAMES = ("sad", "calm", "glad")
TARGETS = ("query", "value")


def fine_tuned(folder: Path, names: tuple[str, ...] | None = NAMES, kind: str = "bert") -> Path:
    """A base whose folder holds a trained classifier, with its tokenizer and label names."""
    make_base(folder)
    torch.manual_seed(5)
    config = transformers.AutoConfig.from_pretrained(folder)
    if kind == "roberta":
        config = transformers.RobertaConfig(**{**config.to_dict(), "model_type": "roberta", "pad_token_id": 0})
    config.num_labels = 3
    if names is not None:
        config.id2label, config.label2id = dict(enumerate(names)), {name: n for n, name in enumerate(names)}
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    for parameter in model.classifier.parameters():
        parameter.data.normal_(0, 1)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fine_tuned(tmp_path_factory.mktemp("fine") / "base")


def peft_on(base: Path, labels: int = 3, seed: int = 0, **options: Any) -> Any:
    """Plain PEFT on the plain class, its pairs random."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=labels, ignore_mismatched_sizes=True
    )
    with quiet_peft():
        wrapped = get_peft_model(model, LoraConfig(r=4, target_modules=list(TARGETS), **options)).eval()
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(0, 0.3)
    return wrapped


def save(model: Any, folder: Path) -> Path:
    with quiet_peft():
        model.save_pretrained(folder)
    return folder


def engine_on(base: Path) -> AdapterEngine:
    return AdapterEngine(load_base(BaseSpec(model=str(base), dtype="float32")), slots=2, max_rank=4)


def logits(engine: AdapterEngine, slot: int) -> torch.Tensor:
    inputs = {name: tensor % 20 if name == "input_ids" else tensor for name, tensor in token_batch(4).items()}
    with torch.no_grad():
        ((_, outputs),) = engine.forward(inputs, torch.tensor([slot] * 4))
    answer: torch.Tensor = outputs.logits
    return answer


def theirs(model: Any) -> torch.Tensor:
    inputs = {name: tensor % 20 if name == "input_ids" else tensor for name, tensor in token_batch(4).items()}
    with torch.no_grad():
        answer: torch.Tensor = model(**inputs).logits
    return answer


# -------------------------------------------------------------------- fresh heads


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_a_fresh_head_begins_as_in_peft(tmp_path: Path, kind: str) -> None:
    base = fine_tuned(tmp_path / "base", kind=kind)
    engine = engine_on(base)
    slot = engine.init(LoraSpec(r=4, target_modules=TARGETS), HeadSpec(TEXT, 3), seed=0, peft_type="SEQ_CLS")
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=3).eval()
    assert torch.allclose(logits(engine, slot), theirs(plain), atol=1e-5)
    engine.close()


def test_rows_follow_the_labels_names(base: Path) -> None:
    engine = engine_on(base)
    stored = load_file(base / "model.safetensors")["classifier.weight"]
    for labels, order in [
        (("glad", "sad", "calm"), [2, 0, 1]),
        (("GLAD", "Calm", "sad"), [2, 1, 0]),
        (NAMES, [0, 1, 2]),
        (("x", "y", "z"), [0, 1, 2]),  # names of other things: as from_pretrained
        ((), [0, 1, 2]),
    ]:
        slot = engine.init(LoraSpec(r=4, target_modules=TARGETS), HeadSpec(TEXT, 3, labels), seed=0)
        assert torch.equal(engine.read(slot)[f"{PREFIX}classifier.weight"], stored[order])
        engine.evict(slot)
    engine.close()


def test_a_head_of_another_size_is_fresh(base: Path, tmp_path: Path) -> None:
    engine = engine_on(base)
    slot = engine.init(LoraSpec(r=4, target_modules=TARGETS), HeadSpec(TEXT, 2, ("sad", "glad")), seed=0)
    assert engine.read(slot)[f"{PREFIX}classifier.weight"].std() < 0.1  # transformers' 0.02, the trained one's is 1
    assert not engine.read(slot)[f"{PREFIX}classifier.bias"].any()
    engine.close()
    bare = engine_on(make_base(tmp_path / "bare"))
    slot = bare.init(LoraSpec(r=4, target_modules=TARGETS), HeadSpec(TEXT, 3), seed=0)
    assert bare.read(slot)[f"{PREFIX}classifier.weight"].std() < 0.1
    bare.close()


def test_a_head_in_shards_is_found(base: Path, tmp_path: Path) -> None:
    transformers.AutoModelForSequenceClassification.from_pretrained(base).save_pretrained(
        tmp_path, max_shard_size="10KB"
    )
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    engine = engine_on(tmp_path)
    slot = engine.init(LoraSpec(r=4, target_modules=TARGETS), HeadSpec(TEXT, 3), seed=0)
    stored = load_file(base / "model.safetensors")
    assert torch.equal(engine.read(slot)[f"{PREFIX}classifier.bias"], stored["classifier.bias"])
    engine.close()


# -------------------------------------------------------------------- adapters without a head


def test_an_adapter_without_a_head_answers_with_the_bases(base: Path, tmp_path: Path) -> None:
    model = peft_on(base)  # no task_type, so PEFT saves the pairs alone
    adapter = Adapter.load(save(model, tmp_path / "a"))
    assert not adapter.head
    engine = engine_on(base)
    with_head = engine.load(Adapter.load(save(peft_on(base, seed=3, task_type="SEQ_CLS"), tmp_path / "b")))
    slot = engine.load(adapter)
    assert torch.allclose(logits(engine, slot), theirs(model), atol=1e-5)
    assert not torch.allclose(logits(engine, with_head), theirs(model), atol=1e-2)
    exported = engine.export(slot)
    exported.save(tmp_path / "c")
    engine.evict(slot)
    assert torch.allclose(logits(engine, engine.load(Adapter.load(tmp_path / "c"))), theirs(model), atol=1e-5)
    engine.close()
    opened, slot, task = alone(adapter, "a", dtype="float32")
    assert task.spec.describe() == {"labels": list(NAMES)}
    assert torch.allclose(logits(opened, slot), theirs(model), atol=1e-5)
    opened.close()


def test_no_adapter_answers_with_a_random_head(tmp_path: Path) -> None:
    bare = make_base(tmp_path / "base")
    adapter = Adapter.load(save(peft_on(bare), tmp_path / "a"))
    with pytest.raises(AdapterError, match="no task in its card and no head that tells one"):
        alone(adapter, "a", dtype="float32")
    with pytest.raises(AdapterError, match="brings no head, and its base has no trained one"):
        adopt(adapter, base=str(bare), task={"type": "text-classification", "labels": list(NAMES)})
    told = adopt(adapter, task={"type": "text-classification", "labels": list(NAMES)})
    with pytest.raises(AdapterError, match="brings no head, and its base has no trained one"):
        alone(told, "a", dtype="float32")


def test_a_layer_of_the_base_trained_in_full_is_refused(base: Path, tmp_path: Path) -> None:
    model = peft_on(base, modules_to_save=["pooler.dense"], task_type="SEQ_CLS")
    engine = engine_on(base)
    with pytest.raises(AdapterError, match=r"'bert.pooler.dense.bias', a layer of the base trained in full"):
        engine.load(Adapter.load(save(model, tmp_path / "a")))
    engine.close()


# -------------------------------------------------------------------- labels


@pytest.mark.parametrize(
    ("told", "names"),
    [
        ({0: "no", 1: "yes"}, ("no", "yes")),
        ({"1": "yes", "0": "no"}, ("no", "yes")),
        ({str(n): f"c{n}" for n in (10, 2, 0, 1, 3, 4, 5, 6, 7, 8, 9)}, tuple(f"c{n}" for n in range(11))),
        ({0: "LABEL_0", 1: "LABEL_1"}, None),
        ({0: "LABEL_1", 1: "LABEL_0"}, None),
        ({0: "crane", 1: "crane"}, None),
        ({0: "no", 2: "yes"}, None),
        ({0: "no", 1: " "}, None),
        ({0: "no", 1: 3}, None),
        ({"a": "no", "b": "yes"}, None),
        ({0: "score"}, None),
        (None, None),
    ],
)
def test_the_names_of_a_bases_outputs(told: Any, names: Any) -> None:
    assert label_names(type("Config", (), {"id2label": told})()) == names


def test_labels_of_a_fine_tuned_base_are_a_plain_folders(base: Path, tmp_path: Path) -> None:
    folder = save(peft_on(base, task_type="SEQ_CLS"), tmp_path / "three")
    assert alone(Adapter.load(folder), "a")[2].spec.describe() == {"labels": list(NAMES)}
    adopted = adopt(Adapter.load(folder), base=str(base))
    assert adopted.card.task is not None
    assert adopted.card.task.describe() == {"labels": list(NAMES)}
    by_type = adopt(Adapter.load(folder), task={"type": "text-classification"})
    assert by_type.card.task == adopted.card.task
    own = adopt(Adapter.load(folder), base=str(base), task={"labels": ["x", "y", "z"]})  # the card's always win
    own.save(tmp_path / "own")
    assert alone(Adapter.load(tmp_path / "own"), "a")[2].spec.describe() == {"labels": ["x", "y", "z"]}
    two = Adapter.load(save(peft_on(base, labels=2, task_type="SEQ_CLS"), tmp_path / "two"))
    assert alone(two, "a")[2].spec.describe() == {"labels": ["LABEL_0", "LABEL_1"]}
    assert adopt(two, base=str(base)).card.task is None


def test_an_answer_that_is_no_number_is_not_imported(base: Path, tmp_path: Path) -> None:
    folder = save(peft_on(base, task_type="SEQ_CLS"), tmp_path / "a")
    weights = folder / "adapter_model.safetensors"
    save_file({key: tensor.sign() * 3e38 for key, tensor in load_file(weights).items()}, weights)
    with pytest.raises(AdapterError, match="answers what is no finite number"):
        adopt(Adapter.load(folder), base=str(base))
