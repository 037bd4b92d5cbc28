"""Adapters as other savers name them: what is certain is read as plain PEFT reads it, the rest refused by its cause."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from torch import Tensor

from ray_lora.adapters.adapter import Adapter
from ray_lora.adapters.peft_folder import CONFIG, WEIGHTS
from ray_lora.errors import AdapterError
from tests.unit.bases import plain, quiet_peft, save_base, wrap

PRE = "base_model.model."
QUERY = "bert.encoder.layer.0.attention.self.query"
POOLER = f"{PRE}bert.pooler.dense"
Rename = Callable[[str], str]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As plain PEFT saved it, head included."""
    root = tmp_path_factory.mktemp("made")
    model = wrap(
        plain(save_base("bert", root / "base"), 3), 1, r=4, task_type="SEQ_CLS", target_modules=["query", "value"]
    )
    with quiet_peft():
        model.save_pretrained(root / "adapter")
    return root / "adapter"


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "adapter"))


def renamed(folder: Path, rename: Rename) -> None:
    save_file({rename(key): tensor for key, tensor in load_file(folder / WEIGHTS).items()}, folder / WEIGHTS)


def added(folder: Path, tensors: dict[str, Tensor]) -> None:
    save_file(load_file(folder / WEIGHTS) | tensors, folder / WEIGHTS)


def configured(folder: Path, **fields: Any) -> None:
    told = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(told | fields))


def said(folder: Path) -> str:
    with pytest.raises(AdapterError) as refused:
        Adapter.load(folder)
    return str(refused.value)


def named(key: str, adapter: str = "default") -> str:
    """As a raw state dict has it."""
    for mark in (".lora_A", ".lora_B"):
        key = key.replace(f"{mark}.weight", f"{mark}.{adapter}.weight")
    return key.replace("classifier.", f"classifier.modules_to_save.{adapter}.")


@pytest.mark.parametrize(
    "rename",
    [
        named,
        lambda key: named(key, "my_adapter"),
        lambda key: named(key) if "classifier" in key else key,
        lambda key: f"_orig_mod.{key}",
        lambda key: key.replace(PRE, f"{PRE}_orig_mod."),
        lambda key: f"module.{key}",
        lambda key: f"module.module.{named(key)}",
        lambda key: f"module._orig_mod.{key}",
        lambda key: "_fsdp_wrapped_module." + key.replace("layer.0.", "layer.0._fsdp_wrapped_module."),
        lambda key: key.replace("layer.1.", "layer.1._checkpoint_wrapped_module."),
        lambda key: key.removeprefix(PRE),
        lambda key: f"module.{key.removeprefix(PRE)}",
        lambda key: PRE + key,
    ],
)
def test_names_of_other_savers_mean_the_same_adapter(folder: Path, rename: Rename) -> None:
    before = Adapter.load(folder)
    renamed(folder, rename)
    again = Adapter.load(folder)
    assert again.sha256 == before.sha256
    assert again.head.keys() == {"classifier.weight", "classifier.bias"}


def test_what_a_saved_module_stands_for_and_counters_are_left_out(folder: Path) -> None:
    before = Adapter.load(folder).sha256
    renamed(folder, named)
    added(
        folder,
        {
            f"{PRE}classifier.original_module.weight": torch.ones(3, 32),
            f"{PRE}bert.embeddings.position_ids": torch.arange(40)[None],
            f"{PRE}classifier.modules_to_save.default.num_batches_tracked": torch.tensor(3),
        },
    )
    assert Adapter.load(folder).sha256 == before


@pytest.mark.parametrize(
    ("tensors", "why"),
    [
        ({f"{PRE}{QUERY}.lora_A.other.weight": torch.ones(4, 32)}, "more than one adapter"),
        ({f"{PRE}classifier.modules_to_save.other.weight": torch.ones(3, 32)}, "one tensor, .* twice"),
        ({f"{PRE}score.original_module.weight": torch.ones(3, 32)}, "the trained one that stands for it is not there"),
        ({f"{PRE}{PRE}{QUERY}.lora_A.weight": torch.ones(4, 32)}, "not of one adapter"),
        ({f"module.{PRE}{QUERY}.lora_A.weight": torch.ones(4, 32)}, "not of one adapter"),
        ({f"_orig_mod.{PRE}{QUERY}.lora_A.weight": torch.ones(4, 32)}, "twice"),
        ({f"{QUERY}.lora_A.weight": torch.ones(4, 32)}, "does not begin with 'base_model.model.'"),
        ({f"{PRE}classifier.scale": torch.ones(3, dtype=torch.int8)}, "is of int8; .* quantised weights and counters"),
        ({f"{PRE}classifier.mask": torch.ones(3, dtype=torch.bool)}, "is of bool"),
        ({f"{PRE}{QUERY}.lora_magnitude_vector": torch.ones(32)}, "not supported: DoRA"),
        ({f"{PRE}{QUERY}.lora_magnitude_vector.default.weight": torch.ones(32)}, "not supported: DoRA"),
        ({f"{PRE}{QUERY}.lora_B.bias": torch.ones(32)}, "not supported: lora_bias"),
        ({f"{PRE}{QUERY}.lora_E": torch.ones(4, 1)}, "not supported: AdaLoRA"),
        ({f"{PRE}bert.embeddings.word_embeddings.weight": torch.ones(60, 32)}, "vocabulary that was resized"),
        ({f"{PRE}{QUERY}.lora_A.weight": torch.zeros(0)}, "ZeRO-3"),
        ({f"{POOLER}.lora_A.weight": torch.ones(4, 32)}, "lacks a matching pair"),
        (
            {f"{POOLER}.lora_A.weight": torch.ones(4, 32), f"{POOLER}.lora_B.weight": torch.ones(32, 4)},
            "does not target .* plain PEFT would leave it out",
        ),
    ],
)
def test_what_could_mean_two_things_is_refused_by_its_cause(folder: Path, tensors: dict[str, Tensor], why: str) -> None:
    added(folder, tensors)
    with pytest.raises(AdapterError, match=why) as refused:
        Adapter.load(folder)
    assert "not saved by PEFT" not in str(refused.value)


def test_two_adapters_in_one_file_are_named(folder: Path) -> None:
    one = load_file(folder / WEIGHTS)
    save_file({named(key, name): value.clone() for name in ("a", "b") for key, value in one.items()}, folder / WEIGHTS)
    assert "holds more than one adapter" in said(folder)


# -------------------------------------------------------------------- fields of the config


@pytest.mark.parametrize(
    "fields",
    [
        {"init_lora_weights": "eva", "eva_config": {"rho": 2.0, "tau": 0.99}},
        {"init_lora_weights": "Gaussian"},
        {"lora_dtype": "float32", "lorap_lr_ratio": 16.0, "lorap_emb_lr": 1e-6},
        {"loraplus_lr_ratio": 16, "swift_type": "LORA", "model_key_mapping": {"a": "b"}},
        {"peft_layers_to_transform": None, "qat": {}, "unsloth_version": "2025.1"},
        {"exclude_modules": ["dense"], "fan_in_fan_out": True, "bias": None},
        {"use_dora": None, "lora_bias": False, "loftq_config": {}, "layers_pattern": []},
    ],
)
def test_fields_that_no_answer_depends_on_are_passed_over(folder: Path, fields: dict[str, Any]) -> None:
    before = Adapter.load(folder)
    configured(folder, **fields)
    after = Adapter.load(folder)
    assert after.layers.keys() == before.layers.keys()
    assert after.scaling(QUERY) == before.scaling(QUERY)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"init_lora_weights": "pissa"}, "rewriting the base's weights"),
        ({"init_lora_weights": "PiSSA_niter_4"}, "rewriting the base's weights"),
        ({"init_lora_weights": "lora_ga"}, "rewriting the base's weights"),
        ({"use_dora": True}, "DoRA"),
        ({"lora_bias": True}, "bias of its own"),
        ({"bias": "lora_only"}, "trained biases"),
        ({"layer_replication": [[0, 1]]}, "several times"),
        ({"trainable_token_indices": {"embed_tokens": [1]}}, "token embeddings"),
        ({"alora_invocation_tokens": [1]}, "from some token on"),
        ({"enable_lora": [True, False]}, "parts of a merged layer"),
        ({"use_rope_lora": True}, "use_rope_lora=True"),
        ({"exclude_modules": ["layer.0.attention.self.query"]}, "does not target"),
        ({"layers_to_transform": [1]}, "does not target"),
        ({"target_modules": ["query"]}, "does not target"),
        ({"target_modules": r".*layer\.1.*"}, "does not target"),
        ({"modules_to_save": ["query"]}, "does not target"),
        ({"modules_to_save": ["("]}, "cannot be compared"),
        ({"base_model_name_or_path": ["x"]}, "base_model_name_or_path=.* must be a name"),
        ({"r": 8}, "rank 4, adapter_config.json gives it 8"),
        ({"rank_pattern": {r"layer\.0.*query": 2}}, "rank 4, adapter_config.json gives it 2"),
    ],
)
def test_fields_that_change_the_answer_are_refused_by_name(folder: Path, fields: dict[str, Any], why: str) -> None:
    configured(folder, **fields)
    with pytest.raises(AdapterError, match=why):
        Adapter.load(folder)


def test_what_a_field_means_does_not_hang_on_the_installed_peft(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = LoraConfig().to_dict() | {"use_dora": True, "lora_bias": True}
    monkeypatch.setattr(LoraConfig, "to_dict", lambda self: told)
    configured(folder, use_dora=True)
    assert "use_dora=True" in said(folder)


# -------------------------------------------------------------------- folders


def test_a_trainers_folder_with_one_checkpoint_is_that_checkpoint(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(made, out / "checkpoint-8")
    (out / "runs").mkdir()
    assert Adapter.load(out).sha256 == Adapter.load(made).sha256
    shutil.copytree(made, out / "checkpoint-9")
    assert "adapters in checkpoint-8, checkpoint-9; name one" in said(out)
    for name in (CONFIG, WEIGHTS):
        shutil.copy(made / name, out / name)
    assert Adapter.load(out).sha256 == Adapter.load(made).sha256


@pytest.mark.parametrize(
    ("instead", "why"),
    [
        ("adapter_model.bin", "pickled"),
        ("global_step8", "DeepSpeed's shards"),
        ("pytorch_model_fsdp_0", "FSDP's shards"),
        ("model.safetensors", "a whole model"),
        ("model-00001-of-00002.safetensors", "a whole model"),
        ("adapter_model-00001-of-00002.safetensors", "several files"),
    ],
)
def test_what_lies_in_the_place_of_the_weights_is_named(folder: Path, instead: str, why: str) -> None:
    (folder / WEIGHTS).rename(folder / instead)
    assert why in said(folder)
