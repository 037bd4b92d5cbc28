"""What `adapter_config.json` says: a LoraSpec, where the adapter comes from, and by name what is not computed here.

PEFT's own defaults are not asked: they move from version to version, and what a field means must not. Knows no tensors.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ray_lora.bounds import LONGEST_PLACE, Place, check_tree, named, reason, short
from ray_lora.errors import AdapterError
from ray_lora.expressions import check_quick
from ray_lora.recipe import LoraSpec

# fields that say where an adapter comes from or how it was trained: no answer depends on them
_NEUTRAL = frozenset(
    "auto_mapping base_model_name_or_path revision inference_mode peft_version task_type peft_type lora_dropout "
    "fan_in_fan_out layers_to_transform layers_pattern megatron_core runtime_config qalora_group_size "
    "ensure_weight_tying modules_to_save eva_config "
    # of other trainers: rates and dtypes of training, names of their own
    "lora_dtype lorap_lr_ratio lorap_emb_lr loraplus_lr_ratio loraplus_lr_embedding swift_type model_key_mapping "
    "merge_weights unsloth_version unsloth_fixed".split()
)
_PLACE: TypeAdapter[str | None] = TypeAdapter(Place | None, config={"strict": True})
_NAMED = {"WhisperForConditionalGeneration": "AutoModelForSpeechSeq2Seq"}  # which no ending of its name says
_PLAIN_INIT = frozenset({"gaussian", "eva", "orthogonal"})
_WHY = {  # what a field does to the answer
    "use_dora": "DoRA trains a length for every output beside the pair",
    "bias": "trained biases replace the base's, which other adapters share",
    "lora_bias": "the pair has a bias of its own",
    "layer_replication": "the base's layers are used several times",
    "trainable_token_indices": "some of the base's token embeddings are replaced",
    "target_parameters": "the pair belongs to a parameter, not to a layer: use target_modules",
    "alora_invocation_tokens": "the adapter acts from some token on",
    "use_qalora": "inputs are pooled in groups",
    "use_bdlora": "the pair is block-diagonal",
    "arrow_config": "each token chooses among several adapters",
    "kasa_config": "the base's weights are cut, and a diagonal stands between A and B",
    "monteclora_config": "the pair is drawn at random",
    "loftq_config": "the adapter belongs to a base that LoftQ quantised",
    "enable_lora": "only parts of a merged layer have a pair",
    "init_lora_weights": (
        "it begins by rewriting the base's weights, and the adapter is right on the rewritten base alone: save it "
        "with PEFT's path_initial_model_for_weight_conversion, which makes a plain one of it"
    ),
}


def read_spec(config: Mapping[str, Any], where: str) -> LoraSpec:
    """PEFT's config as a LoraSpec; anything that would change the answer and is not built here is refused by name."""
    try:
        check_tree(config)
    except ValueError as error:
        raise AdapterError(f"{where!r}: adapter_config.json: {error}") from None
    if config.get("peft_type") != "LORA":
        raise AdapterError(f"{where!r}: peft_type is {_short(config.get('peft_type'))}; only 'LORA' can be loaded")
    known = set(LoraSpec.model_fields) - {"batch_norms"}  # which the tensors say
    for key, value in config.items():
        if key not in known and key not in _NEUTRAL and not _harmless(key, value):
            why = f" ({_WHY[key]})" if key in _WHY else ""
            raise AdapterError(
                f"{where!r}: adapter_config.json has {key}={_short(value)}, which this engine does not compute{why}; "
                "merge such an adapter into its base with PEFT, or train it without that option"
            )
    if not isinstance(config.get("task_type") or "", str):
        raise AdapterError(
            f"{where!r}: adapter_config.json has task_type={_short(config['task_type'])}; it must be a word"
        )
    _names(config, "modules_to_save", where)
    fields: dict[str, Any] = {"r": 8, "lora_alpha": 8}  # PEFT's, where the file says nothing
    fields |= {key: value for key, value in config.items() if key in known and value is not None}
    try:
        return LoraSpec.model_validate(fields)
    except ValidationError as error:
        raise AdapterError(f"{where!r}: adapter_config.json: {reason(error)}") from None


def _harmless(key: str, value: Any) -> bool:
    """Whether a field that is no part of a LoraSpec leaves the answer as it is."""
    if key == "init_lora_weights":
        return value.lower() in _PLAIN_INIT if isinstance(value, str) else value is None or isinstance(value, bool)
    return not value or (key == "bias" and value == "none")


def _short(value: Any) -> str:
    return short(repr(value))


def _names(config: Mapping[str, Any], key: str, where: str) -> list[str]:
    names = config.get(key) or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise AdapterError(f"{where!r}: adapter_config.json has {key}={_short(names)}; it must be a list of names")
    return names


def origin_of(config: Mapping[str, Any], where: str) -> dict[str, str]:
    """The base that the adapter was trained on, as a card says it: `base`, and `base_revision` where there is one."""
    found = {}
    for key, field in (("base_model_name_or_path", "base"), ("revision", "base_revision")):
        value = config.get(key)
        try:
            _PLACE.validate_python(value)
        except ValidationError:
            raise AdapterError(
                f"{where!r}: adapter_config.json has {key}={_short(value)}; it must be a name of at most "
                f"{LONGEST_PLACE} letters"
            ) from None
        if value:
            found[field] = value
    return found


def architecture_of(config: Mapping[str, Any]) -> str | None:
    """The head's class, from the model class that PEFT notes where it knows no task_type (images, audio): a name such
    as AutoModelForImageClassification, or that of a class which is not transformers' ("Finder")."""
    noted = config.get("auto_mapping")
    found = noted if isinstance(noted, dict) else {}
    name, library = found.get("base_model_class"), found.get("parent_library")
    if not isinstance(name, str) or not isinstance(library, str):
        return None
    if name in _NAMED and library.startswith("transformers"):
        return _NAMED[name]
    kind = name.rpartition("For")[2] if "For" in name else None
    own = None if library.startswith("transformers") else name
    return f"AutoModelFor{kind}" if kind else own


def check_targets(config: Mapping[str, Any], layers: Iterable[str], where: str) -> None:
    """AdapterError for a layer that plain PEFT would leave out, since the config does not target it."""
    from peft.tuners.tuners_utils import check_target_module_exists

    layers = list(layers)
    try:
        check_quick(_expressions(config), layers)
    except ValueError as error:
        raise AdapterError(f"{where!r}: adapter_config.json: {error}") from None
    targets = config.get("target_modules")
    if targets is None or targets == "all-linear":
        return  # which layers these are is the base's to say
    said = SimpleNamespace(
        target_modules=targets if isinstance(targets, str) else set(targets),
        target_parameters=None,
        **{key: config.get(key) for key in ("exclude_modules", "modules_to_save", "layers_to_transform")},
        layers_pattern=config.get("layers_pattern"),
    )
    for name in layers:
        try:
            meant = check_target_module_exists(said, name)
        except (re.error, TypeError, ValueError, AttributeError, UnboundLocalError) as error:
            raise AdapterError(
                f"{where!r}: adapter_config.json's layers_to_transform, layers_pattern or modules_to_save cannot be "
                f"compared with layer {named(name)}: {error}"
            ) from None
        if not meant:
            raise AdapterError(
                f"{where!r} has a pair for layer {named(name)}, which adapter_config.json does not target "
                "(target_modules, exclude_modules, layers_to_transform, modules_to_save); plain PEFT would leave it "
                "out: correct the config, or save the adapter again"
            )


def _expressions(config: Mapping[str, Any]) -> list[str]:
    """What of a config is matched as a regular expression."""
    found = [config.get(key) for key in ("target_modules", "exclude_modules")]
    patterns = config.get("layers_pattern")
    found += patterns if isinstance(patterns, list) else [patterns]
    for key in ("rank_pattern", "alpha_pattern"):
        found += list(config.get(key) or ())
    return [expression for expression in found if isinstance(expression, str)]


def check_head(config: Mapping[str, Any], head: Iterable[str], where: str) -> None:
    """AdapterError for a tensor outside of `modules_to_save`, where the config names some: it is the base's own."""
    saved = tuple(_names(config, "modules_to_save", where))
    for name in head:
        parts = name.split(".")
        owners = [".".join(parts[:end]) for end in range(1, len(parts))]
        if saved and not any(owner.endswith(saved) for owner in owners):
            raise AdapterError(
                f"{where!r}: {named(name)} is a weight of the base, not of the adapter (PEFT saves the embeddings of a "
                "vocabulary that was resized), and other adapters share the base; save the adapter with "
                "save_embedding_layers=False"
            )
