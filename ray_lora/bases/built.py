"""What a builder gives for a model that is not transformers': a module, its plain class, facts and examples.

    def build(context: BuildContext) -> Built:                 # base.model: "shop.models:build"
        backbone = Shelf()
        if context.device.type != "meta":
            backbone.load_state_dict(load_file(WEIGHTS))
        return Built(backbone, "backbone", lambda spec: Finder(backbone, spec.num_labels), draw)

It knows no names and no files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ray_lora.bases.plain import HeadSpec
from ray_lora.errors import AdapterError, BaseModelError


@dataclass(frozen=True)
class BuildContext:
    """What a builder is told.

    Attributes:
        device: `meta` when only shapes are asked for, so that no weights need be read; else `cpu`.
        dtype: of the weights. A base is built in float32, from which its fingerprint is taken, and then moved.
    """

    device: torch.device
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class Built:
    """A builder's answer.

    Attributes:
        backbone: the frozen module; takes named inputs, rows on their first axis.
        prefix: the attribute under which the plain class holds it.
        plain: the plain class around this very `backbone`. It takes the backbone's inputs by name. The words of its
            HeadSpec may come from an adapter's card: an AdapterError for those it does not know.
        examples: inputs of one row for each size, without the axis of rows, from a seed.
        processor: what turns a row into inputs, or None.
        config: facts about the model under transformers' names (`hidden_size`, `num_hidden_layers`, `image_size`).
        own_heads: the plain classes whose head is the base's own, and how many outputs it has. No adapter has a copy
            of such a head; what it does not share with the backbone has its values where `plain` is called on `cpu`.
        outputs: the plain classes of which each adapter has a head, all of one number of outputs: what those stand for
            is the base's to say.
    """

    backbone: nn.Module
    prefix: str
    plain: Callable[[HeadSpec], nn.Module]
    examples: Callable[[Sequence[int], int], list[dict[str, Tensor]]]
    processor: Any = None
    config: Any = field(default_factory=SimpleNamespace)
    own_heads: Mapping[str, int] = field(default_factory=dict)
    outputs: Mapping[str, int] = field(default_factory=dict)


def plain_of(built: Built, spec: HeadSpec, device: Literal["meta", "cpu"]) -> nn.Module:
    """The plain class in eval mode, its head on `device`, its backbone where the builder's lies.

    Raises:
        AdapterError: the builder does not know the head.
        BaseModelError: the class does not hold the builder's backbone under its prefix.
    """
    try:
        with torch.device(device):
            model = built.plain(spec).eval()
    except (KeyError, ValueError) as error:
        if isinstance(error, AdapterError):
            raise
        raise AdapterError(f"the base's builder gives no head {spec.architecture!r}: {error}") from None
    if getattr(model, built.prefix, None) is not built.backbone:
        raise BaseModelError(
            f"the plain class {type(model).__name__} does not hold its builder's backbone as {built.prefix!r}; "
            "its plain(spec) must wrap that very module"
        )
    return model
