"""A base that is not transformers': a small convolutional net by a builder, and plain classes with unlike heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from ray_lora import AdapterError, BaseSpec, BuildContext, Built
from ray_lora.bases.base import Base
from ray_lora.bases.load import load_base

NAME = "tests.unit.shelf:build"
SIDE = 8
SEED = 3


class Shelf(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.mix = nn.Linear(8, 8)

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        x = torch.relu(self.norm(self.stem(pixel_values)))
        return {"features": self.mix(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)}


class Neck(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 12, 3, padding=1)
        self.group = nn.GroupNorm(3, 12)
        self.batch = nn.BatchNorm2d(12)
        self.places = nn.Embedding(16, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.batch(torch.relu(self.group(self.conv(x))))
        place = self.places(torch.arange(16, device=x.device)[None])  # [1, 16, 12], the same for all rows
        return x + place.transpose(1, 2).unflatten(2, (4, 4))


class Finder(nn.Module):
    """Two anchors a place: a box of four numbers, and a score for each label, which begins low."""

    def __init__(self, backbone: Shelf, labels: int) -> None:
        super().__init__()
        self.labels = labels
        self.backbone = backbone
        self.neck = Neck()
        self.finder = nn.Conv2d(12, 2 * (4 + labels), 1)
        nn.init.constant_(self.finder.bias, -3.0)
        self.count = nn.Linear(12, 1, bias=False)

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        x = self.neck(self.backbone(pixel_values)["features"])
        found = self.finder(x).view(len(x), 2, 4 + self.labels, -1)
        return {"boxes": found[:, :, :4], "scores": found[:, :, 4:], "count": self.count(x.mean((2, 3)))}


class _Loose(nn.Module):
    """A parameter beside a module that has its own."""

    def __init__(self, backbone: Shelf, labels: int) -> None:
        super().__init__()
        self.backbone, self.scale, self.last = backbone, nn.Parameter(torch.ones(1)), nn.Linear(8, labels)


class _Reading(nn.Module):
    """Reads a weight without calling its module."""

    def __init__(self, backbone: Shelf, labels: int) -> None:
        super().__init__()
        self.backbone, self.last, self.queries = backbone, nn.Linear(8, labels), nn.Embedding(1, 8)

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        x = self.backbone(pixel_values)["features"].mean((2, 3))
        return {"scores": self.last(x + self.queries.weight)}


class _Flat(nn.Module):
    """Looks up its places without an axis of rows."""

    def __init__(self, backbone: Shelf, labels: int) -> None:
        super().__init__()
        self.backbone, self.last, self.queries = backbone, nn.Linear(8, labels), nn.Embedding(4, 8)

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        x = self.backbone(pixel_values)["features"].mean((2, 3))
        return {"scores": self.last(x + self.queries(torch.arange(4)).mean(0))}


class _Twice(nn.Module):
    """One layer under two names."""

    def __init__(self, backbone: Shelf, labels: int) -> None:
        super().__init__()
        self.backbone, self.last = backbone, nn.Linear(8, labels)
        self.again = self.last


class _Uneven(nn.Module):
    """Its size is the square of the labels."""

    def __init__(self, backbone: Shelf, labels: int) -> None:
        super().__init__()
        self.backbone, self.last = backbone, nn.Linear(8, labels**2)

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        return {"scores": self.last(self.backbone(pixel_values)["features"].mean((2, 3)))}


class _Alike(nn.Module):
    """Its name ends as one that PEFT gives."""

    def __init__(self, backbone: Shelf, labels: int) -> None:
        super().__init__()
        self.backbone, self.out = backbone, nn.Linear(8, labels)


CLASSES: dict[str, Any] = {
    "Finder": Finder,
    "Loose": _Loose,
    "Reading": _Reading,
    "Flat": _Flat,
    "Twice": _Twice,
    "Uneven": _Uneven,
    "Alike": _Alike,
}


def build(context: BuildContext) -> Built:
    torch.manual_seed(SEED)
    backbone = Shelf()
    if context.device.type != "meta":
        backbone.norm.running_mean.normal_()
        backbone.norm.running_var.uniform_(0.5, 2)

    def plain(spec: Any) -> nn.Module:
        if spec.architecture not in CLASSES:
            raise AdapterError(f"there is no class {spec.architecture!r}; there are {', '.join(CLASSES)}")
        return CLASSES[spec.architecture](backbone, spec.num_labels)  # type: ignore[no-any-return]

    facts = SimpleNamespace(hidden_size=8, num_hidden_layers=2, image_size=SIDE)
    return Built(backbone, "backbone", plain, draw, config=facts)


def draw(sizes: Sequence[int], seed: int) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [{"pixel_values": torch.randn(3, SIDE, SIDE, generator=generator)} for _ in sizes]


def wrong(context: BuildContext) -> Any:
    return nn.Linear(1, 1)


def half(context: BuildContext) -> Built:
    return replace(build(context), backbone=nn.Linear(1, 1, dtype=torch.float16))


def stranger(context: BuildContext) -> Built:
    return replace(build(context), backbone=Shelf())


def open_shelf(dtype: torch.dtype = torch.float32) -> Base:
    base = load_base(BaseSpec(model=NAME, dtype="float32"))
    base.backbone.to(dtype)
    return replace(base, dtype=dtype)


def plain_finder(labels: int, dtype: torch.dtype = torch.float32) -> Finder:
    """The untouched plain class on the base's weights, every value of its head random."""
    model = Finder(open_shelf().backbone, labels)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(labels)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if not name.startswith("backbone.") and tensor.is_floating_point():
                tensor.copy_(torch.empty(tensor.shape).uniform_(0.2, 1, generator=generator))
    return model.to(dtype).eval()
