"""Decoders that read both ways: what plain transformers computes with `config.is_causal = False`, and never less."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel
from torch import Tensor

from ray_lora.adapters.adapter import Adapter, Card
from ray_lora.bases.base import Base
from ray_lora.bases.load import load_base
from ray_lora.bases.plain import HeadSpec
from ray_lora.engine import AdapterEngine, backbone
from ray_lora.errors import AdapterError, CapacityError
from ray_lora.inference.adopt import adopt
from ray_lora.inference.predict import passes, predict
from ray_lora.recipe import BaseSpec, LoraSpec
from ray_lora.tasks import build_task
from ray_lora.tasks.token_classification import TokenClassificationSpec
from tests.conftest import sentences
from tests.unit.bases import quiet_peft
from tests.unit.test_joined import KINDS, token_batch
from tests.unit.test_token_classification import byte_pieces, folder_of

WORDS = "AutoModelForTokenClassification"
BOTH = HeadSpec(WORDS, 3, attention="bidirectional")
ONE = HeadSpec(WORDS, 3)
OTHERS: dict[str, dict[str, Any]] = {
    "gpt_neo": {"vocab_size": 50, "hidden_size": 24, "num_layers": 2, "num_heads": 4, "intermediate_size": 36}
    | {"attention_types": [[["global", "local"], 1]], "max_position_embeddings": 64},
}
DECODERS = ("llama", "gpt2", "qwen2", "mistral")
WINDOWS = ("qwen2", "mistral")  # shorter than the rows; a token of padding may have nothing to see in one
LENGTHS = [3, 9, 1, 16, 5, 14]
CLOSE = {"gpt2": 1e-9}  # the others' norms and positions are float32 in any dtype


@pytest.fixture(autouse=True)
def compared_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_LORA_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in made:
            config = transformers.AutoConfig.for_model(kind, **(KINDS | OTHERS)[kind])
            with torch.random.fork_rng():
                torch.manual_seed(1)
                model = transformers.AutoModel.from_config(config)
                for parameter in model.parameters():
                    parameter.data.normal_(0, 0.3)
            made[kind] = tmp_path_factory.mktemp(kind)
            model.save_pretrained(made[kind])
        return made[kind]

    return folder


def opened(folder: Path, dtype: torch.dtype = torch.float64) -> Base:
    base = load_base(BaseSpec(model=str(folder), dtype="float32"))
    base.backbone.to(dtype)
    return replace(base, dtype=dtype)


def some_adapter(engine: AdapterEngine, rank: int, head: HeadSpec | None) -> int:
    """Its numbers survive a file's float32."""
    slot = engine.init(LoraSpec(r=rank), head, seed=rank, peft_type=None if head is None else "TOKEN_CLS")
    draw = torch.Generator().manual_seed(rank)
    engine.write(slot, {k: (torch.randn(v.shape, generator=draw) * 0.2).to(v) for k, v in engine.read(slot).items()})
    engine.refresh([slot])
    return slot


def plain_peft(folder: Path, adapter: Path, attention: str, both_ways: bool, dtype: torch.dtype = torch.float64) -> Any:
    """Without this library: the plain class, the switch, the adapter."""
    config = transformers.AutoConfig.from_pretrained(folder, num_labels=3)
    if both_ways:
        config.is_causal = False
    model = transformers.AutoModelForTokenClassification.from_pretrained(
        folder, config=config, attn_implementation=attention
    )
    with quiet_peft():
        return PeftModel.from_pretrained(model, adapter, is_trainable=True).eval().to(dtype)


def weigh(logits: Tensor, mask: Tensor) -> Tensor:
    """A number that depends on every logit of every token."""
    total: Tensor = ((logits * mask.unsqueeze(-1)).sin() * torch.linspace(-1, 1, 3, dtype=logits.dtype)).sum()
    return total


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize("kind", DECODERS)
def test_rows_read_both_ways_equal_plain_peft_with_the_switch(
    kind: str, left: bool, folders: Any, tmp_path: Path
) -> None:
    """Rows of two adapters in one pass, forward and backward: plain PEFT row by row, and padded."""
    folder, close = folders(kind), CLOSE.get(kind, 5e-6)
    engine = AdapterEngine(opened(folder), slots=2, max_rank=3, train=True)
    slots = [some_adapter(engine, rank, BOTH) for rank in (2, 3)]
    assert engine.sharing_of(slots[0]).lengths == "joined"
    inputs = token_batch(LENGTHS, left)
    owners = [slots[row % 2] for row in range(len(LENGTHS))]
    ((_, outputs),) = engine.forward(inputs, torch.tensor(owners))
    weigh(outputs.logits, inputs["attention_mask"]).backward()
    for slot in slots:
        engine.export(slot).save(tmp_path / str(slot))
    gradients = {slot: engine.read(slot, [engine.grad, *engine.head_grad.values()]) for slot in slots}
    engine.close()
    for attention, slot in product(("eager", "sdpa"), slots):
        model = plain_peft(folder, tmp_path / str(slot), attention, both_ways=True)
        for row in (row for row, owner in enumerate(owners) if owner == slot):
            kept = inputs["attention_mask"][row].bool()
            alone = model(**{name: value[row, kept][None] for name, value in inputs.items()}).logits
            torch.testing.assert_close(outputs.logits[row, kept], alone[0], atol=close, rtol=0)
            weigh(alone, torch.ones(alone.shape[:2])).backward()
            if (
                not left and kind not in WINDOWS
            ):  # a class that is given no positions counts what fills the left side up
                padded = model(**{name: value[row][None] for name, value in inputs.items()}).logits
                torch.testing.assert_close(padded[0, kept], alone[0], atol=close, rtol=0)
        theirs = {name: p.grad for name, p in model.named_parameters()}
        for key, gradient in gradients[slot].items():
            module, _, leaf = key.rpartition(".")
            name = next(
                n for n in (f"{module}.default.{leaf}", f"{module}.modules_to_save.default.{leaf}") if n in theirs
            )
            torch.testing.assert_close(gradient, theirs[name], atol=100 * close, rtol=0)


@pytest.mark.parametrize("kind", DECODERS)
def test_rows_read_from_left_to_right_stay_so_beside_them(kind: str, folders: Any, tmp_path: Path) -> None:
    """One engine, both kinds of adapters, in turn; together they share no pass, and `passes` parts them."""
    folder = folders(kind)
    engine = AdapterEngine(opened(folder, torch.float32), slots=2, max_rank=3)
    slots = {both: some_adapter(engine, 2, BOTH if both else ONE) for both in (True, False)}
    inputs = token_batch([9, 4])
    found = {}
    for both in (True, False, True, False):
        ((_, outputs),) = engine.forward(inputs, torch.tensor([slots[both]] * 2))
        assert both not in found or torch.equal(found[both], outputs.logits)
        found[both] = outputs.logits
    with pytest.raises(CapacityError, match="share no pass"):
        engine.forward(inputs, torch.tensor(list(slots.values())))
    with pytest.raises(CapacityError, match="share no pass"):
        engine.forward(inputs, torch.tensor([0, slots[True]]))
    for slot in slots.values():
        engine.export(slot).save(tmp_path / str(slot))
    engine.close()
    for both, slot in slots.items():
        model = plain_peft(folder, tmp_path / str(slot), "eager", both, torch.float32)
        for row, length in enumerate([9, 4]):
            alone = model(input_ids=inputs["input_ids"][row : row + 1, :length]).logits
            torch.testing.assert_close(found[both][row, :length], alone[0], atol=1e-5, rtol=1e-5)
    assert (found[True][0, 0] - found[False][0, 0]).abs().max() > 1e-3
    assert not hasattr(engine.base.config, "is_causal")


def test_rows_of_both_kinds_are_scored_in_passes_of_their_own(folders: Any, tmp_path: Path) -> None:
    tokenizer = byte_pieces("left")
    base = replace(opened(folder_of("llama", tokenizer, tmp_path), torch.float32), processor=tokenizer)
    specs = [TokenClassificationSpec(labels=("a", "b", "c"), attention=each) for each in ("bidirectional", None)]
    both, one = (build_task(spec, tokenizer) for spec in specs)
    engine = AdapterEngine(base, slots=2, max_rank=4)
    tasks = {some_adapter(engine, 2, task.head): task for task in (both, one)}
    features = both.encode([{"tokens": text} for text in sentences(6, seed=1)])
    owners = [list(tasks)[row % 2] for row in range(6)]
    assert passes(engine, tasks, features, owners) == [[0, 2, 4], [1, 3, 5]]
    told = [{"ignore_labels": []}] * 6
    together = predict(engine, tasks, features, owners, told)
    for row, slot in enumerate(owners):
        assert predict(engine, tasks, features[row : row + 1], [slot], told[:1]) == [
            [part | {"score": pytest.approx(part["score"], abs=1e-4)} for part in together[row]]
        ]
    assert predict(engine, tasks, features, owners[::-1], told) != together
    engine.close()


@pytest.mark.parametrize("kind", DECODERS)
def test_classes_that_are_given_padded_rows_read_both_ways_too(
    kind: str, folders: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where rows cannot be laid end to end: the class's own attention and masks, whose padding has nothing to see
    where it is a window away from the row."""
    monkeypatch.setattr(backbone, "can_join", lambda _: False)
    engine = AdapterEngine(opened(folders(kind), torch.float32), slots=1, max_rank=3)
    slot = some_adapter(engine, 3, BOTH)
    sharing = engine.sharing_of(slot)
    assert sharing.lengths == ("equal" if kind in WINDOWS else "padded"), sharing
    inputs = token_batch([9, 9] if kind in WINDOWS else [9, 4])
    with torch.no_grad():
        ((_, outputs),) = engine.forward(inputs, torch.tensor([slot] * 2))
    engine.export(slot).save(tmp_path / "one")
    engine.close()
    model = plain_peft(folders(kind), tmp_path / "one", "eager", True, torch.float32)
    for row, mask in enumerate(inputs["attention_mask"].bool()):
        alone = model(input_ids=inputs["input_ids"][row, mask][None]).logits
        torch.testing.assert_close(outputs.logits[row, mask], alone[0], atol=1e-5, rtol=1e-5)


# -------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("kind", "attention", "why"),
    [
        ("gpt_neo", "bidirectional", "GPTNeoModel reads from left to right whatever is asked of it"),
        ("bert", "causal", "BertModel reads both ways, and in no other way"),
    ],
)
def test_a_class_that_does_not_read_so_is_refused_by_name(kind: str, attention: Any, why: str, folders: Any) -> None:
    engine = AdapterEngine(opened(folders(kind), torch.float32), slots=1, max_rank=2)
    for _ in range(2):  # compared, then remembered
        with pytest.raises(AdapterError, match=why):
            engine.init(LoraSpec(r=2), HeadSpec(WORDS, 3, attention=attention), seed=0)
        assert not engine.residents
    assert engine.init(LoraSpec(r=2), ONE, seed=0)
    engine.close()


@pytest.mark.parametrize(("kind", "attention"), [("bert", "bidirectional"), ("llama", "causal")])
def test_what_a_class_does_anyway_may_be_said(kind: str, attention: Any, folders: Any) -> None:
    engine = AdapterEngine(opened(folders(kind)), slots=2, max_rank=2)
    inputs = token_batch([9, 4])
    said, unsaid = (some_adapter(engine, 2, head) for head in (HeadSpec(WORDS, 3, attention=attention), ONE))
    ((_, one),) = engine.forward(inputs, torch.tensor([said] * 2))
    ((_, other),) = engine.forward(inputs, torch.tensor([unsaid] * 2))
    torch.testing.assert_close(one.logits, other.logits, atol=1e-9, rtol=0)
    engine.close()


# -------------------------------------------------------------------- what is kept


def test_an_adapter_keeps_how_it_reads(folders: Any, tmp_path: Path) -> None:
    """In its card and its hash; those of adapters that read as their class does stay what they were."""
    engine = AdapterEngine(opened(folders("llama"), torch.float32), slots=3, max_rank=2)
    both, one = (engine.export(some_adapter(engine, 2, head)) for head in (BOTH, ONE))
    assert both.sha256 != one.sha256
    both.save(tmp_path / "both")
    one.save(tmp_path / "one")
    assert json.loads((tmp_path / "both" / "ray_lora.json").read_text())["attention"] == "bidirectional"
    assert "attention" not in json.loads((tmp_path / "one" / "ray_lora.json").read_text())
    slot = engine.load(Adapter.load(tmp_path / "both"))
    assert engine.reads_both_ways(slot)
    assert engine.residents[slot].head == BOTH
    engine.close()
    kept = Card(task=TokenClassificationSpec(labels=("a", "b", "c"))).model_dump(mode="json")
    assert "attention" not in kept["task"]
    assert kept.keys() == {"task", "base", "base_fingerprint", "base_revision", "architecture"} | {
        "metrics",
        "recipe",
        "sha256",
    }


def test_a_foreign_adapter_reads_as_its_class_unless_it_is_said(folders: Any, tmp_path: Path) -> None:
    folder = folders("llama")
    engine = AdapterEngine(opened(folder, torch.float32), slots=1, max_rank=2)
    engine.export(some_adapter(engine, 2, BOTH)).save(tmp_path / "theirs")
    engine.close()
    (tmp_path / "theirs" / "ray_lora.json").unlink()
    task = {"type": "token-classification", "labels": ["a", "b", "c"]}
    theirs = Adapter.load(tmp_path / "theirs")
    for told, both in ((task, False), (task | {"attention": "bidirectional"}, True)):
        adopted = adopt(theirs, task=told)
        engine = AdapterEngine(opened(folder, torch.float32), slots=1, max_rank=2)
        slot = engine.load(replace(adopted, card=adopted.card.model_copy(update={"base": None})))
        assert engine.reads_both_ways(slot) is both
        engine.close()


def test_what_a_card_says_of_reading_stays_unless_the_task_says_otherwise() -> None:
    adapter = Adapter(LoraSpec(), {}, {}, Card(attention="bidirectional"))
    task = {"type": "token-classification", "labels": ["a", "b", "c"]}
    assert adopt(adapter, task=task).card.reads == "bidirectional"
    assert adopt(adapter, task=task | {"attention": "causal"}).card.reads == "causal"
