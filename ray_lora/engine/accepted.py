"""Which inputs a class takes. Knows no slots."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ray_lora.errors import BaseModelError


def accepted(module: Any, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The inputs without a mask that masks nothing, where the class takes none (FNet).

    Raises:
        BaseModelError: the mask says something that the class would not be told.
    """
    if "attention_mask" not in inputs:
        return inputs
    known = inspect.signature(module.forward).parameters
    if "attention_mask" in known or any(given.kind is given.VAR_KEYWORD for given in known.values()):
        return inputs
    if not bool(inputs["attention_mask"].all()):
        raise BaseModelError(f"{type(module).__name__} takes no attention_mask, so it would read padding as text")
    return {name: tensor for name, tensor in inputs.items() if name != "attention_mask"}
