"""LoRA on convolutions of every kind: the merged convolution is the oracle, and PEFT where it computes the same."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from ray_lora.adapters.adapter import Adapter
from ray_lora.adapters.peft_folder import LowRank
from ray_lora.bases.base import Base
from ray_lora.bases.geometry import Geometry
from ray_lora.engine import AdapterEngine, convolution
from ray_lora.engine.convolution import low_rank
from ray_lora.errors import AdapterError, RecipeError
from ray_lora.recipe import LoraSpec
from tests.unit.bases import quiet_peft, toy_base, wrap

PLAIN: dict[str, Callable[[], nn.Module]] = {  # what PEFT computes too
    "strided": lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1),
    "same": lambda: nn.Conv2d(4, 6, (1, 3), padding="same", bias=False),
    "point": lambda: nn.Conv2d(4, 6, 1),
    "strided point": lambda: nn.Conv2d(4, 6, 1, stride=(2, 3)),
    "even same": lambda: nn.Conv2d(4, 6, 4, padding="same"),
    "dilated point": lambda: nn.Conv2d(4, 6, 1, dilation=3),
    "line": lambda: nn.Conv1d(4, 6, 3, stride=2, padding=2),
    "volume": lambda: nn.Conv3d(4, 6, 3, padding=1, stride=(1, 2, 2)),
}
BEYOND: dict[str, Callable[[], nn.Module]] = {  # what PEFT refuses or would compute otherwise
    "dilated": lambda: nn.Conv2d(4, 6, 3, padding=2, dilation=2),
    "dilated same": lambda: nn.Conv2d(4, 6, 3, padding="same", dilation=(1, 2)),
    "reflect": lambda: nn.Conv2d(4, 6, 3, padding=(1, 2), padding_mode="reflect"),
    "circular": lambda: nn.Conv2d(4, 6, 3, padding="same", padding_mode="circular"),
    "replicate line": lambda: nn.Conv1d(4, 6, 3, padding=1, padding_mode="replicate"),
    "groups": lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2),
    "depthwise": lambda: nn.Conv2d(4, 4, 3, padding=1, stride=2, groups=4),
    "depthwise twice": lambda: nn.Conv2d(4, 8, 3, padding=2, dilation=2, groups=4),
    "grouped line": lambda: nn.Conv1d(4, 6, 3, padding="same", groups=2),
    "up": lambda: nn.ConvTranspose2d(4, 6, 2, stride=2),
    "up, odd": lambda: nn.ConvTranspose2d(4, 6, 3, stride=(2, 3), padding=1, output_padding=1, dilation=2),
    "up in groups": lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, groups=2),
    "up a line": lambda: nn.ConvTranspose1d(4, 6, 4, stride=2, padding=1),
}
KINDS = PLAIN | BEYOND
RANK, ALPHA = 3, 5.0
SPEC = LoraSpec(r=RANK, lora_alpha=ALPHA, target_modules=("body",))
MIXED = [0, 1, 2, 3, 0, 3]


class _One(nn.Module):
    """A Linear, which holds adapters too, and the convolution behind it."""

    base_model_prefix = "model"

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.mix = nn.Linear(4, 4)
        self.body = body

    def forward(self, pixel_values: Tensor) -> Any:
        return SimpleNamespace(last_hidden_state=self.body(self.mix(pixel_values.movedim(1, -1)).movedim(-1, 1)))


def pixels(body: Any, rows: int, side: int = 7) -> Tensor:
    axes = len(body.kernel_size)
    return torch.randn(rows, 4, *range(side, side + axes), generator=torch.Generator().manual_seed(0))


def base_of(kind: str, side: int = 7) -> Base:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = _One(KINDS[kind]()).requires_grad_(False).eval()
    example = pixels(backbone.body, 1, side)[0]
    return toy_base(backbone, lambda draw: {"pixel_values": torch.randn(example.shape, generator=draw)})


def fill(engine: AdapterEngine, spec: LoraSpec = SPEC) -> list[int]:
    """Three adapters of random numbers, the last one of a lower rank."""
    slots = []
    for seed in range(3):
        slot = engine.init(spec.model_copy(update={"r": spec.r - seed // 2}), None, seed=seed)
        draw = torch.Generator().manual_seed(seed)
        engine.write(slot, {key: torch.randn(value.shape, generator=draw) for key, value in engine.read(slot).items()})
        slots.append(slot)
    return slots


def pair_of(tensors: dict[str, Tensor], layer: str = "body") -> LowRank:
    a, b = (next(v for key, v in tensors.items() if key.endswith(f"{layer}.lora_{side}.weight")) for side in "AB")
    return LowRank(a, b)


def merged(backbone: Any, pair: LowRank, scaling: float) -> Any:
    """The plain module with B A in its convolution's weight, in float64."""
    whole = copy.deepcopy(backbone).double()
    body = whole.body
    a = pair.A.double().view(pair.rank, body.in_channels // body.groups, *body.kernel_size)
    change = low_rank(a, pair.B.double().flatten(1), Geometry.of(body))
    body.weight.data += scaling * change
    return whole


WAYS = (0, 10**6)  # pixels up to which all slots are one convolution in groups: none, and all


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_a_mixed_pass_answer_as_the_merged_convolution(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    base = base_of(kind)
    plain, x = copy.deepcopy(base.backbone), pixels(base.backbone.body, len(MIXED))
    with torch.no_grad():
        engine = AdapterEngine(base, slots=3, max_rank=4)
        fill(engine)
        alone = {0: plain.double()(x.double()).last_hidden_state}
        for slot in (1, 2, 3):
            pair = pair_of(engine.read(slot))
            alone[slot] = merged(plain, pair, ALPHA / pair.rank)(x.double()).last_hidden_state
        for few, slots in product(WAYS, (MIXED, sorted(MIXED), [1, 1, 2, 2, 3, 3], [2] * 6)):
            monkeypatch.setattr(convolution, "_FEW", few)
            given = x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 and slots != MIXED else x
            mixed = engine.hidden({"pixel_values": given}, torch.tensor(slots)).last_hidden_state
            for row, slot in enumerate(slots):
                torch.testing.assert_close(mixed[row].double(), alone[slot][row], atol=2e-5, rtol=2e-5)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_a_mixed_pass_are_the_merged_convolutions(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    base = base_of(kind)
    base = replace(base, backbone=base.backbone.double(), dtype=torch.float64)
    plain, x = copy.deepcopy(base.backbone), pixels(base.backbone.body, len(MIXED)).double()
    engine = AdapterEngine(base, slots=3, max_rank=4, train=True)
    fill(engine, SPEC.model_copy(update={"target_modules": ("mix", "body")}))
    for few, slots in product(WAYS, (MIXED, [1, 1, 2, 2, 3, 3], [2] * 6)):
        monkeypatch.setattr(convolution, "_FEW", few)
        engine.grad.zero_()
        ((_, outputs),) = engine.forward({"pixel_values": x}, torch.tensor(slots))
        states = outputs.last_hidden_state
        weights = torch.randn(states.shape, generator=torch.Generator().manual_seed(1)).double()
        (states * weights).sum().backward()
        for slot in set(slots) - {0}:
            tensors = {key: value.requires_grad_() for key, value in engine.read(slot).items()}
            mix, body = pair_of(tensors, "mix"), pair_of(tensors)
            scale, conv = ALPHA / body.rank, plain.body
            a = body.A.view(body.rank, conv.in_channels // conv.groups, *conv.kernel_size)
            weight = conv.weight + scale * low_rank(a, body.B.flatten(1), Geometry.of(conv))
            first = plain.mix.weight + scale * mix.B @ mix.A
            changed = {"mix.weight": first, "body.weight": weight}
            mine = torch.tensor([owner == slot for owner in slots])
            answer = torch.func.functional_call(plain, changed, (x[mine],)).last_hidden_state
            (answer * weights[mine]).sum().backward()
            for key, grad in engine.read(slot, [engine.grad]).items():
                theirs = tensors[key].grad
                assert theirs is not None
                torch.testing.assert_close(grad, theirs, atol=1e-9, rtol=1e-9)
        assert not engine.grad[0].any()


# -------------------------------------------------------------------- PEFT


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("kind", PLAIN)
def test_pefts_adapters_answer_here_and_ours_in_peft(kind: str, tmp_path: Path) -> None:
    base = base_of(kind)
    plain, x = copy.deepcopy(base.backbone), pixels(base.backbone.body, 4)
    theirs = wrap(copy.deepcopy(plain), 1, r=RANK, lora_alpha=ALPHA, target_modules=["body", "mix"])
    with quiet_peft():
        theirs.save_pretrained(tmp_path / "theirs")
    engine = AdapterEngine(base, slots=1, max_rank=4)
    slot = engine.load(Adapter.load(tmp_path / "theirs"))
    inputs = {"pixel_values": x}
    with torch.no_grad():
        mixed = engine.hidden(inputs, torch.tensor([slot, 0, slot, slot])).last_hidden_state
        torch.testing.assert_close(mixed[2:], theirs(**inputs).last_hidden_state[2:], atol=2e-5, rtol=2e-5)
        adapter = engine.export(slot)
        assert adapter.card.beyond_peft == ()
        adapter.save(tmp_path / "ours")
        with quiet_peft():
            again = PeftModel.from_pretrained(plain, tmp_path / "ours").eval()
        torch.testing.assert_close(mixed[2:], again(**inputs).last_hidden_state[2:], atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("kind", BEYOND)
def test_what_peft_does_not_compute_says_so_and_peft_refuses_it(kind: str, tmp_path: Path) -> None:
    base = base_of(kind)
    plain = copy.deepcopy(base.backbone)
    engine = AdapterEngine(base, slots=2, max_rank=4)
    slot = fill_one(engine)
    adapter = engine.export(slot)
    assert len(adapter.card.beyond_peft) == 1
    assert adapter.card.beyond_peft[0].startswith("body: a ")
    adapter.save(tmp_path)
    said = r"not supported|size mismatch|divisible"
    with quiet_peft(), pytest.raises((ValueError, RuntimeError), match=said):
        PeftModel.from_pretrained(plain, tmp_path)
    again = engine.load(Adapter.load(tmp_path))
    for key, tensor in engine.read(slot).items():
        assert torch.equal(engine.read(again)[key], tensor)


@pytest.mark.parametrize("kind", ["dilated same", "reflect", "groups"])
def test_pairs_that_peft_trained_otherwise_are_refused(kind: str, tmp_path: Path) -> None:
    base = base_of(kind)
    with quiet_peft():
        theirs = get_peft_model(copy.deepcopy(base.backbone), LoraConfig(r=4, target_modules=["body"]))
        theirs.save_pretrained(tmp_path)
    engine = AdapterEngine(base, slots=1, max_rank=4)
    with pytest.raises(AdapterError, match=r"'body' .*PEFT.*train"):
        engine.load(Adapter.load(tmp_path))


def fill_one(engine: AdapterEngine) -> int:
    slot = engine.init(SPEC, None, seed=0)
    engine.write(slot, {key: torch.full_like(value, 0.5) for key, value in engine.read(slot).items()})
    return slot


# -------------------------------------------------------------------- which convolutions are asked for


class _Several(nn.Module):
    base_model_prefix = "model"

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.Conv2d(4, 6, 1))
        self.up = nn.ConvTranspose2d(6, 4, 2, stride=2)
        self.last = nn.Linear(4, 4)

    def forward(self, pixel_values: Tensor) -> Any:
        return SimpleNamespace(last_hidden_state=self.last(self.up(self.conv(pixel_values)).movedim(1, -1)))


@pytest.mark.parametrize(
    ("asked", "excluded", "found"),
    [
        ("all-linear", None, {"last"}),
        ("all-convolutions", None, {"conv.0", "conv.1", "up"}),
        ("all-convolutions", ("up",), {"conv.0", "conv.1"}),
        ("all-layers", None, {"conv.0", "conv.1", "up", "last"}),
    ],
)
def test_words_for_kinds_of_layers(asked: str, excluded: Any, found: set[str]) -> None:
    base = toy_base(_Several().eval(), lambda draw: {"pixel_values": torch.randn(4, 8, 8, generator=draw)})
    engine = AdapterEngine(base, slots=1, max_rank=4)
    spec = LoraSpec(r=2, target_modules=asked, exclude_modules=excluded)
    assert set(engine.match(spec, None)) == found
    saved = engine.export(engine.init(spec, None, seed=0))
    assert set(saved.layers) == found


def test_a_rank_that_a_depthwise_convolution_cannot_use_is_refused() -> None:
    engine = AdapterEngine(base_of("depthwise"), slots=1, max_rank=16)
    with pytest.raises(RecipeError, match=r"rank 5 exceeds the width 4 of layer 'body'; .*lora.rank_pattern"):
        engine.match(LoraSpec(r=5, target_modules=("body",)), None)
