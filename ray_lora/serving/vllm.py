"""The adapters of a store that write texts, handed to Ray's own app for language models (`ray.serve.llm`, vLLM on
GPUs): copied to where it looks for them, and its configuration.

    handed = hand_over(store, base, "s3://bucket/loras", source="HuggingFaceTB/SmolLM2-135M-Instruct")
    handed.config                      # what `serve deploy` takes
    handed.models                      # {"smollm2:chat@3": Entry}; as clients name them
    handed.left                        # {"tweets@1": "it does text-classification"}

Each version is copied once, under its ref: what lies under a name is never another adapter's, whatever is cached there.
It knows stores and files; nothing of Serve or vLLM is imported.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from pyarrow import ArrowException
from pyarrow.fs import FileSystem, FileType

from ray_lora.adapters.adapter import Adapter
from ray_lora.bases.base import Base
from ray_lora.bounds import public
from ray_lora.errors import AdapterError, RecipeError
from ray_lora.recipe import Json
from ray_lora.store import Entry, Store
from ray_lora.store.files import CARD, CONFIG, WEIGHTS

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # for which vLLM makes room
LAYERS = frozenset("q_proj k_proj v_proj o_proj gate_proj up_proj down_proj".split())  # that it adapts, of Llama's kind
_PLACES = ("s3", "gs", "abfss", "azure")  # where Ray's app looks for adapters
_TASK = "text-generation"


@dataclass
class Handed:
    """What was handed over.

    Attributes:
        config: of `serve deploy`. models: by the name that clients ask for. left: refs that were not, and why.
    """

    config: dict[str, Json]
    models: dict[str, Entry] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)


def hand_over(
    store: Store,
    base: Base,
    place: str,
    source: str | None = None,
    refs: Sequence[str] = (),
    accelerator: str | None = None,
) -> Handed:
    """Copy adapters of one base, and say how they are served.

    Args:
        base: whose adapters they are. place: a bucket's path, `s3://bucket/path`; options of its address
            (`?region=…`) are for this copy alone.
        source: where vLLM finds the base; None: under the name that it was loaded by here.
        refs: which ones; none: of every name what it means bare.
        accelerator: Ray's name of the GPU ("L4"); None leaves it to the cluster.

    Raises:
        RecipeError: the place is none that Ray's app looks at, or nothing can be handed over. AdapterError: a ref that
            was asked for by name cannot be, or something else lies where it would be copied to.
    """
    filesystem, root = _open(place)
    named = [store.resolve(ref) for ref in refs] if refs else _bare(store)
    handed, rank = Handed({}), 0
    model = base.folder.name if base.folder.name and Path(base.id).exists() else base.id
    for entry in named:
        why = _unfit(entry, base)
        if not why:  # only then are its files read
            adapter = store.load(entry.ref)[1]
            why = _unfit_layers(adapter)
        if why:
            if refs:
                raise AdapterError(f"{entry.ref} cannot be handed over: {why}")
            handed.left[entry.ref] = why
            continue
        _copy(adapter, filesystem, f"{root}/{entry.ref}")
        handed.models[f"{model}:{entry.ref}"] = entry
        rank = max(rank, adapter.config.r)
    if not handed.models:
        reasons = "; ".join(f"{ref}: {why}" for ref, why in list(handed.left.items())[:5])
        raise RecipeError(f"the store {store.uri!r} has no adapter for this base that vLLM could serve ({reasons})")
    address = urlsplit(place)
    engine: dict[str, Json] = {
        "enable_lora": True,
        "max_loras": min(len(handed.models), 16),
        "max_lora_rank": next(room for room in RANKS if room >= rank),
    }
    llm: dict[str, Json] = {
        "model_loading_config": {"model_id": model, "model_source": source or base.id},
        "lora_config": {
            "dynamic_lora_loading_path": f"{address.scheme}://{_bucket(address.netloc)}{address.path}".rstrip("/"),
            "max_num_adapters_per_replica": max(16, len(handed.models)),
        },
        "engine_kwargs": engine,
    }
    if accelerator is not None:
        llm["accelerator_type"] = accelerator
    application = {
        "name": "llm",
        "route_prefix": "/",
        "import_path": "ray.serve.llm:build_openai_app",
        "args": {"llm_configs": [llm]},
    }
    handed.config = {"applications": [application]}
    return handed


def _bare(store: Store) -> list[Entry]:
    """What each name means bare; single persons' adapters are asked for by name."""
    names = dict.fromkeys(entry.name for entry in store.list(people=False))
    return [store.resolve(name) for name in names]


def _unfit(entry: Entry, base: Base) -> str:
    if entry.task is None or entry.task.type != _TASK:
        return f"it does {entry.task.type if entry.task else 'what nobody has said'}, and vLLM writes texts"
    if entry.base_fingerprint != base.fingerprint:
        return f"its base is {entry.base!r}, which is not {base.id!r}"
    return ""


def _unfit_layers(adapter: Adapter) -> str:
    """Why vLLM would answer otherwise than here, or not at all."""
    config = adapter.config
    if adapter.head:
        return "it has an output layer of its own"
    strange = sorted({name.rpartition(".")[2] for name in adapter.layers} - LAYERS)
    if strange:
        return f"it changes layers {', '.join(strange)}; vLLM adapts only {', '.join(sorted(LAYERS))}"
    if config.rank_pattern or config.alpha_pattern:
        return "its layers have ranks or scalings of their own (rank_pattern, alpha_pattern), which vLLM does not read"
    if config.r > RANKS[-1]:
        return f"its rank is {config.r}, and vLLM has room for {RANKS[-1]}"
    return ""


def _open(place: str) -> tuple[FileSystem, str]:
    if urlsplit(place).scheme not in _PLACES:
        raise RecipeError(
            f"{public(place)!r} is no place where Ray's app looks for adapters; give a bucket's path: "
            f"{', '.join(f'{name}://' for name in _PLACES)}"
        )
    try:
        filesystem, root = FileSystem.from_uri(place)
    except (ArrowException, OSError, ValueError) as error:
        raise RecipeError(f"{public(place)!r} cannot be opened: {error}") from None
    return filesystem, root.rstrip("/")


def _bucket(netloc: str) -> str:
    """Without the keys that an address may hold."""
    return netloc.rpartition("@")[2]


def _copy(adapter: Adapter, filesystem: FileSystem, path: str) -> None:
    """An adapter's files, the config last; nothing where the same adapter lies already.

    Raises:
        AdapterError: another one does.
    """
    if filesystem.get_file_info(f"{path}/{CONFIG}").type == FileType.File:
        with filesystem.open_input_file(f"{path}/{CARD}") as file:
            found = str(json.loads(file.read()).get("sha256"))
        if found != adapter.sha256:
            raise AdapterError(
                f"{path} holds another adapter (sha256 {found[:12]}, not {adapter.sha256[:12]}), as of another store; "
                "give another place"
            )
        return
    filesystem.create_dir(path)
    with tempfile.TemporaryDirectory(prefix="ray-lora-") as temporary:
        folder = Path(temporary) / "adapter"
        adapter.save(folder)
        for name in (WEIGHTS, CARD, CONFIG):
            with filesystem.open_output_stream(f"{path}/{name}") as file:
                file.write((folder / name).read_bytes())
