"""A temperature fitted on validation rows is divided out of the written adapter's head, for whoever answers with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from ray_lora.adapters.adapter import CARD, Adapter, Card
from ray_lora.adapters.peft_folder import PREFIX
from ray_lora.bases.load import load_base
from ray_lora.bases.plain import HeadSpec
from ray_lora.engine import AdapterEngine, LoneHead, last_layer
from ray_lora.inference.frozen import keep
from ray_lora.inference.head_alone import fit
from ray_lora.inference.predict import predict
from ray_lora.recipe import BaseSpec
from ray_lora.tasks import build_task
from ray_lora.training.calibration import Losses, calibrated
from ray_lora.training.shards import Splits
from tests.boxes.rows import BASE
from tests.unit.bases import TEXT, open_base, reopen, save_base, token_batch
from tests.unit.packs import LABELS, ROWS, Letters, WatchedPack, make_job, make_pack


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base("bert", tmp_path_factory.mktemp("bases") / "bert")


def train(folder: Path, output: Path, **training: object) -> WatchedPack:
    """Two jobs that train until they are too sure of themselves; one is calibrated unless `calibrate` says not."""
    pack = make_pack(folder, output=output)
    options = {"max_steps": 60, "eval_steps": 30, "head_start": "random"} | training
    pack.join(make_job("calibrated", 3, calibrate=True, **options))
    pack.join(make_job("as trained", 3, calibrate=False, **options))
    while pack.members:
        pack.step()
    return pack


def logits_of(folder: Path, adapter: Adapter) -> torch.Tensor:
    engine = AdapterEngine(open_base(folder, torch.float64, Letters()), slots=1)
    task, slot = build_task(LABELS[3], Letters()), engine.load(adapter)
    ((_, outputs),) = engine.forward(task.collate(ROWS[3]), torch.full((len(ROWS[3]),), slot))
    engine.close()
    return outputs.logits.detach()


def test_the_temperature_is_the_one_that_the_validation_rows_like_best(folder: Path, tmp_path: Path) -> None:
    pack = train(folder, tmp_path)
    one, other = (Adapter.load(tmp_path / name / "adapter") for name in ("calibrated", "as trained"))
    assert one.card.temperature is not None
    assert abs(one.card.temperature - 1) > 0.05
    raw, cool = logits_of(folder, other), logits_of(folder, one)
    torch.testing.assert_close(cool, raw / one.card.temperature, atol=1e-6, rtol=1e-6)
    assert torch.equal(cool.argmax(1), raw.argmax(1))
    targets = torch.tensor([row["labels"] for row in ROWS[3]])

    def loss(temperature: float) -> float:
        return float(F.cross_entropy(raw / temperature, targets))

    mine = one.card.temperature
    assert loss(mine) <= min(loss(mine * 0.9), loss(mine * 1.1), loss(1.0))
    # what training goes on from, and what it says of itself, are as without
    assert one.card.metrics == other.card.metrics
    for key, tensor in pack.left["as trained"].items():
        torch.testing.assert_close(tensor, pack.left["calibrated"][key], rtol=1e-9, atol=1e-9)
    assert other.card.temperature is None


def test_plain_peft_gives_the_same_scores(folder: Path, tmp_path: Path) -> None:
    train(folder, tmp_path)
    where = tmp_path / "calibrated" / "adapter"
    engine = AdapterEngine(open_base(folder, torch.float64, Letters()), slots=1)
    slot, batch = engine.load(Adapter.load(where)), token_batch(4)
    ((_, ours),) = engine.forward(batch, torch.full((4,), slot))
    theirs = reopen(folder, where, 3, dtype=torch.float64)(**batch).logits
    torch.testing.assert_close(ours.logits.softmax(-1), theirs.softmax(-1), atol=1e-6, rtol=0)
    engine.close()


def test_what_is_written_is_what_the_last_evaluation_asked_for(folder: Path, tmp_path: Path) -> None:
    """A job that is taken out keeps the temperature of the adapter that it keeps."""
    pack = make_pack(folder, output=tmp_path)
    pack.join(make_job("stopped", 3, max_steps=60, eval_steps=20, calibrate=True))
    for _ in range(25):
        pack.step()
    asked = pack.members["stopped"].temperature
    pack.stop("stopped")
    assert Adapter.load(tmp_path / "stopped" / "adapter").card.temperature == asked is not None


def test_without_validation_rows_nothing_is_divided(folder: Path, tmp_path: Path) -> None:
    pack = make_pack(folder, output=tmp_path)
    pack.data = {"3": Splits(pack.data["3"].train)}
    pack.join(make_job("blind", 3, max_steps=3, calibrate=True, head_start="auto"))
    while pack.members:
        pack.step()
    written = Adapter.load(tmp_path / "blind" / "adapter")
    assert written.card.temperature is None
    for name, tensor in written.tensors.items():
        torch.testing.assert_close(tensor, pack.left["blind"][name].to(tensor.dtype), atol=0, rtol=0)
    assert "temperature" not in json.loads((tmp_path / "blind" / "adapter" / CARD).read_text())


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("bert", ("classifier.weight", "classifier.bias")),
        ("roberta", ("classifier.out_proj.weight", "classifier.out_proj.bias")),
        ("llama", ("score.weight",)),
        ("gpt2", ("score.weight",)),
    ],
)
def test_the_layer_that_a_head_ends_in_is_found(tmp_path: Path, kind: str, names: tuple[str, ...]) -> None:
    engine = AdapterEngine(open_base(save_base(kind, tmp_path), processor=Letters()), slots=1)
    assert last_layer(engine, HeadSpec(TEXT, 3)) == names


def test_a_head_that_ends_otherwise_is_left_as_it_is(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of convolutions, a norm and a sigmoid."""
    monkeypatch.setenv("RAY_LORA_ALLOW", "tests.boxes")
    engine = AdapterEngine(load_base(BaseSpec(model=BASE, dtype="float32")), slots=1)
    assert last_layer(engine, HeadSpec("Finder", 5)) == ()
    train(folder, tmp_path, max_steps=2)
    adapter = Adapter.load(tmp_path / "as trained" / "adapter")
    assert calibrated(adapter, 2.0, ()) is adapter
    assert calibrated(adapter, None, ("classifier.weight",)) is adapter


def test_losses_are_summed_by_slot_and_over_workers(folder: Path) -> None:
    engine = AdapterEngine(open_base(folder, torch.float64, Letters()), slots=2)
    task = build_task(LABELS[3], Letters())
    head = LoneHead(engine.base, task.head)
    kept = keep(engine, task, ROWS[3])
    fit(head, task, kept, torch.ones_like(head.numbers), 100.0)
    slots = [engine.init(make_job("x").lora, task.head, seed) for seed in (1, 2)]
    for slot, factor in zip(slots, (4.0, 1.0), strict=True):
        named = {PREFIX + name: tensor * factor for name, tensor in head.tensors().items()}
        engine.write(slot, engine.read(slot) | named)
    rows, owners = list(ROWS[3]) * 2, [slots[0]] * len(ROWS[3]) + [slots[1]] * len(ROWS[3])
    whole, halves = Losses(engine), [Losses(engine), Losses(engine)]
    predict(engine, dict.fromkeys(slots, task), rows, owners, watch=whole.watch)
    for half, losses in enumerate(halves):
        predict(engine, dict.fromkeys(slots, task), rows[half::2], owners[half::2], watch=losses.watch)

    def add(sums: torch.Tensor) -> None:
        sums += halves[1]._sums

    halves[0].reduce(add)
    alone = Losses(engine)
    predict(engine, {slots[1]: task}, ROWS[3], [slots[1]] * len(ROWS[3]), watch=alone.watch)
    assert whole.best(slots[0]) / whole.best(slots[1]) == pytest.approx(4, rel=1e-2)
    assert halves[0].best(slots[0]) == pytest.approx(whole.best(slots[0]))
    assert alone.best(slots[1]) == pytest.approx(whole.best(slots[1]))
    assert whole.best(0) is None


def test_a_card_without_a_temperature_is_written_as_it_always_was() -> None:
    assert "temperature" not in Card().model_dump_json()
    assert Card.model_validate_json(Card(temperature=1.5).model_dump_json()).temperature == 1.5
