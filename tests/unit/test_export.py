"""Bundles: their graphs answer as PyTorch does, by the runner that is copied beside them, without torch."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from ray_lora.adapters.adapter import Adapter
from ray_lora.cli import main
from ray_lora.errors import AdapterError, RecipeError
from ray_lora.export import bundle as writing
from ray_lora.export.arrays import arrays_of
from ray_lora.export.edge.runner import Bundle
from ray_lora.export.exporting import export_refs
from ray_lora.recipe import LoraSpec
from ray_lora.store import open_store
from ray_lora.tasks.text_classification import TextClassificationSpec
from tests.conftest import sentences
from tests.unit.bases import reopen
from tests.unit.exported import like, put, run_there, said

TEXTS = sentences(12, seed=3)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, tiny_bert_folder: Path, other_bert_folder: Path) -> Path:
    """Adapters of other ranks, layers, labels and kinds of answers on one base; and one of another base."""
    folder = tmp_path_factory.mktemp("export") / "store"
    spec = TextClassificationSpec
    several = spec(labels=("price", "look", "size"), problem_type="multi_label_classification")
    for seed, (name, options, lora) in enumerate(
        (
            ("moods", spec(labels=("bad", "good")), LoraSpec(r=4)),
            ("topics", spec(labels=("a", "b", "c", "d")), LoraSpec(r=2, target_modules=("query", "value"))),
            ("points", several, LoraSpec(r=3, use_rslora=True, target_modules=("dense",))),
            ("stars", spec(problem_type="regression", max_length=9), LoraSpec(r=8, lora_alpha=4)),
        )
    ):
        put(folder, tiny_bert_folder, name, options, lora, seed)
    put(folder, other_bert_folder, "elsewhere", spec(labels=("bad", "good")), LoraSpec(r=2))
    return folder


NAMES = ["moods", "topics", "points", "stars"]


@pytest.fixture(scope="module")
def shared(store: Path) -> Path:
    """One graph, four adapters."""
    folder = store.parent / "shared"
    export_refs(NAMES, folder, store=str(store))
    return folder


def test_rows_of_mixed_adapters_are_answered_as_each_alone(store: Path, shared: Path) -> None:
    rows = [(text, name) for text in TEXTS for name in NAMES]
    found = Bundle(shared).answer([text for text, _ in rows], [name for _, name in rows])
    for name in NAMES:
        mine = [answer for answer, (_, owner) in zip(found, rows, strict=True) if owner == name]
        assert like(mine, said(store, name, TEXTS)), name
        assert like(Bundle(shared).answer(TEXTS, [name] * len(TEXTS)), mine)


def test_outputs_are_plain_pefts(store: Path, shared: Path, tiny_bert_folder: Path) -> None:
    bundle = Bundle(shared)
    facts, _ = bundle.adapter("topics")
    feeds = [bundle.rows.encode(text, facts)[0] for text in TEXTS]
    found = bundle.run(feeds, ["topics"] * len(TEXTS))["logits"]
    _, folder = open_store(str(store)).get("topics")
    plain = reopen(tiny_bert_folder, folder, 4)
    for feed, logits in zip(feeds, found, strict=True):
        with torch.no_grad():
            wanted = plain(**{name: torch.tensor(value)[None] for name, value in feed.items()}).logits[0]
        np.testing.assert_allclose(logits, wanted.numpy(), atol=1e-5)


def test_two_texts_are_read_together(store: Path, shared: Path) -> None:
    rows = [{"text": one, "text_pair": other} for one, other in pairwise(TEXTS)]
    assert like(Bundle(shared).answer(rows, ["moods"] * len(rows)), said(store, "moods", rows))


def test_an_adapter_is_swapped_by_its_file(store: Path, shared: Path, tiny_bert_folder: Path, tmp_path: Path) -> None:
    """Of another rank and other labels than any that the graph was made with."""
    put(store, tiny_bert_folder, "late", TextClassificationSpec(labels=tuple("abcdefg")), LoraSpec(r=11), seed=9)
    export_refs(["late"], tmp_path / "late", store=str(store))
    shutil.copytree(shared, tmp_path / "shared")
    shutil.copy(tmp_path / "late" / "adapters" / "late.safetensors", tmp_path / "shared" / "adapters")
    names = ["late", "stars"] * 6
    found = Bundle(tmp_path / "shared").answer(TEXTS, names)
    for name in set(names):
        wanted = said(store, name, TEXTS)
        assert all(like(found[at], wanted[at]) for at, owner in enumerate(names) if owner == name)


def test_a_file_that_is_replaced_changes_no_answers_of_a_bundle_that_has_read_it(shared: Path, tmp_path: Path) -> None:
    shutil.copytree(shared, tmp_path / "shared")
    adapters = tmp_path / "shared" / "adapters"
    bundle = Bundle(tmp_path / "shared")
    first = bundle.answer(TEXTS, ["stars"] * len(TEXTS))
    shutil.copy(adapters / "moods.safetensors", adapters / "stars.safetensors")
    assert bundle.answer(TEXTS, ["stars"] * len(TEXTS)) == first
    assert bundle.answer(TEXTS, ["moods", "stars"] * (len(TEXTS) // 2))[1::2] == [
        pytest.approx(answer) for answer in first[1::2]
    ]
    fresh = Bundle(tmp_path / "shared")
    assert fresh.answer(TEXTS, ["stars"] * len(TEXTS)) == bundle.answer(TEXTS, ["moods"] * len(TEXTS))


def operators(folder: Path) -> Counter[str]:
    graph = onnx.load(folder / "graph.onnx").graph
    return Counter(node.op_type for node in graph.node)


def test_a_merged_graph_has_no_operator_of_an_adapter(store: Path, shared: Path, tmp_path: Path) -> None:
    card = export_refs(["moods"], tmp_path / "merged", merge=True, store=str(store))
    graph = onnx.load(tmp_path / "merged" / "graph.onnx").graph
    assert [one.name for one in graph.input] == ["input_ids", "attention_mask", "token_type_ids"]
    products = 2 * (6 + 2) + 2  # of two layers, with two of attention itself; the pooler and the classifier
    assert operators(tmp_path / "merged")["MatMul"] + operators(tmp_path / "merged")["Gemm"] == products
    assert operators(shared)["MatMul"] > products
    assert like(Bundle(tmp_path / "merged").answer(TEXTS, ["moods"] * len(TEXTS)), said(store, "moods", TEXTS))
    assert card["figures"]["float"]["parity"]["largest"] <= 1e-4


def test_int8_holds_the_base_in_8_bits_and_the_adapters_in_32(store: Path, shared: Path, tmp_path: Path) -> None:
    card = export_refs(NAMES, tmp_path / "small", int8=True, store=str(store))
    graph = onnx.load(tmp_path / "small" / "graph.onnx").graph
    held = Counter(one.data_type for one in graph.initializer if np.prod(one.dims) >= 32 * 32)
    tables = 2  # of words and of positions
    assert held == {onnx.TensorProto.INT8: 2 * 6 + 1, onnx.TensorProto.UINT8: tables}
    whole, small = card["figures"]["float"], card["figures"]["int8"]
    assert small["bytes"] == (tmp_path / "small" / "graph.onnx").stat().st_size < 0.75 * whole["bytes"]
    assert 0 < small["parity"]["largest"] < 0.5
    assert whole["parity"]["same"] == 1.0
    assert json.loads((tmp_path / "small" / "card.json").read_text()) == card


def test_a_graph_that_differs_is_not_written(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(adapter: Adapter) -> dict[str, torch.Tensor]:
        return {name: 1.01 * tensor for name, tensor in arrays_of(adapter).items()}

    monkeypatch.setattr(writing, "arrays_of", wrong)
    with pytest.raises(AdapterError, match=r"differ from PyTorch's by .* nothing was written"):
        export_refs(["moods"], tmp_path / "wrong", store=str(store))
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_exported_is_refused_by_name(store: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="--merge puts one adapter into the weights, and 2 are given"):
        export_refs(["moods", "topics"], tmp_path / "two", merge=True, store=str(store))
    with pytest.raises(RecipeError, match=r"given twice: moods-1, moods-1"):
        export_refs(["moods", "moods@1"], tmp_path / "twice", store=str(store))
    with pytest.raises(RecipeError, match="exists and is not empty"):
        export_refs(["moods"], store, store=str(store))
    with pytest.raises(Exception, match="was trained on base"):
        export_refs(["moods", "elsewhere"], tmp_path / "other", store=str(store))
    assert main(["export", "moods", "--store", str(store), "--format", "executorch"]) == 2


def test_a_graph_names_no_folder_of_this_machine(shared: Path) -> None:
    data = (shared / "graph.onnx").read_bytes()
    assert b".py" not in data
    assert str(Path.home()).encode() not in data


def test_an_adapter_of_another_base_is_refused_by_the_runner(store: Path, shared: Path, tmp_path: Path) -> None:
    export_refs(["elsewhere"], tmp_path / "elsewhere", store=str(store))
    shutil.copytree(shared, tmp_path / "shared")
    shutil.copy(tmp_path / "elsewhere" / "adapters" / "elsewhere.safetensors", tmp_path / "shared" / "adapters")
    for name in ("elsewhere", "nobody"):
        with pytest.raises(SystemExit, match=f"{name}.safetensors is no adapter of this graph's base"):
            Bundle(tmp_path / "shared").answer(TEXTS[:1], [name])


def test_the_command_writes_a_bundle_and_says_what_it_costs(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"words": text}) + "\n" for text in TEXTS))
    given = ["export", "moods", "--output", str(tmp_path / "edge"), "--data", str(rows), "--column", "text=words"]
    assert main([*given, "--store", str(store), "--json"]) == 0
    card = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert card["figures"]["float"]["parity"] == {"rows": 12, "largest": pytest.approx(0, abs=1e-5), "same": 1.0}
    assert {"onnx_ms", "pytorch_ms", "swap_ms"} <= card["figures"]["float"].keys()
    names = sorted(path.name for path in (tmp_path / "edge").iterdir())
    assert names == ["adapters", "arrays.py", "card.json", "graph.onnx", "rows.py", "runner.py", "tokenizer.json"]


@pytest.mark.network
def test_the_runner_answers_without_torch(store: Path, shared: Path, without_torch: Path) -> None:
    for library in ("torch", "transformers", "ray", "ray_lora"):
        told = [without_torch, "-I", "-c", f"import {library}"]
        assert subprocess.run(told, capture_output=True, cwd="/").returncode == 1
    for name in NAMES:
        assert like(run_there(without_torch, shared, name, TEXTS), said(store, name, TEXTS)), name


def test_the_runner_is_short_and_knows_no_torch() -> None:
    folder = Path(writing.__file__).parent / "edge"
    for path in folder.glob("*.py"):
        text = path.read_text()
        assert len(text.splitlines()) < 80, path.name
        known = "ray_lora|transformers|ray" if path.stem == "program" else "ray_lora|torch|transformers|ray"
        assert not re.search(rf"^\s*(import|from) ({known})\b", text, re.M), path.name  # ExecuTorch's own has torch


def test_without_the_extra_the_way_to_install_it_is_said() -> None:
    lost = (
        "import sys; sys.modules['onnxruntime'] = None; from ray_lora.cli import main; sys.exit(main(['export', 'a']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", lost], capture_output=True, text=True, cwd=Path(writing.__file__).parents[2]
    )
    assert done.returncode == 2
    assert "onnxruntime, which is not installed: pip install 'ray_lora[export]'" in done.stderr.replace("\n", " ")
