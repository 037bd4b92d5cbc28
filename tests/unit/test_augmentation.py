"""Altered rows follow from seed, epoch and row alone, train and nothing else, and are refused where they do not fit."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from transformers import ViTImageProcessorPil

import ray_lora.training.augmented as augmented
import ray_lora.training.head_start as head_start
from ray_lora import Recipe
from ray_lora.augmentation.apply import altered, check_transforms
from ray_lora.bases.load import load_base
from ray_lora.errors import RecipeError
from ray_lora.recipe import BaseSpec, LoraSpec, TransformSpec
from ray_lora.running.plan import plan_recipe, show
from ray_lora.running.watch import params
from ray_lora.search.space import check_search
from ray_lora.search.trial import job_of
from ray_lora.tasks import Features, build_task
from ray_lora.tasks.image_classification import ImageClassificationSpec
from ray_lora.tasks.question_answering import QuestionAnsweringSpec
from ray_lora.tasks.text_classification import TextClassificationSpec
from ray_lora.tasks.token_classification import TokenClassificationSpec
from ray_lora.training.job import Job, Report
from ray_lora.training.member import Member
from ray_lora.training.shards import Group, Split, Splits
from ray_lora.training.sheet import write_sheet
from tests.unit.bases import save_base
from tests.unit.packs import (
    LABELS,
    ROWS,
    Letters,
    assert_same,
    losses,
    make_job,
    make_pack,
    train_alone,
)
from tests.unit.test_pack import Meeting

DROPS: dict[str, Any] = {"name": "token_dropout", "share": 0.4}
SWAPS: dict[str, Any] = {"name": "token_swap", "share": 0.5, "p": 0.5}


def transforms(*told: dict[str, Any]) -> tuple[TransformSpec, ...]:
    return tuple(TransformSpec.model_validate(one) for one in told)


def altering(name: str, labels: int = 2, told: tuple[dict[str, Any], ...] = (DROPS, SWAPS), **options: Any) -> Job:
    job = make_job(name, labels, LoraSpec(r=4), **{"max_steps": 9, "per_device_train_batch_size": 12} | options)
    return dataclasses.replace(job, augmentation=transforms(*told))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base("bert", tmp_path_factory.mktemp("bases") / "bert")


@pytest.fixture(scope="module")
def tokenizer(tiny_bert_folder: Path) -> Any:
    return load_base(BaseSpec(model=str(tiny_bert_folder))).processor


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int, int]]:
    """What was drawn for each row that was altered."""
    found: list[tuple[int, int, int, int]] = []

    def watched(*arguments: Any) -> Features:
        found.append(arguments[-1])
        return altered(*arguments)

    monkeypatch.setattr(augmented, "altered", watched)
    return found


def test_packed_equals_alone_and_twins_share_their_rows(folder: Path, made: list[Any]) -> None:
    """Neighbours that alter rows otherwise, or not at all, change nothing; equal rows are made once."""
    jobs = [
        altering("first"),
        altering("second", learning_rate=3e-3),
        altering("other", told=(SWAPS,)),
        make_job("as read", max_steps=9),
    ]
    pack = make_pack(folder)
    for job in jobs:
        pack.join(job)
    reports = [report for _ in range(9) for report in pack.step()]
    assert len(made) == 2 * len({drawn for drawn in made if drawn}) > 0  # by two recipes, of three jobs
    for job in jobs:
        alone_losses, alone_tensors = train_alone(folder, job)
        assert losses(reports, job.name) == pytest.approx(alone_losses, abs=1e-9)
        assert_same(pack.left[job.name], alone_tensors[-1], 1e-9)
    assert losses(reports, "first")[0] != pytest.approx(losses(reports, "as read")[0], abs=1e-3)


def test_rows_differ_by_epoch_and_seed_and_nothing_else() -> None:
    task = build_task(LABELS[2], Letters())
    told = transforms(DROPS, SWAPS)
    row = max(ROWS[2], key=lambda one: len(one["input_ids"]))
    before = list(row["input_ids"])
    assert altered(task, told, row, (1, 2, 3, 0)) == altered(task, told, row, (1, 2, 3, 0))
    for other in ((2, 2, 3, 0), (1, 3, 3, 0), (1, 2, 4, 0), (1, 2, 3, 1)):
        assert any(
            altered(task, told, row, tuple(a + shift for a in other))["input_ids"]  # type: ignore[arg-type]
            != altered(task, told, row, tuple(a + shift for a in (1, 2, 3, 0)))["input_ids"]  # type: ignore[arg-type]
            for shift in range(3)
        )
    assert row["input_ids"] == before


def test_any_number_of_workers_trains_on_the_same_rows(folder: Path) -> None:
    def work(group: Group) -> tuple[list[Report], dict[str, Tensor]]:
        pack = make_pack(folder, slots=1, group=group)
        pack.join(altering("spread", per_device_train_batch_size=12 // group.world))
        reports = [report for _ in range(9) for report in pack.step()]
        return reports, pack.left["spread"]

    alone_reports, alone_tensors = work(Group())
    for reports, tensors in Meeting(2).run(work):
        assert losses(reports, "spread") == pytest.approx(losses(alone_reports, "spread"), abs=1e-9)
        assert_same(tensors, alone_tensors, 1e-9)


def test_a_job_goes_on_with_the_same_rows(folder: Path, tmp_path: Path) -> None:
    job = altering("kept")  # 6 steps an epoch: it goes on in the second one
    alone_losses, alone_tensors = train_alone(folder, job)
    first = make_pack(folder, output=tmp_path)
    first.join(job)
    for _ in range(7):
        first.step()
    first.save("kept")
    second = make_pack(folder, slots=2, max_rows=5, output=tmp_path)
    second.join(make_job("neighbour", max_steps=20))
    second.join(job, tmp_path / "kept" / "state")
    reports = [report for _ in range(2) for report in second.step()]
    assert losses(reports, "kept") == pytest.approx(alone_losses[7:], abs=1e-9)
    assert_same(second.left["kept"], alone_tensors[-1], 1e-9)


def test_only_rows_that_train_are_altered(
    folder: Path, tmp_path: Path, made: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heads are fitted, rows scored and temperatures found on rows as they were read, though they are the same ones."""
    fitted: list[Features] = []
    keep = head_start.keep

    def watched(engine: Any, task: Any, rows: Any, **options: Any) -> Any:
        fitted.extend(rows)
        return keep(engine, task, rows, **options)

    monkeypatch.setattr(head_start, "keep", watched)
    pack = make_pack(folder, output=tmp_path)
    pack.join(altering("shown", head_start="fitted", calibrate=True, eval_steps=3))
    member = pack.members["shown"]
    assert len(fitted) == 2 * len(ROWS[2])
    assert all(any(row is read for read in ROWS[2]) for row in fitted)
    assert not made
    for _ in range(9):
        pack.step()
    assert len(made) == 6 * 12 - 2 + 3 * 12  # the first epoch's last batch has 10 rows
    assert member.answered is not None
    assert all(any(row is read for read in ROWS[2]) for row in member.answered[1])


def test_refusals_say_what_would_fit(tokenizer: Any) -> None:
    text = build_task(TextClassificationSpec(labels=("a", "b")), tokenizer)
    words = build_task(TokenClassificationSpec(labels=("a", "b")), tokenizer)
    spans = build_task(QuestionAnsweringSpec(), tokenizer)
    hides: dict[str, Any] = {"name": "token_masking"}
    for task in (text, words, spans):
        check_transforms(task, transforms(hides))
    check_transforms(text, transforms(hides, DROPS, SWAPS))
    whole = "token_dropout needs rows whose labels are of a text as a whole; {} on this base takes token_masking"
    for task in (words, spans):
        with pytest.raises(RecipeError, match=f"augmentation.1: {whole.format(task.spec.type)}"):
            check_transforms(task, transforms(hides, DROPS))
    with pytest.raises(RecipeError, match="token_masking needs a base whose tokenizer has a mask token"):
        check_transforms(build_task(LABELS[2], Letters()), transforms(hides))
    with pytest.raises(RecipeError, match="blur needs rows of pictures; text-classification on this base takes token_"):
        check_transforms(text, transforms({"name": "blur"}))


def test_a_job_whose_augmentation_does_not_fit_cannot_join(folder: Path) -> None:
    pack = make_pack(folder)
    with pytest.raises(RecipeError, match="token_masking needs"):
        pack.join(altering("hidden", told=({"name": "token_masking"},)))
    assert not pack.members
    assert len(pack.engine.free_slots) == 4


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = build_task(ImageClassificationSpec(labels=("a", "b")), ViTImageProcessorPil())
    monkeypatch.setattr("ray_lora.augmentation.apply.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"blur needs kornia: pip install 'ray_lora\[augmentation\]'"):
        check_transforms(pictures, transforms({"name": "blur"}))
    check_transforms(pictures, transforms({"name": "horizontal_flip"}))  # needs nothing


def test_masking_leaves_everything_where_it_is(tokenizer: Any) -> None:
    task = build_task(TokenClassificationSpec(labels=("O", "x")), tokenizer)
    (row,) = task.encode([{"tokens": "what a lovely day it is".split(), "tags": ["O", "x"] * 3}])
    found = altered(task, transforms({"name": "token_masking", "share": 0.9}), row, (0, 0, 0, 0))
    assert found.keys() == row.keys()
    assert {key for key in row if found[key] != row[key]} == {"input_ids"}
    kept = [one == other for one, other in zip(found["input_ids"], row["input_ids"], strict=True)]
    assert kept[0]
    assert kept[-1]  # what the tokenizer set around it
    mask = tokenizer.mask_token_id
    assert {found["input_ids"][at] for at, stays in enumerate(kept) if not stays} == {mask}


def test_tokens_of_two_texts_keep_their_types_and_never_mix(tokenizer: Any) -> None:
    task = build_task(TextClassificationSpec(labels=("a", "b")), tokenizer)
    (row,) = task.encode([{"text": "what a lovely day", "text_pair": "it rained and rained", "label": "a"}])
    of = {one: typed for one, typed in zip(row["input_ids"], row["token_type_ids"], strict=True) if typed}
    for epoch in range(20):
        found = altered(task, transforms(DROPS, SWAPS | {"p": 1.0}), row, (0, epoch, 0, 0))
        assert len(found["input_ids"]) == len(found["token_type_ids"])
        assert sorted(found["token_type_ids"]) == found["token_type_ids"]
        seconds = [one for one, t in zip(found["input_ids"], found["token_type_ids"], strict=True) if t]
        assert all(one in of for one in seconds)


def test_some_token_of_a_text_is_left() -> None:
    task = build_task(LABELS[2], Letters())
    (row,) = task.encode([{"text": "ab", "label": "a"}])
    told = transforms({"name": "token_dropout", "share": 0.99})
    found = [altered(task, told, row, (0, epoch, 0, 0))["input_ids"] for epoch in range(30)]
    assert {len(ids) for ids in found} == {1}
    assert len({ids[0] for ids in found}) == 2


def test_a_sheet_of_texts_lies_beside_the_figures(tokenizer: Any, tmp_path: Path) -> None:
    task = build_task(TextClassificationSpec(labels=("a", "b")), tokenizer)
    rows = dict(enumerate(task.encode([{"text": "what a lovely day", "label": "a"}] * 5)))

    job = altering("shown", told=({"name": "token_masking", "share": 0.5},))
    member = Member(job, 1, task, Splits(Split(rows, len(rows))), 1, 1, 1)
    write_sheet(member, tmp_path)
    table = list(csv.reader((tmp_path / "augmentation.csv").read_text(encoding="utf-8").splitlines()))
    assert table[0] == ["row", "when", "tokens"]
    assert [line[1] for line in table[1:5]] == ["as read", "epoch 1", "epoch 2", "epoch 3"]
    assert "[MASK]" not in table[1][2]
    assert "[MASK]" in "".join(line[2] for line in table[2:5])


# -------------------------------------------------------------------- the recipe


HIDES = "augmentation=[{name: token_masking, share: 0.2}]"


def test_a_recipe_without_it_is_what_it_was() -> None:
    plain, altering_ = (Recipe.load("examples/tweets.yaml", told) for told in ([], [HIDES]))
    assert "augmentation" not in plain.model_dump()
    assert "augmentation" not in plain.model_dump_json()
    assert Recipe.model_validate_json(altering_.model_dump_json()) == altering_
    assert altering_.override({"lora.r": 2}).augmentation == altering_.augmentation
    task = altering_.task
    told = params(job_of("one", altering_, {}, task))
    assert told["augmentation.0"] == "token_masking p 1.0, share 0.2"
    assert not [key for key in params(job_of("one", plain, {}, task)) if "augmentation" in key]


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ("[{name: horizontal_flap}]", "'horizontal_flap' is not a transform; did you mean 'horizontal_flip'"),
        ("[{p: 0.5}]", "a transform has no name; there are horizontal_flip, "),
        ("[{name: blur, sigmo: 1}]", "augmentation.0: blur has no 'sigmo'; did you mean 'sigma'.; it has p, sigma"),
        ("[{name: blur, sigma: [2, 1]}]", r"augmentation.0.sigma: \[2.0, 1.0\] goes down"),
        ("[{name: rotation, p: 2}]", "augmentation.0.p: Input should be less than or equal to 1"),
        ("[blur]", "augmentation.0: .*'blur'"),
    ],
)
def test_a_wrong_transform_is_named(told: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        Recipe.load("examples/tweets.yaml", [f"augmentation={told}"])


def test_a_search_may_try_it() -> None:
    hides = [{"name": "token_masking", "share": 0.1}]
    recipe = Recipe.load("examples/tweets.yaml").override({"search.space": {"augmentation": {"choice": [[], hides]}}})
    check_search(recipe)
    assert job_of("one", recipe, {"augmentation": hides}, recipe.task).augmentation == transforms(*hides)
    assert job_of("one", recipe, {"augmentation": []}, recipe.task).augmentation == ()
    wrong = recipe.override({"search.space": {"augmentation": {"choice": [[], [{"name": "token_maskin"}]]}}})
    with pytest.raises(RecipeError, match="did you mean 'token_masking'"):
        check_search(wrong)


def test_a_plan_says_it_and_refuses_what_does_not_fit(tiny_bert_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text,label\na lovely day,a\nan awful day,b\n")
    told = [f"base.model={tiny_bert_folder}", f"data={{train: {tmp_path / 'rows.csv'}}}", "search.space=null"]
    recipe = Recipe.load("examples/tweets.yaml", [*told, "task={type: text-classification}", HIDES])
    plan = plan_recipe(recipe)
    assert plan["augmentation"] == ["token_masking p 1.0, share 0.2"]
    assert "augmented token_masking p 1.0, share 0.2" in show(plan)
    assert "augmentation" not in plan_recipe(recipe.override({"augmentation": []}))
    searched = recipe.override({"search.space": {"augmentation": {"choice": [[], [{"name": "erasing"}]]}}})
    with pytest.raises(RecipeError, match="erasing needs rows of pictures"):
        plan_recipe(searched)
