"""The engine answers each row of a mixed batch as plain PEFT answers it alone, and leaves the base untouched."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from ray_lora.adapters.adapter import Adapter, Card
from ray_lora.bases.load import Base
from ray_lora.engine import AdapterEngine, HeadSpec
from ray_lora.errors import AdapterError, BaseModelError, CapacityError, RecipeError
from ray_lora.recipe import LoraSpec
from ray_lora.tasks.text_classification import TextClassificationSpec
from tests.unit.bases import (
    TEXT,
    TEXT_KINDS,
    engine_on,
    logits_by_row,
    open_base,
    part,
    plain,
    quiet_peft,
    reopen,
    save_base,
    token_batch,
    toy_base,
    wrap,
)

Bases = Callable[[str], Path]
Oracles = Callable[..., list[tuple[Any, Adapter]]]
SHAPES = [(2, 2), (8, 3), (16, 4)]  # rank, labels
MIXED = [0, 1, 2, 3, 0, 3, 2, 1, 1, 0, 2, 3]
NAMES = {  # of the attention's inputs
    "bert": ["query", "value"],
    "roberta": ["query", "value"],
    "llama": ["q_proj", "v_proj"],
    "gpt2": ["c_attn"],
}
EMBEDDING = {"bert": "word_embeddings", "roberta": "word_embeddings", "llama": "embed_tokens", "gpt2": "wte"}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Bases:
    """Base folders by kind, each made once."""
    made: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in made:
            made[kind] = save_base(kind, tmp_path_factory.mktemp("bases") / kind)
        return made[kind]

    return folder


def settings(kind: str, which: str) -> list[dict[str, Any]]:
    """Three LoraConfigs' options."""
    names = NAMES[kind]
    if which == "all-linear":
        return [{"target_modules": "all-linear", "lora_alpha": 5 + i} for i in range(3)]
    if which == "patterns":
        return [
            {"target_modules": names, "use_rslora": True, "lora_alpha": 7},
            {"target_modules": "all-linear", "rank_pattern": {names[0]: 5}, "alpha_pattern": {names[-1]: 3}},
            {"target_modules": rf".*1\..*({'|'.join(names)})", "lora_alpha": 11},
        ]
    return [
        {"target_modules": [EMBEDDING[kind]], "lora_alpha": 9},
        {"target_modules": [*names, EMBEDDING[kind]]},
        {"target_modules": names},
    ]


@pytest.fixture(scope="module")
def oracles(bases: Bases, tmp_path_factory: pytest.TempPathFactory) -> Oracles:
    """Plain PEFT models of ranks 2, 8 and 16 with heads of 2, 3 and 4 labels, each with the adapter it saved."""
    made: dict[tuple[str, str], list[tuple[Any, Adapter]]] = {}

    def three(kind: str, which: str = "all-linear") -> list[tuple[Any, Adapter]]:
        if (kind, which) not in made:
            pairs = []
            for (rank, labels), options in zip(SHAPES, settings(kind, which), strict=True):
                model = wrap(plain(bases(kind), labels), seed=rank, r=rank, task_type="SEQ_CLS", **options)
                pairs.append((model, saved(model, tmp_path_factory.mktemp("oracle"))))
            made[kind, which] = pairs
        return made[kind, which]

    return three


def load_all(engine: AdapterEngine, pairs: list[tuple[Any, Adapter]]) -> list[Any]:
    """Put the adapters into slots 1, 2, 3; returns their PEFT models."""
    for slot, (_, adapter) in enumerate(pairs, start=1):
        assert engine.load(adapter) == slot
    return [model for model, _ in pairs]


def saved(model: Any, folder: Path) -> Adapter:
    with quiet_peft():
        model.save_pretrained(folder, save_embedding_layers=False)
    return Adapter.load(folder)


def bert_adapter(folder: Path, out: Path, *, seed: int = 1, labels: int = 2, **options: Any) -> tuple[Any, Adapter]:
    """One PEFT model on the BERT base, and its adapter."""
    options = {"r": 4, "task_type": "SEQ_CLS", "target_modules": ["query", "value"]} | options
    model = wrap(plain(folder, labels), seed=seed, **options)
    return model, saved(model, out)


# -------------------------------------------------------------------- mixed = alone


@pytest.fixture(params=[True, False], ids=["trains", "answers"])
def grad(request: pytest.FixtureRequest) -> Iterator[bool]:
    """A pass that trains and one that answers may go different ways."""
    with torch.set_grad_enabled(request.param):
        yield request.param


@pytest.mark.usefixtures("grad")
@pytest.mark.parametrize("which", ["all-linear", "patterns", "embeddings"])
@pytest.mark.parametrize("kind", TEXT_KINDS)
def test_each_row_of_a_mixed_batch_answers_as_peft_alone(kind: str, which: str, bases: Bases, oracles: Oracles) -> None:
    folder, inputs = bases(kind), token_batch(len(MIXED))
    base = plain(folder)(**inputs).last_hidden_state
    shuffled = random.Random(0).sample(MIXED, len(MIXED))
    with engine_on(folder, slots=5, max_rank=16, embeddings=True) as engine:
        alone = [model(**inputs).logits for model in load_all(engine, oracles(kind, which))]
        for slots in (MIXED, sorted(MIXED), shuffled, [1, 3] * 6, [2] * 12, [0] * 11 + [3]):
            for rows, outputs in engine.forward(inputs, torch.tensor(slots)):
                for at, row in enumerate(rows.tolist()):
                    if slots[row]:
                        torch.testing.assert_close(outputs.logits[at], alone[slots[row] - 1][row], atol=1e-5, rtol=1e-5)
                    else:
                        kept = inputs["attention_mask"][row].bool()
                        bare = outputs.last_hidden_state[at]
                        torch.testing.assert_close(bare[kept], base[row, kept], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", TEXT_KINDS)
@pytest.mark.usefixtures("grad")
def test_slot_0_is_the_untouched_model(kind: str, bases: Bases, oracles: Oracles) -> None:
    """Rows that are laid end to end are summed in another order."""
    folder, inputs = bases(kind), token_batch(12)
    close = {"atol": 2e-6, "rtol": 2e-6}
    kept = inputs["attention_mask"].bool()
    expected = plain(folder)(**inputs).last_hidden_state
    with engine_on(folder, slots=3, max_rank=16, embeddings=True) as engine:
        load_all(engine, oracles(kind, "embeddings"))
        whole = engine.hidden(inputs, torch.zeros(12, dtype=torch.long)).last_hidden_state
        torch.testing.assert_close(whole[kept], expected[kept], **close)
        for slots in (MIXED, sorted(MIXED)):
            mixed = engine.hidden(inputs, torch.tensor(slots)).last_hidden_state
            bare = (torch.tensor(slots) == 0)[:, None] & kept
            tuned = (torch.tensor(slots) != 0)[:, None] & kept
            torch.testing.assert_close(mixed[bare], expected[bare], **close)
            assert not torch.isclose(mixed[tuned], expected[tuned]).all(1).any()
        engine.close()
        assert torch.equal(engine.base.backbone(**inputs).last_hidden_state, expected)


@pytest.mark.usefixtures("grad")
def test_neighbours_and_their_padding_do_not_change_an_answer(bases: Bases, oracles: Oracles) -> None:
    folder, inputs = bases("bert"), token_batch(12)
    with engine_on(folder, torch.float64, slots=3, max_rank=16) as engine:
        load_all(engine, oracles("bert"))
        mixed = logits_by_row(engine, inputs, MIXED)
        for row, slot in enumerate(MIXED):
            length = int(inputs["attention_mask"][row].sum())
            cut = {name: tensor[row : row + 1, :length] for name, tensor in inputs.items()}
            if slot:
                torch.testing.assert_close(logits_by_row(engine, cut, [slot])[0], mixed[row], atol=1e-12, rtol=1e-12)


# -------------------------------------------------------------------- PEFT in, PEFT out


@pytest.mark.parametrize("which", ["all-linear", "patterns", "embeddings"])
@pytest.mark.parametrize("kind", TEXT_KINDS)
def test_an_exported_adapter_answers_in_plain_peft_as_here(
    kind: str, which: str, bases: Bases, oracles: Oracles, tmp_path: Path
) -> None:
    folder, inputs = bases(kind), token_batch(6)
    with engine_on(folder, slots=3, max_rank=16, embeddings=True) as engine:
        for (model, first), (rank, labels) in zip(oracles(kind, which), SHAPES, strict=True):
            slot, out = engine.load(first), tmp_path / str(rank)
            assert engine.export(slot).save(out) == Adapter.load(out).sha256
            again = reopen(folder, out, labels)(**inputs).logits
            torch.testing.assert_close(again, model(**inputs).logits, atol=1e-5, rtol=1e-5)
            for key, tensor in first.tensors.items():
                assert torch.equal(engine.export(slot).tensors[key], tensor)


def test_a_fresh_adapter_of_ours_starts_as_peft_starts(bases: Bases, tmp_path: Path) -> None:
    folder, inputs = bases("bert"), token_batch(6)
    spec = LoraSpec(r=6, lora_alpha=12, rank_pattern={"value": 3}, alpha_pattern={"query": 2.5}, use_rslora=True)
    with engine_on(folder, slots=2, max_rank=16) as engine:
        slot = engine.init(spec, HeadSpec(TEXT, 3), seed=5, peft_type="SEQ_CLS")
        fresh = engine.read(slot)
        with quiet_peft():
            wrapped = wrap(
                plain(folder, 3), 0, r=6, task_type="SEQ_CLS", target_modules="all-linear", rank_pattern={"value": 3}
            )
        names = {key.replace(".default", "") for key, p in wrapped.named_parameters() if p.requires_grad}
        assert {key.replace("classifier.modules_to_save", "classifier") for key in names} == set(fresh)
        for key, tensor in fresh.items():
            if "lora_A" in key:
                assert tensor.abs().max() <= 1 / tensor.shape[1] ** 0.5  # kaiming with a = sqrt(5)
                assert tensor.std() > 0.4 / tensor.shape[1] ** 0.5
            elif "classifier.weight" in key:
                assert 0.01 < tensor.std() < 0.03
            else:
                assert not tensor.any()
        kept = inputs["attention_mask"].bool()
        mixed = engine.hidden(inputs, torch.full((6,), slot)).last_hidden_state[kept]
        base = plain(folder)(**inputs).last_hidden_state[kept]
        torch.testing.assert_close(mixed, base, atol=2e-6, rtol=2e-6)  # B = 0: still the base
        engine.export(slot).save(tmp_path / "fresh")
        torch.testing.assert_close(
            reopen(folder, tmp_path / "fresh", 3)(**inputs).logits,
            torch.stack(list(logits_by_row(engine, inputs, [slot] * 6).values())),
        )
        other = engine.init(spec, HeadSpec(TEXT, 3), seed=5)
        assert all(torch.equal(tensor, fresh[key]) for key, tensor in engine.read(other).items())


@pytest.mark.parametrize("kind", TEXT_KINDS)
def test_merged_equals_unmerged(kind: str, bases: Bases, oracles: Oracles, tmp_path: Path) -> None:
    folder, inputs = bases(kind), token_batch(6)
    with engine_on(folder, slots=1) as engine:
        slot = engine.load(oracles(kind, "patterns")[1][1])
        unmerged = torch.stack(list(logits_by_row(engine, inputs, [slot] * 6).values()))
        engine.export(slot).save(tmp_path / "b")
    merged = reopen(folder, tmp_path / "b", 3).merge_and_unload().eval()
    assert "lora" not in "".join(name for name, _ in merged.named_parameters())
    torch.testing.assert_close(merged(**inputs).logits, unmerged, atol=1e-4, rtol=1e-4)


def test_an_adapter_without_a_head_gives_hidden_states(bases: Bases, tmp_path: Path) -> None:
    folder, inputs = bases("bert"), token_batch(6)
    model = wrap(plain(folder), 3, r=4, target_modules=["query"], task_type="FEATURE_EXTRACTION")
    with engine_on(folder, slots=2) as engine:
        slot = engine.load(saved(model, tmp_path / "a"))
        ((rows, outputs),) = engine.forward(inputs, torch.tensor([slot, 0] * 3))
        assert rows.tolist() == list(range(6))
        kept = inputs["attention_mask"][::2].bool()
        alone = model(**part(inputs, [0, 2, 4])).last_hidden_state[kept]
        torch.testing.assert_close(outputs.last_hidden_state[::2][kept], alone, atol=1e-5, rtol=1e-5)
        engine.export(slot).save(tmp_path / "b")
        torch.testing.assert_close(reopen(folder, tmp_path / "b", None)(**inputs)[0], model(**inputs)[0])


def test_bf16_answers_stay_near_float32(bases: Bases, oracles: Oracles) -> None:
    folder, inputs = bases("bert"), token_batch(12)
    with engine_on(folder, torch.bfloat16, slots=3, max_rank=16) as engine:
        models = load_all(engine, oracles("bert"))
        for row, logits in logits_by_row(engine, inputs, MIXED).items():
            expected = models[MIXED[row] - 1](**part(inputs, [row])).logits[0]
            assert logits.dtype == torch.float32
            assert (logits - expected).abs().max() < 0.1 * expected.abs().max() + 0.1


# -------------------------------------------------------------------- slots


def test_a_slot_is_clean_after_an_eviction(bases: Bases, tmp_path: Path) -> None:
    folder, inputs = bases("bert"), token_batch(4)
    _, big = bert_adapter(folder, tmp_path / "big", r=16, labels=4, target_modules="all-linear")
    small, adapter = bert_adapter(folder, tmp_path / "small", r=2, seed=3, target_modules=["value"])
    with engine_on(folder, slots=1, max_rank=16, train=True) as engine:
        slot = engine.load(big)
        engine.grad[slot] = engine.head_grad[TEXT][slot] = 1.0
        engine.evict(slot)
        assert not any(buffer.any() for buffer in engine.buffers.all)
        assert engine.free_slots == [1]
        with pytest.raises(CapacityError, match=r"slots \[1\] hold no adapter"):
            engine.forward(inputs, torch.tensor([0, 1, 0, 0]))
        assert engine.load(adapter) == slot
        answers = torch.stack(list(logits_by_row(engine, inputs, [slot] * 4).values()))
        torch.testing.assert_close(answers, small(**inputs).logits, atol=1e-5, rtol=1e-5)


def test_a_full_engine_refuses_another_adapter_and_keeps_what_it_has(bases: Bases, tmp_path: Path) -> None:
    folder, inputs = bases("bert"), token_batch(3)
    model, adapter = bert_adapter(folder, tmp_path / "a")
    with engine_on(folder, slots=1) as engine:
        slot = engine.load(adapter)
        with pytest.raises(CapacityError, match="all 1 slots are taken"):
            engine.load(adapter)
        with pytest.raises(CapacityError, match="all 1 slots are taken"):
            engine.init(LoraSpec(), None, seed=0)
        answers = torch.stack(list(logits_by_row(engine, inputs, [slot] * 3).values()))
        torch.testing.assert_close(answers, model(**inputs).logits, atol=1e-5, rtol=1e-5)
    with pytest.raises(CapacityError, match="at least one slot"):
        AdapterEngine(open_base(folder), slots=0)


def test_a_base_has_one_engine_at_a_time(bases: Bases) -> None:
    base = open_base(bases("bert"))
    first = AdapterEngine(base, slots=1)
    with pytest.raises(CapacityError, match="held by another engine"):
        AdapterEngine(base, slots=1)
    first.close()
    assert not any(module._forward_hooks for module in base.backbone.modules())
    AdapterEngine(base, slots=1).close()


def test_a_wider_head_joins_and_residents_keep_their_answers(bases: Bases, oracles: Oracles) -> None:
    folder, inputs = bases("roberta"), token_batch(12)
    with engine_on(folder, slots=3, max_rank=16) as engine:
        models = load_all(engine, oracles("roberta"))  # heads of 2, then 3, then 4 labels
        for row, logits in logits_by_row(engine, inputs, MIXED).items():
            expected = models[MIXED[row] - 1](**part(inputs, [row])).logits[0]
            torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    with engine_on(folder, slots=2, max_rank=16, train=True) as engine:
        engine.init(LoraSpec(), HeadSpec(TEXT, 2), seed=0)
        with pytest.raises(CapacityError, match="heads of 3 labels join a pack built for 2"):
            engine.init(LoraSpec(), HeadSpec(TEXT, 3), seed=0)
        assert engine.resident_slots == [1]


# -------------------------------------------------------------------- what does not fit is refused by name


def refused(folder: Path, adapter: Adapter, match: str, kind: type[Exception] = AdapterError, **options: Any) -> None:
    """Loading fails with this message and leaves nothing behind."""
    with engine_on(folder, **({"slots": 2, "max_rank": 16} | options)) as engine:
        with pytest.raises(kind, match=match):
            engine.load(adapter)
        assert engine.resident_slots == []
        assert not any(buffer.any() for buffer in engine.buffers.all)
        assert engine.heads == {}  # no room was made for what does not fit


def test_what_does_not_fit_the_base_is_refused(bases: Bases, tmp_path: Path) -> None:
    folder = bases("bert")
    _, adapter = bert_adapter(folder, tmp_path / "a", r=8, labels=3)
    layer = "bert.encoder.layer.0.attention.self.query"
    pair = adapter.layers[layer]

    refused(folder, replace(adapter, card=Card(base="x", base_fingerprint="0" * 64)), "trained on base", BaseModelError)
    refused(folder, adapter, "rank 8 exceeds this engine's max_rank 4; raise max_rank", max_rank=4)
    unknown = {layer.replace("query", "qeury"): pair}
    refused(folder, replace(adapter, layers=unknown), "matches no layer of base .*did you mean .*query")
    bare = {layer.removeprefix("bert."): pair}
    refused(folder, replace(adapter, layers=bare), "matches no layer of base .*did you mean 'bert.encoder")
    narrow = {layer: replace(pair, A=pair.A[:, :7])}
    refused(folder, replace(adapter, layers=narrow), r"has A \(8, 7\) and B .* needs A \(8, 32\)")
    cube = {layer: replace(pair, B=pair.B[:, :, None].repeat(1, 1, 3))}
    refused(folder, replace(adapter, layers=cube), r"has A .* B \(32, 8, 3\)")
    table = {layer: replace(pair, embedding=True)}
    refused(folder, replace(adapter, layers=table), "matches|has A")
    refused(folder, replace(adapter, layers={"bert.embeddings.LayerNorm": pair}), "matches no layer")

    wide = {name: tensor.new_zeros(3, 40) if tensor.dim() == 2 else tensor for name, tensor in adapter.head.items()}
    refused(folder, replace(adapter, head=wide), "head .* does not fit")
    huge = {name: tensor.new_zeros(10**6, *[1] * (tensor.dim() - 1)) for name, tensor in adapter.head.items()}
    refused(folder, replace(adapter, head=huge), "head .* does not fit")
    refused(folder, replace(adapter, head={"score.weight": torch.zeros(3, 32)}), "head .* does not fit")
    refused(folder, replace(adapter, peft_type="CAUSAL_LM"), "is the base's own, which other adapters share")
    labels = Card(task=TextClassificationSpec(labels=("a", "b")))
    refused(folder, replace(adapter, card=labels), "card names 2 labels, its head has 3")
    for odd in ("BertModel", "pipeline", "AutoModelForNothing", "os"):
        refused(folder, replace(adapter, card=Card(architecture=odd)), f"no class '{odd}'")
    unfit = Card(architecture="AutoModelForImageClassification")
    refused(folder, replace(adapter, card=unfit), "does not know this base")


def test_an_adapter_of_another_base_is_refused_by_its_fingerprint(bases: Bases, tmp_path: Path) -> None:
    other = save_base("bert", tmp_path / "other", seed=1)
    with engine_on(bases("bert"), slots=1) as engine:
        exported = engine.export(engine.init(LoraSpec(), None, seed=0))
        assert exported.card.base_fingerprint == engine.base.fingerprint
    exported.save(tmp_path / "a")
    refused(other, Adapter.load(tmp_path / "a"), "serve it on its own base", BaseModelError)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"target_modules": ("qeury",)}, "'qeury' match no layer of base .*did you mean 'query'"),
        ({"target_modules": "encoder.*"}, "match no layer"),
        ({"target_modules": ("LayerNorm",)}, "it is a LayerNorm; only Linear"),
        ({"target_modules": ("word_embeddings",)}, "built without embeddings"),
        ({"target_modules": ("query",), "exclude_modules": ("query",)}, "match no layer"),
        ({"target_modules": ("query", "vlaue")}, "has 'vlaue', which matches no module .*did you mean 'value'"),
        ({"rank_pattern": {"vlaue": 2}}, "rank_pattern has 'vlaue', which matches none"),
        ({"alpha_pattern": {"layer.9.*query": 2}}, "alpha_pattern has 'layer.9.*query', which matches none"),
        ({"r": 33}, "rank 33 exceeds the width 32 of layer"),
        ({"r": 17}, "rank 17 exceeds this engine's max_rank 16; raise max_rank or lower the rank"),
        ({"rank_pattern": {"value": 20}}, "rank 20 exceeds"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(options: dict[str, Any], match: str, bases: Bases) -> None:
    with engine_on(bases("bert"), slots=1, max_rank=16) as engine:
        with pytest.raises(RecipeError, match=match):
            engine.init(LoraSpec(**options), HeadSpec(TEXT, 2), seed=0)
        assert engine.resident_slots == []


def test_targets_are_those_peft_wraps(bases: Bases) -> None:
    for kind in TEXT_KINDS:
        folder = bases(kind)
        with engine_on(folder, slots=1, embeddings=True) as engine:
            engine.reserve_head(HeadSpec(TEXT, 2))
            prefix = engine.base.prefix
            for wanted, excluded in (
                ("all-linear", None),
                (tuple(NAMES[kind]), None),
                (rf".*0\..*({'|'.join(NAMES[kind])})", None),
                ("all-linear", (NAMES[kind][0],)),
                ("all-linear", r".*\.1\..*"),
                ((EMBEDDING[kind],), None),
            ):
                matched = engine.match(LoraSpec(target_modules=wanted, exclude_modules=excluded), HeadSpec(TEXT, 2))
                targets: Any = list(wanted) if isinstance(wanted, tuple) else wanted
                left: Any = list(excluded) if isinstance(excluded, tuple) else excluded
                model = wrap(plain(folder, 2), 0, task_type="SEQ_CLS", target_modules=targets, exclude_modules=left)
                wrapped = [
                    name.removeprefix(f"base_model.model.{prefix}.")
                    for name, module in model.named_modules()
                    if hasattr(module, "lora_A")
                ]
                assert sorted(matched) == sorted(wrapped), (kind, wanted)


class _Attending(nn.Module):
    """A backbone whose attention reads out_proj.weight without calling out_proj."""

    base_model_prefix = "model"

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.up = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> Any:
        return SimpleNamespace(last_hidden_state=self.up(self.attention(x, x, x)[0]))


def own_base(backbone: nn.Module) -> Base:
    return toy_base(backbone.requires_grad_(False).eval(), lambda draw: {"x": torch.randn(3, 8, generator=draw)})


def test_a_module_that_is_never_called_is_refused(tmp_path: Path) -> None:
    engine = AdapterEngine(own_base(_Attending()), slots=1, max_rank=4)
    assert set(engine.layers) == {"up"}
    for targets in ("all-linear", ("out_proj",)):
        with pytest.raises(
            RecipeError, match=r"attention\.out_proj' cannot hold an adapter: its parent never calls it"
        ):
            engine.init(LoraSpec(r=2, target_modules=targets), None, seed=0)
    engine.init(LoraSpec(r=2, target_modules=("up",)), None, seed=0)


class _Mixing(nn.Module):
    """A backbone that folds rows together before a target layer."""

    base_model_prefix = "model"

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> Any:
        return SimpleNamespace(last_hidden_state=self.up(x.mean(0, keepdim=True)))


def test_a_layer_that_mixes_rows_is_refused() -> None:
    engine = AdapterEngine(own_base(_Mixing()), slots=1, max_rank=4)
    with pytest.raises(
        AdapterError, match=r"cannot be used with adapters: .*a row's answer differs from its answer alone"
    ):
        engine.init(LoraSpec(r=2, target_modules=("up",)), None, seed=0)


# -------------------------------------------------------------------- gradients


def loss_of(engine: AdapterEngine, inputs: dict[str, torch.Tensor], slots: list[int]) -> torch.Tensor:
    """Sum over rows of the cross entropy of label row % 2."""
    total = torch.zeros((), dtype=torch.float64)
    for rows, outputs in engine.forward(inputs, torch.tensor(slots)):
        total = total + nn.functional.cross_entropy(outputs.logits, rows % 2, reduction="sum")
    return total


@pytest.mark.parametrize("kind", TEXT_KINDS)
def test_gradients_are_those_of_peft_alone_and_nowhere_else(kind: str, bases: Bases, oracles: Oracles) -> None:
    folder, inputs = bases(kind), token_batch(9)
    slots = [1, 2, 3, 3, 2, 3, 1, 3, 3]
    with engine_on(folder, torch.float64, slots=5, max_rank=16, embeddings=True, train=True) as engine:
        engine.reserve_head(HeadSpec(TEXT, 4))
        models = [copy.deepcopy(model).double() for model in load_all(engine, oracles(kind, "embeddings"))]
        loss_of(engine, inputs, slots).backward()
        assert all(parameter.grad is None for parameter in engine.base.backbone.parameters())
        for slot, model in enumerate(models, start=1):
            rows = [row for row, owner in enumerate(slots) if owner == slot]
            logits = model(**part(inputs, rows)).logits
            nn.functional.cross_entropy(logits, torch.tensor(rows) % 2, reduction="sum").backward()
            grads = {
                key.replace(".default", "").replace(".modules_to_save", ""): parameter.grad
                for key, parameter in model.named_parameters()
                if parameter.grad is not None
            }
            ours = engine.read(slot, [engine.grad, *engine.head_grad.values()])
            assert set(ours) == set(grads)
            for key, grad in ours.items():
                torch.testing.assert_close(grad, grads[key], atol=1e-6, rtol=1e-5)  # values were saved in float32
        for unused in (0, 4, 5):
            assert not engine.grad[unused].any()
            assert not engine.head_grad[TEXT][unused].any()
        beyond = engine.layers[next(name for name, layer in engine.layers.items() if layer.ranks[1])]
        assert not beyond.A.grad[1, 2:].any()
        assert not beyond.B.grad[1, :, 2:].any()


def test_activation_checkpointing_gives_the_same_gradients(bases: Bases) -> None:
    """Layers run again in backward, after heads of two sizes ran on parts of the batch."""
    inputs, slots, draws = token_batch(8), [1, 2, 3] * 2 + [2, 2], torch.arange(8)
    grads, runs = [], []
    for checkpointing in (False, True):
        with engine_on(bases("bert"), torch.float64, slots=3, max_rank=8, train=True) as engine:
            engine.reserve_head(HeadSpec(TEXT, 3))
            for labels, rank, dropout in ((2, 2, 0.0), (3, 8, 0.5), (3, 4, 0.2)):
                slot = engine.init(LoraSpec(r=rank, lora_dropout=dropout), HeadSpec(TEXT, labels), seed=labels)
                engine.write(slot, {key: value + 0.1 for key, value in engine.read(slot).items()})
            layers = engine.base.backbone.encoder.layer
            layers[0].output.dense.register_forward_pre_hook(lambda *_: runs.append(1))
            if checkpointing:
                engine.base.backbone.activation_checkpointing_enable({"use_reentrant": False})
                for layer in layers:
                    layer.training = True  # transformers asks this of the layer; the modules inside stay in eval mode
            passes = engine.forward(inputs, torch.tensor(slots), draws)
            sum(outputs.logits.square().sum() * (1 + rows[0]) for rows, outputs in passes).backward()
            grads.append((engine.grad.clone(), engine.head_grad[TEXT].clone()))
    assert len(runs) == 3  # forward, forward, and once more in the second backward
    for first, second in zip(*grads, strict=True):
        assert first.any()
        torch.testing.assert_close(second, first, atol=1e-12, rtol=1e-12)


def test_dropout_follows_the_row_not_its_place(bases: Bases) -> None:
    folder, inputs, draws = bases("bert"), token_batch(6), torch.arange(100, 106)
    with engine_on(folder, torch.float64, slots=2, max_rank=8) as engine:
        for dropout in (0.5, 0.0):
            slot = engine.init(LoraSpec(r=4, lora_dropout=dropout), None, seed=0)
            engine.write(slot, {key: value + 0.1 for key, value in engine.read(slot).items()})

        def hidden(rows: list[int], slots: list[int], drawn: torch.Tensor | None = draws) -> torch.Tensor:
            mine = None if drawn is None else drawn[rows]
            ((_, outputs),) = engine.forward(part(inputs, rows), torch.tensor(slots), mine)
            return outputs.last_hidden_state

        all_rows = list(range(6))
        dropped = hidden(all_rows, [1] * 6)
        assert torch.equal(dropped, hidden(all_rows, [1] * 6))
        assert not torch.allclose(dropped, hidden(all_rows, [1] * 6, draws + 1))
        torch.testing.assert_close(hidden([4, 1], [1, 1]), dropped[[4, 1]], atol=1e-12, rtol=1e-12)
        mixed = hidden(all_rows, [1, 2, 0, 1, 2, 0])
        torch.testing.assert_close(mixed[[0, 3]], dropped[[0, 3]], atol=1e-12, rtol=1e-12)
        kept = hidden(all_rows, [2] * 6)
        torch.testing.assert_close(mixed[[1, 4]], kept[[1, 4]], atol=1e-12, rtol=1e-12)
        assert torch.equal(hidden(all_rows, [2] * 6, None), kept)  # no dropout, whatever is drawn
        assert torch.equal(hidden(all_rows, [1] * 6, None), hidden(all_rows, [1] * 6, None))
        # of one layer: half is dropped, the rest doubled
        short = {name: tensor[:, :5] for name, tensor in inputs.items()}
        full = engine.forward(inputs, torch.tensor([1] * 6), draws)[0][1].last_hidden_state
        assert full.shape[1] == 9
        padded = {name: nn.functional.pad(tensor, (0, 4)) for name, tensor in short.items()}
        longer = engine.forward(padded, torch.tensor([1] * 6), draws)[0][1].last_hidden_state
        shorter = engine.forward(short, torch.tensor([1] * 6), draws)[0][1].last_hidden_state
        torch.testing.assert_close(longer[:, :5], shorter, atol=1e-12, rtol=1e-12)
