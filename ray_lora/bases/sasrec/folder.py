"""A SASRec as a folder: `config.json` (a SasRecConfig, with its items) and `model.safetensors`.

save_untrained(SasRecConfig(items=("tea", "milk")), Path("bases/shop"))
open_folder(Path("bases/shop"), context)                   # what a builder gives
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ray_lora.bases.built import BuildContext, Built
from ray_lora.bases.own_files import WEIGHTS, shapes_in
from ray_lora.bases.plain import HeadSpec
from ray_lora.bases.sasrec.config import SasRecConfig
from ray_lora.bases.sasrec.items import Items
from ray_lora.bases.sasrec.network import SasRec, SasRecForNextItem, SasRecForNextItemUntied
from ray_lora.errors import AdapterError, BaseModelError

ARCHITECTURE = "AutoModelForNextItem"
UNTIED = "AutoModelForNextItemUntied"  # each adapter has an output layer of its own
_MOST_NAMED = 3


def open_folder(folder: Path, context: BuildContext) -> Built:
    """The builder of such a folder.

    Raises:
        BaseModelError: its files are not a SASRec's.
    """
    config = read_config(folder)
    with torch.device("meta"):
        sasrec = SasRec(config)
    _check(folder, sasrec)
    if context.device.type != "meta":
        sasrec.load_state_dict(load_file(folder / WEIGHTS), assign=True)

    def plain(spec: HeadSpec) -> nn.Module:
        if spec.architecture == ARCHITECTURE:
            return SasRecForNextItem(config, sasrec)
        if spec.architecture != UNTIED:
            raise AdapterError(f"a SASRec has a head of {ARCHITECTURE} or {UNTIED}, {spec.architecture} was asked for")
        model = SasRecForNextItemUntied(config, sasrec, spec.num_labels)
        if not model.scores.weight.is_meta and spec.num_labels == config.num_labels:
            with safe_open(folder / WEIGHTS, "pt") as file:
                model.begin(file.get_tensor("items.weight"))
        return model

    items = Items(config.items, config.max_position_embeddings)
    own, theirs = {ARCHITECTURE: config.num_labels}, {UNTIED: config.num_labels}
    return Built(sasrec, "sasrec", plain, examples_of(config), items, config, own, theirs)


def examples_of(config: SasRecConfig) -> Callable[[Sequence[int], int], list[dict[str, Tensor]]]:
    """Histories of random items."""

    def examples(sizes: Sequence[int], seed: int) -> list[dict[str, Tensor]]:
        draw, rows = torch.Generator().manual_seed(seed), []
        for size in sizes:
            length = min(size, config.max_position_embeddings)
            ids = torch.randint(1, config.num_labels + 1, (length,), generator=draw, device="cpu")
            rows.append({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
        return rows

    return examples


def save_folder(tensors: Mapping[str, Tensor], config: SasRecConfig, folder: Path) -> None:
    """Write a base's folder of a SasRec's state dict; the folder must not be there."""
    kept = {name: value.detach().float().contiguous() for name, value in tensors.items()}
    folder.mkdir(parents=True)
    save_file(kept, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / "config.json").write_text(config.model_dump_json(indent=1) + "\n")


def save_untrained(config: SasRecConfig, folder: Path, seed: int = 0) -> None:
    """Write the folder of a SASRec that knows nothing yet, for a script that trains one or for tests."""
    save_folder(fresh(config, seed).state_dict(), config, folder)


def fresh(config: SasRecConfig, seed: int) -> SasRec:
    """A SASRec with weights from a seed: normal, biases zero, norms one and zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SasRec(config)
        for module in model.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=config.initializer_range)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
        with torch.no_grad():
            model.items.weight[0] = 0
    return model


def read_config(folder: Path) -> SasRecConfig:
    """BaseModelError where `config.json` is no SasRecConfig."""
    try:
        return SasRecConfig.model_validate_json((folder / "config.json").read_bytes())
    except (OSError, ValidationError) as error:
        why = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": str(error)}
        raise BaseModelError(
            f"{str(folder / 'config.json')!r} is no SASRec's: {'.'.join(map(str, why['loc']))} {why['msg']}; "
            "write the folder with ray_lora.bases.sasrec.save_folder"
        ) from None


def _check(folder: Path, sasrec: SasRec) -> None:
    """BaseModelError unless names and shapes in the file are those of the network."""
    wanted = {name: tuple(tensor.shape) for name, tensor in sasrec.state_dict().items()}
    given = {name: one.shape for name, one in shapes_in(folder).items()}
    odd = sorted(name for name in wanted.keys() | given.keys() if wanted.get(name) != given.get(name))
    if odd:
        said = [f"{name} is {given.get(name, 'missing')}, not {wanted.get(name, 'there')}" for name in odd]
        raise BaseModelError(
            f"{len(odd)} tensors of {str(folder / WEIGHTS)!r} do not fit its config.json: "
            f"{'; '.join(said[:_MOST_NAMED])}"
        )
