"""RT-DETR (Zhao et al. 2023, arXiv 2304.08069) of transformers, whose classes are an adapter's own.

In transformers' class the layers that tell classes stand inside the model, one behind each layer of the decoder, and
nothing follows from what they say. Here they stand behind it, as `class_embed`; all else is the base's: the layers
that move boxes, which may hold adapters, and those that choose queries, by the classes that the base was trained on.

    backbone = without_classes(RTDetrForObjectDetection.from_pretrained("PekingU/rtdetr_r18vd"))
    RtDetrForObjectDetection(backbone.config, backbone, num_labels=4)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

OWN = "class_embed."
_IN_FILES = "model.decoder."  # of transformers', before it


def in_files(name: str) -> str:
    """What a tensor of the plain class is called in transformers' files."""
    return f"{_IN_FILES}{name}" if name.startswith(OWN) else name


def without_classes(model: Any) -> Any:
    """The model in transformers' `RTDetrForObjectDetection`, which says no classes from now on, and has no table of
    them for queries that training draws."""
    model.model.decoder.class_embed = model.model.denoising_class_embed = None
    return model.model


class Classes(nn.Sequential):
    """A Linear behind each layer of the decoder; not a list, which PEFT does not save."""

    def forward(self, states: Tensor) -> Tensor:
        """From states, [rows, layers, queries, hidden], logits, [rows, layers, queries, labels]."""
        return torch.stack([classes(states[:, layer]) for layer, classes in enumerate(self)], 1)


class RtDetrForObjectDetection(nn.Module):
    """The plain class.

    Args:
        config: transformers'. model: from `without_classes`.
    """

    base_model_prefix = "model"  # PEFT asks for it

    def __init__(self, config: Any, model: nn.Module, num_labels: int) -> None:
        super().__init__()
        self.config, self.model = config, model
        self.class_embed = Classes(*(nn.Linear(config.d_model, num_labels) for _ in range(config.decoder_layers)))

    def forward(self, pixel_values: Tensor | None = None) -> dict[str, Tensor]:
        """What is said behind each layer of the decoder: `logits` [rows, layers, queries, labels], and `pred_boxes`,
        middle, width and height in shares of the input, [rows, layers, queries, 4].

        Args:
            pixel_values: [rows, 3, height, width].
        """
        seen = self.model(pixel_values)
        logits = self.class_embed(seen.intermediate_hidden_states)
        return {"logits": logits, "pred_boxes": seen.intermediate_reference_points}
