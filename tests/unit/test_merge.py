"""Merged adapters: the exact sum where it is promised, PEFT's own `add_weighted_adapter` elsewhere, and what is
refused."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import model as lora_model
from transformers import AutoModelForSequenceClassification

from ray_lora.adapters.adapter import Adapter
from ray_lora.adapters.merge import METHODS, combination, dense, merge_layers, singular_values
from ray_lora.adapters.peft_folder import LowRank
from ray_lora.cli import main
from ray_lora.errors import AdapterError, BaseModelError, RecipeError
from ray_lora.inference.comparing import compare
from ray_lora.inference.merging import merge, merged_from
from ray_lora.store import open_store
from tests.unit.serving_world import card, make_adapter, make_base, make_tagger
from tests.unit.test_tables import texts

LABELS = ["no", "yes", "maybe"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base/ and store/: `one` and `two` of rank 4, `large` of rank 6, `turned` whose labels stand in another order."""
    root = tmp_path_factory.mktemp("merge")
    base, store = make_base(root / "base"), root / "store"
    for seed, name in enumerate(("one", "two")):
        card(make_adapter(base, store / name, seed=seed, labels=3), base, LABELS)
    card(make_adapter(base, store / "large", seed=2, rank=6, labels=3), base, LABELS)
    card(make_adapter(base, store / "turned", seed=1, labels=3), base, ["maybe", "no", "yes"])
    return root


def load(world: Path, *names: str) -> dict[str, Adapter]:
    store = open_store(str(world / "store"))
    return {name: store.load(name)[1] for name in names}


def changes(adapter: Adapter) -> dict[str, torch.Tensor]:
    return {name: dense(pair.__class__(pair.A.double(), pair.B.double()), adapter.scaling(name))
            for name, pair in adapter.layers.items()}  # fmt: skip


@pytest.mark.parametrize("names", [("one", "two"), ("one", "large"), ("large", "one", "two")])
def test_cat_is_the_exact_sum_of_changes(world: Path, names: tuple[str, ...]) -> None:
    parents = load(world, *names)
    weights = [0.7, -0.4, 1.5][: len(names)]
    merged = merged_from(parents, combination("cat", weights, parents=len(names)))
    for name, change in changes(merged).items():
        told = zip(weights, map(changes, parents.values()), strict=True)
        torch.testing.assert_close(change, sum(weight * one[name] for weight, one in told), rtol=1e-5, atol=1e-6)
    for name, tensor in merged.head.items():
        told = zip(weights, parents.values(), strict=True)
        mean = sum(weight * one.head[name] for weight, one in told) / sum(weights)
        torch.testing.assert_close(tensor, mean)


def test_svd_is_the_best_approximation_of_the_sum(world: Path) -> None:
    parents = load(world, "one", "large")
    merged = merged_from(parents, combination("svd", [0.5, 2], parents=2, rank=3))
    one, large = map(changes, parents.values())
    for name, change in changes(merged).items():
        whole = 0.5 * one[name] + 2 * large[name]
        u, s, v = torch.linalg.svd(whole)
        torch.testing.assert_close(change, u[:, :3] * s[:3] @ v[:3], rtol=1e-5, atol=1e-5)
        pair = merged.layers[name]
        torch.testing.assert_close(singular_values(pair, merged.scaling(name)), s[:3], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_each_name_means_what_it_means_in_peft(
    world: Path, tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parents of unlike scalings, one without a layer that the other has; of one target, so that both draw in one
    order, PEFT from where it has drawn the new adapter's start."""
    freeze = lora_model._freeze_adapter
    monkeypatch.setattr(lora_model, "_freeze_adapter", lambda *told: (freeze(*told), torch.manual_seed(5)))
    parents = load(world, "one", "two")
    kept = {}
    for name, other in (("one", "layer.1"), ("two", "layer.0")):
        pairs = {key: pair for key, pair in parents[name].layers.items() if key.endswith("attention.self.value")}
        assert len(pairs) == 2
        pairs = {key: pair for key, pair in pairs.items() if other not in key or name == "one"}
        config = parents[name].config.model_copy(update={"lora_alpha": 3.0 if name == "one" else 8.0})
        kept[name] = replace(parents[name], layers=pairs, config=config)
        replace(kept[name], head={}, head_modules=(), peft_type=None).save(tmp_path / name)  # PEFT merges no heads
    weights, density = [0.8, -0.3], 0.4 if method.startswith(("ties", "dare", "magnitude")) else None
    merged = merged_from(kept, combination(method, weights, parents=2, density=density, seed=5))
    plain = AutoModelForSequenceClassification.from_pretrained(world / "base", num_labels=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: Any = PeftModel.from_pretrained(plain, tmp_path / "one", adapter_name="one")
        model.load_adapter(tmp_path / "two", adapter_name="two")
        model.add_weighted_adapter(["one", "two"], weights, "both", combination_type=method, density=density)
    for name, change in changes(merged).items():
        layer = model.base_model.model.get_submodule(name)
        torch.testing.assert_close(change.float(), layer.get_delta_weight("both").detach(), rtol=1e-4, atol=1e-5)


def test_dare_follows_its_seed_alone(world: Path) -> None:
    parents = load(world, "one", "two")
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, again, other = (
        merged_from(parents, combination("dare_linear", parents=2, seed=seed)).sha256 for seed in (0, 0, 1)
    )
    assert first == again != other
    assert torch.equal(torch.get_rng_state(), before)


def test_convolutions_and_embeddings_are_merged_as_matrices() -> None:
    draw = torch.Generator().manual_seed(0)

    def pair(rank: int) -> LowRank:
        return LowRank(torch.randn(rank, 3, 2, 2, generator=draw), torch.randn(5, rank, 1, 1, generator=draw))

    one, two = pair(2), pair(3)
    sides = [{"conv": (one, 0.5)}, {"conv": (two, 2.0)}]
    whole = 0.25 * dense(one, 0.5) + 0.75 * dense(two, 2.0)
    for method, rank in (("cat", 5), ("svd", 3)):
        found = merge_layers(sides, combination(method, [0.25, 0.75], parents=2))["conv"]
        assert (found.A.shape, found.B.shape) == ((rank, 3, 2, 2), (5, rank, 1, 1))
    torch.testing.assert_close(
        dense(merge_layers(sides, combination("cat", [0.25, 0.75], parents=2))["conv"], 1), whole
    )
    table = LowRank(torch.randn(2, 9, generator=draw), torch.randn(4, 2, generator=draw), embedding=True)
    both = merge_layers([{"e": (table, 1.0)}, {"e": (table, 1.0)}], combination("svd", [1, 2], parents=2, rank=2))["e"]
    assert both.embedding
    torch.testing.assert_close(dense(both, 1), 3 * dense(table, 1))


def test_labels_are_aligned_by_name_never_by_position(world: Path) -> None:
    """`turned` is `two` with its labels in another order: merged with `one` both give the same answers."""
    parents = load(world, "one", "two")
    turned = load(world, "turned")["turned"]
    assert all(torch.equal(turned.head[name], tensor) for name, tensor in parents["two"].head.items())
    order = [LABELS.index(label) for label in ("maybe", "no", "yes")]
    same = replace(turned, head={name: tensor[order] for name, tensor in parents["two"].head.items()})
    how = combination("cat", parents=2)
    merged = merged_from({"one": parents["one"], "two": same}, how)
    expected = merged_from(parents, how)
    assert all(torch.equal(merged.head[name], tensor) for name, tensor in expected.head.items())
    assert merged.card.task is not None
    assert list(merged.card.task.labels) == LABELS  # type: ignore[attr-defined]


def test_a_merged_adapter_is_stored_with_its_parents_and_compared(world: Path, tmp_path: Path) -> None:
    rows = [{"text": text, "label": LABELS[at % 3]} for at, text in enumerate(texts(30, 4))]
    data = str(tmp_path / "rows.parquet")
    pa.parquet.write_table(pa.Table.from_pylist(rows), data)
    store = str(world / "store")
    told = merge(["one", "large"], "both", store, weights=[0.3, 0.7], data=data)
    entry, adapter = open_store(store).load("both")
    assert (told["ref"], told["sha256"], told["rank"]) == (entry.ref, entry.sha256, 10)
    kept = adapter.card.merged
    assert kept is not None
    assert [(parent.ref, parent.sha256) for parent in kept.parents] == [
        (f"{name}@1", open_store(store).resolve(name).sha256) for name in ("one", "large")
    ]
    assert (kept.how.method, kept.how.weights) == ("cat", (0.3, 0.7))
    alone = {line["ref"]: line["metrics"] for line in compare(["one", "large", "both"], data, store)["scores"]}
    assert {line["ref"]: line["metrics"] for line in told["compared"]["scores"]} == alone
    assert adapter.card.metrics["accuracy"] == alone["both@1"]["accuracy"]["value"]


def test_half_of_oneself_twice_answers_as_oneself(world: Path, tmp_path: Path) -> None:
    """Copied under another name, an adapter merged with itself is itself, in plain PEFT too."""
    one = load(world, "one")["one"]
    merged = merged_from({"one": one, "copy": one}, combination("cat", parents=2))
    merged.save(tmp_path / "merged")
    batch = {"input_ids": torch.tensor([[3, 4, 5, 6]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
    answers = []
    for folder in (tmp_path / "merged", world / "store" / "one"):
        plain = AutoModelForSequenceClassification.from_pretrained(world / "base", num_labels=3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            answers.append(PeftModel.from_pretrained(plain, folder).eval()(**batch).logits)
    torch.testing.assert_close(answers[0], answers[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": "mean"}, "method 'mean' is not one of cat, svd"),
        ({"weights": [1.0]}, "1 weights were given for 2 adapters; give one for each"),
        ({"weights": [1.0, float("nan")]}, "must be finite numbers that are not all 0"),
        ({"weights": [0.0, 0.0]}, "must be finite numbers that are not all 0"),
        ({"method": "linear", "rank": 2}, "goes with the methods that end in svd"),
        ({"method": "svd", "rank": 0}, "a rank is at least 1"),
        ({"density": 0.5}, "goes with ties, dare and magnitude_prune"),
        ({"method": "ties", "density": 1.5}, "above 0 and at most 1"),
        ({"weights": [1.0, -1.0]}, "no mean of the heads"),
    ],
)
def test_wrong_options_are_refused(world: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        merge(["one", "two"], "wrong", str(world / "store"), **options)
    assert "wrong" not in open_store(str(world / "store")).names()


def test_what_cannot_be_merged_is_refused_by_name(world: Path, tmp_path: Path) -> None:
    base, store = world / "base", tmp_path / "store"
    other = make_base(tmp_path / "other", seed=5)
    card(make_adapter(base, store / "one", seed=0, labels=3), base, LABELS)
    card(make_adapter(base, store / "large", seed=0, rank=6, labels=3), base, LABELS)
    card(make_adapter(other, store / "foreign", seed=1, labels=3), other, LABELS)
    card(make_adapter(base, store / "words", seed=1, labels=3), base, ["no", "yes", "never"])
    card(make_adapter(base, store / "short", seed=1, labels=3), base, LABELS)
    short = load_from(store, "short")
    assert short.card.task is not None
    task = short.card.task.model_copy(update={"max_length": 8})
    open_store(str(store)).put(replace(short, card=short.card.model_copy(update={"task": task, "sha256": None})), "cut")
    make_adapter(base, store / "plain", seed=3, labels=3)
    make_tagger(tmp_path)
    for ref, kind, said in (
        ("foreign", BaseModelError, "was trained"),
        ("words", AdapterError, "task.labels"),
        ("cut", AdapterError, "task.max_length 16 and cut@1 8"),
        ("plain", AdapterError, "task.type 'text-classification' and plain@1 None"),
        ("one@1", RecipeError, "which is named already"),
        ("one", RecipeError, "named twice"),
    ):
        with pytest.raises(kind, match=said):
            merge(["one", ref], "new", str(store))
    with pytest.raises(AdapterError, match="ranks 4, 6, and ties combines A's and B's of one rank; use cat"):
        merge(["one", "large"], "new", str(store), method="ties")
    assert merge(["one", "large"], "new", str(store), method="ties_svd")["rank"] == 6


def load_from(store: Path, name: str) -> Adapter:
    return open_store(str(store)).load(name)[1]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def command(*arguments: Any) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return command


def test_the_command_says_what_it_did(world: Path, tmp_path: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    data = tmp_path / "rows.jsonl"
    rows = [{"text": text, "label": LABELS[at % 3]} for at, text in enumerate(texts(12, 4))]
    data.write_text("\n".join(map(json.dumps, rows)))
    where = ("--store", world / "store")
    code, out, said = run("merge", "one", "two", "--name", "pair", "--weights", "0.5,0.5", "--data", data, *where)
    assert code == 0, said
    assert "pair@1 = 0.5 * one@1 + 0.5 * two@1 by cat, rank 8" in out
    assert "pair@1" in out.split("accuracy")[1]
    code, out, _ = run("merge", "one", "two", "--name", "pair", "--method", "dare_ties", *where, "--json")
    assert json.loads(out.splitlines()[-1])["ref"] == "pair@2"
    code, _, said = run("merge", "one", "two", "--name", "pair", "--weights", "a,b", *where)
    assert (code, "is not numbers between commas" in said) == (2, True)
