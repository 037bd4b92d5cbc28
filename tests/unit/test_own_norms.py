"""Batch norms of an adapter's own: their statistics are the rows' own, their gradients the plain class's, and a base
without any is told so."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ray_lora.adapters.adapter import Adapter
from ray_lora.adapters.peft_folder import CONFIG, PREFIX
from ray_lora.bases.load import load_base
from ray_lora.engine import AdapterEngine
from ray_lora.engine.own_norms import norms_in
from ray_lora.errors import AdapterError, RecipeError
from ray_lora.recipe import BaseSpec, LoraSpec, Recipe, TrainingSpec
from ray_lora.running.plan import plan_recipe
from ray_lora.tasks import build_task
from ray_lora.tasks.image_segmentation import ImageSegmentationSpec
from ray_lora.tasks.text_classification import TextClassificationSpec
from ray_lora.training.job import Job
from ray_lora.training.norm_starts import _ROWS
from ray_lora.training.pack import Pack
from ray_lora.training.shards import Group, Split, Splits
from tests.unit import segmentation
from tests.unit.bases import open_base
from tests.unit.cases import segmentation_case, with_norms
from tests.unit.test_pack import Meeting

SPEC = ImageSegmentationSpec(labels=segmentation.LABELS)
OWN = LoraSpec(r=2, target_modules=("conv1", "conv2"), batch_norms="own")
ROWS = 40  # in three passes, the last of which is not full


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return segmentation.tiny(tmp_path_factory.mktemp("bases") / "unet")


def pack_of(folder: Path, group: Group | None = None, slots: int = 3) -> Pack:
    """A worker's pack with its share of the rows."""
    group = group or Group()
    engine = AdapterEngine(open_base(folder, torch.float64), slots=slots, max_rank=4, train=True)
    rows = build_task(SPEC, engine.base.processor).encode([segmentation.row(number, 40, 40) for number in range(ROWS)])
    mine = {number: row for number, row in enumerate(rows) if number % group.world == group.rank}
    return Pack(engine, {"rows": Splits(Split(mine, ROWS))}, group=group)


def job_of(name: str, lora: LoraSpec = OWN, **training: Any) -> Job:
    told = {"max_steps": 2, "per_device_train_batch_size": 4, "logging_steps": 1, "calibrate": False} | training
    return Job(name, "rows", SPEC, lora, TrainingSpec(**told))


def norms_of(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    start = f"{PREFIX}segmenter."
    return {key.removeprefix(start): x for key, x in tensors.items() if key.startswith(start) and "lora" not in key}


def inputs_of_norms(folder: Path, pack: Pack) -> dict[str, Tensor]:
    """What each norm of the plain class is given, [channels, numbers], when it normalises as in training."""
    model = segmentation.plain(folder).double()
    seen: dict[str, list[Tensor]] = {}
    model.train()
    for name in norms_in(pack.engine.base.backbone):

        def note(_: nn.Module, args: Any, name: str = name) -> None:
            seen.setdefault(name, []).append(args[0].transpose(0, 1).flatten(1))

        model.get_submodule(f"segmenter.{name}").register_forward_pre_hook(note)
    task = build_task(SPEC, pack.engine.base.processor)
    rows = [pack.data["rows"].train.rows[row] for row in range(ROWS)]
    with torch.no_grad():
        for at in range(0, ROWS, _ROWS):
            model(**{key: x.double() for key, x in task.collate(rows[at : at + _ROWS]).items()})
    return {name: torch.cat(parts, 1) for name, parts in seen.items()}


def test_statistics_are_those_of_the_training_rows_in_every_layer(folder: Path) -> None:
    pack = pack_of(folder)
    before = {name: module.running_mean.clone() for name, module in norms_in(pack.engine.base.backbone).items()}
    slot = pack.join(job_of("own"))
    found = norms_of(pack.engine.read(slot))
    given = inputs_of_norms(folder, pack)
    assert len(given) == len(before) > 4
    for name, numbers in given.items():
        variance, mean = torch.var_mean(numbers, 1, correction=0)
        torch.testing.assert_close(found[f"{name}.running_mean"], mean, atol=1e-9, rtol=1e-9)
        torch.testing.assert_close(found[f"{name}.running_var"], variance, atol=1e-9, rtol=1e-9)
        assert not torch.allclose(mean, before[name], atol=0.05)
        own = pack.engine.base.backbone.get_submodule(name)
        assert torch.equal(own.running_mean, before[name])  # type: ignore[arg-type]  # the base keeps its own
        assert torch.equal(found[f"{name}.weight"], own.weight)  # type: ignore[arg-type]


def test_jobs_of_the_same_rows_are_measured_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[int] = []
    measure = AdapterEngine.measure_norms

    def counted(self: AdapterEngine, passes: Any) -> dict[str, Tensor]:
        measured.append(1)
        return measure(self, passes)

    monkeypatch.setattr(AdapterEngine, "measure_norms", counted)
    pack = pack_of(folder)
    slots = [pack.join(job_of(name)) for name in ("one", "two")]
    pack.join(job_of("base", LoraSpec(r=2, target_modules=("conv1",))))
    assert measured == [1]
    one, two = (norms_of(pack.engine.read(slot)) for slot in slots)
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("world", [2, 3])
def test_any_number_of_workers_finds_the_same(folder: Path, world: int) -> None:
    def work(group: Group) -> dict[str, Tensor]:
        pack = pack_of(folder, group)
        return pack.engine.read(pack.join(job_of("own", per_device_train_batch_size=12 // group.world)))

    alone = work(Group())
    for found in Meeting(world).run(work):
        assert all(torch.equal(found[name], alone[name]) for name in alone)


def test_gradients_are_those_of_the_plain_class(folder: Path) -> None:
    """Of scales, shifts and whatever lies before them, in rows of two adapters beside rows of the base's own norms."""
    engine = AdapterEngine(open_base(folder, torch.float64), slots=3, max_rank=4, train=True)
    task = build_task(SPEC, engine.base.processor)
    slots = [engine.init(OWN, task.head, seed) for seed in (0, 1)]
    slots.append(engine.init(OWN.model_copy(update={"batch_norms": "base"}), task.head, 2))
    draw = torch.Generator().manual_seed(0)
    for slot in slots:
        moved = {key: 0.1 * torch.rand(x.shape, generator=draw) for key, x in engine.read(slot).items()}
        engine.write(slot, {key: x + moved[key] for key, x in engine.read(slot).items()})
    engine.refresh(slots)
    rows = task.encode([segmentation.row(number, 40, 40) for number in range(6)])
    owners = [slots[0], slots[2], slots[1], slots[0], slots[1], slots[0]]
    passed = engine.forward(task.collate(rows), torch.tensor(owners))
    parts = [task.loss(outputs, [rows[row] for row in index.tolist()])[0].sum() for index, outputs in passed]
    assert len(parts) == 2
    torch.stack(parts).sum().backward()
    for slot in slots:
        plain = segmentation.plain(folder).double()
        mine = {key.removeprefix(PREFIX): x for key, x in engine.read(slot).items()}
        for name in ("conv1", "conv2"):
            for key in [key for key in mine if key.endswith(f"{name}.lora_A.weight")]:
                module: Any = plain.get_submodule(key.removesuffix(".lora_A.weight"))
                a, b = mine[key], mine[key.replace("lora_A", "lora_B")]
                change = (b.flatten(1) @ a.flatten(1)).view(module.weight.shape) * OWN.lora_alpha / OWN.r
                module.weight.data += change
        plain.load_state_dict({key: x for key, x in mine.items() if "lora" not in key}, strict=False)
        plain.eval().requires_grad_()
        chosen = [row for row, owner in zip(rows, owners, strict=True) if owner == slot]
        task.loss(plain(**{key: x.double() for key, x in task.collate(chosen).items()}), chosen)[0].sum().backward()
        head = engine.residents[slot].head
        assert head is not None
        grads = engine.read(slot, [engine.grad, engine.head_grad[head.kind]])
        named = dict(plain.named_parameters())
        compared = [key for key in grads if "lora" not in key]
        assert len(compared) == 2 if slot == slots[2] else len(compared) > 12
        for key in compared:
            torch.testing.assert_close(grads[key], named[key.removeprefix(PREFIX)].grad, atol=1e-9, rtol=1e-7)


def test_labels_of_a_later_job_find_room(folder: Path) -> None:
    """A pack makes room for the labels of all its jobs before any joins."""
    engine = AdapterEngine(open_base(folder, torch.float64), slots=2, max_rank=4, train=True)
    many, few = (
        build_task(
            ImageSegmentationSpec(labels=tuple(f"label {at}" for at in range(count))), engine.base.processor
        ).head
        for count in (5, 2)
    )
    engine.reserve_head(many)
    slots = [engine.init(OWN, head, 0) for head in (few, many)]
    assert [engine.read(slot)[f"{PREFIX}classifier.bias"].shape[0] for slot in slots] == [2, 5]


def test_a_folder_holds_them_as_plain_peft_has_it(folder: Path, tmp_path: Path) -> None:
    pack = pack_of(folder)
    slot = pack.join(job_of("own"))
    adapter = pack.engine.export(slot)
    adapter.save(tmp_path / "own")
    config = json.loads((tmp_path / "own" / CONFIG).read_text())
    assert "batch_norms" not in config
    norms = [f"segmenter.{name}" for name in norms_in(pack.engine.base.backbone)]
    assert config["modules_to_save"] == ["classifier", *norms]
    again = Adapter.load(tmp_path / "own")
    assert again.sha256 == adapter.sha256
    other = pack.engine.load(again)
    assert pack.engine.residents[other].head == pack.engine.residents[slot].head
    torn = dict(again.head)
    del torn[f"{norms[0]}.weight"]
    with pytest.raises(AdapterError, match="does not fit"):
        pack.engine.load(Adapter(again.config, again.layers, torn, again.card, None, again.head_modules))


def test_the_base_s_passes_are_as_before_when_its_engine_closes(folder: Path) -> None:
    case = with_norms(segmentation_case(folder))
    base = case.open()
    inputs = {key: x.double() for key, x in case.task.collate(case.features).items()}
    with torch.no_grad():
        before = base.backbone(**inputs)
        engine = AdapterEngine(base, slots=1, max_rank=2)
        slot = engine.init(OWN, case.task.head, 0)
        engine.write(slot, {key: x + 0.3 for key, x in engine.read(slot).items()})
        bare = engine.hidden(inputs, torch.zeros(len(case.rows), dtype=torch.long))
        mine = engine.hidden(inputs, torch.full((len(case.rows),), slot))
        engine.close()
        after = base.backbone(**inputs)
    for one, other in zip(_tensors(before), _tensors(after), strict=True):
        assert torch.equal(one, other)
    for one, other, own in zip(_tensors(before), _tensors(bare), _tensors(mine), strict=True):
        torch.testing.assert_close(one, other)
        assert not torch.allclose(one, own)


def _tensors(outputs: Any) -> Iterator[Tensor]:
    for value in outputs.values() if hasattr(outputs, "values") else vars(outputs).values():
        if isinstance(value, Tensor):
            yield value


def test_who_has_none_is_told(tiny_bert_folder: Path, folder: Path, tmp_path: Path) -> None:
    engine = AdapterEngine(load_base(BaseSpec(model=str(tiny_bert_folder))), slots=1)
    head = build_task(TextClassificationSpec(labels=("a", "b")), engine.base.processor).head
    with pytest.raises(RecipeError, match=r"lora\.batch_norms: own on base .*, and it has none; leave it out"):
        engine.init(LoraSpec(batch_norms="own"), head, 0)
    with pytest.raises(RecipeError, match="is for adapters with a head"):
        engine.init(LoraSpec(batch_norms="own"), None, 0)
    engine.close()
    (tmp_path / "rows.jsonl").write_text('{"text": "good", "label": "a"}\n{"text": "bad", "label": "b"}\n')
    told = {
        "base": {"model": str(tiny_bert_folder)}, "data": {"train": str(tmp_path / "rows.jsonl")},
        "lora": {"batch_norms": "own"}, "tracking": {"uri": None},
    }  # fmt: skip
    with pytest.raises(RecipeError, match="it has none; leave it out"):
        plan_recipe(Recipe.parse(told))
    with pytest.raises(RecipeError, match=r"training\.head_start: fitted and lora\.batch_norms: own are both given"):
        Recipe.parse(told | {"training": {"head_start": "fitted"}})
