"""A cut base as a folder that transformers' own `from_pretrained` loads, or this library's: config, weights, processor
files, a card.

    whole = read_whole(base)                               # the plain class that the folder holds
    write_cut(folder, base, whole, state, config, card)    # complete, read back and compared, or an error

It knows files and classes, not what was cut or why.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ray_lora.bases.base import Base
from ray_lora.bases.efficientnet.folder import LAST, save_folder
from ray_lora.bases.own_files import WEIGHTS
from ray_lora.bases.transformers_base import quiet
from ray_lora.errors import BaseModelError
from ray_lora.pruning.kinds import class_of
from ray_lora.recipe import Json

CARD, SOURCE = "pruning.json", "SOURCE.md"  # the card as JSON; the README of the base that was cut
_BESIDE = (  # files of a folder that go along, by the ends of their names
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt",
    "vocab.json", "merges.txt", "spiece.model", "tokenizer.model", "sentencepiece.bpe.model", "chat_template.jinja",
    "preprocessor_config.json", "processor_config.json", "generation_config.json", "LICENSE",
)  # fmt: skip


@dataclass(frozen=True)
class Whole:
    """The model that a base's folder holds.

    Attributes:
        model: of its class, or what the builder gave, with its config.
        state: its tensors as the files have them, those that they lack left out.
        prefix: what its backbone's names begin with; empty where the class is the backbone.
        left: names in the files that the class does not know. missing: names of the class that the files lack.
    """

    model: Any
    state: Mapping[str, Tensor]
    prefix: str
    left: tuple[str, ...]
    missing: frozenset[str] = frozenset()


def read_whole(base: Base) -> Whole:
    """Read the class that the folder's config names, in the files' own dtype; of a base of ours its files.

    Raises:
        BaseModelError: it cannot be read, or tensors of its layers are missing or of another shape.
    """
    if base.built is not None:
        tensors = load_file(base.folder / WEIGHTS)
        named = {name if name.startswith(LAST) else f"{base.prefix}.{name}": value for name, value in tensors.items()}
        return Whole(base.built, named, f"{base.prefix}.", ())
    try:
        with quiet():
            model, told = class_of(base).from_pretrained(
                base.folder, dtype="auto", local_files_only=True, use_safetensors=True, output_loading_info=True
            )
    except (OSError, ValueError, LookupError, RuntimeError) as error:
        raise BaseModelError(f"base {base.id!r} cannot be read as its class: {error}") from None
    missing = set(told["missing_keys"])
    prefix = f"{base.prefix}." if hasattr(model, base.prefix) else ""
    inside = [name for name in missing if not prefix or name.startswith(prefix)]
    lacking = [name for name in inside if not name.removeprefix(prefix).startswith("pooler.")]
    if lacking or told["mismatched_keys"]:
        odd = sorted(lacking) or [str(key) for key in told["mismatched_keys"]]
        raise BaseModelError(f"base {base.id!r} lacks {odd[0]!r}, or has it in another shape; save it anew")
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in missing}
    return Whole(model, state, prefix, tuple(sorted(told["unexpected_keys"])), frozenset(missing))


def copy_whole(folder: Path, base: Base, card: Mapping[str, Json]) -> None:
    """The base's own files, byte for byte, and a card: nothing was cut."""
    folder.mkdir()
    for pattern in ("config.json", "*.safetensors", "*.safetensors.index.json"):
        for file in base.folder.glob(pattern):
            shutil.copyfile(file, folder / file.name)
    _beside(folder, base, card)


def write_cut(
    folder: Path, base: Base, whole: Whole, state: Mapping[str, Tensor], config: Any, card: Mapping[str, Json]
) -> None:
    """Write a smaller model of the same class, read it back and compare.

    Args:
        folder: a new one. state: all tensors of the model that `config` says, but those that the origin's files lacked.

    Raises:
        BaseModelError: transformers does not read back what was written.
    """
    if base.built is not None:
        save_folder({name.removeprefix(whole.prefix): value for name, value in state.items()}, config, folder)
        _beside(folder, base, card)
        return
    folder.mkdir()
    model_class = type(whole.model)
    with quiet():
        model = model_class(config).to(next(iter(state.values())).dtype)
        told = model.load_state_dict(dict(state), strict=False)
        odd = [*told.unexpected_keys, *(set(told.missing_keys) - whole.missing)]
        if odd:
            raise BaseModelError(f"{model_class.__name__} and its cut tensors do not agree on {odd[0]!r}")
        model.save_pretrained(folder, state_dict=dict(state))
    _beside(folder, base, card)
    _compare(folder, model_class, state, whole.missing)


def _compare(folder: Path, model_class: Any, state: Mapping[str, Tensor], lacking: frozenset[str]) -> None:
    """BaseModelError unless `from_pretrained` gives these tensors, bit for bit, and no others but those lacking."""
    with quiet():
        model, told = model_class.from_pretrained(
            folder, dtype="auto", local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    read = model.state_dict()
    wrong = [name for name, tensor in state.items() if name not in read or not torch.equal(read[name], tensor)]
    wrong += [*(set(told["missing_keys"]) - lacking), *told["unexpected_keys"], *map(str, told["mismatched_keys"])]
    if wrong:
        raise BaseModelError(f"{model_class.__name__} does not read back {wrong[0]!r} as it was cut")


def _beside(folder: Path, base: Base, card: Mapping[str, Json]) -> None:
    """What reads rows, the origin's README under another name, and the card for programs and for people."""
    for name in _BESIDE:
        if (base.folder / name).is_file():
            shutil.copyfile(base.folder / name, folder / name)
    if (base.folder / "README.md").is_file():
        shutil.copyfile(base.folder / "README.md", folder / SOURCE)
    write_card(folder, card)


def write_card(folder: Path, card: Mapping[str, Json]) -> None:
    """The card as `pruning.json` and as README.md, in place of what is there."""
    (folder / CARD).write_text(json.dumps(card, indent=2) + "\n")
    (folder / "README.md").write_text(_page(card, (folder / SOURCE).exists()), encoding="utf-8")


def _page(card: Mapping[str, Json], has_source: bool) -> str:
    before, after = card["before"], card["after"]
    lines = [
        f"# {card['name']}",
        "",
        f"`{card['origin']}` cut to {card['share']:.1%} of its layers' parameters by `ray-lora prune`. Its weights are"
        " those of the origin, but for the products that read what was cut, which were fitted anew."
        + (f" The origin's README is `{SOURCE}`." if has_source else ""),
        "",
        "It is a base of its own: adapters of the origin are not for it.",
        "",
        "| | before | after |",
        "| --- | --- | --- |",
    ]
    for key in (
        "layers",
        "feed_forward_rows",
        "channels",
        "key_value_heads",
        "layer_parameters",
        "parameters",
        "ms_a_row",
        "score",
    ):
        if before.get(key) is not None:
            lines.append(f"| {key.replace('_', ' ')} | {_said(before[key])} | {_said(after.get(key))} |")
    facts = {
        "fingerprint of the origin": card["origin_fingerprint"],
        "scored by": card["scored_by"],
        "adapter": card["ref"],
        "rows": f"{card['rows']}, sha256 {card['rows_sha256']}",
        "layers kept": ", ".join(map(str, card["layers"])),
    }
    lines += ["", *(f"- {name}: {value}" for name, value in facts.items())]
    if card["left_out"]:
        lines.append(f"- not written, as the class does not know them: {', '.join(card['left_out'])}")
    if "score" in before:
        lines.append(f"- score: {card['metric']} of that adapter on these rows, cut alike and not trained again")
    return "\n".join(lines) + "\n"


def _said(value: Json) -> str:
    return f"{value:,}" if isinstance(value, int) else "-" if value is None else f"{value:.4g}"
