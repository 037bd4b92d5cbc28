"""Bases by a builder: only what the user allowed, known by their weights, described without memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from ray_lora import BaseSpec, Card, load_base
from ray_lora.bases import builders
from ray_lora.bases.load import describe_base
from ray_lora.engine import AdapterEngine, HeadSpec
from ray_lora.errors import AdapterError, BaseModelError, RecipeError
from ray_lora.inference.stored import open_ref
from ray_lora.recipe import LoraSpec
from ray_lora.serving.args import AppArgs
from ray_lora.serving.cluster.bases import choose_bases
from ray_lora.store import open_store
from tests.unit import shelf
from tests.unit.bases import TEXT, open_base, save_base

SPEC = BaseSpec(model=shelf.NAME, dtype="float32")


@pytest.fixture(autouse=True)
def _allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_LORA_ALLOW", "tests.unit.shelf")


def test_a_builders_base_is_frozen_and_known_by_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(77)
    state = torch.random.get_rng_state()
    base = load_base(SPEC)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not base.backbone.training
    assert not any(parameter.requires_grad for parameter in base.backbone.parameters())
    assert (base.prefix, base.config.hidden_size, base.dtype) == ("backbone", 8, torch.float32)
    half = load_base(BaseSpec(model=shelf.NAME, dtype="bfloat16"))
    assert half.backbone.get_parameter("mix.weight").dtype == torch.bfloat16
    assert half.fingerprint == base.fingerprint
    monkeypatch.setattr(shelf, "SEED", 4)
    assert load_base(SPEC).fingerprint != base.fingerprint


def test_a_described_base_has_no_memory_and_the_same_fingerprint() -> None:
    base, described = load_base(SPEC), describe_base(SPEC)
    assert described.fingerprint == base.fingerprint
    assert all(tensor.is_meta for tensor in described.backbone.state_dict().values())
    engine = AdapterEngine(described, slots=1, max_rank=2)
    slot = engine.init(LoraSpec(r=2, target_modules=("mix",)), HeadSpec("Finder", 3), seed=0)
    assert {key: tensor.shape for key, tensor in engine.read(slot).items()}["base_model.model.finder.bias"] == (14,)


def test_its_plain_class_holds_a_backbone_without_memory() -> None:
    base = load_base(SPEC)
    plain = base.plain(HeadSpec("Finder", 3))
    assert all(tensor.is_meta for tensor in plain.state_dict().values())
    fresh = base.fresh(HeadSpec("Finder", 3))
    assert fresh is not None
    memory = {name.split(".")[0] for name, tensor in fresh.state_dict().items() if not tensor.is_meta}
    assert memory == {"neck", "finder", "count"}
    assert base.backbone.state_dict()["mix.weight"].device.type == "cpu"
    with pytest.raises(AdapterError, match="there is no class 'Other'"):
        base.plain(HeadSpec("Other", 3))


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("wrong", r"gave a Linear; a builder returns ray_lora\.Built"),
        ("half", r"has 'weight' in torch\.float16 on (cpu|meta); it was asked for torch\.float32"),
        ("missing", r"module 'tests\.unit\.shelf' has no 'missing'"),
    ],
)
def test_a_builder_that_does_something_else_is_refused(name: str, why: str) -> None:
    with pytest.raises(BaseModelError, match=why):
        load_base(BaseSpec(model=f"tests.unit.shelf:{name}"))


def test_a_plain_class_around_another_backbone_is_refused() -> None:
    base = load_base(BaseSpec(model="tests.unit.shelf:stranger"))
    with pytest.raises(BaseModelError, match="does not hold its builder's backbone as 'backbone'"):
        base.plain(HeadSpec("Finder", 2))


@pytest.mark.parametrize("load", [load_base, describe_base])
def test_nothing_is_imported_that_is_not_allowed(load: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_LORA_ALLOW", "tests.unit.shelves")
    with pytest.raises(BaseModelError, match=r"is not allowed; allowed are tests\.unit\.shelves"):
        load(SPEC)  # type: ignore[operator]


def test_ours_have_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_LORA_ALLOW", "")
    monkeypatch.setitem(builders.BUILDERS, "shelf", shelf.NAME)
    assert load_base(BaseSpec(model="shelf", dtype="float32")).id == "shelf"
    with pytest.raises(
        BaseModelError,
        match=r"packaged base \(craft-text, efficientnet-lite0, erfnet-lines, minilm, minilm-roberta, shelf, smollm2, "
        r"whisper-tiny.en, whisper-tiny.en-6s, yolox-tiny\) "
        r"or a builder \(package.module",
    ):
        load_base(BaseSpec(model="no-such-base"))


def test_an_adapters_card_runs_no_builder(tmp_path: Path) -> None:
    """Although it is allowed: the user has to name it."""
    engine = AdapterEngine(load_base(SPEC), slots=1, max_rank=2)
    slot = engine.init(LoraSpec(r=2, target_modules=("mix",)), HeadSpec("Finder", 3), seed=0)
    store = open_store(str(tmp_path / "store"))
    store.put(engine.export(slot, Card()), "shelves")
    assert store.resolve("shelves").base == shelf.NAME
    with pytest.raises(BaseModelError, match=r"runs only when you ask for it: give --base tests\.unit\.shelf:build"):
        open_ref("shelves", str(tmp_path / "store"))
    with pytest.raises(AdapterError, match="has no task in its card"):  # the base itself is loaded
        open_ref("shelves", str(tmp_path / "store"), base=shelf.NAME)
    args = AppArgs(store=str(tmp_path / "store"))
    with pytest.raises(RecipeError, match=r"names one \(builders do not count: they are code\); give base="):
        choose_bases(args, store)
    assert [base.model for base in choose_bases(args.model_copy(update={"base": shelf.NAME}), store)] == [shelf.NAME]


# -------------------------------------------------------------------- examples


def test_examples_of_a_builders_base() -> None:
    base = load_base(SPEC)
    batch = base.batch(base.examples([1, 2, 3], seed=4))
    assert batch["pixel_values"].shape == (3, 3, 8, 8)
    assert torch.equal(batch["pixel_values"], base.batch(base.examples([1, 2, 3], seed=4))["pixel_values"])
    assert base.backbone(**batch)["features"].shape == (3, 8, 4, 4)


@pytest.mark.parametrize("side", ["left", "right"])
def test_examples_of_texts_are_padded_as_the_tokenizer_pads(side: str, tiny_bert_folder: Path) -> None:
    base = load_base(BaseSpec(model=str(tiny_bert_folder), dtype="float32"))
    base.processor.padding_side = side
    rows = base.examples([9, 2, 40], seed=1)
    assert [len(row["input_ids"]) for row in rows] == [9, 2, 40]
    seen = {token for row in rows for token in row["input_ids"].tolist()}
    assert not seen & set(base.processor.all_special_ids)
    batch = base.batch(rows)
    assert batch["attention_mask"].sum(1).tolist() == [9, 2, 40]
    assert batch["attention_mask"][1, :2].any() == (side == "right")
    torch.testing.assert_close(
        base.backbone(**batch).last_hidden_state[2], base.backbone(**base.batch(rows[2:])).last_hidden_state[0]
    )


def test_examples_without_a_processor(tmp_path: Path) -> None:
    text = open_base(save_base("llama", tmp_path / "llama"))
    assert text.processor is None
    batch = text.batch(text.examples([3, 5]))
    assert batch["input_ids"][0].tolist()[3:] == [0, 0]  # the config's pad_token_id, on the right
    assert (batch["input_ids"][1] > 2).all()  # neither padding nor beginning nor end
    assert "last_hidden_state" in text.backbone(**batch)
    picture = open_base(save_base("resnet", tmp_path / "resnet"))
    assert picture.batch(picture.examples([1, 1]))["pixel_values"].shape == (2, 3, 64, 64)
    config = transformers.ViTConfig(
        image_size=12, patch_size=4, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    transformers.ViTModel(config).save_pretrained(tmp_path / "vit")
    processor = transformers.ViTImageProcessor(size={"height": 12, "width": 12})
    processor.save_pretrained(tmp_path / "vit")
    vit = load_base(BaseSpec(model=str(tmp_path / "vit"), dtype="float32"))
    assert vit.batch(vit.examples([1]))["pixel_values"].shape == (1, 3, 12, 12)
    assert "last_hidden_state" in vit.backbone(**vit.batch(vit.examples([1])))


def test_sounds_have_no_examples(tmp_path: Path) -> None:
    config = transformers.ASTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, max_length=32
    )
    transformers.ASTModel(config).save_pretrained(tmp_path / "ast")
    base = load_base(BaseSpec(model=str(tmp_path / "ast"), dtype="float32"))
    with pytest.raises(BaseModelError, match="takes input_values, of which no examples can be drawn"):
        base.examples([1])


def test_the_plain_class_of_transformers(tiny_bert_folder: Path) -> None:
    base = load_base(BaseSpec(model=str(tiny_bert_folder), dtype="float32"))
    plain = base.plain(HeadSpec(TEXT, 5))
    assert type(plain).__name__ == "BertForSequenceClassification"
    assert plain.get_parameter("classifier.weight").shape == (5, 32)
    assert type(plain.get_submodule(base.prefix)).__name__ == "BertModel"
    assert all(tensor.is_meta for tensor in plain.state_dict().values())
    assert base.fresh(HeadSpec(TEXT, 5)) is None
