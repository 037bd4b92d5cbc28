"""Bundles that go on with prompts: the tokens are the library's, by the runner where no torch is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from ray_lora.bases.load import load_base
from ray_lora.engine import AdapterEngine
from ray_lora.errors import AdapterError, RecipeError
from ray_lora.export import writing
from ray_lora.export.edge.arrays import stacked
from ray_lora.export.edge.writer import Bundle
from ray_lora.export.exporting import export_refs
from ray_lora.export.graph import Graph, merged
from ray_lora.export.steps import Pairs, Steps
from ray_lora.inference.continued import Ask, continued
from ray_lora.inference.prompts import ends_of
from ray_lora.recipe import BaseSpec, LoraSpec
from ray_lora.store import open_store
from ray_lora.tasks import build_task
from ray_lora.tasks.generation_options import TextGenerationSpec
from tests.unit.bases import save_language_model
from tests.unit.exported import by_the_runner, put
from tests.unit.speech import letters
from tests.unit.writing_world import make_base

PROMPTS = [
    "the capital of Peru is",
    "the",
    "what is the old city of Mali ?",
    "a river and a strange lake",
    "who says no",
]
LAYERS = {"gpt2": ("c_attn", "c_proj")}


def base_of(kind: str, folder: Path) -> Path:
    """A tiny language model of a kind, with a tokenizer of whole words; Qwen2's is always one of bytes."""
    if kind == "qwen2":
        config = Qwen2Config(
            vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            intermediate_size=48, max_position_embeddings=64, tie_word_embeddings=True, eos_token_id=256,
        )  # fmt: skip
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = Qwen2ForCausalLM(config).eval()
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.data.normal_(0, parameter[0].numel() ** -0.5)
        model.save_pretrained(folder / kind)
        read = PreTrainedTokenizerFast(tokenizer_object=letters(["end"]), eos_token="<|end|>", pad_token="<|end|>")
        read.save_pretrained(folder / kind)
        return folder / kind
    words = make_base(folder / "words")
    if kind == "words":
        return words
    saved = save_language_model(kind, folder / kind)
    AutoTokenizer.from_pretrained(words).save_pretrained(saved)
    return saved


def library(store: Path, name: str, most: int, prompts: Sequence[Any] = PROMPTS) -> list[list[int]]:
    """The library's own greedy tokens."""
    _, adapter = open_store(str(store)).load(name)
    assert adapter.card.task is not None
    engine = AdapterEngine(load_base(BaseSpec(model=str(adapter.card.base), dtype="float32")), slots=1, max_rank=8)
    slot, task = engine.load(adapter), build_task(adapter.card.task, engine.base.processor)
    ends = task.ends | ends_of(engine.base.config)  # type: ignore[attr-defined]
    asks = [Ask(slot, task.prompt(text), most, ends) for text in prompts]  # type: ignore[attr-defined]
    found = [text.tokens for text in continued(engine, task.head, asks) if text is not None]
    engine.close()
    return found


@pytest.mark.parametrize("kind", ["words", "qwen2"])
def test_each_base_writes_the_library_s_tokens(kind: str, tmp_path: Path) -> None:
    base, store, out = base_of(kind, tmp_path), tmp_path / "store", tmp_path / "out"
    spec = TextGenerationSpec(max_length=None, rows="text" if kind == "words" else "prompt")
    put(store, base, "one", spec, LoraSpec(r=4, target_modules=LAYERS.get(kind, ("q_proj", "v_proj", "down_proj"))))
    card = export_refs(["one"], out, merge=True, store=str(store))
    parity = card["figures"]["float"]["parity"]
    assert parity["same"] == 1.0
    assert 0 < parity["largest"] < 5e-5
    bundle, facts = Bundle(out), card["adapters"]["one"]
    wanted = library(store, "one", 12)
    assert len({tuple(tokens) for tokens in wanted}) == len(PROMPTS)
    assert sum(map(len, wanted)) > 30
    told = [{facts["column"]: text, "max_new_tokens": 12} for text in PROMPTS]
    assert [bundle.write(*bundle.rows.encode(row, facts), "one") for row in told] == wanted
    tokenizer = AutoTokenizer.from_pretrained(base)
    texts = [{"generated_text": tokenizer.decode(tokens, skip_special_tokens=True)} for tokens in wanted]
    assert bundle.answer(told, ["one"] * len(told)) == texts
    graph = onnx.load(out / "graph.onnx").graph
    assert [one.name for one in graph.input] == ["tokens", *card["kept"]]
    if kind == "words":
        _check_refusals(bundle)
        assert by_the_runner(out, "one", [json.dumps(row) for row in told]) == texts


@pytest.mark.parametrize("kind", ["words", "gpt2"])
def test_adapters_are_inputs_of_one_graph_each_row_by_its_own(kind: str, tmp_path: Path) -> None:
    base, store, out = base_of(kind, tmp_path), tmp_path / "store", tmp_path / "out"
    layers = LAYERS.get(kind, ("q_proj", "v_proj", "down_proj"))
    for seed, name in enumerate(("one", "two")):
        lora = LoraSpec(r=4 - seed, target_modules=layers[seed:])
        put(store, base, name, TextGenerationSpec(max_length=None), lora, seed)
    card = export_refs(["one", "two"], out, store=str(store))
    assert card["figures"]["float"]["parity"]["same"] == 1.0
    assert 0 < card["figures"]["float"]["parity"]["largest"] < 5e-5
    wanted = {name: library(store, name, 12) for name in ("one", "two")}
    assert wanted["one"] != wanted["two"]
    bundle, facts = Bundle(out), card["adapters"]["one"]
    told = [{"prompt": text, "max_new_tokens": 12} for text in PROMPTS]
    for name in ("one", "two", "one"):
        assert [bundle.write(*bundle.rows.encode(row, facts), name) for row in told] == wanted[name]
    states = [bundle.begin({}, name) for name in ("one", "two")]
    alone = [bundle.step(told, state)[0] for told, state in zip(([5, 9, 7], [11, 2, 6]), states, strict=True)]
    asked = bundle.asked["graph"] - {"tokens"}
    kept = {name: np.concatenate([state[name] for state in states]) for name in card["kept"]}
    stacks = {name: stacked([state[name][0] for state in states]) for name in asked - kept.keys() - {"slots"}}
    feed = kept | stacks | {"tokens": np.array([[5, 9, 7], [11, 2, 6]]), "slots": np.array([0, 1])}
    np.testing.assert_allclose(bundle.run("graph", feed)["logits"], alone, atol=1e-5)


def test_messages_are_written_as_the_base_s_template_does(tmp_path: Path) -> None:
    base, store, out = base_of("words", tmp_path), tmp_path / "store", tmp_path / "out"
    template = base / "chat_template.jinja"
    template.write_text("{{ 'no' if tools is none and documents is none }}" + template.read_text())
    spec, lora = TextGenerationSpec(max_length=None, rows="messages"), LoraSpec(r=2, target_modules=("q_proj",))
    put(store, base, "one", spec, lora)
    asked: list[Any] = [[{"role": "user", "content": text}] for text in PROMPTS]
    asked += [[{"role": "system", "content": "no"}, *asked[0], {"role": "assistant", "content": "Lima"}, *asked[1]]]
    rows = [{"messages": [*messages, {"role": "assistant", "content": "the answer"}]} for messages in asked]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    card = export_refs(["one"], out, data=str(tmp_path / "rows.jsonl"), store=str(store))
    assert card["figures"]["float"]["parity"]["rows"] == len(rows)
    wanted = library(store, "one", 12, asked)
    bundle, facts = Bundle(out), card["adapters"]["one"]
    told = [{"messages": messages, "max_new_tokens": 12} for messages in asked]
    assert [bundle.write(*bundle.rows.encode(row, facts), "one") for row in told] == wanted
    assert by_the_runner(out, "one", [json.dumps(row) for row in told]) == bundle.answer(told, ["one"] * len(told))
    assert bundle.answer(["the"], ["one"]) == bundle.answer([{"messages": asked[1]}], ["one"])
    for messages, why in (
        ([], "None is no message"),
        ([{"role": "user"}], "is no message; give a list"),
        ([{"role": "robot", "content": "a"}], "is no message; give a list"),
        (rows[0]["messages"], "the last message is the assistant's"),
    ):
        with pytest.raises(SystemExit, match=why):
            bundle.answer([{"messages": messages}], ["one"])


def test_a_step_of_8_bits_is_small_and_near(tmp_path: Path) -> None:
    """Of a base whose table of tokens is its output layer too, which is a product in 8 bits as all others are."""
    base, store, out = base_of("qwen2", tmp_path), tmp_path / "store", tmp_path / "out"
    put(store, base, "one", TextGenerationSpec(max_length=None), LoraSpec(r=2, target_modules=("q_proj",)))
    card = export_refs(["one"], out, int8=True, store=str(store))
    whole, small = card["figures"]["float"], card["figures"]["int8"]
    assert 0 < small["parity"]["largest"] < 0.2
    graph = onnx.load(out / "graph.onnx").graph
    assert [node.op_type for node in graph.node].count("MatMulNBits") == 2 * 7 + 1
    assert not [one for one in graph.initializer if one.data_type == 1 and np.prod(one.dims) >= 300 * 32]
    assert small["bytes"] < 0.6 * whole["bytes"]
    [answer] = Bundle(out).answer(["the capital"], ["one"])
    assert answer["generated_text"]


def test_a_table_that_is_the_output_layer_too_is_there_once(tmp_path: Path) -> None:
    base = load_base(BaseSpec(model=str(base_of("qwen2", tmp_path)), dtype="float32"))
    spec = TextGenerationSpec(max_length=None)
    adapter = put(tmp_path / "store", Path(base.id), "one", spec, LoraSpec(r=2, target_modules=("q_proj",)))
    model: Any = merged(base, build_task(spec, base.processor).head, adapter).model
    assert model.lm_head.weight is model.model.embed_tokens.weight


def _check_refusals(bundle: Bundle) -> None:
    for value, why in (
        (" ", "is no prompt"),
        ({"prompt": "the"}, "is no prompt; give a text, or a row with 'text'"),
        ({"text": "the", "max_new_tokens": 0}, "a whole number from 1 to 4096"),
        ({"text": "the", "max_new_tokens": True}, "a whole number from 1 to 4096"),
        (" ".join(["the"] * 64), "a prompt has 64 tokens, of 64 with its answer"),
    ):
        with pytest.raises(SystemExit, match=why):
            bundle.answer([value], ["one"])
    with pytest.raises(
        SystemExit, match=r"two.safetensors is no adapter of this graph's base; give one of those in adapters/"
    ):
        bundle.answer(["the"], ["two"])
    [answer] = bundle.answer([" ".join(["the"] * 63)], ["one"])
    assert isinstance(answer["generated_text"], str)


def test_a_step_that_differs_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that forgets a layer's keys, which no prompt alone shows."""
    base, store, made = base_of("words", tmp_path), tmp_path / "store", writing.steps_of
    put(store, base, "one", TextGenerationSpec(max_length=None), LoraSpec(r=2, target_modules=("q_proj",)))

    def forgetful(graph: Graph) -> Steps:
        steps = made(graph)
        step = steps.step.forward

        def wrong(tokens: object, kept: Pairs) -> object:
            return step(tokens, [(0.99 * kept[0][0], kept[0][1]), *kept[1:]])

        steps.step.forward = wrong  # type: ignore[method-assign]
        return steps

    monkeypatch.setattr(writing, "steps_of", forgetful)
    with pytest.raises(AdapterError, match=r"differ from PyTorch's by .* nothing was written"):
        export_refs(["one"], tmp_path / "out", merge=True, store=str(store))
    assert not (tmp_path / "out").exists()


def test_what_is_not_supported_is_refused_by_name(tmp_path: Path) -> None:
    base, store = base_of("words", tmp_path), tmp_path / "store"
    lora = LoraSpec(r=2, target_modules=("q_proj",))
    put(store, base, "one", TextGenerationSpec(max_length=None), lora)
    (base / "chat_template.jinja").write_text("{{ strftime_now('%d') }}" + (base / "chat_template.jinja").read_text())
    put(store, base, "chat", TextGenerationSpec(max_length=None, rows="messages"), lora)
    with pytest.raises(RecipeError, match="whose chat template writes today's date; train on rows of prompt or text"):
        export_refs(["chat"], tmp_path / "out", merge=True, store=str(store))
    other = base_of("gemma2", tmp_path / "other")
    put(store, other, "strange", TextGenerationSpec(max_length=None), lora)
    with pytest.raises(RecipeError, match=r"on a base of type 'gemma2' was not compared .* llama, gpt2, qwen2"):
        export_refs(["strange"], tmp_path / "out", merge=True, store=str(store))
    assert not (tmp_path / "out").exists()
