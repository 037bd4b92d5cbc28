"""Learning what a teacher would write: the likeliest tokens and all others as one, beside torch's own divergence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from ray_lora.adapters.adapter import Card
from ray_lora.bases.load import describe_base, load_base
from ray_lora.engine import AdapterEngine
from ray_lora.engine.token_states import TokenStates
from ray_lora.errors import DataError, RecipeError
from ray_lora.inference.teacher import soft_targets
from ray_lora.recipe import BaseSpec, LoraSpec, Recipe, TaskSpec
from ray_lora.running.distilling import _mounted
from ray_lora.running.plan import plan_recipe
from ray_lora.running.teachers import Teacher, find_teacher
from ray_lora.store import open_store
from ray_lora.tasks import Features, build_task
from ray_lora.tasks.generation_options import TextGenerationSpec
from ray_lora.tasks.prompted import Prompted
from ray_lora.tasks.soft_targets import SOFT
from ray_lora.tasks.soft_tokens import MOST
from tests.unit.bases import VOCABULARY, save_language_model
from tests.unit.cases import prompt_rows

SPEC = TextGenerationSpec(max_length=24)
HEAT = torch.tensor([1.0, 3.0], dtype=torch.float64)


def named(folder: Path, tokenizer: Path) -> Path:
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tiny_bert_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A teacher's base and a student's."""
    root = tmp_path_factory.mktemp("writers")
    names = ("large", "small")
    found = [
        named(save_language_model("llama", root / name, seed), tiny_bert_folder) for seed, name in enumerate(names)
    ]
    return found[0], found[1]


def task_on(folder: Path, spec: TaskSpec = SPEC) -> Prompted:
    task: Any = build_task(spec, describe_base(BaseSpec(model=str(folder))).processor)
    prompted: Prompted = task
    return prompted


def drawn(*shape: int, seed: int) -> torch.Tensor:
    return 2 * torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def coarse(logits: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """log p of the tokens `kept` of one place, and of all others."""
    shares = logits.softmax(-1)
    others = 1 - shares[kept].sum()
    return torch.cat([shares[kept], others[None]]).log()


def taught(task: Prompted, rows: list[Features], logits: torch.Tensor) -> list[Features]:
    """Rows with what `logits`, [rows, longest, vocabulary], say of them."""
    parts = task.logits(SimpleNamespace(logits=logits), rows)
    found = [task.soft_targets([part], row).numpy() for part, row in zip(parts, rows, strict=True)]
    return [task.with_soft_targets(row, soft) for row, soft in zip(rows, found, strict=True)]


@pytest.mark.parametrize("loss", ["answer", "all"])
def test_it_is_hintons_loss_over_the_likeliest_and_the_others(folders: tuple[Path, Path], loss: str) -> None:
    task = task_on(folders[1], SPEC.model_copy(update={"loss": loss}))
    rows = task.encode(prompt_rows()[:2])
    longest = max(map(task.size, rows))
    teacher, student = (drawn(2, longest, VOCABULARY, seed=seed) for seed in (1, 2))
    features = taught(task, rows, teacher)
    found = task.divergence(SimpleNamespace(logits=student), features, HEAT)
    for row, feature in enumerate(rows):
        first, targets = task.asked(feature)
        expected = torch.zeros((), dtype=torch.float64)
        for at in range(first, first + len(targets)):
            told = teacher[row, at, : task.known].float()  # what pads the table is no token
            kept = told.topk(MOST).indices
            told, said = coarse(told.double(), kept) / HEAT[row], coarse(student[row, at], kept) / HEAT[row]
            expected += HEAT[row] ** 2 * F.kl_div(
                said.log_softmax(-1), told.log_softmax(-1), reduction="sum", log_target=True
            )
        assert float(found[row]) == pytest.approx(float(expected), abs=1e-5)


def test_logits_a_few_at_a_time_give_the_same_and_the_same_gradients(folders: tuple[Path, Path]) -> None:
    task = task_on(folders[1])
    rows = task.encode(prompt_rows())
    longest = max(map(task.size, rows))
    features = taught(task, rows, drawn(len(rows), longest, VOCABULARY, seed=1))
    weight, heat = drawn(VOCABULARY, 8, seed=3), torch.linspace(1, 4, len(rows), dtype=torch.float64)
    states = drawn(len(rows), longest, 8, seed=4)
    found = []
    for few in (True, False):
        mine = states.clone().requires_grad_()
        outputs: Any = TokenStates(mine, lambda x: x @ weight.T) if few else SimpleNamespace(logits=mine @ weight.T)
        losses = task.divergence(outputs, features, heat)
        losses.sum().backward()
        found.append((losses.detach(), mine.grad))
    torch.testing.assert_close(found[0], found[1])


def test_who_says_what_its_teacher_says_has_no_loss(folders: tuple[Path, Path]) -> None:
    task = task_on(folders[1])
    rows = task.encode(prompt_rows()[:2])
    logits = drawn(2, max(map(task.size, rows)), VOCABULARY, seed=1)
    features = taught(task, rows, logits)
    logits[..., task.known :] = float("-inf")
    mine = logits.requires_grad_()
    losses = task.divergence(SimpleNamespace(logits=mine), features, HEAT)
    losses.sum().backward()
    assert mine.grad is not None
    assert float(losses.detach().abs().max()) < 1e-6
    assert float(mine.grad[..., : task.known].abs().max()) < 1e-6


def test_soft_targets_of_another_row_are_refused(folders: tuple[Path, Path]) -> None:
    task = task_on(folders[1])
    [row] = task.encode(prompt_rows()[:1])
    with pytest.raises(DataError, match=f"of 1 tokens were given for a row of {len(task.asked(row)[1])}"):
        task.with_soft_targets(row, np.zeros((1, 2 * MOST + 1), np.float32))


# -------------------------------------------------------------------- a teacher of the store, and a bare model


def recipe_of(student: Path, folder: Path, teacher: str) -> Recipe:
    return Recipe.parse(
        {
            "base": {"model": str(student), "dtype": "float32"},
            "task": {"type": "text-generation", "max_length": 24},
            "distillation": {"teacher": teacher},
            "tracking": {"uri": None},
            "store": str(folder / "store"),
        }
    )


def store_teacher(base: Path, store: Path, spec: TaskSpec) -> None:
    engine = AdapterEngine(load_base(BaseSpec(model=str(base), dtype="float32")), slots=1, max_rank=2)
    task = build_task(spec, engine.base.processor)
    slot = engine.init(LoraSpec(r=2, target_modules=("q_proj", "down_proj")), task.head, 0)
    draw = torch.Generator().manual_seed(0)
    engine.write(slot, {key: torch.randn(value.shape, generator=draw) for key, value in engine.read(slot).items()})
    engine.refresh([slot])
    open_store(str(store)).put(engine.export(slot, Card(task=spec, base=str(base))), "large")
    engine.close()


def find(recipe: Recipe) -> Teacher:
    return find_teacher(recipe, recipe.task, describe_base(recipe.base))


def test_a_bare_model_and_an_adapter_teach_as_they_answer(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """The adapter was trained on rows of another kind: it reads its student's."""
    large, small = folders
    store_teacher(large, tmp_path / "store", TextGenerationSpec(rows="text", max_length=20))
    model = AutoModelForCausalLM.from_pretrained(large, dtype=torch.float32).eval()
    for ref in (str(large), "large"):
        teacher = find(recipe_of(small, tmp_path, ref))
        engine, slot, found = _mounted(replace(teacher, base=BaseSpec(model=str(large), dtype="float32")))
        task: Any = found
        assert task.longest == 24
        rows = task.encode(prompt_rows())
        soft = soft_targets(engine, slot, task, rows, max_rows=3)
        [head] = engine.heads.values()
        [(_, outputs)] = engine.forward(task.collate(rows), torch.full((len(rows),), slot))
        assert head.gives_tokens
        expected = [part.detach() for part in task.logits(outputs, rows)]
        for mine, other in zip(soft, expected, strict=True):
            np.testing.assert_allclose(mine[:, : MOST + 1], other[:, : MOST + 1], atol=1e-5)
        if "/" in ref:
            with torch.inference_mode():
                plain = task.logits(model(**task.collate(rows)), rows)
            for mine, other in zip(soft, plain, strict=True):
                np.testing.assert_allclose(mine[:, : MOST + 1], other[:, : MOST + 1], atol=1e-5)
        engine.close()


def test_tokens_of_another_vocabulary_teach_nothing(folders: tuple[Path, Path], tmp_path: Path) -> None:
    large, small = folders
    tokenizer = AutoTokenizer.from_pretrained(small)
    tokenizer.add_tokens(["another"])
    other = named(save_language_model("llama", tmp_path / "other", 3), small)
    tokenizer.save_pretrained(other)
    with pytest.raises(RecipeError, match=r"writes in the tokens of .*other, and .*small has others"):
        find(recipe_of(small, tmp_path, str(other)))
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a good", "completion": " film"}\n' * 4)
    told = {"data.train": str(rows), "training.max_steps": 1}
    assert plan_recipe(recipe_of(small, tmp_path, str(large)).override(told))["teacher"].startswith(str(large))


def test_features_keep_what_was_told(folders: tuple[Path, Path]) -> None:
    task = task_on(folders[1])
    [row] = task.encode(prompt_rows()[:1])
    [told] = taught(task, [row], drawn(1, task.size(row), VOCABULARY, seed=1))
    assert told[SOFT].shape == (len(task.asked(row)[1]), 2 * MOST + 1)
    numbers = told[SOFT][:, MOST + 1 :]
    assert (numbers == numbers.astype(int)).all()
    assert int(numbers.max()) < task.known
