"""An adapter on disk is a plain PEFT folder; what cannot be served exactly is refused by name."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from torch import Tensor

from ray_lora.adapters.adapter import CARD, Adapter, Card, layer_rank, layer_scaling
from ray_lora.adapters.peft_folder import CONFIG, WEIGHTS, LowRank
from ray_lora.adapters.readme import README
from ray_lora.errors import AdapterError
from ray_lora.recipe import LoraSpec, TaskSpec
from ray_lora.tasks.text_classification import TextClassificationSpec
from tests.unit.bases import plain, quiet_peft, reopen, save_base, token_batch, wrap

QUERY = "bert.encoder.layer.0.attention.self.query"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base("bert", tmp_path_factory.mktemp("bases") / "bert")


@pytest.fixture(scope="module")
def peft_folder(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As plain PEFT saved it, head included."""
    model = wrap(plain(base, 3), 1, r=4, lora_alpha=6, task_type="SEQ_CLS", target_modules=["query", "value"])
    folder = tmp_path_factory.mktemp("peft") / "adapter"
    with quiet_peft():
        model.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(peft_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(peft_folder, tmp_path / "adapter"))


def ours() -> Adapter:
    """A small adapter made here."""
    draw = torch.Generator().manual_seed(0)
    pair = LowRank(torch.randn(2, 32, generator=draw), torch.randn(32, 2, generator=draw))
    head = {"classifier.weight": torch.randn(2, 32, generator=draw), "classifier.bias": torch.zeros(2)}
    card = Card(task=TextClassificationSpec(labels=("no", "yes")), base="tiny", metrics={"accuracy": 0.5})
    return Adapter(LoraSpec(r=2, lora_alpha=3), {QUERY: pair}, head, card, "SEQ_CLS", ("classifier",))


def change_config(folder: Path, **fields: Any) -> None:
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def change_weights(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def error_of(folder: Path) -> str | None:
    """What the refusal says, None when the folder is read."""
    try:
        Adapter.load(folder)
    except AdapterError as error:
        return str(error)
    return None


# -------------------------------------------------------------------- reading and writing


def test_a_folder_of_plain_peft_is_read_as_it_is(base: Path, peft_folder: Path) -> None:
    adapter = Adapter.load(peft_folder)
    stored = load_file(peft_folder / WEIGHTS)
    assert adapter.config == LoraSpec(r=4, lora_alpha=6, target_modules=adapter.config.target_modules)
    assert set(adapter.config.target_modules) == {"query", "value"}
    assert len(adapter.layers) == 4
    assert adapter.layers[QUERY].rank == 4
    assert adapter.scaling(QUERY) == 1.5
    assert set(adapter.head) == {"classifier.weight", "classifier.bias"}
    assert adapter.head_modules[0] == "classifier"
    assert adapter.peft_type == "SEQ_CLS"
    assert adapter.card == Card(base=str(base))
    assert adapter.tensors.keys() == stored.keys()
    assert all(torch.equal(adapter.tensors[key], tensor) for key, tensor in stored.items())
    assert adapter.num_parameters == sum(tensor.numel() for tensor in stored.values())


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    adapter = ours()
    assert adapter.save(tmp_path / "a") == adapter.sha256
    again = Adapter.load(tmp_path / "a")
    assert again.sha256 == adapter.sha256
    assert again.card.model_copy(update={"sha256": None}) == adapter.card
    assert again.config == adapter.config.model_copy(update={"target_modules": (QUERY,)})
    assert again.tensors.keys() == adapter.tensors.keys()
    assert all(torch.equal(again.tensors[key], tensor) for key, tensor in adapter.tensors.items())
    assert {path.name for path in (tmp_path / "a").iterdir()} == {CONFIG, WEIGHTS, CARD, README}
    again.save(tmp_path / "b")
    for name in (CONFIG, WEIGHTS, CARD):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    with pytest.raises(AdapterError, match="already holds an adapter; give another folder"):
        adapter.save(tmp_path / "a")


def test_plain_peft_reads_the_saved_config_and_weights(base: Path, peft_folder: Path, tmp_path: Path) -> None:
    adapter = Adapter.load(peft_folder)
    adapter.save(tmp_path / "again")
    config = LoraConfig.from_pretrained(tmp_path / "again")
    assert (config.r, config.lora_alpha, config.task_type) == (4, 6, "SEQ_CLS")
    assert set(config.target_modules) == set(adapter.layers)
    inputs = token_batch(5)
    first = reopen(base, peft_folder, 3)(**inputs).logits
    assert torch.equal(reopen(base, tmp_path / "again", 3)(**inputs).logits, first)


def test_half_precision_files_are_read_in_float32(folder: Path) -> None:
    full = Adapter.load(folder)
    change_weights(folder, lambda tensors: tensors.update({key: tensor.half() for key, tensor in tensors.items()}))
    half = Adapter.load(folder)
    for key, tensor in half.tensors.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, full.tensors[key].half().float())


def test_a_metric_that_is_no_number_does_not_spoil_the_folder(tmp_path: Path) -> None:
    card = Card(metrics={"perplexity": math.inf, "f1": math.nan, "accuracy": 0.5})
    replace(ours(), card=card).save(tmp_path / "a")
    metrics = Adapter.load(tmp_path / "a").card.metrics
    assert (metrics["perplexity"], metrics["accuracy"], math.isnan(metrics["f1"])) == (math.inf, 0.5, True)


@pytest.mark.parametrize(("alpha", "written"), [(16, 16), (16.0, 16), (0.5, 0.5)])
def test_alpha_is_written_as_people_write_it(alpha: float, written: float, tmp_path: Path) -> None:
    replace(ours(), config=LoraSpec(r=2, lora_alpha=alpha)).save(tmp_path / "a")
    text = (tmp_path / "a" / CONFIG).read_text()
    assert f'"lora_alpha": {written},' in text
    assert Adapter.load(tmp_path / "a").config.lora_alpha == alpha


def test_fields_the_file_leaves_out_have_pefts_defaults(folder: Path) -> None:
    config = json.loads((folder / CONFIG).read_text())
    kept = {key: config[key] for key in ("peft_type", "task_type", "target_modules")}
    (folder / CONFIG).write_text(json.dumps(kept))
    default = LoraConfig()
    assert f"rank 4, adapter_config.json gives it {default.r}" in str(error_of(folder))  # nor does PEFT load it
    (folder / CONFIG).write_text(json.dumps(kept | {"rank_pattern": {"query": 4, "value": 4}}))
    adapter = Adapter.load(folder)
    assert (adapter.config.r, adapter.config.lora_alpha) == (default.r, default.lora_alpha)
    assert adapter.scaling(QUERY) == default.lora_alpha / 4


# -------------------------------------------------------------------- alpha and rank of a layer


@pytest.mark.parametrize(
    "options",
    [
        {"r": 4, "lora_alpha": 6},
        {"r": 4, "lora_alpha": 6, "use_rslora": True},
        {"r": 4, "rank_pattern": {"query": 2}, "alpha_pattern": {"value": 3}},
        {"r": 4, "rank_pattern": {r"layer\.1\..*query": 3, "query": 2}, "use_rslora": True},
        {"r": 4, "alpha_pattern": {"self.query": 5, "layer.0.attention.self.value": 7}},
        {"r": 4, "rank_pattern": {"^bert.encoder.layer.0.attention.self.query": 2}},
    ],
)
def test_ranks_and_scalings_of_layers_are_pefts(options: dict[str, Any], base: Path, tmp_path: Path) -> None:
    model = wrap(plain(base, 2), 0, task_type="SEQ_CLS", target_modules=["query", "value"], **options)
    with quiet_peft():
        model.save_pretrained(tmp_path)
    adapter = Adapter.load(tmp_path)
    theirs = {
        name.removeprefix("base_model.model."): module
        for name, module in model.named_modules()
        if hasattr(module, "lora_A")
    }
    assert set(adapter.layers) == set(theirs)
    for name, module in theirs.items():
        assert adapter.layers[name].rank == module.r["default"]
        assert layer_rank(adapter.config, name) == module.r["default"]
        assert adapter.scaling(name) == pytest.approx(module.scaling["default"], rel=1e-12)
        assert layer_scaling(adapter.config, name, module.r["default"]) == adapter.scaling(name)


# -------------------------------------------------------------------- the content hash


def test_the_hash_says_what_answers_and_nothing_else() -> None:
    adapter = ours()
    same = [
        replace(adapter, card=adapter.card.model_copy(update={"metrics": {"accuracy": 0.9}, "base": "elsewhere"})),
        replace(adapter, config=adapter.config.model_copy(update={"target_modules": ("query",), "lora_dropout": 0.1})),
        replace(adapter, layers=dict(reversed(adapter.layers.items())), head=dict(reversed(adapter.head.items()))),
    ]
    assert {other.sha256 for other in same} == {adapter.sha256}
    pair = adapter.layers[QUERY]
    nudged = pair.A.clone()
    nudged[0, 0] = math.nextafter(float(nudged[0, 0]), math.inf) + 1e-6
    others = [
        replace(adapter, layers={QUERY: replace(pair, A=nudged)}),
        replace(adapter, layers={QUERY.replace("0", "1"): pair}),
        replace(adapter, head=adapter.head | {"classifier.bias": torch.tensor([0.0, 1e-6])}),
        replace(adapter, config=LoraSpec(r=2, lora_alpha=4)),
        replace(adapter, config=LoraSpec(r=2, lora_alpha=3, use_rslora=True)),
        replace(adapter, card=Card(task=TextClassificationSpec(labels=("yes", "no")))),
        replace(adapter, card=Card()),
    ]
    assert len({other.sha256 for other in [adapter, *others]}) == 8


def test_a_folder_that_was_changed_is_refused(tmp_path: Path) -> None:
    spoils: list[Callable[[Path], None]] = [
        lambda folder: change_weights(folder, lambda tensors: tensors["base_model.model.classifier.bias"].add_(1)),
        lambda folder: change_config(folder, lora_alpha=30),
        lambda folder: (folder / CARD).write_text((folder / CARD).read_text().replace("yes", "si")),  # type: ignore
    ]
    for number, spoil in enumerate(spoils):
        ours().save(tmp_path / str(number))
        spoil(tmp_path / str(number))
        with pytest.raises(AdapterError, match=r"content hash is .* the card says .* changed or torn"):
            Adapter.load(tmp_path / str(number))


# -------------------------------------------------------------------- refused by name


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"use_dora": True}, "use_dora=True, which this engine does not compute"),
        ({"bias": "all"}, "bias='all'"),
        ({"bias": "lora_only"}, "bias='lora_only'"),
        ({"lora_bias": True}, "lora_bias=True"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication="),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
        ({"init_lora_weights": "pissa_niter_16"}, "init_lora_weights='pissa_niter_16'"),
        ({"init_lora_weights": "olora"}, "init_lora_weights='olora'"),
        ({"init_lora_weights": "corda"}, "init_lora_weights='corda'"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights='loftq'"),
        ({"loftq_config": {"loftq_bits": 4}}, "loftq_config="),
        ({"use_qalora": True}, "use_qalora=True"),
        ({"target_parameters": ["experts.weight"]}, "target_parameters"),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices="),
        ({"alora_invocation_tokens": [5]}, "alora_invocation_tokens="),
        ({"megatron_config": {"x": 1}}, "megatron_config="),
        ({"arrow_config": {"top_k": 2}}, "arrow_config="),
        ({"something_new": "on"}, "something_new='on'"),
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA'; only 'LORA'"),
        ({"peft_type": None}, "peft_type is None"),
        ({"r": 0}, "greater than or equal to 1"),
        ({"r": "many"}, "adapter_config.json: .*r"),
        ({"lora_alpha": 0}, "lora_alpha"),
        ({"lora_alpha": "NaN"}, "lora_alpha"),
        ({"lora_alpha": math.inf}, "lora_alpha"),
        ({"target_modules": "("}, "'\\(' is not a regular expression"),
        ({"rank_pattern": {"query": 0}}, "a rank is at least 1"),
        ({"rank_pattern": ["query"]}, "rank_pattern"),
        ({"alpha_pattern": {"query": "x"}}, "alpha_pattern"),
        ({"alpha_pattern": {"query": 0}}, "alpha_pattern"),
        ({"rank_pattern": {"(": 2}}, "rank_pattern.*regular expression"),
        ({"modules_to_save": 3}, "modules_to_save"),
        ({"task_type": ["SEQ_CLS"]}, "task_type"),
    ],
)
def test_a_config_that_cannot_be_served_exactly_is_refused(folder: Path, fields: dict[str, Any], match: str) -> None:
    change_config(folder, **fields)
    with pytest.raises(AdapterError, match=match):
        Adapter.load(folder)


def test_fields_that_do_not_change_an_answer_are_accepted(folder: Path) -> None:
    before = Adapter.load(folder).sha256
    for fields in (
        {"something_new": None, "another": False, "third": []},
        {"peft_version": "9.9", "revision": "main", "inference_mode": False, "layers_to_transform": [0, 1]},
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": False, "lora_dropout": 0.0, "fan_in_fan_out": True},
        {"runtime_config": {"ephemeral_gpu_offload": False}, "megatron_core": "megatron.core"},
    ):
        change_config(folder, **fields)
        assert Adapter.load(folder).sha256 == before


def test_every_field_of_pefts_config_is_known_or_refused(folder: Path) -> None:
    """A value PEFT does not have by default is served right or named in the error; none passes in silence."""
    served = {"r", "lora_alpha", "target_modules", "exclude_modules", "rank_pattern", "alpha_pattern", "use_rslora"}
    silent = set()
    whole = (folder / CONFIG).read_text()
    for key in LoraConfig().to_dict():
        change_config(folder, **{key: "odd"})
        error = error_of(folder)
        assert error is None or key in error
        silent |= {key} if error is None else set()
        (folder / CONFIG).write_text(whole)
    assert silent - served <= {
        *("auto_mapping", "base_model_name_or_path", "revision", "peft_version", "inference_mode", "task_type"),
        *("fan_in_fan_out", "layers_pattern", "layers_to_transform", "megatron_core", "qalora_group_size"),
        *("ensure_weight_tying", "lora_dropout", "eva_config"),
    }


def spoiled(folder: Path, change: Callable[[dict[str, Tensor]], Any], match: str) -> None:
    change_weights(folder, change)
    with pytest.raises(AdapterError, match=match):
        Adapter.load(folder)


KEY = f"base_model.model.{QUERY}.lora_A.weight"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t: t[KEY].fill_(float("nan")), "not finite numbers"),
        (lambda t: t[KEY][0].fill_(float("inf")), "not finite numbers"),
        (lambda t: t.update({KEY: t[KEY].long()}), "is of int64; an adapter's tensors are floating-point numbers"),
        (lambda t: t.pop(KEY), "lacks a matching pair"),
        (lambda t: t.update({KEY: t[KEY][:3].clone()}), "lacks a matching pair"),
        (lambda t: t.update({KEY: t[KEY].flatten()}), "lacks a matching pair"),
        (
            lambda t: t.update({KEY: torch.zeros(0, 32), KEY.replace("_A", "_B"): torch.zeros(32, 0)}),
            "lacks a matching pair",
        ),
        (lambda t: t.update({"bert.x.lora_A.weight": t.pop(KEY)}), "does not begin with 'base_model.model.'"),
        (
            lambda t: t.update({KEY.replace("A.weight", "magnitude_vector"): torch.ones(32)}),
            "a variant of LoRA that is not supported",
        ),
        (lambda t: t.update({KEY.replace("A.weight", "B.bias"): torch.ones(32)}), "a variant of LoRA"),
        (
            lambda t: t.update({f"base_model.model.{QUERY}.base_layer.weight": torch.ones(32, 32)}),
            "a weight of the base.*save_embedding_layers=False",
        ),
        (lambda t: t.clear(), "holds no tensors"),
    ],
)
def test_tensors_that_are_no_adapter_are_refused(folder: Path, change: Any, match: str) -> None:
    spoiled(folder, change, match)


@pytest.mark.parametrize("file", [CONFIG, "ray_lora.json", WEIGHTS])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_never_ends_is_not_read(folder: Path, file: str, kind: str) -> None:
    """In a process of its own, whose memory is bounded: a device read to its end would take all there is."""
    (folder / file).unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(folder / file)
    else:
        (folder / file).symlink_to("/dev/zero")
    code = f"""
import resource, signal
from pathlib import Path
from ray_lora.adapters.adapter import Adapter
from ray_lora.errors import AdapterError
held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + (1 << 30),) * 2)
signal.alarm(60)
try:
    Adapter.load(Path({str(folder)!r}))
except AdapterError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert f"{file} is no regular file" in done.stdout, done.stdout + done.stderr[-500:]


def test_configs_that_are_large_or_deep_are_refused(folder: Path) -> None:
    (folder / CONFIG).write_text("[" * 200_000)
    with pytest.raises(AdapterError, match=r"nested too deeply|cannot be read"):
        Adapter.load(folder)
    with (folder / CONFIG).open("wb") as file:
        file.truncate(1 << 30)  # a file with a hole: no disk is taken
    with pytest.raises(AdapterError, match="has 1,073,741,824 bytes; at most 16,777,216 are read"):
        Adapter.load(folder)


def test_files_that_are_missing_or_broken_are_refused(folder: Path, tmp_path: Path) -> None:
    def refused(match: str) -> None:
        with pytest.raises(AdapterError, match=match):
            Adapter.load(folder)

    weights, config = (folder / WEIGHTS).read_bytes(), (folder / CONFIG).read_text()
    for cut in (0, 5, 100, len(weights) // 2, len(weights) - 1):
        (folder / WEIGHTS).write_bytes(weights[:cut])
        refused("is torn or not safetensors")
    (folder / WEIGHTS).unlink()
    refused("has no adapter_model.safetensors; save the adapter with safe_serialization=True")
    (folder / "adapter_model.bin").write_bytes(b"\x80\x04K\x01.")
    refused("adapter_model.bin is pickled and is never read")
    (folder / WEIGHTS).mkdir()
    refused("adapter_model.safetensors")
    (folder / WEIGHTS).rmdir()
    (folder / WEIGHTS).write_bytes(weights)
    for text in ("", "{", "[1, 2]", '"LORA"', "\x00"):
        (folder / CONFIG).write_text(text)
        refused("adapter_config.json (cannot be read|holds a)")
    (folder / CONFIG).write_bytes(b"\xff\xfe{}")
    refused("cannot be read")
    (folder / CONFIG).unlink()
    refused("has no adapter_config.json; an adapter is a folder that PEFT's save_pretrained wrote")
    (folder / CONFIG).write_text(config)
    for text in ("{", "[]", '{"unknown": 1}', '{"task": {"type": "cooking"}}', '{"metrics": {"accuracy": "high"}}'):
        (folder / CARD).write_text(text)
        refused("ray_lora.json")
    (folder / CARD).unlink()
    Adapter.load(folder)
    with pytest.raises(AdapterError, match=r"has no adapter_config\.json"):
        Adapter.load(tmp_path / "nowhere")
    with pytest.raises(AdapterError):
        Adapter.load(folder / CONFIG)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(fields=st.dictionaries(st.sampled_from(sorted(LoraConfig().to_dict())), json_values, min_size=1, max_size=2))
def test_no_config_raises_anything_but_an_adapter_error(fields: dict[str, Any], peft_folder: Path) -> None:
    whole = (peft_folder / CONFIG).read_text()
    try:
        change_config(peft_folder, **fields)
        error = error_of(peft_folder)
        if error is None:
            adapter = Adapter.load(peft_folder)
            assert all(math.isfinite(adapter.scaling(name)) for name in adapter.layers)
            assert adapter.sha256
        else:
            assert str(peft_folder) in error
    finally:
        (peft_folder / CONFIG).write_text(whole)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(at=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255))
def test_a_flipped_byte_is_refused_or_read_as_numbers(at: float, byte: int, peft_folder: Path) -> None:
    """Plain PEFT folders have no hash; a card's hash finds every change."""
    whole = (peft_folder / WEIGHTS).read_bytes()
    place = int(at * len(whole))
    try:
        (peft_folder / WEIGHTS).write_bytes(whole[:place] + bytes([byte]) + whole[place + 1 :])
        adapter = Adapter.load(peft_folder)
        assert all(torch.isfinite(tensor).all() for tensor in adapter.tensors.values())
    except AdapterError:
        pass
    finally:
        (peft_folder / WEIGHTS).write_bytes(whole)


@pytest.mark.parametrize(
    ("task", "sha256"),
    [
        (None, "ff83701cc1da9a5ed67977515cbcb4a795b3c502d822c81c2b6833aba843b6dd"),
        ({"labels": None, "max_length": 128}, "2b3e131b7f32ef9b83b905547d3078f1e817c73498a693933c085fbd4d534972"),
        (
            {"labels": ["no", "yes"], "max_length": 64},
            "72a9280f6d278008fbd419b0cc6a0d353d7b59b1bfd1be28106839f3c34e7765",
        ),
        (
            {"type": "image-classification", "labels": ["a", "b"], "max_length": 128},
            "58f616b36a88709e0b3301c6f8d0de96b3ac03308e402a630caa107f004535e1",
        ),
        (
            {"type": "image-classification", "labels": ["a", "b"], "max_length": 64},
            "417e73b9fc0acded9e107713b25750b91ec64eeb399bdcbd0867a181d7b5ef7b",
        ),
    ],
)
def test_hashes_of_adapters_are_those_of_version_0_1(task: dict[str, Any] | None, sha256: str, tmp_path: Path) -> None:
    """Cards held `max_length` for every task then."""
    told = {"type": "text-classification", **task} if task is not None else None
    card = Card.model_validate({"task": told, "base": "tiny"})
    layers = {"x.query": LowRank(torch.arange(4.0).reshape(2, 2), torch.ones(2, 2))}
    adapter = Adapter(LoraSpec(r=2), layers, {}, card)
    assert adapter.save(tmp_path / "a") == sha256
    assert json.loads((tmp_path / "a" / "ray_lora.json").read_text())["task"] == told
    assert Adapter.load(tmp_path / "a").sha256 == sha256
    if task is not None and task["max_length"] == 128:  # the same when it is made today
        made = TaskSpec.model_validate({key: value for key, value in (told or {}).items() if key != "max_length"})
        assert replace(adapter, card=Card(task=made)).sha256 == sha256
