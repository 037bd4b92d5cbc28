"""Training every weight: the plain class, its task's own loss and answers, on rows that may be read in windows."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import transformers

from pipelines.baselines import Data, answers_of, batches, plain_model, score_bare, score_full, score_head, train_full
from ray_lora.recipe import Recipe, TrainingSpec
from tests.conftest import rated


@pytest.fixture
def words(tiny_bert_folder: Path, tmp_path: Path) -> Data:
    """Words whose label is whether they are good or bad: learnable in a few steps."""
    for split, seed in (("train", 0), ("validation", 1), ("test", 2)):
        rows = [row["text"].split() for row in rated(60, seed)]
        tags = [["B-said" if word in ("good", "bad") else "O" for word in tokens] for tokens in rows]
        table = [{"tokens": tokens, "tags": marks} for tokens, marks in zip(rows, tags, strict=True)]
        pq.write_table(pa.Table.from_pylist(table), tmp_path / f"{split}.parquet")
    return told(tiny_bert_folder, tmp_path, {"type": "token-classification"})


@pytest.fixture
def questions(tiny_bert_folder: Path, tmp_path: Path) -> Data:
    """Contexts longer than a window, whose answer is the word behind "is"."""
    for split, seed in (("train", 0), ("validation", 1), ("test", 2)):
        table = []
        for number, row in enumerate(rated(24, seed)):
            context = f"{row['text']} w1 w2 w3 w4 " * 3 + f"is w{number + 20}"
            found = {"text": [f"w{number + 20}"], "answer_start": [context.index("is w") + 3]}
            table.append({"question": "is", "context": context, "answers": found})
        pq.write_table(pa.Table.from_pylist(table), tmp_path / f"{split}.parquet")
    task = {"type": "question-answering", "max_length": 24, "doc_stride": 4, "max_question_len": 4}
    return told(tiny_bert_folder, tmp_path, task)


def told(base: Path, rows: Path, task: dict[str, object]) -> Data:
    tree = {
        "base": {"model": str(base), "dtype": "float32"},
        "task": task,
        "data": {split: str(rows / f"{split}.parquet") for split in ("train", "validation")},
        "training": {"num_train_epochs": 20, "per_device_train_batch_size": 8, "warmup_steps": 0.1},
    }
    return Data(Recipe.parse(tree), str(rows / "test.parquet"))


def test_every_weight_learns_what_the_bare_base_does_not_know(words: Data) -> None:
    assert score_bare(words)["f1"] < 0.6
    assert score_full(words, 3e-3, 0, ["test"])["test"]["f1"] > 0.95
    assert score_full(words, 3e-3, 0, ["test"]) == score_full(words, 3e-3, 0, ["test"])
    assert score_head(words)["f1"] > 0.95, "a word's own state tells it"


def test_rows_in_windows_are_trained_and_answered_whole(questions: Data) -> None:
    rows = questions.rows("train")
    assert all(len(row["windows"]) > 1 for row in rows)
    answers = answers_of(train_full(questions, 3e-3, 0), questions.task, rows)
    assert len(answers) == len(rows)
    assert questions.task.score(answers, rows)["exact_match"] > 0.9
    assert 0 <= score_head(questions)["f1"] <= 1


def test_a_step_is_the_gradient_of_the_mean_loss(words: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    """However the rows are cut into passes: dropout apart, as one pass of the plain class has it."""
    from pipelines import baselines

    rows, model = words.rows("train")[:12], plain_model(words.recipe, words.task).eval()
    losses, counts = words.task.loss(model(**words.task.collate(rows)), rows)
    (losses.sum() / counts.sum()).backward()
    wanted = {
        name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
    }
    model.zero_grad()
    monkeypatch.setattr(baselines, "_WINDOWS", 5)
    baselines.step(model, words.task, rows)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert torch.allclose(parameter.grad, wanted[name], atol=1e-6), name


def test_rows_come_in_the_order_of_an_adapters_steps() -> None:
    training = TrainingSpec(per_device_train_batch_size=4)
    found = batches(10, training, seed=3, steps=5)
    assert [len(rows) for rows in found] == [4, 4, 2, 4, 4]
    assert sorted(row for rows in found[:3] for row in rows) == list(range(10))
    first = torch.randperm(10, generator=torch.Generator().manual_seed(3 * 1_000_003)).tolist()
    assert found[0] == first[:4]


@pytest.mark.parametrize("attention", [None, "causal", "bidirectional"])
def test_a_decoders_plain_class_reads_as_its_task_says(
    attention: str | None, tiny_bert_folder: Path, tmp_path: Path
) -> None:
    base = tmp_path / "llama"
    transformers.AutoTokenizer.from_pretrained(tiny_bert_folder).save_pretrained(base)
    config = transformers.LlamaConfig(
        vocab_size=300, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    transformers.LlamaModel(config).save_pretrained(base)
    table = [{"tokens": ["w1", "w2", "w3"], "tags": ["O", "B-x", "O"]}]
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "train.parquet")
    task = {"type": "token-classification", "piece": "last"} | ({"attention": attention} if attention else {})
    data = told(base, tmp_path, task)
    model = plain_model(data.recipe, data.task).eval()
    assert model.config.num_labels == 2
    batch = data.task.collate(data.rows("train"))
    other = {name: tensor.clone() for name, tensor in batch.items()}
    other["input_ids"][0, -1] += 1
    with torch.no_grad():
        first, changed = (model(**inputs).logits[0, 0] for inputs in (batch, other))
    assert torch.equal(first, changed) == (attention != "bidirectional"), "whether the first token sees the last"
