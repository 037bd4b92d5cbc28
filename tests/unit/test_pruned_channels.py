"""Channels of convolutions cut out of a base: exact where they are nothing, scored by plain gradients, fitted anew."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from ray_lora.bases.base import Base
from ray_lora.bases.efficientnet import EfficientNetConfig, save_folder
from ray_lora.bases.load import load_base
from ray_lora.bases.plain import HeadSpec
from ray_lora.engine import AdapterEngine
from ray_lora.errors import AdapterError, BaseModelError, RecipeError
from ray_lora.inference.stored import evaluate_ref
from ray_lora.pruning import prune_ref
from ray_lora.pruning.cut import cut_adapter, cut_config, cut_state
from ray_lora.pruning.folder import Whole, read_whole, write_cut
from ray_lora.pruning.importance import BATCH, importance_of
from ray_lora.pruning.kinds import Kind, kind_of
from ray_lora.pruning.plan import Plan, random_plan
from ray_lora.pruning.refit import refit
from ray_lora.pruning.shapes import Sizes, shapes_within
from ray_lora.recipe import BaseSpec, LoraSpec, TrainingSpec
from ray_lora.tasks import Task, build_task
from ray_lora.tasks.image_classification import ImageClassificationSpec
from ray_lora.training.job import Job
from ray_lora.training.pack import Pack
from ray_lora.training.shards import Split, Splits
from tests.unit.exported import put
from tests.unit.test_efficientnet import SMALL, tensors_of
from tests.unit.test_pruning import page

SPEC = ImageClassificationSpec(labels=("dark", "light"))
LORA = LoraSpec(r=2, lora_alpha=5, target_modules=("_expand_conv", "_project_conv", "_conv_head"))
World = tuple[Base, Kind, Sizes, Whole]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny EfficientNet of random weights; the norms let as much through as comes in."""
    out = tmp_path_factory.mktemp("pruned") / "lite"
    tensors = tensors_of(SMALL)
    for name, tensor in tensors.items():
        if name.endswith("_conv.weight"):
            tensor.normal_(0, tensor[0].numel() ** -0.5, generator=torch.Generator().manual_seed(len(name)))
    save_folder(tensors, SMALL, out)
    return out


def opened(folder: Path) -> World:
    base = load_base(BaseSpec(model=str(folder), dtype="float32"))
    kind = kind_of(base)
    return base, kind, Sizes.of(base.backbone, base.config, kind), read_whole(base)


def pictures(count: int) -> list[dict[str, Any]]:
    """Of noise, dark and light."""
    draw, rows = np.random.default_rng(0), []
    for number in range(count):
        file = io.BytesIO()
        low = 128 * (number % 2)
        Image.fromarray(draw.integers(low, low + 128, (32, 32, 3), dtype=np.uint8)).save(file, "PNG")
        rows.append({"image": file.getvalue(), "label": SPEC.labels[number % 2]})  # type: ignore[index]
    return rows


def rows_for(base: Base, count: int = 24) -> tuple[Task, list[Any]]:
    task = build_task(SPEC, base.processor)
    return task, task.encode(pictures(count))


def half(sizes: Sizes, seed: int = 0) -> Plan:
    return random_plan(sizes, shapes_within(sizes, 0.5)[0], seed)


def gone_in(plan: Plan, sizes: Sizes, layer: int) -> Tensor:
    gone = torch.ones(sizes.units[layer], dtype=torch.bool)
    gone[plan.rows[layer]] = False
    return gone


def written(folder: Path, world: World, state: Any, plan: Plan) -> Base:
    base, kind, sizes, whole = world
    small = cut_state(state, whole.prefix, kind, plan, sizes)
    write_cut(folder, base, whole, small, cut_config(whole.model.config, plan.shape, sizes), page("small"))
    return load_base(BaseSpec(model=str(folder), dtype="float32"))


def test_cutting_what_is_zero_changes_no_output(folder: Path, tmp_path: Path) -> None:
    """Channels whose norm gives nothing; the fit leaves every number as it is."""
    base, kind, sizes, whole = opened(folder)
    plan, state = half(sizes), dict(whole.state)
    for layer in range(1, sizes.whole.layers):
        gone = gone_in(plan, sizes, layer)
        for part in ("weight", "bias"):
            name = f"{whole.prefix}_blocks.{layer}._bn1.{part}"
            state[name] = torch.where(gone, 0, state[name])
    save_folder({name.removeprefix(whole.prefix): value for name, value in state.items()}, SMALL, tmp_path / "zeroed")
    base, kind, sizes, whole = world = opened(tmp_path / "zeroed")
    task, features = rows_for(base)
    engine = AdapterEngine(base, slots=1, max_rank=1)
    changed = refit(engine, task, features, whole.state, whole.prefix, kind, plan, sizes)
    engine.close()
    assert len(changed) == 2 * (sizes.whole.layers - 1)
    cut = written(tmp_path / "small", world, {**whole.state, **changed}, plan)
    assert cut.config.inner[1:] == plan.shape.channels[1:]
    batch = task.collate(features[:5])
    with torch.no_grad():
        torch.testing.assert_close(
            cut.backbone(**batch).last_hidden_state, base.backbone(**batch).last_hidden_state, atol=2e-5, rtol=2e-5
        )
    for name, value in changed.items():
        if not name.endswith("running_mean"):
            layer = int(name.split(".")[2])
            kept = plan.rows[layer]
            torch.testing.assert_close(value[:, kept], whole.state[name][:, kept], atol=1e-6, rtol=1e-5)


def test_a_cut_base_computes_what_its_origin_computes_without_the_channels(folder: Path, tmp_path: Path) -> None:
    base, kind, sizes, whole = world = opened(folder)
    plan = half(sizes, seed=3)
    cut = written(tmp_path / "small", world, whole.state, plan)
    with torch.no_grad():
        for layer in range(1, sizes.whole.layers):
            base.backbone.get_submodule(f"_blocks.{layer}._project_conv").weight[:, gone_in(plan, sizes, layer)] = 0  # type: ignore[index]
        task, features = rows_for(base, 6)
        batch = task.collate(features)
        wanted, found = base.backbone(**batch).last_hidden_state, cut.backbone(**batch).last_hidden_state
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=2e-5)
    count = sum(parameter.numel() for parameter in cut.backbone.get_submodule(kind.blocks).parameters())
    assert count == sizes.parameters(plan.shape)
    assert cut.fingerprint != base.fingerprint
    assert opened(tmp_path / "small")[2].whole == plan.shape  # it can be cut again


def test_importance_is_loraprunes_of_plain_gradients(folder: Path) -> None:
    base, kind, sizes, whole = opened(folder)
    task, features = rows_for(base, 2 * BATCH)
    weights = {
        name.removeprefix(whole.prefix).removesuffix(".weight"): tensor
        for name, tensor in whole.state.items()
        if tensor.dim() > 1
    }
    engine = AdapterEngine(base, slots=1, max_rank=4, train=True)
    slot = engine.init(LORA, task.head, seed=1, peft_type=task.peft_type)
    draw = torch.Generator().manual_seed(5)
    engine.write(
        slot,
        {
            key: torch.empty(value.shape).normal_(0, 0.2, generator=draw) if "lora_" in key else value
            for key, value in engine.read(slot).items()
        },
    )
    engine.refresh([slot])
    adapter = engine.export(slot)
    found = importance_of(engine, slot, adapter, task, features, weights, kind, sizes)
    engine.close()
    model: Any = base.fresh(HeadSpec(task.head.architecture, 2))
    setattr(model, base.prefix, base.backbone)
    model.eval().load_state_dict(dict(adapter.head), strict=False)
    wanted = [torch.zeros(count, dtype=torch.float64) for count in sizes.units]
    for part in (features[:BATCH], features[BATCH:]):
        leaves = {
            name: (pair.A.clone().requires_grad_(), (pair.B * adapter.scaling(name)).clone().requires_grad_())
            for name, pair in adapter.layers.items()
        }
        full = {name: weights[name.removeprefix(whole.prefix)] for name in leaves}
        changed = {
            f"{name}.weight": full[name] + (b.flatten(1) @ a.flatten(1)).view_as(full[name])
            for name, (a, b) in leaves.items()
        }
        losses, terms = task.loss(torch.func.functional_call(model, changed, kwargs=task.collate(part)), part)
        (losses.sum() / terms.sum()).backward()
        for name, leaf in leaves.items():
            a, b, da, db = (one.flatten(1) for one in (*leaf, *(one.grad for one in leaf)))  # type: ignore[union-attr]
            with torch.no_grad():
                gradient = db @ a + b @ da - db @ da
                worth = (gradient * (full[name].flatten(1) + b @ a)).square().double()
            inner = name.removeprefix(whole.prefix).split(".")
            if inner[0] == "_blocks" and int(inner[1]):
                wanted[int(inner[1])] += worth.sum(1 if inner[2] == "_expand_conv" else 0) / 2
    for mine, theirs in zip(found.rows, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=5e-3, atol=1e-10)
    assert all(bool((values > 0).any()) for values in found.rows[1:])


def test_the_fit_brings_what_a_block_gives_nearer_to_the_bases_own(folder: Path, tmp_path: Path) -> None:
    """Its mean exactly, which the norm behind takes over; its squares by less error than without a fit."""
    base, kind, sizes, whole = world = opened(folder)
    task, features = rows_for(base)
    shape = replace(sizes.whole, channels=(*sizes.whole.channels[:1], 16, *sizes.whole.channels[2:]))
    plan = random_plan(sizes, replace(shape, rows=sum(shape.channels)), 1)
    engine = AdapterEngine(base, slots=1, max_rank=1)
    changed = refit(engine, task, features, whole.state, whole.prefix, kind, plan, sizes)
    engine.close()
    assert set(changed) == {f"{whole.prefix}_blocks.1.{name}" for name in ("_project_conv.weight", "_bn2.running_mean")}
    batch, given = task.collate(features), []
    for name, state in (("plain", dict(whole.state)), ("fitted", {**whole.state, **changed})):
        cut = written(tmp_path / name, world, state, plan)
        given.append(_of_block(cut.backbone, batch))
    wanted = _of_block(base.backbone, batch)
    errors = [float((one - wanted).square().mean()) for one in given]
    assert errors[1] < 0.7 * errors[0]
    means = [(one - wanted).mean((0, 2, 3)).abs().max() for one in given]
    assert means[1] < 1e-4 < means[0]


def _of_block(backbone: nn.Module, batch: Any) -> Tensor:
    found: list[Tensor] = []
    hook = backbone.get_submodule("_blocks.1").register_forward_hook(lambda _, __, output: found.append(output))
    with torch.no_grad():
        backbone(**batch)
    hook.remove()
    return found[0]


def test_every_block_loses_the_same_share_down_to_multiples_of_eight(folder: Path) -> None:
    _, _, sizes, _ = opened(folder)
    assert sizes.whole.channels[0] == 0  # the first block does not widen
    for keep in (0.35, 0.5, 0.8):
        (shape,) = shapes_within(sizes, keep)
        assert sizes.parameters(shape) <= keep * sizes.parameters(sizes.whole)
        assert shape.channels[0] == 0
        assert all(count and count % 8 == 0 for count in shape.channels[1:])
        share = (keep * sizes.parameters(sizes.whole) - sizes.fixed) / (sizes.parameters(sizes.whole) - sizes.fixed)
        for count, whole in zip(shape.channels[1:], sizes.whole.channels[1:], strict=True):
            assert share * whole - 8 < count <= share * whole or count == 8
    assert shapes_within(sizes, 1.0) == [sizes.whole]
    with pytest.raises(RecipeError, match=r"--layers is for bases whose layers are alike; leave it out"):
        shapes_within(sizes, 0.5, layers=2)
    with pytest.raises(RecipeError, match=r"--keep 0\.01 leaves too little of this base; give at least 0\.\d+"):
        shapes_within(sizes, 0.01)


def test_a_config_says_channels_for_each_block_that_widens() -> None:
    with pytest.raises(ValueError, match="expanded has 2 numbers, and 15 blocks widen; give one for each"):
        EfficientNetConfig(expanded=(8, 8))
    assert EfficientNetConfig(expanded=(8,) * 15).inner == (32, *(8,) * 15)


@pytest.mark.parametrize("norms", ["base", "own"])
def test_a_ref_becomes_a_base_of_its_own(norms: Any, folder: Path, tmp_path: Path) -> None:
    store, rows = str(tmp_path / "store"), str(tmp_path / "rows.parquet")
    put(tmp_path / "store", folder, "shades", SPEC, LORA.model_copy(update={"batch_norms": norms}))
    pq.write_table(pa.Table.from_pylist(pictures(24)), rows)
    card = prune_ref("shades", tmp_path / "small", keep=0.5, data=rows, store=store)
    assert card == json.loads((tmp_path / "small" / "pruning.json").read_text())
    before, after = card["before"], card["after"]
    assert after["layer_parameters"] <= 0.5 * before["layer_parameters"]
    assert (before["feed_forward_rows"], before["layers"]) == (None, after["layers"])
    assert before["channels"] > after["channels"]
    assert "| channels |" in (tmp_path / "small" / "README.md").read_text()
    assert (tmp_path / "small" / "preprocessor_config.json").read_bytes() == (
        folder / "preprocessor_config.json"
    ).read_bytes()
    small = load_base(BaseSpec(model=str(tmp_path / "small"), dtype="float32"))
    assert small.fingerprint == card["fingerprint"] != card["origin_fingerprint"]
    with pytest.raises(BaseModelError, match="this engine holds"):
        evaluate_ref("shades", rows, store, base=str(tmp_path / "small"))
    whole = prune_ref("shades", tmp_path / "whole", keep=1.0, data=rows, store=store)
    assert whole["fingerprint"] == card["origin_fingerprint"]
    _train_one(small)


def _train_one(base: Base) -> None:
    _, rows = rows_for(base, 48)
    engine = AdapterEngine(base, slots=1, max_rank=2, train=True)
    split = Split(dict(enumerate(rows)), len(rows))
    pack = Pack(engine, {"rows": Splits(split, split)})
    pack.join(
        Job(
            "one",
            "rows",
            SPEC,
            LORA,
            TrainingSpec(num_train_epochs=10, learning_rate=2e-2, per_device_train_batch_size=8),
        )
    )
    losses: list[float] = []
    while pack.members:
        for report in pack.step():
            assert report.error is None
            losses.append(report.loss)
    engine.close()
    assert losses[-1] < 0.9 * losses[0], losses


def test_an_adapter_is_cut_like_its_base(folder: Path, tmp_path: Path) -> None:
    """Its pairs, also one on the convolution of each channel, and norms of its own."""
    base, kind, sizes, whole = world = opened(folder)
    plan = half(sizes)
    cut = written(tmp_path / "small", world, whole.state, plan)
    lora = LORA.model_copy(
        update={"target_modules": ("_expand_conv", "_depthwise_conv", "_project_conv"), "batch_norms": "own"}
    )
    adapter = put(tmp_path / "store", folder, "shades", SPEC, lora)
    small = cut_adapter(adapter, whole.prefix, kind, plan, sizes)
    card = small.card.model_copy(update={"base_fingerprint": cut.fingerprint, "base": cut.id, "sha256": None})
    engine = AdapterEngine(cut, slots=1, max_rank=4)
    slot = engine.load(replace(small, card=card))
    task, features = rows_for(base, 4)
    batch = task.collate(features)
    with torch.no_grad():
        ((_, found),) = engine.forward(batch, torch.tensor([slot] * 4))
        engine.close()
        for layer in range(1, sizes.whole.layers):  # the whole one, in which nothing reads what is gone
            name, gone = f"_blocks.{layer}._project_conv", gone_in(plan, sizes, layer)
            base.backbone.get_submodule(name).weight[:, gone] = 0  # type: ignore[index]
            adapter.layers[f"{whole.prefix}{name}"].A[:, gone] = 0
        engine = AdapterEngine(base, slots=1, max_rank=4)
        ((_, wanted),) = engine.forward(batch, torch.tensor([engine.load(adapter)] * 4))
        engine.close()
    torch.testing.assert_close(found.logits, wanted.logits, atol=1e-4, rtol=1e-4)


def test_an_adapter_that_leaves_the_channels_out_is_refused(folder: Path, tmp_path: Path) -> None:
    put(tmp_path / "store", folder, "top", SPEC, LoraSpec(r=2, target_modules=("_conv_head",)))
    pq.write_table(pa.Table.from_pylist(pictures(8)), tmp_path / "rows.parquet")
    with pytest.raises(AdapterError, match=r"no pair on .*_blocks\.1\._expand_conv.*'_expand_conv', '_project_conv'"):
        prune_ref(
            "top", tmp_path / "small", keep=0.5, data=str(tmp_path / "rows.parquet"), store=str(tmp_path / "store")
        )
    assert not (tmp_path / "small").exists()
