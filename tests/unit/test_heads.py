"""Heads of any modules: convolutions, norms, embeddings and batch statistics, one copy a slot; plain PEFT as oracle."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn

from ray_lora.adapters.adapter import Adapter
from ray_lora.engine import AdapterEngine, HeadSpec, SlotOptimizer
from ray_lora.errors import AdapterError
from ray_lora.recipe import LoraSpec, TrainingSpec
from ray_lora.training.state import load_state, save_state
from tests.unit import shelf
from tests.unit.bases import engine_on, open_base, part, plain, quiet_peft, token_batch, wrap

LABELS = (2, 5, 3)
MIXED = [0, 1, 2, 3, 0, 3, 2, 1, 1, 0, 2, 3]
LORA: dict[str, Any] = {
    "target_modules": ["backbone.stem", "backbone.mix"],
    "modules_to_save": ["neck", "finder", "count"],
}
OUTPUTS = ("boxes", "scores", "count")


@pytest.fixture(autouse=True)
def _allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_LORA_ALLOW", "tests.unit.shelf")


@pytest.fixture(scope="module")
def oracles(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Any, Path]]:
    """PEFT models on the plain class with heads of 2, 5 and 3 labels, and the folders they saved."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_LORA_ALLOW", "tests.unit.shelf")
        pairs = []
        for labels in LABELS:
            model = wrap(shelf.plain_finder(labels), seed=labels, r=2, **LORA)
            folder = tmp_path_factory.mktemp("finder")
            with quiet_peft():
                model.save_pretrained(folder)
            pairs.append((model, folder))
    return pairs


def adapter_of(folder: Path) -> Adapter:
    """A folder that plain PEFT saved; it names no class of ours."""
    adapter = Adapter.load(folder)
    card = adapter.card.model_copy(update={"architecture": "Finder"})
    return Adapter(adapter.config, adapter.layers, adapter.head, card, None, adapter.head_modules)


def shelf_engine(dtype: torch.dtype = torch.float32, **options: Any) -> AdapterEngine:
    return AdapterEngine(shelf.open_shelf(dtype), max_rank=4, **options)


def pictures(rows: int, seed: int = 0) -> dict[str, Tensor]:
    return {"pixel_values": torch.stack([row["pixel_values"] for row in shelf.draw([0] * rows, seed)])}


def close(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    assert set(ours) == set(theirs) == set(OUTPUTS)
    for name in OUTPUTS:
        torch.testing.assert_close(ours[name], theirs[name], atol=tolerance, rtol=tolerance)


# -------------------------------------------------------------------- mixed = alone, PEFT in and out


@pytest.mark.parametrize("slots", [MIXED, sorted(MIXED), [2] * 12, [0] * 11 + [1]])
def test_each_row_answers_as_peft_alone(oracles: list[tuple[Any, Path]], slots: list[int]) -> None:
    inputs = pictures(12)
    engine = shelf_engine(slots=3)
    for slot, (_, folder) in enumerate(oracles, start=1):
        assert engine.load(adapter_of(folder)) == slot
    with torch.no_grad():
        for rows, outputs in engine.forward(inputs, torch.tensor(slots)):
            slot = slots[int(rows[0])]
            if slot:
                assert {slots[row] for row in rows.tolist()} == {slot}  # the heads' sizes differ
                close(outputs, oracles[slot - 1][0](pixel_values=inputs["pixel_values"][rows]))


def test_slots_of_one_size_share_a_pass(oracles: list[tuple[Any, Path]]) -> None:
    inputs, slots = pictures(9), [3, 1, 2, 1, 0, 3, 3, 2, 1]
    model = oracles[1][0]
    engine = shelf_engine(slots=3)
    for _ in range(3):
        engine.load(adapter_of(oracles[1][1]))
    names = {1: "finder.bias", 2: "neck.batch.running_mean", 3: "neck.group.weight"}
    for slot, name in names.items():  # each differs from the others in one tensor
        values = engine.read(slot)
        values[f"base_model.model.{name}"] += 1
        engine.write(slot, values)
    with torch.no_grad():
        passes = engine.forward(inputs, torch.tensor(slots))
        assert len(passes) == 2
        for rows, outputs in passes:
            for at, row in enumerate(rows.tolist()):
                if slots[row]:
                    tensor = _find(model, names[slots[row]])
                    tensor += 1
                    close({n: outputs[n][at : at + 1] for n in OUTPUTS}, model(inputs["pixel_values"][row : row + 1]))
                    tensor -= 1


def _find(model: Any, name: str) -> Tensor:
    """The trained copy of a head's tensor inside a PEFT model."""
    top, _, rest = name.partition(".")
    found: Tensor = model.base_model.model.get_submodule(top).modules_to_save["default"].state_dict()[rest]
    return found


def test_what_is_exported_answers_in_plain_peft_and_merged(oracles: list[tuple[Any, Path]], tmp_path: Path) -> None:
    from peft import PeftModel

    inputs = pictures(4)
    engine = shelf_engine(slots=3)
    for labels, (model, folder) in zip(LABELS, oracles, strict=True):
        slot, out = engine.load(adapter_of(folder)), tmp_path / str(labels)
        adapter = engine.export(slot)
        assert adapter.save(out) == Adapter.load(out).sha256
        theirs, ours = load_file(folder / "adapter_model.safetensors"), load_file(out / "adapter_model.safetensors")
        assert set(ours) == set(theirs)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs if not key.endswith("tracked"))
        with quiet_peft():
            again: Any = PeftModel.from_pretrained(shelf.Finder(shelf.open_shelf().backbone, labels), out).eval()  # type: ignore[arg-type]
        with torch.no_grad():
            close(again(**inputs), model(**inputs))
            close(again.merge_and_unload().eval()(**inputs), model(**inputs), 1e-4)
        assert "neck.batch.running_var" in adapter.head


# -------------------------------------------------------------------- packed = alone


def train(engine: AdapterEngine, optimizer: SlotOptimizer, slots: list[int], step: int) -> None:
    """One step: each slot on four pictures of its own, rows of all slots mixed."""
    rows = [slot for _ in range(4) for slot in slots]
    own = {slot: pictures(4, seed=100 * engine.residents[slot].head.num_labels + step) for slot in slots}  # type: ignore[union-attr]
    batch = torch.stack([own[slot]["pixel_values"][i // len(slots)] for i, slot in enumerate(rows)])
    passes = engine.forward({"pixel_values": batch.double()}, torch.tensor(rows))
    sum(((o[name] - 0.3) ** 2).mean() * len(index) for index, o in passes for name in OUTPUTS).backward()
    optimizer.step(dict.fromkeys(slots, 4.0))


SPEC = TrainingSpec(learning_rate=1e-2, weight_decay=0.1, lr_scheduler_type="constant")


@pytest.fixture
def pack() -> Iterator[tuple[AdapterEngine, SlotOptimizer, list[int]]]:
    engine = shelf_engine(torch.float64, slots=4, train=True)
    engine.reserve_head(HeadSpec("Finder", max(LABELS)))
    lora = LoraSpec(r=2, target_modules=("stem", "mix"))
    slots = [engine.init(lora, HeadSpec("Finder", labels), seed=labels) for labels in LABELS]
    optimizer = SlotOptimizer(engine)
    for slot in slots:
        optimizer.join(slot, SPEC, 10)
    yield engine, optimizer, slots
    engine.close()


def alone(labels: int) -> tuple[AdapterEngine, SlotOptimizer]:
    engine = shelf_engine(torch.float64, slots=1, train=True)
    engine.init(LoraSpec(r=2, target_modules=("stem", "mix")), HeadSpec("Finder", labels), seed=labels)
    optimizer = SlotOptimizer(engine)
    optimizer.join(1, SPEC, 10)
    return engine, optimizer


def test_packed_is_alone(pack: Any) -> None:
    engine, optimizer, slots = pack
    begin = {slot: engine.read(slot) for slot in slots}
    for step in range(6):
        train(engine, optimizer, slots, step)
    for slot, labels in zip(slots, LABELS, strict=True):
        single, own = alone(labels)
        for step in range(6):
            train(single, own, [1], step)
        expected = single.read(1)
        for key, value in engine.read(slot).items():
            torch.testing.assert_close(value, expected[key], atol=1e-9, rtol=1e-9)
            assert torch.equal(value, begin[slot][key]) == ("running" in key), key
    assert not any(buffer[[0, 4]].any() for buffer in engine.buffers.all)


def test_gradients_are_those_of_peft(oracles: list[tuple[Any, Path]]) -> None:
    import copy

    inputs, slots = pictures(9), [1, 2, 3, 3, 2, 3, 1, 3, 3]
    engine = shelf_engine(torch.float64, slots=3, train=True)
    engine.reserve_head(HeadSpec("Finder", 5))
    for _, folder in oracles:
        engine.load(adapter_of(folder))
    for half in ([0, 1, 2, 3, 4], [5, 6, 7, 8]):  # gradients of several passes add up
        passes = engine.forward(part(inputs, half), torch.tensor(slots)[half])
        sum((outputs[name] ** 2).sum() for _, outputs in passes for name in OUTPUTS).backward()
    for slot, (model, _) in enumerate(oracles, start=1):
        twin = copy.deepcopy(model).double()
        twin.requires_grad_(False)
        twin.set_adapter("default")
        rows = [row for row, owner in enumerate(slots) if owner == slot]
        outputs = twin(pixel_values=inputs["pixel_values"][rows].double())
        sum((outputs[name] ** 2).sum() for name in OUTPUTS).backward()
        theirs = {
            key.replace(".default", "").replace(".modules_to_save", ""): parameter.grad
            for key, parameter in twin.named_parameters()
            if parameter.grad is not None
        }
        ours = engine.read(slot, [engine.grad, *engine.head_grad.values()])
        assert set(ours) == set(theirs)
        for key, grad in ours.items():
            torch.testing.assert_close(grad, theirs[key], atol=1e-6, rtol=1e-5)


def test_a_checkpoint_goes_on_in_another_engine(pack: Any, tmp_path: Path) -> None:
    engine, optimizer, slots = pack
    key = "base_model.model.neck.batch.running_mean"
    engine.write(slots[1], engine.read(slots[1]) | {key: torch.rand(12, dtype=torch.float64)})
    for step in range(3):
        train(engine, optimizer, slots, step)
    save_state(tmp_path, engine, optimizer, slots[1], 3, [])
    other, second = alone(LABELS[1])
    assert load_state(tmp_path, other, second, 1) == (3, [], None)
    for step in range(3, 6):
        train(engine, optimizer, slots, step)
        train(other, second, [1], step)
    expected = engine.read(slots[1])
    for name, value in other.read(1).items():
        torch.testing.assert_close(value, expected[name], atol=1e-9, rtol=1e-9)


def test_biases_and_norms_are_not_decayed_and_statistics_not_trained(pack: Any) -> None:
    engine, optimizer, slots = pack
    before = engine.read(slots[0])
    optimizer.step({slots[0]: 1.0})  # no gradients: only decay moves a tensor
    moved = {
        key.removeprefix("base_model.model.") for key, v in engine.read(slots[0]).items() if (v != before[key]).any()
    }
    head = {key for key in moved if "lora" not in key}
    assert head == {"neck.conv.weight", "neck.places.weight", "finder.weight", "count.weight"}
    engine.evict(slots[0])
    assert not any(buffer[slots[0]].any() for buffer in engine.buffers.all)


# -------------------------------------------------------------------- how a head starts


def test_a_builders_head_starts_as_its_class_does() -> None:
    engine = shelf_engine(slots=3)
    state = torch.random.get_rng_state()
    spec = HeadSpec("Finder", 3)
    lora = LoraSpec(r=2, target_modules=("mix",))
    first, same, other = (engine.read(engine.init(lora, spec, seed=seed)) for seed in (4, 4, 5))
    assert torch.equal(torch.random.get_rng_state(), state)
    name = "base_model.model."
    assert (first[f"{name}finder.bias"] == -3).all()
    assert (first[f"{name}neck.batch.running_var"] == 1).all()
    assert first[f"{name}neck.places.weight"].std() > 0.8  # an Embedding's own start is normal(0, 1)
    assert all(torch.equal(first[key], same[key]) for key in first)
    assert not torch.equal(first[f"{name}finder.weight"], other[f"{name}finder.weight"])


def test_a_transformers_head_with_a_norm(tmp_path: Path) -> None:
    """DistilBERT's language-model head: Linear, LayerNorm, Linear, none of it tied."""
    config = transformers.DistilBertConfig(
        vocab_size=60,
        dim=32,
        n_layers=1,
        n_heads=4,
        hidden_dim=64,
        max_position_embeddings=40,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    transformers.DistilBertModel(config).save_pretrained(tmp_path / "base")
    name = "AutoModelForMaskedLM"
    names = ["vocab_transform", "vocab_layer_norm", "vocab_projector"]
    inputs = token_batch(4)
    with engine_on(tmp_path / "base", slots=2, max_rank=4) as engine:
        slot = engine.init(LoraSpec(r=2), HeadSpec(name, 2), seed=0)
        fresh = engine.read(slot)
        assert (fresh["base_model.model.vocab_layer_norm.weight"] == 1).all()
        assert not fresh["base_model.model.vocab_layer_norm.bias"].any()
        assert 0.015 < fresh["base_model.model.vocab_projector.weight"].std() < 0.025
        assert list(engine.export(slot).head_modules) == sorted(names)
        pairs = []
        for seed in (1, 2):
            model = wrap(
                plain(tmp_path / "base", 2, architecture=name),
                seed,
                r=2,
                target_modules=["q_lin"],
                modules_to_save=names,
            )
            with quiet_peft():
                model.save_pretrained(tmp_path / str(seed))
            pairs.append(model)
        engine.evict(slot)
        for seed in (1, 2):
            engine.load(Adapter.load(tmp_path / str(seed)))
        slots = [1, 2, 2, 1]
        with torch.no_grad():
            ((_, outputs),) = engine.forward(inputs, torch.tensor(slots))
            for row, slot in enumerate(slots):
                kept = inputs["attention_mask"][row].bool()
                expected = pairs[slot - 1](**inputs).logits[row, kept]
                torch.testing.assert_close(outputs.logits[row, kept], expected, atol=1e-5, rtol=1e-5)


# -------------------------------------------------------------------- what is refused by name


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("Loose", r"parameters \['scale'\] outside of a module of their own"),
        ("Twice", "ties 'again.weight' to another weight"),
        ("Alike", "a module 'out', and PEFT would take 'lora_dropout' for it"),
        ("Other", "there is no class 'Other'; there are Finder"),
    ],
)
def test_heads_that_cannot_have_a_copy_each(name: str, why: str) -> None:
    with pytest.raises(AdapterError, match=why):
        shelf_engine(slots=1).reserve_head(HeadSpec(name, 2))


def test_a_weight_that_is_read_without_a_call_is_refused() -> None:
    engine = shelf_engine(slots=1)
    with pytest.raises(AdapterError, match=r"reads queries\.weight without calling queries"):
        engine.init(LoraSpec(r=2, target_modules=("mix",)), HeadSpec("Reading", 2), seed=0)


def test_entries_that_are_nobodys_are_refused() -> None:
    engine = shelf_engine(slots=1)
    with pytest.raises(AdapterError, match="module 'queries' of a head saw 4 leading entries for 5 rows"):
        engine.init(LoraSpec(r=2, target_modules=("mix",)), HeadSpec("Flat", 2), seed=0)


def test_sizes_that_grow_unevenly_with_the_labels_are_refused() -> None:
    engine = shelf_engine(slots=1)
    engine.reserve_head(HeadSpec("Uneven", 5))
    with pytest.raises(AdapterError, match=r"last.weight of shape \(4, 8\), by its other sizes it would be"):
        engine.init(LoraSpec(r=2, target_modules=("mix",)), HeadSpec("Uneven", 2), seed=0)


def test_a_head_tied_to_the_base_is_refused(tmp_path: Path) -> None:
    config = transformers.DistilBertConfig(vocab_size=30, dim=16, hidden_dim=16, n_layers=1, n_heads=2)
    transformers.DistilBertModel(config).save_pretrained(tmp_path / "tied")
    engine = AdapterEngine(open_base(tmp_path / "tied"), slots=1)
    with pytest.raises(AdapterError, match=r"ties 'vocab_projector.weight' to another.*tie_word_embeddings: false"):
        engine.reserve_head(HeadSpec("AutoModelForMaskedLM", 2))


def test_a_head_of_another_shape_says_both(oracles: list[tuple[Any, Path]]) -> None:
    adapter = adapter_of(oracles[0][1])
    head = {**adapter.head, "finder.weight": nn.functional.pad(adapter.head["finder.weight"], (0, 0, 0, 0, 0, 1))}
    with pytest.raises(AdapterError, match=r"does not fit Finder on 'tests\.unit"):
        shelf_engine(slots=1).load(Adapter(adapter.config, adapter.layers, head, adapter.card))
