"""What an adapter writes in PyTorch to rows, token by token, and the logits of its first tokens.

    wanted = written_of(engine, slot, task, rows)
    wanted.answers[0]                            # {"tokens": [...], "text": " The cat sat."}

It knows engines and tasks: no graphs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ray_lora.engine import AdapterEngine
from ray_lora.errors import AdapterError
from ray_lora.export.parity import Wanted
from ray_lora.export.prompts import goes_on
from ray_lora.inference.continued import Ask, continued
from ray_lora.inference.predict import forward
from ray_lora.inference.written import written
from ray_lora.recipe import Json
from ray_lora.tasks import Features, Row
from ray_lora.tasks.prompted import Prompted

_COMPARED = 16  # tokens of a row whose logits are compared: each is as long as the vocabulary


def written_of(engine: AdapterEngine, slot: int, task: Any, rows: Sequence[Row]) -> Wanted:
    """What the adapter in a slot writes to rows.

    Returns:
        features: beside the task's own `begin`, the tokens before the answer, and what the base is given of sounds.
        outputs: "logits" of the first tokens, [tokens, vocabulary]. answers: with their "tokens".

    Raises:
        AdapterError: what followed was no number.
    """
    if isinstance(task, Prompted):
        begun, answers = _continued(engine, slot, task, rows)
    else:
        begun, answers = _spoken(engine, slot, task, task.encode(rows))
    read, outputs = [], []
    for one, answer in zip(begun, answers, strict=True):
        taught = one | {"labels": answer["tokens"][:_COMPARED]}
        with torch.inference_mode():
            [(_, _, found)] = forward(engine, {slot: task}, [taught], [slot], [0])
            logits = found.logits[0, len(one["begin"]) - 1 :].float().cpu().numpy()
        outputs.append({"logits": logits})
        read.append(one | _given(task, one))
    return Wanted(read, outputs, answers)


def _given(task: Any, features: Features) -> Features:
    """What the base is given of a sound."""
    given = task.collate([features]) if "samples" in features else {}
    return {name: tensor[0].numpy() for name, tensor in given.items() if name == "input_features"}


def _continued(
    engine: AdapterEngine, slot: int, task: Prompted, rows: Sequence[Row]
) -> tuple[list[Features], list[dict[str, Json]]]:
    told = goes_on(task, engine.base)
    prompts = [task.prompt(row[task.input]) for row in rows]
    asks = [Ask(slot, ids, told["most"], frozenset(told["ends"])) for ids in prompts]
    answers = []
    for text in continued(engine, task.head, asks):
        tokens = _checked(None if text is None else text.tokens)
        answers.append({"tokens": tokens, "generated_text": task.said(tokens)})
    return [Features(input_ids=ids, begin=ids) for ids in prompts], answers


def _spoken(
    engine: AdapterEngine, slot: int, task: Any, features: Sequence[Features]
) -> tuple[list[Features], list[dict[str, Json]]]:
    begun = [one | {"begin": list(task.begin(one, {}).tokens)} for one in features]
    answers = []
    for one in features:
        [(_, _, [text])] = written(engine, {slot: task}, [one], [slot], [0], [{}])
        tokens = _checked(text)
        answers.append({"tokens": tokens, **task.whole(task.decode([tokens], [one], {}), one, {})})
    return begun, answers


def _checked(tokens: Any) -> list[int]:
    if tokens is None:
        raise AdapterError("what an adapter writes to a row is no number, so nothing can be compared")
    return list(tokens)
