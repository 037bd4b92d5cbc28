"""Packaged bases in another class: made once, whole, and what they compute is what their source computes."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from ray_lora.bases import converted as module
from ray_lora.bases import packaged
from ray_lora.bases.converted import CONVERTED, bert_as_roberta, convert, converted
from ray_lora.bases.identity import place
from ray_lora.bases.load import load_base, locate
from ray_lora.bases.packaged import cached
from ray_lora.errors import BaseModelError
from ray_lora.recipe import BaseSpec
from tests.conftest import sentences
from tests.unit.test_gguf import write as write_gguf

NAME = "minilm-roberta"


@pytest.fixture
def source(tiny_bert_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny BERT stands for MiniLM, and the cache is empty."""
    folder = tmp_path / "source"
    transformers.AutoModel.from_pretrained(tiny_bert_folder).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(tiny_bert_folder).save_pretrained(folder)
    for name in ("special_tokens_map.json", "vocab.txt", "README.md"):
        (folder / name).write_text("{}")
    monkeypatch.setenv("RAY_LORA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "fetch", lambda name: folder)
    return folder


def test_it_is_made_once_and_whole(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert converted(NAME) is None
    assert place(NAME) == NAME
    folder = locate(NAME)
    assert {path.name for path in folder.iterdir()} == set(CONVERTED[NAME].files)
    assert list((tmp_path / "cache").iterdir()) == [folder]
    assert place(NAME) == str(folder.resolve())
    assert "MiniLM's weights in RoBERTa's class; not RoBERTa" in (folder / "README.md").read_text()
    assert json.loads((folder / "config.json").read_text())["model_type"] == "roberta"
    monkeypatch.setattr(module, "fetch", None)
    assert convert(NAME) == folder


def test_several_at_once_find_one_folder_whole(source: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        folders = list(pool.map(convert, [NAME] * 4))
    assert len(set(folders)) == 1
    assert list((tmp_path / "cache").iterdir()) == folders[:1]
    first = (folders[0] / "model.safetensors").read_bytes()
    bert_as_roberta(source, tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == first  # one fingerprint on every machine


def test_what_breaks_off_leaves_nothing(source: Path, tmp_path: Path) -> None:
    (source / "vocab.txt").unlink()
    with pytest.raises(BaseModelError, match=r"base 'minilm-roberta': cache folder .* cannot be used"):
        convert(NAME)
    assert not list((tmp_path / "cache").iterdir())


def test_a_base_that_is_not_there_is_told_of_it() -> None:
    with pytest.raises(BaseModelError, match=r"a packaged base \(.*minilm, minilm-roberta[,)]"):
        locate("./nothing-here")


@pytest.mark.skipif(cached("minilm") is None, reason="the packaged base minilm is not in the cache of this machine")
def test_its_hidden_states_are_minilm_s(tmp_path: Path) -> None:
    texts = [*sentences(5), "An unrelated, rather long sentence about tokenizers, colours and the sea. " * 60]
    folder, origin = tmp_path / "made", packaged.fetch("minilm")
    bert_as_roberta(origin, folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    theirs = transformers.AutoTokenizer.from_pretrained(origin)(texts, padding=True, truncation=True)
    assert batch["input_ids"].tolist() == theirs["input_ids"]
    assert batch["input_ids"].shape[1] == 512
    pair = tokenizer(texts[:2], texts[2:4], padding=True, return_tensors="pt")
    assert pair["token_type_ids"].any()
    ours = transformers.AutoModel.from_pretrained(folder).eval()
    bert = transformers.AutoModel.from_pretrained(origin).eval()
    assert type(ours).__name__ == "RobertaModel"
    for given in (batch, pair):
        with torch.inference_mode():
            mine, wanted = ours(**given), bert(**given)
        inside = given["attention_mask"].bool()
        assert (mine.last_hidden_state - wanted.last_hidden_state)[inside].abs().max() < 1e-5
        assert (mine.pooler_output - wanted.pooler_output).abs().max() < 1e-5
    head = transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    assert type(head).__name__ == "RobertaForSequenceClassification"
    base = load_base(BaseSpec(model=str(folder), dtype="float32"))
    assert (base.processor.positions, base.processor.segments) == (512, 2)


@pytest.mark.parametrize("tied", [True, False])
def test_a_gguf_file_becomes_a_folder_of_the_same_numbers(
    tied: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the loader leaves the output, of which the file has no numbers, untied and without any."""
    if not tied:
        load = transformers.AutoModelForCausalLM.from_pretrained

        def untied(*given: Any, **told: Any) -> Any:
            model = load(*given, **told)
            model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.to("meta"))
            return model

        monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", untied)
    source = tmp_path / "source"
    source.mkdir()
    write_gguf(source / "tiny.gguf", tokenizer=True)
    monkeypatch.setenv("RAY_LORA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "fetch_archive", lambda archive, folder, files: source)
    base, of_file = load_base(BaseSpec(model="smollm2")), load_base(BaseSpec(model=str(source / "tiny.gguf")))
    assert {path.name for path in base.folder.iterdir()} >= set(CONVERTED["smollm2"].files)
    assert "tiny.gguf" in (base.folder / "README.md").read_text()
    text = base.processor("w1 w2 w30", return_tensors="pt")
    assert text["input_ids"].tolist() == of_file.processor("w1 w2 w30", return_tensors="pt")["input_ids"].tolist()
    own, others = base.backbone.state_dict(), of_file.backbone.state_dict()
    assert own.keys() == others.keys()
    assert all(torch.equal(own[name], others[name]) for name in own)
    # what the file says, not what a class makes of it: transformers' switch for tying is the whole process's
    kept = load_file(base.folder / "model.safetensors")
    assert kept.keys() == {f"model.{name}" for name in own}
    assert json.loads((base.folder / "config.json").read_text())["tie_word_embeddings"] is True
    monkeypatch.setattr(module, "fetch_archive", None)
    assert convert("smollm2") == base.folder
