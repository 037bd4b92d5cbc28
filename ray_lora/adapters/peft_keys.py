"""The names of an adapter's tensors as savers write them, made PEFT's own.

    plain_keys({"_orig_mod.base_model.model.x.lora_A.default.weight": ...}, where)
    # {"base_model.model.x.lora_A.weight": ...}

torch.compile, FSDP and DDP put words between; a raw state dict has the adapter's name in its keys, and the modules
that were saved beside those they stand for. What could mean two things is refused. Knows names only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from ray_lora.bounds import named
from ray_lora.errors import AdapterError

PREFIX = "base_model.model."  # of every key in a PEFT file
_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")  # never a module's own name
_DDP = "module."
_PLAIN = (".lora_A.weight", ".lora_B.weight", ".lora_embedding_A", ".lora_embedding_B")
_PAIR = re.compile(r"(?P<of>.+\.lora_[AB])\.(?P<adapter>[^.]+)(?P<rest>\.(?:weight|bias))")
_EMBEDDING = re.compile(r"(?P<of>.+\.lora_embedding_[AB])\.(?P<adapter>[^.]+)(?P<rest>)")
_SAVED = re.compile(r"(?P<of>.+)\.modules_to_save\.(?P<adapter>[^.]+)(?P<rest>\..+)")
_REPLACED = re.compile(r"(?P<of>.+)\.original_module\.(?P<rest>.+)")


def plain_keys(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The tensors under the keys that PEFT's `save_pretrained` gives them.

    Raises:
        AdapterError: there are two adapters, or the keys are not of one kind.
    """
    bare = _without_prefix([_unwrapped(key) for key in tensors], where)
    adapters: dict[str | None, str] = {}  # the adapter's name in a key -> such a key
    plain: dict[str, Tensor] = {}
    first: dict[str, str] = {}
    twice = ""
    saved = {match["of"] for name in bare if (match := _SAVED.fullmatch(name))}
    for (key, tensor), name in zip(tensors.items(), bare, strict=True):
        replaced = _REPLACED.fullmatch(name)
        if replaced and replaced["of"] in saved:
            continue  # what the saved module stands for
        if replaced:
            raise AdapterError(
                f"{where!r}: key {named(key)} is the base's own module, and the trained one that stands for it is not "
                "there"
            )
        match = _PAIR.fullmatch(name) or _EMBEDDING.fullmatch(name) or _SAVED.fullmatch(name)
        if match:
            adapters.setdefault(match["adapter"], key)
            name = match["of"] + match["rest"]
        elif name.endswith(_PLAIN):
            adapters.setdefault(None, key)
        if name in plain:
            twice = twice or f"keys {named(first[name])} and {named(key)} are one tensor, {named(PREFIX + name)}, twice"
        plain[name], first[name] = tensor, key
    named_pairs = None in adapters and any(_PAIR.fullmatch(name) or _EMBEDDING.fullmatch(name) for name in bare)
    if len(adapters.keys() - {None}) > 1 or named_pairs:
        both = " and ".join(map(named, list(adapters.values())[:2]))
        raise AdapterError(
            f"{where!r} holds more than one adapter ({both}); save each into a folder of its own: "
            "model.save_pretrained(folder, selected_adapters=[name])"
        )
    if twice:
        raise AdapterError(f"{where!r}: {twice}; save the adapter again")
    return {PREFIX + name: tensor for name, tensor in plain.items()}


def _unwrapped(key: str) -> str:
    """The key without what compiling and sharding put into it."""
    return ".".join(part for part in key.split(".") if part not in _WRAPPERS)


def _without_prefix(keys: Iterable[str], where: str) -> list[str]:
    """The keys without DDP's `module.` and PEFT's prefix, which all have, or have twice, or lack."""
    found = list(keys)
    while found and all(key.startswith(_DDP) for key in found):
        found = [key.removeprefix(_DDP) for key in found]
    while found and all(key.startswith(PREFIX) for key in found):
        found = [key.removeprefix(PREFIX) for key in found]
    odd = [key for key in found if key.startswith((PREFIX, _DDP + PREFIX))]
    if odd:
        other = next((key for key in found if key not in odd), odd[0])
        raise AdapterError(
            f"{where!r}: key {named(other)} does not begin with {PREFIX!r} where {named(odd[0])} does; they are not of "
            "one adapter: save it again"
        )
    return found
