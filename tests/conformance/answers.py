"""Mixed = alone, PEFT in and out, merged, for adapters of any task.

Rows are compared by their answers, and by the task's own loss of each, which shows the outputs at full precision.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from ray_lora.adapters.adapter import Adapter
from ray_lora.engine import AdapterEngine
from ray_lora.inference.predict import predict
from ray_lora.inference.windows import spread_windows
from ray_lora.inference.written import Writing
from ray_lora.recipe import Json, LoraSpec
from ray_lora.tasks.begun import Begun
from tests.conformance.case import Case
from tests.conformance.rules import losses_of, near
from tests.unit.bases import quiet_peft, wrap

Found = tuple[list[Json], Tensor]  # answers; sums of losses and counts of terms, [2, rows]


def check_mixed(case: Case, tmp_path: Path) -> None:
    """Rows of three adapters in one call are answered as each row by its adapter alone."""
    engine, rows = case.engine(slots=3), len(case.rows)
    slots = [some_adapter(case, engine, rank) for rank in (1, 4, 8)]
    owners = [slots[row % 3] for row in range(rows)]
    exported = [engine.export(slot) for slot in slots]
    answers = predict(engine, dict.fromkeys(slots, case.task), case.features, owners)
    losses = losses_of(case.task, case.features, engine, owners)
    engine.close()
    seen = []
    for at, adapter in enumerate(exported):
        single = case.engine(slots=1)
        slot = single.load(adapter)
        everything = found_here(case, single, slot)
        same(case, (answers, losses), everything, range(at, rows, 3))
        seen.append(everything[1][0])
        single.close()
    assert not any(torch.allclose(one, other) for one, other in pairwise(seen))


def check_peft_in(case: Case, tmp_path: Path) -> None:
    """A folder that plain PEFT wrote, of the plain class, answers here as there."""
    options = {"target_modules": list(case.targets), "modules_to_save": list(case.head)}
    model = wrap(case.plain(), seed=1, r=4, lora_alpha=6, task_type=case.task.peft_type, **options)
    with quiet_peft():
        model.save_pretrained(tmp_path / "theirs")
    engine = case.engine(slots=2)
    some_adapter(case, engine, rank=2)
    theirs = Adapter.load(tmp_path / "theirs")
    theirs = replace(
        theirs, card=theirs.card.model_copy(update={"task": case.spec})
    )  # no folder of PEFT's knows how its base was read
    slot = engine.load(theirs)
    same(case, found_here(case, engine, slot), found_there(case, model.double()))
    engine.close()


def check_peft_out(case: Case, tmp_path: Path) -> None:
    """An exported adapter answers in plain PEFT as here, and merged into the base as well."""
    engine = case.engine(slots=2)
    some_adapter(case, engine, rank=2)
    slot = some_adapter(case, engine, rank=8)
    here = found_here(case, engine, slot)
    engine.export(slot).save(tmp_path / "ours")
    engine.close()
    with quiet_peft():
        model: Any = PeftModel.from_pretrained(case.plain(), str(tmp_path / "ours")).eval().double()
        same(case, here, found_there(case, model))
        merged = model.merge_and_unload().eval()
    assert not any("lora" in name for name, _ in merged.named_parameters())
    same(case, here, found_there(case, merged))


# -------------------------------------------------------------------- how


def some_adapter(case: Case, engine: AdapterEngine, rank: int) -> int:
    """The slot of an adapter that changes what the base says; its numbers survive a file's float32."""
    more = case.lora if rank > 1 else {}
    spec = LoraSpec(r=rank, lora_alpha=rank + 1, target_modules=tuple(case.targets), **more)
    slot = engine.init(spec, case.task.head, seed=0, peft_type=case.task.peft_type)
    draw = torch.Generator().manual_seed(rank)
    fresh = {key: torch.randn(value.shape, generator=draw).abs() * 0.2 for key, value in engine.read(slot).items()}
    engine.write(slot, {key: (value if "running" in key else value - 0.1).double() for key, value in fresh.items()})
    engine.refresh([slot])
    return slot


def found_here(case: Case, engine: AdapterEngine, slot: int) -> Found:
    """Every row by one adapter of an engine."""
    answers = predict(engine, {slot: case.task}, case.features, [slot] * len(case.rows))
    return answers, losses_of(case.task, case.features, engine, slot)


def found_there(case: Case, model: Any) -> Found:
    """Every row by itself in a plain model, which the task decodes as it decodes the engine's outputs."""
    parts: list[Any] = []
    losses = []
    tasks = {0: case.task}
    if isinstance(model, PeftModel):  # whose class for questions takes token types and does not hand them on
        model = model.base_model
    spread = spread_windows(tasks, case.features, [0] * len(case.features))
    for feature in spread.features:
        inputs = {name: t.double() if t.is_floating_point() else t for name, t in case.task.collate([feature]).items()}
        with torch.no_grad():
            outputs = model(**inputs)
        told = outputs
        if isinstance(case.task, Writing):
            told = [written_there(case.task, model, case.task.begin(feature, {}), inputs)]
        parts += case.task.decode(told, [feature], {})
        losses.append(torch.stack([part.double() for part in case.task.loss(outputs, [feature])]))
    found = torch.zeros(2, len(case.features), dtype=torch.float64)
    found.index_add_(1, torch.tensor(list(spread.rows)), torch.cat(losses, 1))
    return spread.whole(tasks, parts, [{}] * len(case.features)), found


def written_there(task: Writing, model: Any, begun: Begun, inputs: Mapping[str, Tensor]) -> list[int]:
    """What a plain model writes of one row, all of it computed anew for each token."""
    tokens = torch.tensor([list(begun.tokens)])
    while tokens.shape[1] < len(begun.tokens) + begun.most:
        with torch.no_grad():
            logits = model(**{**inputs, "decoder_input_ids": tokens}).logits[:, -1].float()
        chosen = task.allow(begun, tokens, logits).argmax(1)
        if int(chosen) == task.end:
            break
        tokens = torch.cat([tokens, chosen[:, None]], 1)
    return tokens[0, len(begun.tokens) :].tolist()


def same(case: Case, one: Found, other: Found, rows: range | None = None) -> None:
    chosen = list(rows if rows is not None else range(len(case.rows)))
    torch.testing.assert_close(one[1][:, chosen], other[1][:, chosen], atol=case.close, rtol=0)
    for row in chosen:
        assert near(one[0][row], other[0][row])
