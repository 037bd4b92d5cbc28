"""A YOLOX as a folder: `config.json` (a YoloxConfig) and `model.safetensors` under the public names.

    save_checkpoint(Path("yolox_s.pth"), Path("bases/yolox-s"))   # tensors only; nothing in it is unpickled
    open_folder(Path("bases/yolox-s"), context)                   # what a builder gives

A head that is asked for begins as the folder's own prediction layers: those of boxes and objectness always, those of
classes by the classes' names, or as they are where neither side has names and there are as many.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ray_lora.bases.built import BuildContext, Built
from ray_lora.bases.own_files import WEIGHTS, read_checkpoint, shapes_in, tensors_in
from ray_lora.bases.plain import HeadSpec
from ray_lora.bases.yolox.config import Shaped, YoloxConfig
from ray_lora.bases.yolox.letterbox import Letterbox
from ray_lora.bases.yolox.network import Yolox, YoloxForObjectDetection
from ray_lora.errors import AdapterError, BaseModelError

ARCHITECTURE = "AutoModelForObjectDetection"
_OWN = ("head.cls_preds.", "head.reg_preds.", "head.obj_preds.")  # the adapters' part, which the base has a copy of
_MOST_NAMED = 3


def open_folder(folder: Path, context: BuildContext) -> Built:
    """The builder of such a folder.

    Raises:
        BaseModelError: its files are not a YOLOX's.
    """
    config = read_config(folder)
    yolox = Yolox(config)
    check_tensors(shapes_in(folder), config)
    if context.device.type != "meta":
        tensors = load_file(folder / WEIGHTS)
        yolox.load_state_dict({name: value for name, value in tensors.items() if not name.startswith(_OWN)})

    def plain(spec: HeadSpec) -> nn.Module:
        if spec.architecture != ARCHITECTURE:
            raise AdapterError(f"a YOLOX has a head of {ARCHITECTURE}, {spec.architecture} was asked for")
        model = YoloxForObjectDetection(config, yolox, spec.num_labels)
        if not next(model.obj_preds.parameters()).is_meta:
            start(model, tensors_in(folder, _OWN), config.labels, spec.labels)
        return model

    return Built(yolox, "yolox", plain, examples_of(config), Letterbox(config.image_size, config.channel_order), config)


def start(
    model: YoloxForObjectDetection, trained: Mapping[str, Tensor], known: Sequence[str] | None, asked: Sequence[str]
) -> None:
    """Copy a base's prediction layers into a fresh head.

    Args:
        trained: the base's, under the public names.
        known: the base's classes; None where they have no names. asked: those of the head, or none.
    """
    rows: list[tuple[int, int]] = []  # of a class in the head, and in the base
    count = trained["head.cls_preds.0.weight"].shape[0]
    own = model.cls_preds.state_dict()
    if known is not None and asked:
        theirs = {name.casefold(): at for at, name in enumerate(known)}
        rows = [(at, theirs[name.casefold()]) for at, name in enumerate(asked) if name.casefold() in theirs]
    elif own["0.bias"].shape[0] == count:
        rows = [(at, at) for at in range(count)]
    for name, tensor in own.items():
        for here, there in rows:
            tensor[here] = trained[f"head.cls_preds.{name}"][there]
    for kind, layers in (("reg_preds", model.reg_preds), ("obj_preds", model.obj_preds)):
        for name, tensor in layers.state_dict().items():
            tensor.copy_(trained[f"head.{kind}.{name}"])


def examples_of(config: YoloxConfig) -> Callable[[Sequence[int], int], list[dict[str, Tensor]]]:
    """Pictures of noise."""

    def examples(sizes: Sequence[int], seed: int) -> list[dict[str, Tensor]]:
        draw = torch.Generator().manual_seed(seed)
        return [{"pixel_values": torch.rand(3, *config.image_size, generator=draw) * 255} for _ in sizes]

    return examples


# -------------------------------------------------------------------- writing


def save_checkpoint(
    checkpoint: Path, folder: Path, labels: Sequence[str] | None = None, image_size: tuple[int, int] | None = None
) -> YoloxConfig:
    """Make a base's folder of a checkpoint of YOLOX's training (`.pth`) or of a safetensors file.

    Args:
        folder: is made; it must not be there.
        labels: the classes' names, in their order.
        image_size: height and width to answer at; the published one where it is not said.

    Raises:
        BaseModelError: it holds more than tensors, is no YOLOX's, or has another number of classes.
    """
    tensors = read_checkpoint(checkpoint, within=("model",))
    config = YoloxConfig.of(tensors)
    if labels is not None and len(labels) != config.num_labels:
        raise BaseModelError(f"{str(checkpoint)!r} has {config.num_labels} classes, and {len(labels)} labels are given")
    names = None if labels is None else dict(enumerate(labels))
    told = config.model_dump() | {"id2label": names, "image_size": image_size or config.image_size}
    try:
        config = YoloxConfig.model_validate(told)
    except ValidationError as error:
        raise BaseModelError(str(error.errors()[0]["msg"])) from None
    save_folder(tensors, config, folder)
    return config


def save_folder(tensors: Mapping[str, Tensor], config: YoloxConfig, folder: Path) -> None:
    """Write a base's folder.

    Raises:
        BaseModelError: the tensors are not those of the config.
    """
    check_tensors(tensors, config)
    kept = {name: value.detach().contiguous() for name, value in tensors.items()}
    floats = {name: value.float() if value.is_floating_point() else value for name, value in kept.items()}
    folder.mkdir(parents=True)
    save_file(floats, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / "config.json").write_text(config.model_dump_json(indent=2, exclude_none=True) + "\n")


def save_untrained(config: YoloxConfig, folder: Path, seed: int = 0) -> None:
    """Write the folder of a YOLOX that knows nothing yet, for a script that trains one or for tests."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = YoloxForObjectDetection(config, Yolox(config), config.num_labels)
    save_folder(public(model), config, folder)


def public(model: YoloxForObjectDetection) -> dict[str, Tensor]:
    """A plain class's state dict under the public names."""
    return {
        name.removeprefix("yolox.") if name.startswith("yolox.") else f"head.{name}": tensor
        for name, tensor in model.state_dict().items()
    }


def check_tensors(tensors: Mapping[str, Shaped], config: YoloxConfig) -> None:
    """BaseModelError unless names and shapes are those of the public state dict."""
    with torch.device("meta"):
        model = YoloxForObjectDetection(config, Yolox(config), config.num_labels)
    wanted = {name: tuple(tensor.shape) for name, tensor in public(model).items()}
    given = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    odd = sorted(name for name in wanted.keys() | given.keys() if wanted.get(name) != given.get(name))
    if odd:
        said = [f"{name} is {given.get(name, 'missing')}, not {wanted.get(name, 'there')}" for name in odd]
        raise BaseModelError(
            f"{len(odd)} of {len(wanted)} tensors do not fit a YOLOX of depth {config.depth} and width {config.width} "
            f"with {config.num_labels} classes: {'; '.join(said[:_MOST_NAMED])}"
        )


# -------------------------------------------------------------------- reading


def read_config(folder: Path) -> YoloxConfig:
    """BaseModelError where `config.json` is no YoloxConfig."""
    try:
        return YoloxConfig.model_validate_json((folder / "config.json").read_bytes())
    except (OSError, ValidationError) as error:
        why = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": str(error)}
        raise BaseModelError(
            f"{str(folder / 'config.json')!r} is no YOLOX's: {'.'.join(map(str, why['loc']))} {why['msg']}; "
            "write the folder with ray_lora.bases.yolox.save_checkpoint"
        ) from None
