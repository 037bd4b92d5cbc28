"""Bases in few bits compute what the same weights compute as floats, packed and mixed as alone."""

from __future__ import annotations

import asyncio
import copy
import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import transformers
from peft import PeftModel
from torch import nn

from ray_lora.adapters.adapter import Card
from ray_lora.bases import load, quantised
from ray_lora.bases.base import Base
from ray_lora.bases.few_bits.layers import Int8Embedding, Int8Linear, Nf4Linear
from ray_lora.bases.few_bits.rounding import NF4, rounded
from ray_lora.bases.load import describe_base, load_base
from ray_lora.bases.plain import HeadSpec
from ray_lora.bases.quantised import float_weight, nbytes, quantise, quantised_mark
from ray_lora.engine import AdapterEngine
from ray_lora.errors import AdapterError, BaseModelError, RecipeError
from ray_lora.export.exporting import export_refs
from ray_lora.inference.pinned import pin_all
from ray_lora.inference.stored import alone, evaluate_ref
from ray_lora.inference.tables import TableAnswers
from ray_lora.recipe import BaseSpec, LoraSpec, Recipe
from ray_lora.running.plan import plan_recipe
from ray_lora.serving.args import AppArgs
from ray_lora.serving.cluster.bases import choose_bases
from ray_lora.serving.cluster.start import start_endpoint
from ray_lora.serving.http.routes import create_app
from ray_lora.store import open_store
from ray_lora.tasks import build_task
from ray_lora.tasks.text_options import TextClassificationSpec
from tests.conftest import rated, save_tiny_bert
from tests.unit.bases import (
    CAUSAL,
    TEXT,
    VOCABULARY,
    open_base,
    quiet_peft,
    save_base,
    save_language_model,
    token_batch,
)
from tests.unit.packs import LABELS, Letters, WatchedPack, assert_same, make_job, shards

SCHEMES = ("int8", "nf4")


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny bases' tables count as large ones, and all else is float32 on every machine."""
    monkeypatch.setattr(quantised, "_ROWS", 50)
    monkeypatch.setattr(load, "pick_dtype", lambda name, device: torch.float32)


def open_in(folder: Path, scheme: str, dtype: torch.dtype = torch.float64) -> Base:
    base = load_base(BaseSpec.model_validate({"model": str(folder), "dtype": scheme}))
    base.backbone.to(dtype)
    return replace(base, dtype=dtype)


def unfolded(model: nn.Module, scheme: Any) -> Any:
    """The same model with each weight as its few bits say it, in float64."""
    for module in model.modules():
        linear = type(module) is nn.Linear or type(module).__name__ == "Conv1D"
        table = type(module) is nn.Embedding and module.num_embeddings >= quantised._ROWS
        if linear or table:
            turned = type(module).__name__ == "Conv1D"
            told = float_weight(quantised._quantised(module, "int8" if table else scheme, {}))
            module.weight = nn.Parameter(told.t().contiguous() if turned else told)  # type: ignore[union-attr]
    return model.double().eval()


@pytest.fixture(params=SCHEMES)
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=["bert", "roberta", "llama", "gpt2"])
def kind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(request.param, tmp_path_factory.mktemp("bases") / request.param)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base("bert", tmp_path_factory.mktemp("bases") / "bert")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base with a tokenizer."""
    return save_tiny_bert(tmp_path_factory.mktemp("bases") / "texts", seed=0)


def filled(engine: AdapterEngine, head: HeadSpec, rank: int) -> int:
    """A slot whose adapter moves what the base says."""
    slot = engine.init(LoraSpec(r=rank), head, seed=rank)
    draw = torch.Generator().manual_seed(rank)
    engine.write(
        slot, {key: torch.randn(value.shape, generator=draw) * 0.2 for key, value in engine.read(slot).items()}
    )
    engine.refresh([slot])
    return slot


def test_rows_and_gradients_of_a_mixed_pass_are_those_of_the_same_weights_as_floats(
    kind: Path, scheme: str, tmp_path: Path
) -> None:
    """And PEFT's answers on them, which nothing of this library computes."""
    plain = transformers.AutoModel.from_pretrained(kind)
    unfolded(plain, scheme).float().save_pretrained(tmp_path / "floats")
    inputs, owners, found = token_batch(6), [1, 2, 1, 2, 1, 2], []
    for base in (open_in(kind, scheme), open_base(tmp_path / "floats", torch.float64)):
        engine = AdapterEngine(base, slots=2, max_rank=4, train=True)
        slots = [filled(engine, HeadSpec(TEXT, 3), rank) for rank in (2, 4)]
        ((rows, outputs),) = engine.forward(inputs, torch.tensor(owners))
        outputs.logits.square().sum().backward()
        grads = [engine.read(slot, [engine.grad, *engine.head_grad.values()]) for slot in slots]
        adapters = [engine.export(slot) for slot in slots]
        assert rows.tolist() == list(range(6))
        found.append((outputs.logits.detach(), grads, adapters))
        assert not any(parameter.requires_grad for parameter in base.backbone.parameters())
        engine.close()
    (logits, grads, adapters), (wanted, wanted_grads, _) = found
    assert logits.std() > 0.1
    torch.testing.assert_close(logits, wanted, atol=1e-5, rtol=0)
    for mine, theirs in zip(grads, wanted_grads, strict=True):
        for key, grad in mine.items():
            torch.testing.assert_close(grad, theirs[key], atol=1e-4, rtol=1e-4)
    for slot, adapter in enumerate(adapters, start=1):
        adapter.save(tmp_path / str(slot))
        model: Any = transformers.AutoModelForSequenceClassification.from_pretrained(
            tmp_path / "floats", num_labels=3, attn_implementation="eager"
        )
        with quiet_peft(), torch.no_grad():
            peft = PeftModel.from_pretrained(model, str(tmp_path / str(slot))).double().eval()
            for row in (row for row, owner in enumerate(owners) if owner == slot):
                kept = inputs["attention_mask"][row].bool()
                theirs = peft(input_ids=inputs["input_ids"][row][kept][None]).logits[0]
                torch.testing.assert_close(logits[row], theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_row_is_answered_as_alone_whoever_shares_its_pass(bert: Path, scheme: str, dtype: torch.dtype) -> None:
    engine = AdapterEngine(open_in(bert, scheme, dtype), slots=3, max_rank=4)
    assert engine.sharing.words == "rows end to end"
    slots = [filled(engine, HeadSpec(TEXT, 3), rank) for rank in (1, 2, 4)]
    inputs, owners = token_batch(9), torch.tensor([slots[row % 3] for row in range(9)])
    with torch.inference_mode():
        ((_, together),) = engine.forward(inputs, owners)
        for row in range(9):
            mine = {name: value[row : row + 1] for name, value in inputs.items()}
            ((_, alone_),) = engine.forward(mine, owners[row : row + 1])
            close = 1e-12 if dtype == torch.float64 else 1e-4
            torch.testing.assert_close(together.logits[row], alone_.logits[0], atol=close, rtol=0)
    engine.close()


def test_an_adapter_of_a_pack_is_the_one_trained_alone(bert: Path, scheme: str) -> None:
    jobs = [make_job("a", lora=LoraSpec(r=2), max_steps=6), make_job("b", labels=3, lora=LoraSpec(r=4), max_steps=9)]

    def trained(jobs: list[Any]) -> dict[str, Any]:
        engine = AdapterEngine(replace(open_in(bert, scheme), processor=Letters()), slots=2, max_rank=4, train=True)
        engine.reserve_head(build_task(LABELS[3], Letters()).head)
        pack = WatchedPack(engine, {str(labels): shards(labels) for labels in LABELS}, max_rows=24)
        for job in jobs:
            pack.join(job)
        while pack.members:
            pack.step()
        engine.close()
        return pack.left

    together = trained(jobs)
    for job in jobs:
        fresh = trained([job])[job.name]
        assert_same(together[job.name], fresh, 1e-9)
        assert any(key.endswith("lora_B.weight") and bool(value.any()) for key, value in fresh.items())


@pytest.mark.parametrize("tied", ["gpt2", "qwen2", "untied"])
def test_a_language_models_output_layer_is_in_few_bits_too(tied: str, scheme: str, tmp_path: Path) -> None:
    folder = save_language_model("llama" if tied == "untied" else tied, tmp_path / tied)
    engine = AdapterEngine(open_in(folder, scheme), slots=1, max_rank=4)
    slot = filled(engine, HeadSpec(CAUSAL, VOCABULARY), 4)
    output = engine.heads[CAUSAL].of(VOCABULARY).get_submodule("lm_head")
    assert isinstance(output, Nf4Linear if tied == "untied" and scheme == "nf4" else Int8Linear)
    inputs = token_batch(3)
    with torch.inference_mode():
        ((_, outputs),) = engine.forward(inputs, torch.tensor([slot] * 3))
    engine.export(slot).save(tmp_path / "adapter")
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    if tied == "untied":
        assert model.lm_head.weight is not model.get_input_embeddings().weight
        plain = unfolded(model, scheme)
    else:  # the output layer is the table, in int8
        plain = unfolded(model.base_model, scheme) and model.double().eval()
        model.get_output_embeddings().weight = model.get_input_embeddings().weight
    with quiet_peft(), torch.no_grad():
        peft = PeftModel.from_pretrained(plain, str(tmp_path / "adapter")).double().eval()
        for row in range(3):
            kept = inputs["attention_mask"][row].bool()
            theirs = peft(input_ids=inputs["input_ids"][row][kept][None]).logits[0]
            torch.testing.assert_close(outputs.logits[row][kept], theirs, atol=1e-5, rtol=0)


def test_nf4_is_the_nearest_of_its_numbers_and_int8_the_nearest_step() -> None:
    torch.manual_seed(0)
    weight = torch.randn(30, 50)  # 1,500 numbers: the last block is not full
    fourth = Nf4Linear(nn.Linear(50, 30), weight).float_weight()
    blocks = torch.nn.functional.pad(weight.flatten(), (0, 36)).view(-1, 64)
    scale = blocks.abs().amax(1, keepdim=True)
    distances = (blocks[..., None] / scale[..., None] - NF4).abs()
    nearest = (NF4[distances.argmin(-1)] * scale).flatten()[:1500].view(30, 50)
    torch.testing.assert_close(fourth, nearest, atol=1e-6, rtol=0)
    codes, steps = rounded(weight)
    assert (codes.abs().amax(1) == 127).all()
    assert ((codes * steps[:, None] - weight).abs() <= steps[:, None] / 2 + 1e-7).all()
    zero, tiny = rounded(torch.zeros(2, 3))
    assert not zero.any()
    assert torch.isfinite(tiny).all()


def test_it_takes_a_fourth_or_a_fifth_of_the_bytes(texts: Path) -> None:
    """Of a model whose numbers are nearly all in layers; as it is described without memory, and as it is loaded."""
    torch.manual_seed(0)
    size = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 512}
    model = transformers.BertModel(transformers.BertConfig(vocab_size=2000, **size))
    whole = sum(parameter.nbytes for parameter in model.parameters())
    for scheme, most in (("int8", 0.35), ("nf4", 0.22)):
        small = copy.deepcopy(model)
        quantise(small, scheme, "it")  # type: ignore[arg-type]
        assert nbytes(small) <= most * whole
        loaded, described = (make(BaseSpec(model=str(texts), dtype=scheme)) for make in (load_base, describe_base))  # type: ignore[arg-type]
        assert nbytes(loaded.backbone) == nbytes(described.backbone)
        assert loaded.fingerprint == described.fingerprint
        plan = plan_recipe(recipe_on(texts, scheme))
        assert (plan["dtype"], plan["base_bytes"]) == (scheme, nbytes(loaded.backbone))


def test_a_layer_with_two_names_and_a_table_with_two_owners_are_quantised_once() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.table, self.other = nn.Linear(64, 64), nn.Embedding(99, 64), nn.Embedding(99, 64)
            self.two, self.other.weight = self.one, self.table.weight
            self.attention = nn.MultiheadAttention(8, 2)  # reads its output layer's weight itself

    model = Shared().requires_grad_(False)
    quantise(model, "int8", "it")
    assert isinstance(model.one, Int8Linear)
    assert model.one is model.two
    assert isinstance(model.table, Int8Embedding)
    assert model.table.codes is model.other.codes  # type: ignore[comparison-overlap]
    assert type(model.attention.out_proj) is not Int8Linear


def test_a_class_that_reads_a_weight_without_calling_the_layer_is_refused(tmp_path: Path, scheme: str) -> None:
    base = open_in(save_base("bert", tmp_path / "bert", seed=7), scheme)  # what is known of another is not believed
    layer: Any = base.backbone.get_submodule("encoder.layer.0.output.dense")
    assert tuple(layer.weight.shape) == (32, 64)
    assert layer.weight.untyped_storage().nbytes() == 4
    parent: Any = base.backbone.get_submodule("encoder.layer.0.output")
    parent.forward = lambda states, given: parent.LayerNorm(
        nn.functional.linear(states, layer.weight.to(states), layer.bias) + given
    )
    with pytest.raises(AdapterError, match="cannot be used with adapters"):
        filled(AdapterEngine(base, slots=1, max_rank=4), HeadSpec(TEXT, 3), 2)


def test_a_base_of_other_layers_is_refused(scheme: str) -> None:
    class Whitened(nn.Linear):
        """What a subclass computes is its own affair."""

    model = nn.Sequential(Whitened(64, 64), nn.Linear(8, 8))
    with pytest.raises(BaseModelError, match=rf"base\.dtype: {scheme} holds linear layers, .* 2% of base 'it'; leave"):
        quantise(model, scheme, "it")  # type: ignore[arg-type]
    assert [type(module) for module in model] == [Whitened, nn.Linear]


# -------------------------------------------------------------------- whose adapter it is


def recipe_on(base: Path, dtype: str, **more: Any) -> Recipe:
    rows = base.parent / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in rated(40)))
    return Recipe.parse(
        {
            "name": "moods",
            "base": {"model": str(base), "dtype": dtype},
            "data": {"train": str(rows), "validation": str(rows)},
            "task": {"type": "text-classification", "labels": ["negative", "positive"], "max_length": 16},
            **more,
        }
    )


@pytest.fixture(scope="module")
def store(texts: Path) -> Path:
    """Adapters trained on the floats, in int8 and in nf4."""
    spec = TextClassificationSpec(labels=("negative", "positive"), max_length=16)
    for dtype in ("float32", *SCHEMES):
        base = load_base(BaseSpec(model=str(texts), dtype=dtype))  # type: ignore[arg-type]
        engine = AdapterEngine(base, slots=1, max_rank=4)
        slot = filled(engine, HeadSpec(TEXT, 2), 4)
        open_store(str(texts.parent / "store")).put(engine.export(slot, Card(task=spec)), dtype)
        engine.close()
    return texts.parent / "store"


def test_an_adapter_says_on_which_weights_it_was_trained(texts: Path, store: Path) -> None:
    opened = open_store(str(store))
    floats = load_base(BaseSpec(model=str(texts), dtype="float32"))
    for name in SCHEMES:
        entry, adapter = opened.load(name)
        assert (entry.base_dtype, adapter.card.base_dtype) == (name, name)
        assert adapter.card.base_fingerprint == quantised_mark(floats.fingerprint, name)  # type: ignore[arg-type]
        told = json.loads((opened.get(name)[1] / "ray_lora.json").read_text())
        assert told["base_dtype"] == name
    entry, adapter = opened.load("float32")
    assert (entry.base_dtype, adapter.card.base_dtype, adapter.card.base_fingerprint) == (
        None,
        None,
        floats.fingerprint,
    )


@pytest.mark.parametrize("trained", ["float32", *SCHEMES])
@pytest.mark.parametrize("held", ["float32", *SCHEMES])
def test_it_answers_on_them_and_floats_on_few_bits_where_that_is_asked_for(
    texts: Path, store: Path, trained: str, held: str
) -> None:
    adapter = open_store(str(store)).load(trained)[1]
    engine = AdapterEngine(load_base(BaseSpec(model=str(texts), dtype=held)), slots=1, max_rank=4)  # type: ignore[arg-type]
    if trained in (held, "float32"):
        assert engine.load(adapter) == 1
    else:
        with pytest.raises(BaseModelError, match=f"trained on these weights in {trained}: use it with dtype {trained}"):
            engine.load(adapter)
    engine.close()


def test_whoever_names_only_the_adapter_gets_its_own_weights(texts: Path, store: Path) -> None:
    for name in SCHEMES:
        engine, _, _ = alone(open_store(str(store)).load(name)[1], name)
        assert engine.base.quantised == name
        engine.close()
    pinned = pin_all(open_store(str(store)), ["int8", "float32"])
    with closing(TableAnswers(open_store(str(store)), pinned, slots=2)) as tables:
        assert (tables.task("int8").spec, tables.task("float32").spec) == (tables.task("float32").spec,) * 2
    rows = texts.parent / "more.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in rated(12)))
    for name in SCHEMES:
        assert evaluate_ref(name, str(rows), str(store))["rows"] == 12
    with pytest.raises(RecipeError, match="trained on a base in int8, of which no graph is made"):
        export_refs(["int8"], texts.parent / "graph", store=str(store))


def test_an_endpoint_in_few_bits_answers_their_adapters_and_those_of_the_floats(
    texts: Path, store: Path, tmp_path: Path
) -> None:
    async def ask(dtype: str) -> dict[str, tuple[int, str]]:
        args = {"store": str(store), "base": str(texts), "dtype": dtype, "results": str(tmp_path), "slots": 4}
        endpoint = start_endpoint(AppArgs.model_validate(args))
        transport = httpx.ASGITransport(create_app(endpoint), raise_app_exceptions=False)
        answers = {}
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=None) as client:
            for name in ("float32", *SCHEMES):
                told = await client.post("/v1/predict", json={"model": name, "inputs": ["good film"]})
                answers[name] = told.status_code, told.text
        await endpoint.close()
        return answers

    for dtype in ("float32", *SCHEMES):
        for name, (code, why) in asyncio.run(ask(dtype)).items():
            if name in (dtype, "float32"):
                assert code == 200, why
            else:
                assert (code, f"trained on these weights in {name}: use it with dtype {name}" in why) == (400, True), (
                    why
                )


def test_a_store_of_adapters_in_int8_is_served_in_int8(texts: Path, store: Path, tmp_path: Path) -> None:
    opened = open_store(str(tmp_path / "one"))
    opened.put(open_store(str(store)).load("int8")[1], "moods")
    told = choose_bases(AppArgs(store=str(tmp_path / "one")), opened)
    assert [(base.model, base.dtype) for base in told] == [(str(texts), "int8")]
    assert choose_bases(AppArgs(store=str(tmp_path / "one"), dtype="float32"), opened)[0].dtype is None
    opened.put(open_store(str(store)).load("float32")[1], "others")
    assert choose_bases(AppArgs(store=str(tmp_path / "one")), opened)[0].dtype is None
