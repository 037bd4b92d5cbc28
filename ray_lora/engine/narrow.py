"""What a pass need not compute: a classifier on an encoder reads the first token only.

So after the last layer's attention, which needs every token, only the first one goes on: three quarters of that layer's
matrix products fall away, forward and backward, and the head sees what it would have seen. It knows modules, not slots.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

READERS = {"AutoModelForSequenceClassification"}  # head classes that read an encoder's first token
_ENCODERS = {"bert", "camembert", "electra", "roberta", "xlm-roberta"}  # whose layers are BERT's


def is_encoder(backbone: nn.Module) -> bool:
    """Whether its layers are BERT's and every token sees all others."""
    config = getattr(backbone, "config", None)
    return getattr(config, "model_type", None) in _ENCODERS and not getattr(config, "is_decoder", False)


def attach(backbone: nn.Module, wanted: Callable[[], bool]) -> list[Any]:
    """Hook the backbone's last layer so that a pass for which `wanted()` keeps the first token, [rows, 1, hidden]."""
    if not is_encoder(backbone):
        return []

    def hook(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        return tuple(states[:, :1] for states in args) if wanted() else None

    # the output block is given what attention gathered and the residual, both [rows, tokens, hidden]
    output = backbone.get_submodule("encoder.layer")[-1].attention.output  # type: ignore[index]
    return [output.register_forward_pre_hook(hook)]
