"""LoRA on convolutions: passes over 32 pictures of 32 adapters, and packed steps, beside the bare base and PEFT.

    python -m benchmarks.pictures [--bases yolox-tiny digits ...] [--rounds 7] [--quick]

Backbones alone, float32, one thread, an adapter of rank 8 on every convolution; pictures are noise, on which time does
not depend. All sides of a base are measured in one process, in turn; milliseconds are the least of the rounds.

`base`: the plain module in eval mode, as it was loaded. `engine bare`: slot 0 alone. `engine`: 32 pictures, an adapter
each. `engine, PEFT's`: on those convolutions only that PEFT can hold; `peft` the same with `adapter_names`, and
`peft, switched` one adapter after the other, a picture each. A training step is a mean of squares of all outputs,
backward and AdamW: PEFT trains one adapter, a pack K of them, on pictures of their own; `speed` is pictures a second
over PEFT's, on the layers that PEFT can hold. `drift` is the largest difference between PEFT's answers and the
engine's, over their size.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from benchmarks.machine import RESULTS, write
from ray_lora.bases.base import Base
from ray_lora.bases.load import load_base
from ray_lora.engine import AdapterEngine, SlotOptimizer, tensors_in
from ray_lora.engine.layers import beyond_peft, is_convolution
from ray_lora.recipe import BaseSpec, LoraSpec, TrainingSpec

K, RANK, PASS = 32, 8, 16  # PASS: pictures of a pass in training
KS, BATCHES = (1, 4, 16), (2, 8)
Side = Callable[[], Any]


@dataclass(frozen=True)
class Kind:
    """A base, and the sides of its pictures in a mixed pass and in training."""

    model: str
    answering: int
    training: int


BASES = {
    "yolox-tiny": Kind("yolox-tiny", 416, 256),
    "digits": Kind("data/digits-base", 32, 32),  # python -m pipelines.digits_base
    "efficientnet-lite0": Kind("efficientnet-lite0", 224, 224),
    "unet": Kind("data/unet", 128, 128),
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--bases", nargs="+", default=list(BASES), choices=list(BASES))
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--quick", action="store_true", help="two rounds, small pictures, no result file")
    asked = options.parse_args()
    rounds = 2 if asked.quick else asked.rounds
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # PEFT's, of modules that are no transformers model
    path = RESULTS / "pictures.json"
    results: dict[str, Any] = json.loads(path.read_text())["bases"] if path.exists() else {}
    for name in asked.bases:
        kind = BASES[name]
        if "/" in kind.model and not Path(kind.model).is_dir():
            print(f"{name}: {kind.model} is not there; left out", flush=True)
            continue
        answering, training = (min(side, 128) if asked.quick else side for side in (kind.answering, kind.training))
        found: dict[str, Any] = {"mixed": mixed(kind.model, answering, rounds, name)}
        found["training"] = [
            trained(kind.model, training, batch, rounds, name) for batch in (BATCHES[:1] if asked.quick else BATCHES)
        ]
        results[name] = found | {"rounds": rounds}
        if not asked.quick:
            print(write("pictures", {"what": __doc__, "bases": results}), flush=True)


def noise(rows: int, side: int) -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(rows, 3, side, side, generator=torch.Generator().manual_seed(0))}


def targets(base: Base, peft: bool) -> tuple[str, ...]:
    """Convolutions of rank 8, all or those that PEFT can hold."""
    held = ((name, module) for name, module in base.backbone.named_modules() if is_convolution(module))
    return tuple(name for name, module in held if not (peft and beyond_peft(module)))


def least(sides: dict[str, Side], rounds: int, told: str) -> dict[str, float]:
    """The least milliseconds of each side, all in turn."""
    for side in sides.values():
        side()
    best = dict.fromkeys(sides, float("inf"))
    for _ in range(rounds):
        for name, side in sides.items():
            began = time.perf_counter()
            side()
            best[name] = min(best[name], 1000 * (time.perf_counter() - began))
    print(f"{told}: {', '.join(f'{name} {value:.1f} ms' for name, value in best.items())}", flush=True)
    return best


# -------------------------------------------------------------------- answers


def mixed(model: str, side: int, rounds: int, told: str) -> dict[str, Any]:
    inputs, slots = noise(K, side), torch.arange(1, K + 1)
    bare = load_base(BaseSpec(model=model, dtype="float32")).backbone
    all_held, peft_held = engine_on(model, False), engine_on(model, True)
    peft = peft_like(peft_held)
    names = [str(slot) for slot in slots.tolist()]

    def switched() -> None:
        for row, name in enumerate(names):
            peft.set_adapter(name)
            peft(pixel_values=inputs["pixel_values"][row : row + 1])

    none = torch.zeros(K, dtype=torch.long)
    sides: dict[str, Side] = {
        "base": lambda: bare(**inputs),
        "engine bare": lambda: all_held.hidden(inputs, none),
        "engine": lambda: all_held.hidden(inputs, slots),
        "engine, PEFT's": lambda: peft_held.hidden(inputs, slots),
        "peft": lambda: peft(**inputs, adapter_names=names),
        "peft, switched": switched,
    }
    with torch.inference_mode():
        ours, theirs = (list(tensors_in(sides[name]())) for name in ("engine, PEFT's", "peft"))
        drift = max(
            float((a - b).abs().max() / b.abs().max().clamp(min=1.0)) for a, b in zip(ours, theirs, strict=True)
        )
        ms = least(sides, rounds, f"{told}, {K} pictures of {side} x {side}")
    ratios = {
        "engine / base": ms["engine"] / ms["base"],
        "engine bare / base": ms["engine bare"] / ms["base"],
        "peft / engine, PEFT's": ms["peft"] / ms["engine, PEFT's"],
        "peft, switched / engine, PEFT's": ms["peft, switched"] / ms["engine, PEFT's"],
    }
    print(
        "  " + ", ".join(f"{name} {value:.2f}" for name, value in ratios.items()) + f", drift {drift:.1e}", flush=True
    )
    return {"side": side, "milliseconds": ms, "ratios": ratios, "drift": drift}


def engine_on(model: str, peft: bool) -> AdapterEngine:
    """K adapters whose B is not zero."""
    base = load_base(BaseSpec(model=model, dtype="float32"))
    engine = AdapterEngine(base, slots=K, max_rank=RANK)
    spec = LoraSpec(r=RANK, target_modules=targets(base, peft))
    for seed in range(K):
        slot = engine.init(spec, None, seed=seed)
        draw = torch.Generator().manual_seed(seed)
        fresh = {
            key: torch.empty(value.shape).normal_(0, 0.02, generator=draw) if "lora_B" in key else value
            for key, value in engine.read(slot).items()
        }
        engine.write(slot, fresh)
    return engine


def peft_like(engine: AdapterEngine) -> Any:
    """A plain module with the engine's adapters in PEFT."""
    base = load_base(BaseSpec(model=engine.base.id, dtype="float32"))
    config = LoraConfig(r=RANK, lora_alpha=16, target_modules=list(engine.residents[1].targets))
    model: Any = get_peft_model(base.backbone, config, adapter_name="1")  # type: ignore[arg-type]
    for slot in range(2, K + 1):
        model.add_adapter(str(slot), config)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for slot in range(1, K + 1):
            for key, value in engine.read(slot).items():
                parameters[key.replace(".weight", f".{slot}.weight")].copy_(value)
    return model.eval()


# -------------------------------------------------------------------- training


def trained(model: str, side: int, batch: int, rounds: int, told: str) -> dict[str, Any]:
    sides: dict[str, Side] = {"peft": peft_step(model, side, batch)}
    for k in KS:
        sides[f"K={k}"] = pack_step(model, side, batch, k)
    ms = least(sides, rounds, f"{told}, a step of batch {batch}, {side} x {side}")
    speed = {f"K={k}": k * ms["peft"] / ms[f"K={k}"] for k in KS}
    print("  " + ", ".join(f"{name} {value:.2f}" for name, value in speed.items()), flush=True)
    return {"side": side, "batch": batch, "milliseconds": ms, "speed": speed}


def loss_of(outputs: Any) -> Tensor:
    """A sum over rows, so that one backward serves all of a pass."""
    return torch.stack([value.square().flatten(1).mean(1).sum() for value in tensors_in(outputs)]).sum()


def pack_step(model: str, side: int, batch: int, k: int) -> Side:
    base = load_base(BaseSpec(model=model, dtype="float32"))
    engine = AdapterEngine(base, slots=k, max_rank=RANK, train=True)
    spec, optimizer = LoraSpec(r=RANK, target_modules=targets(base, True)), SlotOptimizer(engine)
    slots = [engine.init(spec, None, seed=seed) for seed in range(k)]
    for slot in slots:
        optimizer.join(slot, TrainingSpec(learning_rate=1e-4), 10**6)
    owners = torch.tensor([slot for slot in slots for _ in range(batch)])
    inputs = noise(len(owners), side)

    def step() -> None:
        for begin in range(0, len(owners), PASS):
            part = {name: tensor[begin : begin + PASS] for name, tensor in inputs.items()}
            ((_, outputs),) = engine.forward(part, owners[begin : begin + PASS])
            loss_of(outputs).backward()  # type: ignore[no-untyped-call]
        optimizer.step(dict.fromkeys(slots, float(batch)))

    return step


def peft_step(model: str, side: int, batch: int) -> Side:
    base = load_base(BaseSpec(model=model, dtype="float32"))
    config = LoraConfig(r=RANK, lora_alpha=16, target_modules=list(targets(base, True)))
    wrapped: Any = get_peft_model(base.backbone, config)  # type: ignore[arg-type]
    parameters: Sequence[Any] = [p for p in wrapped.parameters() if p.requires_grad]
    optimizer, inputs = torch.optim.AdamW(parameters, lr=1e-4), noise(batch, side)

    def step() -> None:
        loss = loss_of(wrapped(**inputs)) / batch
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


if __name__ == "__main__":
    main()
