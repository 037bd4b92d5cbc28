"""A segmenter as a folder: `config.json` (a SegmenterConfig) and `model.safetensors` under the network's own names.

    save_checkpoint(Path("unet.pt"), Path("bases/unet"), config)    # tensors only; nothing in it is unpickled
    open_folder(Path("bases/unet"), context)                        # what a builder gives

A classifier that is asked for begins as the folder's own: by the classes' names where both sides have them, as it is
where neither has and there are as many.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ray_lora.bases.built import BuildContext, Built
from ray_lora.bases.own_files import WEIGHTS, read_checkpoint, shapes_in, tensors_in
from ray_lora.bases.plain import HeadSpec
from ray_lora.bases.segmenters.config import SegmenterConfig
from ray_lora.bases.segmenters.frame import Frame
from ray_lora.bases.segmenters.network import LAST, Segmenter, SegmenterForSemanticSegmentation, plain_model
from ray_lora.errors import AdapterError, BaseModelError

ARCHITECTURE = "AutoModelForSemanticSegmentation"
_MOST_NAMED = 3
_COUNTER = "num_batches_tracked"  # of batch norms, which older checkpoints lack and nothing here reads


class Shaped(Protocol):
    @property
    def shape(self) -> tuple[int, ...]: ...


def open_folder(folder: Path, context: BuildContext) -> Built:
    """The builder of such a folder.

    Raises:
        BaseModelError: its files are not a segmenter's.
    """
    config = read_config(folder)
    segmenter = Segmenter(config)
    check_tensors(shapes_in(folder), config)
    last = LAST[config.network.kind] + "."
    if context.device.type != "meta":
        tensors = load_file(folder / WEIGHTS)
        segmenter.net.load_state_dict(
            {name: value for name, value in tensors.items() if not name.startswith(last)}, strict=False
        )

    def plain(spec: HeadSpec) -> nn.Module:
        if spec.architecture != ARCHITECTURE:
            raise AdapterError(f"a segmenter has a head of {ARCHITECTURE}, {spec.architecture} was asked for")
        model = SegmenterForSemanticSegmentation(config, segmenter, spec.num_labels)
        if not next(model.classifier.parameters()).is_meta:
            trained = {name.removeprefix(last): tensor for name, tensor in tensors_in(folder, last).items()}
            start(model.classifier, trained, config, spec.labels)
        return model

    fill = [round(255 * mean) for mean in config.image_mean]
    frame = Frame(config.image_size, config.network.cell, (fill[0], fill[1], fill[2]))
    return Built(segmenter, "segmenter", plain, examples_of(config), frame, config)


def start(classifier: nn.Module, trained: Mapping[str, Tensor], config: SegmenterConfig, asked: Sequence[str]) -> None:
    """Copy a base's classifier into a fresh one, as far as their classes are the same.

    Args:
        trained: the base's tensors, by their names in the classifier.
        asked: the classes of the fresh one, or none.
    """
    known = config.labels
    own = {name: tensor for name, tensor in classifier.state_dict().items() if not name.endswith(_COUNTER)}
    if known is not None and asked:
        if [name.casefold() for name in known] == [name.casefold() for name in asked]:
            _copy(own, trained)
        elif isinstance(classifier, nn.Conv2d):  # one layer, whose outputs are the classes one by one
            theirs = {name.casefold(): at for at, name in enumerate(known)}
            rows = [(at, theirs[name.casefold()]) for at, name in enumerate(asked) if name.casefold() in theirs]
            for name, tensor in own.items():
                for here, there in rows:
                    tensor[here] = trained[name][there]
    elif all(tensor.shape == trained[name].shape for name, tensor in own.items()):
        _copy(own, trained)


def _copy(own: Mapping[str, Tensor], trained: Mapping[str, Tensor]) -> None:
    for name, tensor in own.items():
        if name in trained:
            tensor.copy_(trained[name])


def examples_of(config: SegmenterConfig) -> Callable[[Sequence[int], int], list[dict[str, Tensor]]]:
    """Pictures of noise."""

    def examples(sizes: Sequence[int], seed: int) -> list[dict[str, Tensor]]:
        draw = torch.Generator().manual_seed(seed)
        return [{"pixel_values": torch.rand(3, *config.image_size, generator=draw) * 255} for _ in sizes]

    return examples


# -------------------------------------------------------------------- writing


def save_checkpoint(checkpoint: Path, folder: Path, config: SegmenterConfig) -> None:
    """Make a base's folder of a network's state dict, in a file of torch's or safetensors'.

    Args:
        checkpoint: tensors under the network's own names; a state dict under "state_dict" or "model" is found.
        folder: is made; it must not be there.

    Raises:
        BaseModelError: it holds more than tensors, or is not of the config's network.
    """
    save_folder(read_checkpoint(checkpoint, within=("state_dict", "model")), config, folder)


def save_folder(tensors: Mapping[str, Tensor], config: SegmenterConfig, folder: Path) -> None:
    """Write a base's folder.

    Raises:
        BaseModelError: the tensors are not those of the config.
    """
    kept = {name: value.detach().contiguous() for name, value in tensors.items() if not name.endswith(_COUNTER)}
    check_tensors(kept, config)
    floats = {name: value.float() if value.is_floating_point() else value for name, value in kept.items()}
    folder.mkdir(parents=True)
    save_file(floats, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / "config.json").write_text(config.model_dump_json(indent=2, exclude_none=True) + "\n")


def save_untrained(config: SegmenterConfig, folder: Path, seed: int = 0) -> None:
    """Write the folder of a segmenter that knows nothing yet, for a script that trains one or for tests."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = plain_model(config)
    save_folder(public(model, config), config, folder)


def public(model: SegmenterForSemanticSegmentation, config: SegmenterConfig) -> dict[str, Tensor]:
    """A plain class's state dict under the network's own names."""
    last = LAST[config.network.kind]
    found = {}
    for name, tensor in model.state_dict().items():
        inside = name.startswith("segmenter.net.")
        own = name.removeprefix("segmenter.net.") if inside else f"{last}.{name.removeprefix('classifier.')}"
        if not own.endswith(_COUNTER):
            found[own] = tensor
    return found


def check_tensors(tensors: Mapping[str, Shaped], config: SegmenterConfig) -> None:
    """BaseModelError unless names and shapes are those of the network."""
    with torch.device("meta"):
        model = plain_model(config)
    wanted = {name: tuple(tensor.shape) for name, tensor in public(model, config).items()}
    given = {name: tuple(tensor.shape) for name, tensor in tensors.items() if not name.endswith(_COUNTER)}
    odd = sorted(name for name in wanted.keys() | given.keys() if wanted.get(name) != given.get(name))
    if odd:
        said = [f"{name} is {given.get(name, 'missing')}, not {wanted.get(name, 'there')}" for name in odd]
        raise BaseModelError(
            f"{len(odd)} of {len(wanted)} tensors do not fit a {config.network.kind} of these sizes with "
            f"{config.num_labels} labels: {'; '.join(said[:_MOST_NAMED])}"
        )


# -------------------------------------------------------------------- reading


def read_config(folder: Path) -> SegmenterConfig:
    """BaseModelError where `config.json` is no SegmenterConfig."""
    try:
        return SegmenterConfig.model_validate_json((folder / "config.json").read_bytes())
    except (OSError, ValidationError) as error:
        why = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": str(error)}
        raise BaseModelError(
            f"{str(folder / 'config.json')!r} is no segmenter's: {'.'.join(map(str, why['loc']))} {why['msg']}; "
            "write the folder with ray_lora.bases.segmenters.save_checkpoint"
        ) from None
