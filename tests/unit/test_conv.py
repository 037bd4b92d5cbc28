"""LoRA on convolutions: a tiny ResNet with batch norm, plain PEFT as the oracle."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from ray_lora.adapters.adapter import Adapter
from ray_lora.bases.load import Base
from ray_lora.engine import AdapterEngine, HeadSpec
from ray_lora.errors import AdapterError, RecipeError
from ray_lora.recipe import LoraSpec
from tests.unit.bases import (
    IMAGE,
    engine_on,
    logits_by_row,
    part,
    pixel_batch,
    plain,
    quiet_peft,
    reopen,
    save_base,
    toy_base,
    wrap,
)

CONVOLUTIONS = r".*convolution"
SETTINGS: list[tuple[int, int, dict[str, Any]]] = [  # rank, labels, options
    (2, 2, {"lora_alpha": 5, "target_modules": CONVOLUTIONS}),
    (8, 3, {"target_modules": CONVOLUTIONS, "rank_pattern": {"shortcut.convolution": 3}, "use_rslora": True}),
    (16, 4, {"target_modules": ["layer.1.convolution"], "alpha_pattern": {"stages.1.layers.0.layer.1.convolution": 2}}),
]
MIXED = [0, 1, 2, 3, 0, 3, 2, 1, 1, 0, 2, 3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base("resnet", tmp_path_factory.mktemp("bases") / "resnet")


@pytest.fixture(scope="module")
def oracles(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Any, Adapter]]:
    """Plain PEFT models, each with the adapter it saved. PEFT has no task type for images."""
    pairs = []
    for rank, labels, options in SETTINGS:
        model = plain(folder, labels, architecture=IMAGE)
        wrapped = wrap(model, seed=rank, r=rank, modules_to_save=["classifier"], **options)
        out = tmp_path_factory.mktemp("oracle")
        with quiet_peft():
            wrapped.save_pretrained(out)
        pairs.append((wrapped, Adapter.load(out)))
    return pairs


def load_all(engine: AdapterEngine, pairs: list[tuple[Any, Adapter]]) -> list[Any]:
    for slot, (_, adapter) in enumerate(pairs, start=1):
        assert engine.load(adapter) == slot
    return [model for model, _ in pairs]


@pytest.mark.parametrize("slots", [MIXED, sorted(MIXED), [3] * 12, [0] * 11 + [1]])
def test_each_image_of_a_mixed_batch_answers_as_peft_alone(folder: Path, oracles: Any, slots: list[int]) -> None:
    inputs = pixel_batch(12)
    untouched = plain(folder)(**inputs).last_hidden_state
    with engine_on(folder, slots=4, max_rank=16) as engine:
        models = load_all(engine, oracles)
        alone = [model(**inputs).logits for model in models]
        for row, logits in logits_by_row(engine, inputs, slots).items():
            torch.testing.assert_close(logits, alone[slots[row] - 1][row], atol=1e-5, rtol=1e-5)
        hidden = engine.hidden(inputs, torch.tensor(slots)).last_hidden_state
        bare = torch.tensor(slots) == 0
        torch.testing.assert_close(hidden[bare], untouched[bare], atol=1e-5, rtol=1e-5)
        assert not torch.isclose(hidden[~bare], untouched[~bare]).flatten(1).all(1).any()


def test_the_heads_class_is_the_one_peft_noted(folder: Path, oracles: Any) -> None:
    adapter = oracles[0][1]
    assert adapter.peft_type is None
    assert adapter.card.architecture == IMAGE
    nameless = Adapter(adapter.config, adapter.layers, adapter.head)
    with engine_on(folder, slots=1) as engine, pytest.raises(AdapterError, match="task_type None names no head class"):
        engine.load(nameless)


def test_exported_and_merged_convolutions_answer_as_here(folder: Path, oracles: Any, tmp_path: Path) -> None:
    inputs = pixel_batch(4)
    with engine_on(folder, slots=3, max_rank=16) as engine:
        for slot, (model, (_, labels, _)) in enumerate(zip(load_all(engine, oracles), SETTINGS, strict=True), start=1):
            here = torch.stack(list(logits_by_row(engine, inputs, [slot] * 4).values()))
            engine.export(slot).save(tmp_path / str(slot))
            again = reopen(folder, tmp_path / str(slot), labels, architecture=IMAGE)
            torch.testing.assert_close(again(**inputs).logits, model(**inputs).logits, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(again.merge_and_unload().eval()(**inputs).logits, here, atol=1e-4, rtol=1e-4)
            for key, tensor in oracles[slot - 1][1].tensors.items():
                assert torch.equal(engine.export(slot).tensors[key], tensor)


def test_gradients_are_those_of_peft_alone_and_batch_statistics_stay(folder: Path, oracles: Any) -> None:
    inputs, slots = pixel_batch(9), [1, 2, 3, 3, 2, 3, 1, 3, 3]
    with engine_on(folder, torch.float64, slots=4, max_rank=16, train=True) as engine:
        engine.reserve_head(HeadSpec(IMAGE, 4))
        models = [copy.deepcopy(model).double() for model in load_all(engine, oracles)]
        before = {name: value.clone() for name, value in engine.base.backbone.state_dict().items()}
        assert any("running_mean" in name for name in before)
        passes = engine.forward(inputs, torch.tensor(slots))
        sum(nn.functional.cross_entropy(o.logits, rows % 2, reduction="sum") for rows, o in passes).backward()
        for slot, model in enumerate(models, start=1):
            rows = [row for row, owner in enumerate(slots) if owner == slot]
            logits = model(pixel_values=inputs["pixel_values"][rows].double()).logits
            nn.functional.cross_entropy(logits, torch.tensor(rows) % 2, reduction="sum").backward()
            theirs = {
                key.replace(".default", "").replace(".modules_to_save", ""): parameter.grad
                for key, parameter in model.named_parameters()
                if parameter.grad is not None
            }
            ours = engine.read(slot, [engine.grad, *engine.head_grad.values()])
            assert set(ours) == set(theirs)
            for key, grad in ours.items():
                torch.testing.assert_close(grad, theirs[key], atol=1e-6, rtol=1e-5)
        assert not engine.grad[[0, 4]].any()
        after = engine.base.backbone.state_dict()
        assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_a_fresh_adapter_on_convolutions_starts_as_the_base(folder: Path) -> None:
    inputs = pixel_batch(4)
    with engine_on(folder, slots=2) as engine:
        slot = engine.init(LoraSpec(r=4, target_modules=CONVOLUTIONS), HeadSpec(IMAGE, 3), seed=0)
        hidden = engine.hidden(inputs, torch.full((4,), slot)).last_hidden_state
        bare = engine.hidden(inputs, torch.zeros(4, dtype=torch.long)).last_hidden_state
        assert torch.equal(hidden, bare)
        torch.testing.assert_close(bare, plain(folder)(**inputs).last_hidden_state, atol=1e-5, rtol=1e-5)
        model = wrap(plain(folder, 3, architecture=IMAGE), 0, r=4, target_modules=CONVOLUTIONS)
        for key, tensor in engine.read(slot).items():
            if "lora" in key:
                theirs = dict(model.named_parameters())[key.replace(".weight", ".default.weight")]
                assert tensor.shape == theirs.shape


def test_images_drop_their_own_pixels(folder: Path) -> None:
    inputs, draws = pixel_batch(4), torch.arange(4)
    with engine_on(folder, torch.float64, slots=1) as engine:
        slot = engine.init(LoraSpec(r=4, target_modules=CONVOLUTIONS, lora_dropout=0.5), None, seed=0)
        engine.write(slot, {key: value + 0.1 for key, value in engine.read(slot).items()})

        def hidden(rows: list[int], drawn: torch.Tensor | None) -> torch.Tensor:
            ((_, outputs),) = engine.forward(part(inputs, rows), torch.tensor([slot] * len(rows)), drawn)
            return outputs.last_hidden_state

        dropped = hidden([0, 1, 2, 3], draws)
        assert not torch.allclose(dropped, hidden([0, 1, 2, 3], None))
        torch.testing.assert_close(hidden([3, 1], draws[[3, 1]]), dropped[[3, 1]], atol=1e-12, rtol=1e-12)


# -------------------------------------------------------------------- convolutions that cannot be served


class _Standardised(nn.Conv2d):
    """A convolution of another weight than the one that it holds."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv2d(x, self.weight - self.weight.mean(), self.bias, padding=1)


class _Convolutions(nn.Module):
    """Convolutions that a backbone may hold."""

    base_model_prefix = "model"

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False)
        self.same = nn.Conv2d(6, 6, (1, 3), padding="same")
        self.standardised = _Standardised(6, 6, 3)

    def forward(self, pixel_values: torch.Tensor) -> Any:
        return SimpleNamespace(last_hidden_state=self.standardised(self.same(self.plain(pixel_values))))


def own_base() -> Base:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = _Convolutions().requires_grad_(False).eval()
    return toy_base(backbone, lambda draw: {"pixel_values": torch.randn(4, 8, 8, generator=draw)})


def test_a_convolution_that_computes_more_says_why_it_holds_no_adapter() -> None:
    engine = AdapterEngine(own_base(), slots=1, max_rank=4)
    assert set(engine.layers) == {"plain", "same"}
    for asked in (("plain", "standardised"), "all-convolutions"):
        with pytest.raises(RecipeError, match="target 'standardised' cannot hold an adapter: it is a _Standardised"):
            engine.init(LoraSpec(r=2, target_modules=asked), None, seed=0)
    assert engine.resident_slots == []


def test_strides_paddings_and_odd_kernels_are_pefts() -> None:
    base = own_base()
    pixels = {"pixel_values": torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))}
    model = wrap(copy.deepcopy(base.backbone), 1, r=3, lora_alpha=5, target_modules=["plain", "same"])
    engine = AdapterEngine(base, slots=1, max_rank=4)
    slot = engine.init(LoraSpec(r=3, lora_alpha=5, target_modules=("plain", "same")), None, seed=0)
    theirs = dict(model.named_parameters())
    engine.write(slot, {key: theirs[key.replace(".weight", ".default.weight")] for key in engine.read(slot)})
    mixed = engine.hidden(pixels, torch.tensor([slot, 0, slot])).last_hidden_state
    torch.testing.assert_close(mixed[[0, 2]], model(**pixels).last_hidden_state[[0, 2]], atol=1e-5, rtol=1e-5)
