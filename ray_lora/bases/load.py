"""Where bases come from: a packaged one, a hub id, a folder, a GGUF file, or a builder.

It knows nothing of adapters or tasks.

    base = load_base(BaseSpec(model="minilm", dtype="float32"))
    base.backbone           # BertModel, eval mode, no parameter requires a gradient
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from ray_lora.atomic import expanded
from ray_lora.bases import builders, transformers_base
from ray_lora.bases.base import Base
from ray_lora.bases.builders import Builder
from ray_lora.bases.converted import CONVERTED, convert
from ray_lora.bases.fingerprint import fingerprint, module_fingerprint
from ray_lora.bases.packaged import PACKAGED, fetch
from ray_lora.bases.positions import limit
from ray_lora.bases.quantised import SCHEMES, quantise, quantised_mark
from ray_lora.bases.queries import tell_queries
from ray_lora.bases.segments import tell_segments
from ray_lora.bases.speech import tell_speech
from ray_lora.bounds import named, short
from ray_lora.errors import BaseModelError
from ray_lora.recipe import BaseSpec

__all__ = ["Base", "describe_base", "fingerprint", "load_base", "locate", "pick_dtype"]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_base(spec: BaseSpec, device: str | torch.device = "cpu") -> Base:
    """Load, freeze and fingerprint a base.

    Raises:
        BaseModelError: it cannot be loaded; the message says what to give instead.
    """
    device = torch.device(device)
    return _quantised(_load(spec, device), spec, device)


def _load(spec: BaseSpec, device: torch.device) -> Base:
    dtype = pick_dtype(spec.dtype, device)
    if builders.is_builder(spec.model):
        return _of_builder(spec, dtype, device)
    path = locate(spec.model)
    ours = builders.of_folder(path)
    if ours is not None:
        return _of_builder(spec, dtype, device, path, ours)
    attention = spec.attn_implementation
    if attention == "auto":  # scaled-dot-product attention's backward is the slower one on a CPU at short lengths
        attention = "eager" if device.type == "cpu" else "sdpa"
    backbone = transformers_base.load_backbone(path, spec.model, dtype, attention)
    backbone.module.to(device)
    return _of_transformers(spec, path, backbone, dtype, device)


def describe_base(spec: BaseSpec, device: str | torch.device = "cpu") -> Base:
    """A base without memory for its weights: enough to check what fits and to count parameters.

    A builder's base is built once for its fingerprint and given back.

    Raises:
        BaseModelError: as `load_base`.
    """
    device = torch.device(device)
    return _quantised(_describe(spec, device), spec, device)


def _describe(spec: BaseSpec, device: torch.device) -> Base:
    dtype, meta = pick_dtype(spec.dtype, device), torch.device("meta")
    if builders.is_builder(spec.model):
        return _of_builder(spec, dtype, meta)
    path = locate(spec.model)
    ours = builders.of_folder(path)
    if ours is not None:
        return _of_builder(spec, dtype, meta, path, ours)
    return _of_transformers(spec, path, transformers_base.describe_backbone(path, spec.model), dtype, meta)


def _quantised(base: Base, spec: BaseSpec, device: torch.device) -> Base:
    """The base in few bits, where its dtype says so; it was read in float32."""
    if spec.dtype not in SCHEMES:
        return base
    quantise(base.backbone, spec.dtype, base.id)
    dtype = pick_dtype("auto", device)
    base.backbone.to(dtype)
    mark = quantised_mark(base.fingerprint, spec.dtype)
    return replace(base, dtype=dtype, quantised=spec.dtype, origin=base.fingerprint, fingerprint=mark)


def _of_transformers(
    spec: BaseSpec, path: Path, backbone: transformers_base.Backbone, dtype: torch.dtype, device: torch.device
) -> Base:
    module = backbone.module.requires_grad_(False).eval()
    takes = getattr(module, "main_input_name", "")
    processor = transformers_base.load_processor(
        path, pictures=takes == "pixel_values", sounds=transformers_base.hears(backbone.config)
    )
    limit(processor, module, backbone.config)
    tell_segments(processor, module, backbone.config)
    tell_queries(processor, backbone.config)
    tell_speech(processor, backbone.config, path)
    transformers_base.tell_vocabulary(processor, backbone.config)
    return Base(
        id=spec.model,
        folder=path,
        backbone=module,
        processor=processor,
        config=backbone.config,
        fingerprint=fingerprint(path),
        prefix=backbone.prefix,
        dtype=dtype,
        device=device,
    )


def _of_builder(
    spec: BaseSpec, dtype: torch.dtype, device: torch.device, folder: Path | None = None, builder: Builder | None = None
) -> Base:
    """A base whose module lies on `device`; what gives its plain class is built a second time, on the meta device.

    Args:
        folder: what the builder reads, where it is a folder's, which is then known by its files.
    """
    shapes = builders.build(spec.model, "meta", builder)
    described = device.type == "meta" and folder is not None
    real = shapes if described else builders.build(spec.model, "cpu", builder)
    mark = module_fingerprint(real.backbone) if folder is None else fingerprint(folder)
    return Base(
        id=spec.model,
        folder=folder or Path(),
        backbone=shapes.backbone if device.type == "meta" else real.backbone.to(device, dtype),
        processor=real.processor,
        config=real.config,
        fingerprint=mark,
        prefix=real.prefix,
        dtype=dtype,
        device=device,
        built=shapes,
    )


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The named dtype; `auto` is bfloat16 where the device multiplies it natively, else float32. A base that is to be
    quantised is read in float32."""
    if name != "auto":
        return _DTYPES.get(name, torch.float32)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if device.type == "cpu":
        probe = getattr(torch.cpu, "get_capabilities", dict)  # torch 2.10 and later
        flags: dict[str, bool] = probe()
        return torch.bfloat16 if flags.get("avx512_bf16") or flags.get("amx_bf16") else torch.float32
    return torch.float32


def locate(model: str) -> Path:
    """Where a base lies: a packaged or converted one, a local folder or GGUF file, or a hub id's snapshot (fetched when
    a network is there)."""
    if model in PACKAGED:
        return fetch(model)
    if model in CONVERTED:
        return convert(model)
    path = expanded(model)
    try:
        is_file, is_folder = path.is_file(), path.is_dir()
    except OSError as error:  # too long for a name, or behind what may not be seen
        raise BaseModelError(f"base {short(model)!r} cannot be looked at: {error.strerror}") from None
    if is_file and transformers_base.is_gguf(path):
        transformers_base.check_gguf(path)
        return path
    if is_folder:
        if not (path / "config.json").exists() or not list(path.glob("*.safetensors")):
            raise BaseModelError(
                f"base folder {model!r} lacks config.json or *.safetensors; save it with save_pretrained"
            )
        return path
    names = ", ".join(sorted([*PACKAGED, *CONVERTED, *builders.BUILDERS]))
    if model.startswith((".", "/", "~")) or model.count("/") != 1 or transformers_base.is_gguf(path):
        raise BaseModelError(
            f"base {named(model)} is not a folder or a GGUF file here; give a folder, a .gguf file, a hub id, "
            f"a packaged base ({names}) or a builder (package.module:callable)"
        )
    return _snapshot(model, names)


def _snapshot(model: str, names: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = short(str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__, 300)
        raise BaseModelError(
            f"base {named(model)} cannot be fetched from the hub ({reason}); without a network give a folder that "
            f"save_pretrained wrote (base.model=/path/to/folder) or a packaged base ({names})"
        ) from None
