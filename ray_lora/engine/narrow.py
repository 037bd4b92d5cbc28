"""What a pass need not compute: a classifier on an encoder reads the first token only.

So after the last layer's attention, which needs every token, only the first one goes on: three quarters of that layer's
matrix products fall away, forward and backward, and the head sees what it would have seen. It knows modules, not slots.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

READERS = {"AutoModelForSequenceClassification"}  # head classes that read an encoder's first token
# where the layers are, and what in a layer is given what attention gathered, [rows, tokens, hidden] in each argument
_BERT = ("encoder.layer", "attention.output")
_LAYERS = {
    "bert": _BERT,
    "camembert": _BERT,
    "distilbert": ("transformer.layer", "sa_layer_norm"),
    "electra": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
}

Cut = Callable[[Tensor], Tensor]


def reads_first(backbone: nn.Module) -> bool:
    """Whether every token of its layers sees all others, and how to go on with the first one is known."""
    config = getattr(backbone, "config", None)
    return getattr(config, "model_type", None) in _LAYERS and not getattr(config, "is_decoder", False)


def attach(backbone: nn.Module, cut: Callable[[], Cut | None]) -> list[Any]:
    """Hook the backbone's last layer so that a pass for which `cut()` gives a function keeps what that gives of
    states [rows, tokens, hidden]."""
    if not reads_first(backbone):
        return []
    config: Any = backbone.config
    layers, gathered = _LAYERS[config.model_type]

    def hook(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        first = cut()
        return None if first is None else tuple(first(states) for states in args)

    last: nn.Module = backbone.get_submodule(layers)[-1]  # type: ignore[index]
    return [last.get_submodule(gathered).register_forward_pre_hook(hook)]
