"""Bases cut to a share of their layers: exact where what goes is nothing, scored as LoRAPrune says, refused by name."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor, nn

from ray_lora.adapters.adapter import Adapter
from ray_lora.bases.base import Base
from ray_lora.bases.load import load_base
from ray_lora.bases.transformers_base import quiet
from ray_lora.cli import main
from ray_lora.engine import AdapterEngine
from ray_lora.errors import AdapterError, BaseModelError, RayLoraError, RecipeError
from ray_lora.inference.stored import evaluate_ref
from ray_lora.pruning import prune_ref
from ray_lora.pruning.cut import cut_adapter, cut_config, cut_state
from ray_lora.pruning.folder import read_whole, write_cut
from ray_lora.pruning.importance import BATCH, Importance, importance_of
from ray_lora.pruning.kinds import KINDS, Kind, kind_of
from ray_lora.pruning.plan import Plan, best_plan, random_plan
from ray_lora.pruning.refit import RIDGE, Moments, fitted, refit
from ray_lora.pruning.shapes import Shape, Sizes, shapes_within
from ray_lora.recipe import BaseSpec, LoraSpec, TrainingSpec
from ray_lora.tasks import Task, build_task
from ray_lora.tasks.image_classification import ImageClassificationSpec
from ray_lora.tasks.text_classification import TextClassificationSpec
from ray_lora.training.job import Job
from ray_lora.training.pack import Pack
from ray_lora.training.shards import Split, Splits
from tests.conftest import rated
from tests.unit.bases import open_base, save_base
from tests.unit.exported import put

SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 40}
TEXTS = TextClassificationSpec(labels=("negative", "positive"))
LORA = LoraSpec(r=3, lora_alpha=7)


def save(kind: str, folder: Path, tokenizer: Path, **more: Any) -> Path:
    """A random base of three layers in which every unit matters, with what reads its rows."""
    words = {"vocab_size": 200, "pad_token_id": 0}
    config: Any = {
        "bert": lambda: transformers.BertConfig(**words, **SMALL, max_position_embeddings=64),
        "roberta": lambda: transformers.RobertaConfig(**words, **SMALL, max_position_embeddings=66),
        "llama": lambda: transformers.LlamaConfig(
            **words, **SMALL, **more, num_key_value_heads=2, max_position_embeddings=64
        ),
        "vit": lambda: transformers.ViTConfig(**SMALL, image_size=16, patch_size=8),
    }[kind]()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        make = transformers.AutoModelForCausalLM if kind == "llama" else transformers.AutoModel
        model = make.from_config(config)
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.data.normal_(0, parameter[0].numel() ** -0.5)
            elif "bias" in name:
                parameter.data.normal_(0, 0.1)
    model.save_pretrained(folder)
    if kind == "vit":
        transformers.ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    else:
        for file in tokenizer.glob("*token*"):
            shutil.copyfile(file, folder / file.name)
    return folder


@pytest.fixture(scope="module", params=sorted(name for name, kind in KINDS.items() if not kind.channels))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_bert_folder: Path) -> Path:
    return save(request.param, tmp_path_factory.mktemp(request.param) / "base", tiny_bert_folder)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory, tiny_bert_folder: Path) -> Path:
    return save("bert", tmp_path_factory.mktemp("pruned") / "base", tiny_bert_folder)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, bert: Path) -> Path:
    """store/ with `moods` on a BERT, and rows.parquet."""
    root = tmp_path_factory.mktemp("world")
    put(root / "store", bert, "moods", TEXTS, LORA)
    pq.write_table(pa.Table.from_pylist(rated(48)), root / "rows.parquet")
    return root


def opened(folder: Path) -> tuple[Base, Kind, Sizes]:
    base = load_base(BaseSpec(model=str(folder), dtype="float32"))
    kind = kind_of(base)
    return base, kind, Sizes.of(base.backbone, base.config, kind)


def rows_for(base: Base) -> tuple[Task, list[Any]]:
    """A task of the base, and rows with targets."""
    if base.config.model_type != "vit":
        task = build_task(TEXTS, base.processor)
        return task, task.encode(rated(40))
    task = build_task(ImageClassificationSpec(labels=("negative", "positive")), base.processor)
    draw = np.random.default_rng(0)
    rows = []
    for number in range(24):
        file = io.BytesIO()
        Image.fromarray(draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(file, "PNG")
        rows.append({"image": file.getvalue(), "label": TEXTS.labels[number % 2]})  # type: ignore[index]
    return task, task.encode(rows)


def some_plan(sizes: Sizes, layers: Sequence[int], seed: int = 0) -> Plan:
    """These layers, half of the rows of each, and one group where heads can go."""
    shape = Shape(len(layers), sizes.whole.rows // 2, None if sizes.whole.groups is None else 1)
    return replace(random_plan(sizes, shape, seed), layers=tuple(layers))


def zero_out(model: nn.Module, prefix: str, kind: Kind, plan: Plan, sizes: Sizes, reads: bool) -> None:
    """Set what the plan cuts to zero: what computes the units, or what reads them; of layers that go what they add."""
    with torch.no_grad():
        for number in range(sizes.whole.layers):
            block = model.get_submodule(f"{prefix}{kind.blocks}.{number}")
            heads = kind.attention
            if number not in plan.layers:
                assert heads is not None
                for name in (kind.columns, heads.output):
                    block.get_submodule(name).weight.zero_()
                continue
            at = plan.layers.index(number)
            gone = [row for row in range(sizes.whole.rows) if row not in plan.rows[at].tolist()]
            _zero(block, kind.rows, kind.columns, gone, reads)
            if heads is not None:
                for group in set(range(sizes.whole.groups or 0)) - set(plan.groups[at].tolist()):
                    keys, queries = ([group * n + i for i in range(n)] for n in (8, 16))
                    _zero(block, heads.keys_values, heads.output, keys, False, columns=queries)
                    _zero(block, (heads.queries,), heads.output, queries, reads)


def _zero(
    block: nn.Module, rows: Sequence[str], reader: str, gone: list[int], reads: bool, columns: list[int] | None = None
) -> None:
    if reads or columns is not None:
        block.get_submodule(reader).weight[:, columns or gone] = 0
    if not reads:
        for name in rows:
            layer = block.get_submodule(name)
            layer.weight[gone] = 0
            if layer.bias is not None:
                layer.bias[gone] = 0


@pytest.mark.parametrize("reads", [False, True], ids=["computed", "read"])
def test_cutting_what_is_zero_changes_no_output(folder: Path, tmp_path: Path, reads: bool) -> None:
    base, kind, sizes = opened(folder)
    whole = read_whole(base)
    plan = some_plan(sizes, (0, 2) if kind.attention is not None else (0, 1, 2))
    zero_out(whole.model, whole.prefix, kind, plan, sizes, reads)
    shutil.copytree(folder, tmp_path / "zeroed")
    whole.model.save_pretrained(tmp_path / "zeroed")
    base, kind, sizes = opened(tmp_path / "zeroed")
    whole, (task, features) = read_whole(base), rows_for(base)
    engine = AdapterEngine(base, slots=1, max_rank=1)
    changed = refit(engine, task, features, whole.state, whole.prefix, kind, plan, sizes)
    engine.close()
    assert changed, "rows were cut, so the products that read them were fitted"
    for name, tensor in changed.items():
        gone = whole.state[name] == 0
        assert torch.equal(tensor[gone], whole.state[name][gone])
    small = cut_state({**whole.state, **changed}, whole.prefix, kind, plan, sizes)
    write_cut(tmp_path / "small", base, whole, small, cut_config(whole.model.config, plan.shape, sizes), page("small"))
    cut, batch = transformers.AutoModel.from_pretrained(tmp_path / "small").eval(), task.collate(features[:9])
    assert cut.config.intermediate_size == 20
    with torch.no_grad():
        wanted, found = base.backbone(**batch).last_hidden_state, cut(**batch).last_hidden_state
    mask = batch.get("attention_mask", torch.ones(wanted.shape[:2])).bool()
    torch.testing.assert_close(found[mask], wanted[mask], atol=2e-5, rtol=2e-5)


def page(name: str) -> dict[str, Any]:
    """A card with no figures."""
    told = {"layers": 1, "layer_parameters": 1}
    return {
        "name": name, "origin": "x", "origin_fingerprint": "x", "share": 0.5, "scored_by": "lora", "ref": "x@1",
        "rows": 1, "rows_sha256": "x", "layers": [0], "left_out": [], "before": told, "after": told, "metric": "x",
    }  # fmt: skip


def test_a_cut_base_computes_what_its_origin_computes_without_the_units(folder: Path, tmp_path: Path) -> None:
    """Without a fit: the origin with its readers' columns set to zero, and without its other layers."""
    base, kind, sizes = opened(folder)
    whole, (task, features) = read_whole(base), rows_for(base)
    plan = some_plan(sizes, (0, 2), seed=3)
    small = cut_state(whole.state, whole.prefix, kind, plan, sizes)
    config = cut_config(whole.model.config, plan.shape, sizes)
    write_cut(tmp_path / "small", base, whole, small, config, page("small"))
    blocks = whole.model.get_submodule(f"{whole.prefix}{kind.blocks}")
    rest = replace(plan, layers=(0, 1, 2), rows=(plan.rows[0], plan.rows[0], plan.rows[1]), groups=plan.groups[:1] * 3)
    rest = replace(rest, groups=(plan.groups[0], plan.groups[0], plan.groups[1]) if plan.groups else ())
    zero_out(whole.model, whole.prefix, kind, rest, sizes, reads=True)
    del blocks[1]
    whole.model.eval()
    backbone = whole.model.get_submodule(whole.prefix.rstrip(".")) if whole.prefix else whole.model
    backbone.config.num_hidden_layers = 2
    cut = transformers.AutoModel.from_pretrained(tmp_path / "small").eval()
    with torch.no_grad():
        for row in features[:5]:
            batch = task.collate([row])
            wanted, found = backbone(**batch, use_cache=False), cut(**batch)
            torch.testing.assert_close(found.last_hidden_state, wanted.last_hidden_state, atol=2e-5, rtol=2e-5)
    count = sum(parameter.numel() for parameter in cut.get_submodule(kind.blocks).parameters())
    assert count == sizes.parameters(plan.shape)


def test_importance_is_loraprunes_of_plain_gradients(folder: Path) -> None:
    base, kind, sizes = opened(folder)
    task, features = rows_for(base)
    features = features[: 2 * BATCH]
    engine = AdapterEngine(base, slots=1, max_rank=4, train=True)
    weights = _weights(folder)
    slot = engine.init(LORA, task.head, seed=1, peft_type=task.peft_type)
    draw = torch.Generator().manual_seed(5)
    engine.write(slot, {k: torch.empty(v.shape).normal_(0, 0.2, generator=draw) for k, v in engine.read(slot).items()})
    engine.refresh([slot])
    adapter = engine.export(slot)
    found = importance_of(engine, slot, adapter, task, features, weights, kind, sizes)
    engine.close()
    wanted = _by_autograd(base, adapter, task, features, kind, sizes, weights)
    for mine, theirs in zip(found.rows, wanted.rows, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=2e-3, atol=1e-12)
    for mine, theirs in zip(found.groups, wanted.groups, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=2e-3, atol=1e-12)
    assert found.layers == pytest.approx(wanted.layers, rel=2e-3)


def _weights(folder: Path) -> dict[str, Tensor]:
    backbone = load_base(BaseSpec(model=str(folder), dtype="float32")).backbone
    return {name: part.weight.detach() for name, part in backbone.named_modules() if isinstance(part, nn.Linear)}


def _by_autograd(
    base: Base, adapter: Adapter, task: Task, features: Sequence[Any], kind: Kind, sizes: Sizes, weights: Any
) -> Importance:
    """With the plain class, its weights replaced by W + s B A of two leaves each."""
    with quiet():
        model: Any = getattr(transformers, task.head.architecture).from_pretrained(
            base.folder, num_labels=2, attn_implementation="eager"
        )
    model.eval()
    model.load_state_dict(dict(adapter.head), strict=False)
    names = {name: name.removeprefix(f"{base.prefix}.") for name in adapter.layers}
    rows = torch.zeros(3, sizes.whole.rows, dtype=torch.float64)
    groups = torch.zeros(3, sizes.whole.groups or 0, dtype=torch.float64)
    layers = torch.zeros(3, dtype=torch.float64)
    batches = [features[at : at + BATCH] for at in range(0, len(features), BATCH)]
    for part in batches:
        leaves = {
            name: [(pair.A).clone().requires_grad_(), (pair.B * adapter.scaling(name)).clone().requires_grad_()]
            for name, pair in adapter.layers.items()
        }
        changed = {f"{name}.weight": weights[names[name]] + b @ a for name, (a, b) in leaves.items()}
        outputs = torch.func.functional_call(model, changed, kwargs=task.collate(part))
        losses, terms = task.loss(outputs, part)
        (losses.sum() / terms.sum()).backward()
        for name, (a, b) in leaves.items():
            assert a.grad is not None
            assert b.grad is not None
            with torch.no_grad():
                gradient = b.grad @ a + b @ a.grad - b.grad @ a.grad
                worth = (gradient * (weights[names[name]] + b @ a)).square().double()
            told = re.fullmatch(rf"{re.escape(kind.blocks)}\.(\d+)\.(.+)", names[name])
            if told is None:
                continue
            layer, inner = int(told[1]), told[2]
            layers[layer] += worth.sum()
            if inner in kind.rows:
                rows[layer] += worth.sum(1)
            if inner == kind.columns:
                rows[layer] += worth.sum(0)
            if kind.attention is not None:
                if inner == kind.attention.output:
                    groups[layer] += torch.stack([part.sum() for part in worth.chunk(2, dim=1)])
                elif inner == kind.attention.queries or inner in kind.attention.keys_values:
                    groups[layer] += torch.stack([part.sum() for part in worth.chunk(2, dim=0)])
    count = len(batches)
    told_groups = tuple(groups / count) if sizes.whole.groups else ()
    return Importance(tuple(rows / count), told_groups, tuple((layers / count).tolist()))


def test_the_fit_has_the_smallest_error_near_the_bases_own_weights() -> None:
    draw = torch.Generator().manual_seed(0)
    mixed = torch.randn(6, 9, generator=draw, dtype=torch.float64)
    values = torch.randn(500, 6, generator=draw, dtype=torch.float64) @ mixed + 0.5
    weight, inputs = torch.randn(4, 9, generator=draw, dtype=torch.float64), torch.tensor([0, 2, 3, 7])
    for centred in (True, False):
        moments = Moments(torch.zeros(9, 9, dtype=torch.float64), torch.zeros(9, dtype=torch.float64))
        for part in values.split(123):
            moments.add(part)
        new, shift = fitted(weight, moments, inputs, centred)
        given, target = values[:, inputs], values @ weight.T - values[:, inputs] @ weight[:, inputs].T
        if centred:
            given, offset = given - given.mean(0), target.mean(0)
            target = target - offset
        ridge = RIDGE * (given.T @ given / 500).diagonal().mean()
        tall = torch.cat([given, (500 * ridge).sqrt() * torch.eye(4, dtype=torch.float64)])
        gain = torch.linalg.lstsq(tall, torch.cat([target, torch.zeros(4, 4, dtype=torch.float64)])).solution.T
        torch.testing.assert_close(new[:, inputs], weight[:, inputs] + gain, rtol=1e-4, atol=1e-5)
        if centred:  # what the bias gains keeps the mean of what comes out
            torch.testing.assert_close(shift, offset - gain @ values[:, inputs].mean(0), rtol=1e-4, atol=1e-5)
        errors = [
            (values @ weight.T - values[:, inputs] @ one[:, inputs].T - (shift if one is new and centred else 0))
            .square()
            .mean()
            for one in (new, weight)
        ]
        assert errors[0] < 0.5 * errors[1]


def test_shapes_hold_no_more_than_their_share_and_no_row_more_would_fit(folder: Path) -> None:
    base, kind, sizes = opened(folder)
    blocks = sum(parameter.numel() for parameter in base.backbone.get_submodule(kind.blocks).parameters())
    assert sizes.parameters(sizes.whole) == blocks
    for keep in (0.3, 0.5, 0.9):
        for shape in shapes_within(sizes, keep):
            assert sizes.parameters(shape) <= keep * blocks
            assert (
                shape.rows == sizes.whole.rows or sizes.parameters(replace(shape, rows=shape.rows + 1)) > keep * blocks
            )
    assert shapes_within(sizes, 1.0) == [sizes.whole]
    with pytest.raises(
        RecipeError, match=r"--keep 0.001 leaves too little of this base for 1 layers; give at least 0.\d+$"
    ):
        shapes_within(sizes, 0.001)
    with pytest.raises(RecipeError, match=r"--layers 4 of a base of 3 layers; give 1 to 3"):
        shapes_within(sizes, 0.5, layers=4)
    with pytest.raises(RecipeError, match="or fewer --layers"):
        shapes_within(sizes, 0.1, layers=3)


def test_the_plan_keeps_the_most_important_units() -> None:
    sizes = Sizes(Shape(3, 4, 2), fixed=10, row=5, group=7)
    rows = tuple(torch.tensor(values, dtype=torch.float64) for values in ([9, 1, 5, 2], [1, 1, 1, 9], [3, 3, 4, 3]))
    groups = tuple(torch.tensor(values, dtype=torch.float64) for values in ([1, 6], [2, 1], [1, 1]))
    worth = Importance(rows, groups, (26.0, 20.0, 15.0))
    plan = best_plan(worth, sizes, [Shape(2, 2, 1)])
    assert plan.layers == (0, 1)  # of 14 + 6 + 2, 10 + 2 + 5, 7 + 1 + 0
    assert plan.rows[0].tolist() == [0, 2]
    assert plan.rows[1].tolist()[-1] == 3
    assert [values.tolist() for values in plan.groups] == [[1], [0]]
    assert plan.share == pytest.approx((14 + 6 + 2 + 10 + 2 + 5) / 61)
    assert best_plan(worth, sizes, [Shape(1, 4, 2), Shape(2, 2, 1)]).shape == Shape(2, 2, 1)
    drawn = random_plan(sizes, plan.shape, seed=1)
    assert drawn.shape == plan.shape
    assert str(random_plan(sizes, plan.shape, seed=1)) == str(drawn) != str(random_plan(sizes, plan.shape, seed=2))


def test_an_adapter_is_cut_like_its_base(bert: Path) -> None:
    base, kind, sizes = opened(bert)
    engine = AdapterEngine(base, slots=1, max_rank=8)
    task, _ = rows_for(base)
    lora = LoraSpec(
        r=4, rank_pattern={"layer.2.output.dense": 2}, alpha_pattern={"layer.2.output.dense": 32, "pooler.dense": 8}
    )
    adapter = engine.export(engine.init(lora, task.head, 0, task.peft_type))
    engine.close()
    plan = some_plan(sizes, (0, 2))
    small = cut_adapter(adapter, "bert.", kind, plan, sizes)
    assert len(small.layers) * 3 == len([name for name in adapter.layers if "pooler" not in name]) * 2 + 3 * len(
        [name for name in adapter.layers if "pooler" in name]
    )
    for old, new in (("layer.0.", "layer.0."), ("layer.2.", "layer.1."), ("pooler.", "pooler.")):
        for name in (name for name in adapter.layers if old in name):
            assert small.scaling(name.replace(old, new)) == adapter.scaling(name)
    read, write = (small.layers[f"bert.encoder.layer.1.{name}.dense"] for name in ("output", "intermediate"))
    assert torch.equal(read.A, adapter.layers["bert.encoder.layer.2.output.dense"].A[:, plan.rows[1]])
    assert torch.equal(write.B, adapter.layers["bert.encoder.layer.2.intermediate.dense"].B[plan.rows[1]])


# -------------------------------------------------------------------- from a ref to a folder


def test_a_ref_becomes_a_base_of_its_own(world: Path, bert: Path, tmp_path: Path) -> None:
    card = prune_ref(
        "moods", tmp_path / "small", keep=0.5, data=str(world / "rows.parquet"), store=str(world / "store")
    )
    assert card == json.loads((tmp_path / "small" / "pruning.json").read_text())
    assert card["after"]["layer_parameters"] <= 0.5 * card["before"]["layer_parameters"]
    assert 0 < card["importance_kept"] < 1
    assert all(card[side]["ms_a_row"] > 0 and 0 <= card[side]["score"] <= 1 for side in ("before", "after"))
    base = load_base(BaseSpec(model=str(bert), dtype="float32"))
    assert card["origin_fingerprint"] == base.fingerprint != card["fingerprint"]
    told = (tmp_path / "small" / "README.md").read_text()
    assert base.fingerprint in told
    assert card["rows_sha256"] in told
    small = load_base(BaseSpec(model=str(tmp_path / "small"), dtype="float32"))
    assert small.fingerprint == card["fingerprint"]
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "small", num_labels=2)
    assert model.config.num_hidden_layers == card["after"]["layers"]
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "small")("good film")["input_ids"]
    with pytest.raises(BaseModelError, match="this engine holds"):
        evaluate_ref("moods", str(world / "rows.parquet"), str(world / "store"), base=str(tmp_path / "small"))
    _train_two(small)


def _train_two(base: Base) -> None:
    """Two adapters learn on a base, in one pack."""
    task, _ = rows_for(base)
    rows = task.encode(rated(64, seed=1))
    engine = AdapterEngine(base, slots=2, max_rank=4, train=True)
    split = Split(dict(enumerate(rows)), len(rows))
    pack = Pack(engine, {"rows": Splits(split, split)})
    training = TrainingSpec(num_train_epochs=6, learning_rate=1e-2)
    for rank in (2, 4):
        pack.join(Job(f"rank-{rank}", "rows", TEXTS, LoraSpec(r=rank), training))
    scores: dict[str, list[float]] = {}
    while pack.members:
        for report in pack.step():
            assert report.error is None
            if report.metrics:
                scores.setdefault(report.job, []).append(report.metrics["accuracy"])
    engine.close()
    assert all(values[-1] > 0.8 for values in scores.values()), scores


def test_all_of_a_base_is_the_same_base(world: Path, bert: Path, tmp_path: Path) -> None:
    where = {"data": str(world / "rows.parquet"), "store": str(world / "store")}
    card = prune_ref("moods", tmp_path / "all", keep=1.0, **where)
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        assert (tmp_path / "all" / name).read_bytes() == (bert / name).read_bytes()
    assert card["fingerprint"] == card["origin_fingerprint"]
    assert card["before"]["score"] == card["after"]["score"]
    found = [
        evaluate_ref("moods", where["data"], where["store"], base=base)["metrics"]
        for base in (str(tmp_path / "all"), None)
    ]
    assert found[0] == found[1]


def test_a_random_cut_has_the_shape_and_other_units(world: Path, tmp_path: Path) -> None:
    where = {"keep": 0.5, "data": str(world / "rows.parquet"), "store": str(world / "store"), "layers": 2}
    scored = prune_ref("moods", tmp_path / "scored", **where)
    drawn = [prune_ref("moods", tmp_path / f"drawn-{at}", **where, random=at // 2) for at in range(3)]
    assert all(
        {**card["after"], "ms_a_row": 0, "score": 0} == {**scored["after"], "ms_a_row": 0, "score": 0} for card in drawn
    )
    assert len({card["fingerprint"] for card in (scored, *drawn)}) == 3  # seed 0 twice
    assert {card["scored_by"] for card in drawn} == {"random"}


@pytest.mark.parametrize("tied", [False, True])
def test_the_class_with_its_head_is_written(tied: bool, tmp_path: Path, tiny_bert_folder: Path, world: Path) -> None:
    base = save("llama", tmp_path / "base", tiny_bert_folder, tie_word_embeddings=tied)
    put(tmp_path / "store", base, "moods", TEXTS, LORA)
    where = {"data": str(world / "rows.parquet"), "store": str(tmp_path / "store")}
    card = prune_ref("moods", tmp_path / "small", keep=0.5, **where)
    small = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    whole = transformers.AutoModelForCausalLM.from_pretrained(base)
    assert torch.equal(small.lm_head.weight, whole.lm_head.weight)
    assert (small.lm_head.weight is small.model.embed_tokens.weight) == tied
    assert small.config.head_dim == whole.config.head_dim == 8
    assert small.config.num_key_value_heads == card["after"]["key_value_heads"]
    assert small.config.num_attention_heads == 2 * card["after"]["key_value_heads"]
    written = small.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=4, do_sample=False)
    assert written.shape == (1, 7)


# -------------------------------------------------------------------- what is refused


def refuse(world: Path, tmp_path: Path, says: str, error: type[RayLoraError] = RecipeError, **options: Any) -> None:
    given = {"keep": 0.5, "data": str(world / "rows.parquet"), "store": str(world / "store"), **options}
    with pytest.raises(error, match=says):
        prune_ref("moods", given.pop("folder", tmp_path / "new"), **given)
    assert not (tmp_path / "new").exists()


def test_wrong_options_are_refused(world: Path, tmp_path: Path) -> None:
    refuse(world, tmp_path, "exists and is not empty", folder=world)
    refuse(world, tmp_path, "--keep 0 is no share", keep=0)
    refuse(world, tmp_path, "--keep 1.5 is no share", keep=1.5)
    refuse(world, tmp_path, "--keep nan is no share", keep=float("nan"))
    refuse(world, tmp_path, "--rows 0 must be at least 1", rows=0)
    refuse(world, tmp_path, "--layers 7 of a base of 3 layers", layers=7)


@pytest.mark.parametrize("kind", ["gpt2", "resnet"])
def test_a_kind_that_was_not_compared_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match=f"pruning of a base of type '{kind}' was not compared"):
        kind_of(open_base(save_base(kind, tmp_path)))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"is_decoder": True}, "whose config has 'is_decoder'"),
        ({"architectures": ["GPT2Model"]}, "names GPT2Model, which is not a class of 'bert'"),
        ({"architectures": ["os"]}, "names no one class of transformers'"),
        ({"architectures": None}, "names no one class of transformers'"),
    ],
)
def test_a_config_that_was_not_compared_is_refused(bert: Path, changes: dict[str, Any], says: str) -> None:
    base, _, _ = opened(bert)
    for name, value in changes.items():
        setattr(base.config, name, value)
    with pytest.raises(BaseModelError, match=says):
        kind_of(base)


def test_an_adapter_that_leaves_the_units_out_is_refused(world: Path, bert: Path, tmp_path: Path) -> None:
    put(tmp_path / "store", bert, "moods", TEXTS, LoraSpec(r=2, target_modules=("query", "value")))
    says = "has no pair on 'bert.encoder.layer.0.intermediate.dense'.*lora.target_modules: all-linear"
    refuse(world, tmp_path, says, AdapterError, store=str(tmp_path / "store"))


def test_a_base_that_lacks_a_layer_is_refused(bert: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(bert, tmp_path / "torn")
    file = tmp_path / "torn" / "model.safetensors"
    tensors = {name: tensor for name, tensor in load_file(file).items() if "layer.1.output" not in name}
    save_file(tensors, file, metadata={"format": "pt"})
    base, _, _ = opened(tmp_path / "torn")
    with pytest.raises(BaseModelError, match=r"lacks 'encoder.layer.1.output"):
        read_whole(base)


# -------------------------------------------------------------------- the command


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def call(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return call


def test_the_command_tells_both_sides(run: Any, world: Path, tmp_path: Path) -> None:
    where = ("--data", world / "rows.parquet", "--store", world / "store")
    code, out, _ = run("prune", "moods", "--keep", 0.6, "--output", tmp_path / "small", *where, "--json")
    told = json.loads(out.splitlines()[-1])
    assert code == 0
    assert told["folder"] == str(tmp_path / "small")
    assert told["share"] <= 0.6
    code, out, _ = run("prune", "moods", "--keep", 0.6, "--output", tmp_path / "more", *where)
    assert "layer parameters" in out
    assert f"base: {{model: {tmp_path / 'more'}}}" in out
    code, _, error = run("prune", "moods", *where[2:])
    assert code == 2
    assert "give --data with rows of its task" in error
    (tmp_path / "recipe.yaml").write_text(f"{{name: moods, base: {{model: {save_base('gpt2', tmp_path / 'gpt2')}}}}}")
    code, _, error = run("prune", tmp_path / "recipe.yaml", "--output", tmp_path / "none")
    assert code == 2
    assert "pruning of a base of type 'gpt2'" in error
    code, _, error = run("prune", tmp_path / "recipe.yaml", *where[2:])
    assert code == 2
    assert "a recipe says store, tracking and base itself" in error
    code, _, error = run("prune", "moods", "lora.r=4", *where)
    assert code == 2
    assert "'moods' is no recipe" in error
