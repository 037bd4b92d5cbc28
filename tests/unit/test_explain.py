"""Adapters explained: every figure against the plain way of computing it."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from transformers import AutoModelForSequenceClassification, AutoTokenizer, ViTConfig, ViTImageProcessor, ViTModel

from ray_lora.adapters.adapter import Adapter, Card
from ray_lora.adapters.merge import dense
from ray_lora.bases.load import load_base
from ray_lora.cli import main
from ray_lora.engine import AdapterEngine, HeadSpec
from ray_lora.errors import DataError, RecipeError
from ray_lora.explain import explain
from ray_lora.explain.attribution import CELLS, ENOUGH, Attributor
from ray_lora.explain.change import changes, effective_rank
from ray_lora.explain.likeness import likeness, neighbours
from ray_lora.explain.reliability import curve
from ray_lora.explain.switched_off import groups_of
from ray_lora.inference.stored import evaluate_ref
from ray_lora.recipe import BaseSpec, LoraSpec
from ray_lora.store import open_store
from ray_lora.tasks import build_task
from ray_lora.tasks.image_classification import ImageClassificationSpec
from tests.mlflow_world import database
from tests.unit.serving_world import card, make_adapter, make_base, make_tagger, peft_probabilities
from tests.unit.test_tables import texts

LABELS = ["no", "yes"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base/, store/ with `one`, `two` and `tagger` on it and `foreign` on another, rows.parquet that `one`, which says
    yes of half of them, answers mostly right."""
    root = make_tagger(tmp_path_factory.mktemp("explain"))
    base, store = root / "base", root / "store"
    for seed, name in enumerate(("first", "two")):
        card(make_adapter(base, store / name, seed=seed, rank=4 + 2 * seed), base, LABELS)
    uneven = Adapter.load(store / "first")
    sure = torch.tensor(peft_probabilities(base, store / "first", texts(80, 4))).logit()[:, 1].median()
    head = {key: value + torch.tensor([sure, 0.0]) if "bias" in key else value for key, value in uneven.head.items()}
    replace(uneven, head=head, card=uneven.card.model_copy(update={"sha256": None})).save(store / "one")
    shutil.rmtree(store / "first")
    card(make_adapter(make_base(root / "other", seed=5), store / "foreign", seed=1), root / "other", LABELS)
    given = texts(80, 4)
    answers = told(root, "one", given)
    rows = [
        {"text": text, "label": answer if at % 8 else "no"}
        for at, (text, answer) in enumerate(zip(given, answers, strict=True))
    ]
    pa.parquet.write_table(pa.Table.from_pylist(rows), root / "rows.parquet")
    return root


def told(root: Path, ref: str, given: list[str]) -> list[str]:
    from ray_lora.inference.stored import predict_ref

    return [answer["label"] for answer in predict_ref(ref, given, str(root / "store"))["predictions"]]


def load(world: Path, name: str) -> Adapter:
    return open_store(str(world / "store")).load(name)[1]


@pytest.fixture(scope="module")
def explained(world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    output = tmp_path_factory.mktemp("page")
    found = explain(
        ["one"],
        str(world / "store"),
        data=str(world / "rows.parquet"),
        inputs=["a lovely day", "dull <b>plot</b>"],
        output=str(output),
    )
    return found, output


def test_changes_are_those_of_the_dense_matrices(world: Path) -> None:
    adapter, base = load(world, "two"), load_base(BaseSpec(model=str(world / "base"), dtype="float32"))
    found = changes(adapter, base)
    assert {layer.layer for layer in found} == set(adapter.layers)
    assert found[0].layer == "bert.encoder.layer.0.attention.self.query"
    total = sum(dense(pair, adapter.scaling(name)).square().sum() for name, pair in adapter.layers.items())
    for layer in found:
        change = dense(adapter.layers[layer.layer], adapter.scaling(layer.layer)).double()
        weight = base.backbone.get_submodule(layer.layer.removeprefix("bert.")).weight
        values = torch.linalg.svdvals(change)[: layer.rank]
        assert layer.norm == pytest.approx(float(change.norm()), rel=1e-5)
        assert layer.relative == pytest.approx(float(change.norm() / weight.norm()), rel=1e-5)
        assert layer.singular_values == pytest.approx(values.tolist(), rel=1e-4)
        shares = values / values.sum()
        assert layer.effective_rank == pytest.approx(math.exp(-float((shares * shares.log()).sum())), rel=1e-4)
        assert layer.share == pytest.approx(float(change.square().sum() / total), rel=1e-4)


def test_effective_rank_counts_equal_directions() -> None:
    assert effective_rank([2.0, 2.0, 2.0, 0.0]) == pytest.approx(3)
    assert effective_rank([5.0, 0.0]) == pytest.approx(1)
    assert effective_rank([0.0, 0.0]) == 0


def test_a_layer_switched_off_is_the_adapter_with_zeros_alone(
    world: Path, explained: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    off = explained[0]["adapters"][0]["switched_off"]
    adapter, store = load(world, "one"), open_store(str(tmp_path))
    assert [layer for group in off["groups"] for layer in group["layers"]] == [
        layer["layer"] for layer in explained[0]["adapters"][0]["layers"]
    ]

    def alone(gone: list[str]) -> float:
        layers = {
            name: replace(pair, A=pair.A * 0, B=pair.B * 0) if name in gone else pair
            for name, pair in adapter.layers.items()
        }
        entry = store.put(replace(adapter, layers=layers), "zeroed")
        found = evaluate_ref(entry.ref, str(world / "rows.parquet"), str(tmp_path))["metrics"]
        return float(found["accuracy"])

    assert off["full"]["value"] == pytest.approx(alone([]))
    assert off["bare"]["score"]["value"] == pytest.approx(alone(list(adapter.layers)))
    scores = set()
    for group in off["groups"]:
        score = group["score"]["value"]
        assert score == pytest.approx(alone(group["layers"])), group["name"]
        assert group["drop"]["value"] == pytest.approx(off["full"]["value"] - score)
        assert group["could_go"] == (group["drop"]["low"] <= 0)
        scores.add(score)
    assert len(scores) > 2
    going = off["could_go"]
    assert 0 < len(going) < len(adapter.layers)
    assert sorted(off["together"][-1]["layers"]) == sorted(going)
    for fewer, more in pairwise(off["together"]):
        assert set(fewer["layers"]) < set(more["layers"])
    for part in off["together"]:
        assert part["score"]["value"] == pytest.approx(alone(part["layers"]))
    could = [part for part in off["together"] if part["could_go"]]
    assert off["largest"] == (could[-1] if could else None)


def test_many_layers_are_switched_off_by_their_blocks() -> None:
    layers = [f"m.layers.{block}.{part}" for block in range(5) for part in "abc"]
    assert groups_of(layers, 15) == {name: (name,) for name in layers}
    assert groups_of(layers, 5)["m.layers.3"] == tuple(layers[9:12])
    two = groups_of(layers, 2)
    assert list(two) == ["m.layers.0 to m.layers.2", "m.layers.3 to m.layers.4"]
    assert [layer for mine in two.values() for layer in mine] == layers


def test_likeness_is_one_for_oneself_and_chance_for_strangers(world: Path) -> None:
    one = load(world, "one")
    assert (same := likeness(one, one)) is not None
    assert same.value == pytest.approx(1)
    turned = {  # another basis of the same directions
        name: replace(pair, A=torch.randn(4, 4) @ pair.A, B=pair.B @ torch.randn(4, 4))
        for name, pair in one.layers.items()
    }
    assert (also := likeness(one, replace(one, layers=turned))) is not None
    assert also.value == pytest.approx(1, abs=1e-4)
    draw = torch.Generator().manual_seed(0)

    def stranger(rank: int) -> Adapter:
        layers = {
            f"layer.{number}": type(next(iter(one.layers.values())))(
                torch.randn(rank, 64, generator=draw), torch.randn(64, rank, generator=draw)
            )
            for number in range(40)
        }
        return replace(one, layers=layers)

    assert (far := likeness(stranger(4), stranger(8))) is not None
    assert far.chance == pytest.approx(8 / 64)
    assert far.value == pytest.approx(far.chance, abs=0.015)
    nothing = {name: replace(pair, B=pair.B * 0) for name, pair in one.layers.items()}
    assert likeness(one, replace(one, layers=nothing)) is None


def test_neighbours_are_of_the_same_base(world: Path) -> None:
    store = open_store(str(world / "store"))
    entry, adapter = store.load("one")
    found = neighbours(store, entry, adapter)
    assert {near.ref for near in found.near} == {"two@1", "tagger@1"}
    assert (found.read, found.left) == (2, 0)
    few = neighbours(store, entry, adapter, read=0)
    assert (few.near, few.read, few.left) == ((), 0, found.read + found.left)


def test_calibration_error_by_hand() -> None:
    found = curve([0.95, 0.95, 0.55, 0.55, 0.0], [True, False, True, True, False], bins=10)
    assert [(one.rows, one.score, one.right) for one in found.bins if one.rows] == [
        (1, 0.0, 0.0),
        (2, 0.55, 1.0),
        (2, 0.95, 0.5),
    ]
    assert (found.bins[5].low, found.bins[9].high, found.bins[5].rows) == (0.5, 1.0, 2)
    assert found.ece == pytest.approx(0.4 * 0.45 + 0.4 * 0.45)
    assert curve([0.5], [True], bins=2).bins[0].rows == 1  # above low, at most high


def test_reliability_is_of_the_answers(world: Path, explained: tuple[dict[str, Any], Path]) -> None:
    told = explained[0]["adapters"][0]["reliability"]
    assert told["rows"] == sum(one["rows"] for one in told["bins"]) == 80
    right = sum(one["rows"] * one["right"] for one in told["bins"] if one["rows"])
    assert right / 80 == pytest.approx(explained[0]["adapters"][0]["switched_off"]["full"]["value"])


def plain_logits(world: Path, name: str, embeddings: torch.Tensor | None, text: str) -> torch.Tensor:
    """Plain PEFT's logits of one text, from embeddings in place of its tokens'."""
    import warnings

    from peft import PeftModel

    plain = AutoModelForSequenceClassification.from_pretrained(
        world / "base", num_labels=2, attn_implementation="eager"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model = PeftModel.from_pretrained(plain, world / "store" / name).eval()
    ids = AutoTokenizer.from_pretrained(world / "base")(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        return model(inputs_embeds=model.get_input_embeddings()(ids) if embeddings is None else embeddings).logits[0]


def test_attributions_add_up_to_what_plain_peft_gains(world: Path, explained: tuple[dict[str, Any], Path]) -> None:
    for row, text in zip(
        explained[0]["adapters"][0]["attributions"], ("a lovely day", "dull <b>plot</b>"), strict=True
    ):
        way = row["adapter"]
        assert len(way["values"]) == len(row["tokens"])
        at = LABELS.index(row["target"])
        whole = plain_logits(world, "one", None, text)
        nothing = plain_logits(world, "one", torch.zeros(1, len(row["tokens"]), 32), text)
        assert int(whole.argmax()) == at
        assert (way["output"], way["baseline"]) == (
            pytest.approx(float(whole[at]), abs=1e-4), pytest.approx(float(nothing[at]), abs=1e-4)
        )  # fmt: skip
        gained = way["output"] - way["baseline"]
        assert way["gap"] == pytest.approx(gained - sum(way["values"]), abs=1e-6)
        assert abs(way["gap"]) <= ENOUGH * abs(gained)
        base = row["base"]
        assert base["head"] == "the adapter's"
        assert base["output"] != pytest.approx(way["output"], abs=1e-3)
        assert abs(base["gap"]) <= ENOUGH * abs(base["output"] - base["baseline"])


def test_a_bare_base_answers_with_its_own_head_where_it_has_one(tmp_path: Path) -> None:
    """A fine-tuned classifier as the base: what is said of it is the plain class's; with other labels it has no say."""
    plain = make_base(tmp_path / "plain")
    torch.manual_seed(7)
    model = AutoModelForSequenceClassification.from_pretrained(plain, num_labels=2)
    model.classifier.weight.data.normal_(0, 1)
    model.config.id2label, model.config.label2id = dict(enumerate(LABELS)), {"no": 0, "yes": 1}
    model.save_pretrained(tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(plain)
    tokenizer.save_pretrained(tmp_path / "base")
    for name, labels in (("same", LABELS), ("others", ["bad", "good"])):
        card(make_adapter(tmp_path / "base", tmp_path / "store" / name, seed=3), tmp_path / "base", labels)
    found = explain(["same", "others"], str(tmp_path / "store"), inputs=["a lovely day"])["adapters"]
    [row], [other] = (told["attributions"] for told in found)
    with torch.no_grad():
        logits = model.eval()(**tokenizer("a lovely day", return_tensors="pt", return_token_type_ids=False)).logits[0]
    assert row["base"]["head"] == "the base's own"
    assert row["base"]["output"] == pytest.approx(float(logits[LABELS.index(row["target"])]), abs=1e-5)
    assert row["base"]["answer"]["label"] == LABELS[int(logits.argmax())]
    assert other["base"]["head"] == "the adapter's"


@pytest.mark.parametrize("problem", ["multi_label_classification", "regression"])
def test_other_answers_of_texts_are_attributed_and_have_no_reliability(tmp_path: Path, problem: str) -> None:
    base, several = make_base(tmp_path / "base"), problem != "regression"
    folder = make_adapter(base, tmp_path / "store" / "x", seed=3, labels=2 if several else 1)
    card(folder, base, LABELS if several else None, problem_type=problem)
    rows = [
        {"text": text, "label": ["no", "yes"][: at % 3] if several else at / 10} for at, text in enumerate(texts(12, 4))
    ]
    pa.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    [told] = explain(
        ["x"], str(tmp_path / "store"), data=str(tmp_path / "rows.parquet"), inputs=["a lovely day"]
    )["adapters"]  # fmt: skip
    [row] = told["attributions"]
    assert row["target"] in (LABELS if several else ["LABEL_0"])
    assert f"and {problem} has others" in told["left_out"]["reliability"]
    metric, off = told["switched_off"]["metric"], told["switched_off"]
    alone = evaluate_ref("x", str(tmp_path / "rows.parquet"), str(tmp_path / "store"))["metrics"][metric]
    assert off["full"]["value"] == pytest.approx(alone, abs=1e-6)
    worse = off["bare"]["score"]["value"] - off["full"]["value"]
    assert off["bare"]["drop"]["value"] == pytest.approx(worse if off["mode"] == "min" else -worse)


def test_a_token_that_changes_nothing_has_no_value(world: Path) -> None:
    """With a head that reads a bare base's first token alone and no attention, the others get nothing."""
    base = load_base(BaseSpec(model=str(world / "base"), dtype="float32"))
    with torch.no_grad():
        for name, parameter in base.backbone.named_parameters():
            if "attention.self.value" in name:
                parameter.zero_()
    adapter = replace(load(world, "one"), layers={})
    assert adapter.card.task is not None
    task = build_task(adapter.card.task, base.processor)
    with Attributor(base, adapter, task) as attributor:
        [features] = task.encode([{"text": "bad lovely loud"}])
        values = attributor.of(features).adapter.values
    assert abs(float(values[0])) > 1e-3  # type: ignore[arg-type]
    assert values[1:] == pytest.approx([0, 0], abs=1e-7)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, image_size=48, patch_size=16
    )
    ViTModel(config, add_pooling_layer=False).save_pretrained(root / "base")
    ViTImageProcessor(size={"height": 48, "width": 48}).save_pretrained(root / "base")
    base = load_base(BaseSpec(model=str(root / "base"), dtype="float32"))
    engine = AdapterEngine(base, slots=1, max_rank=4)
    slot = engine.init(LoraSpec(r=4), HeadSpec("AutoModelForImageClassification", 3), seed=0)
    adapter = engine.export(slot, Card(task=ImageClassificationSpec(labels=("a", "b", "c")), base=str(root / "base")))
    layers = {name: replace(pair, B=torch.randn_like(pair.B) * 0.3) for name, pair in adapter.layers.items()}
    head = {name: torch.randn_like(tensor) for name, tensor in adapter.head.items()}
    open_store(str(root / "store")).put(replace(adapter, layers=layers, head=head), "drawings")
    engine.close()
    noise = torch.randint(0, 256, (48, 48), dtype=torch.uint8)
    Image.fromarray(noise.numpy()).convert("RGB").save(root / "noise.png")
    return root


def test_pictures_are_attributed_by_pixels(pictures: Path, tmp_path: Path) -> None:
    noise = str(pictures / "noise.png")
    found = explain(["drawings"], str(pictures / "store"), inputs=[noise], output=str(tmp_path))
    [row] = found["adapters"][0]["attributions"]
    assert (row["tokens"], len(row["adapter"]["values"])) == (None, CELLS)
    for side in ("adapter", "base"):
        way = row[side]
        gained = way["output"] - way["baseline"]
        assert gained - sum(map(sum, way["values"])) == pytest.approx(way["gap"], abs=1e-5)
        assert abs(way["gap"]) <= ENOUGH * abs(gained)
    page = (tmp_path / "explain.html").read_text()
    assert row["picture"] in page


def test_the_page_is_whole_and_fetches_nothing(explained: tuple[dict[str, Any], Path]) -> None:
    found, folder = explained
    page = (folder / "explain.html").read_text()
    assert "one@1" in page
    assert "dull &lt;b&gt;plot" in page
    assert "<b>plot" not in page
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert "http" not in re.sub(r"base64,[A-Za-z0-9+/=]+", "", page)
    told = json.loads((folder / "explain.json").read_text())
    assert told["adapters"][0]["layers"] == json.loads(json.dumps(found["adapters"][0]["layers"]))
    for file in found["files"]:
        assert Path(file).stat().st_size > 0
    assert {"change", "singular_values", "switched_off", "reliability"} == {
        Path(file).stem.removeprefix("one_1_") for file in found["files"] if file.endswith("png")
    }


def test_parts_that_a_task_does_not_have_are_named(world: Path) -> None:
    [told] = explain(["tagger"], str(world / "store"), inputs=["a day"])["adapters"]
    assert told["layers"]
    assert told["left_out"] == {
        "attributions": "attributions are of classified texts and pictures, and token-classification answers otherwise",
        "switched_off": "no rows were given; give --data",
        "reliability": "no rows were given; give --data",
    }
    assert (told["attributions"], told["switched_off"]) == ([], None)
    with pytest.raises(DataError, match="input 1: text '' is empty"):
        explain(["one"], str(world / "store"), inputs=[""])
    with pytest.raises(RecipeError, match="named twice"):
        explain(["one", "one"], str(world / "store"))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def command(*arguments: Any) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return command


def test_the_command(world: Path, tmp_path: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    where = ("--store", world / "store")
    code, out, said = run("explain", "one", "two", "--data", world / "rows.parquet", "--input", "a lovely day", *where)
    assert code == 0, said
    for words in ("one@1: text-classification", "accuracy lost without it", "expected calibration error", "lovely"):
        assert words in out
    assert "--output FOLDER writes a page" in out
    code, out, said = run("explain", "one", "--output", tmp_path / "page", *where, "--json")
    assert code == 0, said
    last = json.loads(out.splitlines()[-1])
    assert last["files"][0] == str(tmp_path / "page" / "explain.html")
    assert Path(last["files"][0]).exists()
    code, _, said = run("explain", "onee", *where)
    assert (code, "did you mean 'one'" in said) == (2, True)


def test_the_run_in_mlflow_has_the_page(world: Path, tmp_path: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    from mlflow.tracking import MlflowClient

    uri = database(tmp_path)
    code, _, said = run(
        "explain", "one", "--data", world / "rows.parquet", "--store", world / "store", "--tracking-uri", uri, "--json"
    )
    assert code == 0, said
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("explain")
    [found] = client.search_runs([experiment.experiment_id])
    assert found.info.run_name == "explain one@1"
    assert "one.1.ece" in found.data.metrics
    names = {Path(item.path).name for item in client.list_artifacts(found.info.run_id, "explain")}
    assert {"explain.html", "explain.json", "one_1_change.png"} <= names
