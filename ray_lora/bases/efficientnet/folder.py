"""An EfficientNet-Lite as a folder: `config.json` (an EfficientNetConfig), `model.safetensors` under the public names,
`preprocessor_config.json` for transformers' image processor.

    save_checkpoint(Path("efficientnet-lite0.pth"), Path("bases/lite0"))    # tensors only; nothing in it is unpickled
    open_folder(Path("bases/lite0"), context)                               # what a builder gives

A head that is asked for begins as the folder's own last layer: by the classes' names, or as it is where neither side
has names and there are as many classes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ray_lora.bases.built import BuildContext, Built
from ray_lora.bases.efficientnet.config import EfficientNetConfig
from ray_lora.bases.efficientnet.network import EfficientNet, EfficientNetForImageClassification
from ray_lora.bases.own_files import WEIGHTS, read_checkpoint, shapes_in, tensors_in
from ray_lora.bases.plain import HeadSpec
from ray_lora.bases.transformers_base import load_processor
from ray_lora.errors import AdapterError, BaseModelError

ARCHITECTURE = "AutoModelForImageClassification"
LAST = "_fc."
_MOST_NAMED = 3
_MEAN, _SPREAD = 127 / 255, 128 / 255  # as TensorFlow's Lite models were trained: (pixel - 127) / 128


def open_folder(folder: Path, context: BuildContext) -> Built:
    """The builder of such a folder.

    Raises:
        BaseModelError: its files are not an EfficientNet-Lite's.
    """
    config = _read_config(folder)
    network = EfficientNet(config)
    check_shapes({name: one.shape for name, one in shapes_in(folder).items()}, config)
    if context.device.type != "meta":
        tensors = load_file(folder / WEIGHTS)
        network.load_state_dict({name: value for name, value in tensors.items() if not name.startswith(LAST)})

    def plain(spec: HeadSpec) -> nn.Module:
        if spec.architecture != ARCHITECTURE:
            raise AdapterError(f"an EfficientNet has a head of {ARCHITECTURE}, {spec.architecture} was asked for")
        model = EfficientNetForImageClassification(network, spec.num_labels)
        if not model._fc.weight.is_meta:
            start(model, tensors_in(folder, LAST), config.labels, spec.labels)
        return model

    return Built(network, "efficientnet", plain, examples_of(config), load_processor(folder), config)


def start(
    model: EfficientNetForImageClassification,
    trained: Mapping[str, Tensor],
    known: Sequence[str] | None,
    asked: Sequence[str],
) -> None:
    """Copy a base's last layer into a fresh head; classes that the base does not have are left alone.

    Args:
        trained: the base's, under the public names.
        known: the base's classes; None where they have no names. asked: those of the head, or none.
    """
    rows: list[tuple[int, int]] = []  # of a class in the head, and in the base
    own = model._fc.state_dict()
    if known is not None and asked:
        theirs = {name.casefold(): at for at, name in enumerate(known)}
        rows = [(at, theirs[name.casefold()]) for at, name in enumerate(asked) if name.casefold() in theirs]
    elif own["bias"].shape == trained["_fc.bias"].shape:
        rows = [(at, at) for at in range(len(own["bias"]))]
    for name, tensor in own.items():
        for here, there in rows:
            tensor[here] = trained[LAST + name][there]


def examples_of(config: EfficientNetConfig) -> Callable[[Sequence[int], int], list[dict[str, Tensor]]]:
    """Pictures of noise."""

    def examples(sizes: Sequence[int], seed: int) -> list[dict[str, Tensor]]:
        draw = torch.Generator().manual_seed(seed)
        return [{"pixel_values": torch.randn(3, *config.image_size, generator=draw)} for _ in sizes]

    return examples


# -------------------------------------------------------------------- writing


def save_checkpoint(
    checkpoint: Path, folder: Path, config: EfficientNetConfig | None = None, labels: Sequence[str] | None = None
) -> EfficientNetConfig:
    """Make a base's folder of a public checkpoint (`.pth`, a state dict) or of a safetensors file.

    Args:
        folder: is made; it must not be there.
        config: its sizes, where it is not Lite0; the number of classes is the checkpoint's.
        labels: the classes' names, in their order.

    Raises:
        BaseModelError: it holds more than tensors, is not of these sizes, or has another number of classes.
    """
    tensors = read_checkpoint(checkpoint)
    count = len(tensors["_fc.bias"]) if "_fc.bias" in tensors else 0
    if labels is not None and len(labels) != count:
        raise BaseModelError(f"{str(checkpoint)!r} has {count} classes, and {len(labels)} labels are given")
    told = {"num_labels": max(count, 1), "id2label": None if labels is None else dict(enumerate(labels))}
    config = (config or EfficientNetConfig()).model_copy(update=told)
    save_folder(tensors, config, folder)
    return config


def save_folder(tensors: Mapping[str, Tensor], config: EfficientNetConfig, folder: Path) -> None:
    """Write a base's folder.

    Raises:
        BaseModelError: the tensors are not those of the config.
    """
    check_shapes({name: tuple(tensor.shape) for name, tensor in tensors.items()}, config)
    kept = {name: value.detach().contiguous() for name, value in tensors.items()}
    floats = {name: value.float() if value.is_floating_point() else value for name, value in kept.items()}
    height, width = config.image_size
    pixels = {
        "image_processor_type": "ViTImageProcessor",  # scales, rescales and normalises, and nothing else
        "size": {"height": height, "width": width},
        "image_mean": [_MEAN] * 3,
        "image_std": [_SPREAD] * 3,
        "resample": 3,  # bicubic
    }
    folder.mkdir(parents=True)
    save_file(floats, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / "preprocessor_config.json").write_text(json.dumps(pixels, indent=2) + "\n")
    (folder / "config.json").write_text(config.model_dump_json(indent=2, exclude_none=True) + "\n")


def save_untrained(config: EfficientNetConfig, folder: Path, seed: int = 0) -> None:
    """Write the folder of an EfficientNet that knows nothing yet, for a script that trains one or for tests."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = EfficientNetForImageClassification(EfficientNet(config), config.num_labels)
    save_folder(public(model), config, folder)


def public(model: EfficientNetForImageClassification) -> dict[str, Tensor]:
    """A plain class's state dict under the public names."""
    return {name.removeprefix("efficientnet."): tensor for name, tensor in model.state_dict().items()}


def check_shapes(given: Mapping[str, tuple[int, ...]], config: EfficientNetConfig) -> None:
    """BaseModelError unless names and shapes are those of the public state dict."""
    with torch.device("meta"):
        model = EfficientNetForImageClassification(EfficientNet(config), config.num_labels)
    wanted = {name: tuple(tensor.shape) for name, tensor in public(model).items()}
    odd = sorted(name for name in wanted.keys() | given.keys() if wanted.get(name) != given.get(name))
    if odd:
        said = [f"{name} is {given.get(name, 'missing')}, not {wanted.get(name, 'there')}" for name in odd]
        raise BaseModelError(
            f"{len(odd)} of {len(wanted)} tensors do not fit an EfficientNet-Lite of width {config.width} and depth "
            f"{config.depth} with {config.num_labels} classes: {'; '.join(said[:_MOST_NAMED])}"
        )


# -------------------------------------------------------------------- reading


def _read_config(folder: Path) -> EfficientNetConfig:
    try:
        return EfficientNetConfig.model_validate_json((folder / "config.json").read_bytes())
    except (OSError, ValidationError) as error:
        why = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": str(error)}
        raise BaseModelError(
            f"{str(folder / 'config.json')!r} is no EfficientNet-Lite's: {'.'.join(map(str, why['loc']))} "
            f"{why['msg']}; write the folder with ray_lora.bases.efficientnet.save_checkpoint"
        ) from None
