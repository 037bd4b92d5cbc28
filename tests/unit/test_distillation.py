"""Learning from a teacher: distances beside torch's own, rows and words that stay with their soft targets, refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoTokenizer

from ray_lora.adapters.adapter import Adapter, Card
from ray_lora.bases.load import describe_base, load_base
from ray_lora.engine import AdapterEngine
from ray_lora.errors import AdapterError, AdapterNotFoundError, DataError, RecipeError
from ray_lora.inference.predict import predict
from ray_lora.inference.teacher import SoftTargets, soft_targets
from ray_lora.recipe import BaseSpec, DistillationSpec, LoraSpec, Recipe, TaskSpec
from ray_lora.running.distilling import _check_pieces, _mounted
from ray_lora.running.people import PersonalTrainer
from ray_lora.running.plan import plan_recipe
from ray_lora.running.teachers import Teacher, find_teacher
from ray_lora.search.space import check_space
from ray_lora.store import open_store
from ray_lora.tasks import build_task
from ray_lora.tasks.question_answering import QuestionAnsweringSpec
from ray_lora.tasks.sequential_recommendation import SequentialRecommendationSpec
from ray_lora.tasks.soft_targets import SOFT, Distilled
from ray_lora.tasks.text_classification import TextClassificationSpec
from ray_lora.tasks.token_classification import TokenClassificationSpec
from ray_lora.training.shards import Split, Splits
from tests.conformance.packs import run
from tests.unit.bases import save_base
from tests.unit.histories import tiny
from tests.unit.packs import ROWS, Letters, assert_same, losses, make_job, make_pack, train_alone

HEAT = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)
TWO = ("no", "yes")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base("bert", tmp_path_factory.mktemp("bases") / "bert")


def processor_of(folder: Path) -> Any:
    """The tokenizer, with what its base tells it."""
    return describe_base(BaseSpec(model=str(folder))).processor


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return 2 * torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def hinton(student: torch.Tensor, teacher: torch.Tensor, heat: torch.Tensor) -> torch.Tensor:
    """Of one distribution, by torch's own divergence."""
    told, said = (teacher / heat).log_softmax(-1), (student / heat).log_softmax(-1)
    return heat**2 * F.kl_div(said, told, reduction="sum", log_target=True)


# -------------------------------------------------------------------- distances


@pytest.mark.parametrize("weights", [None, {"a": 1.0, "b": 3.0, "c": 0.5}])
def test_one_label_is_hintons_loss(weights: dict[str, float] | None) -> None:
    task = build_task(TextClassificationSpec(labels=("a", "b", "c"), class_weights=weights), Letters())
    mine, soft = drawn(3, 3), drawn(3, 3, seed=1)
    rows = [{SOFT: soft[row].numpy(), "labels": row} for row in range(3)]
    assert isinstance(task, Distilled)
    found = task.divergence(SimpleNamespace(logits=mine), rows, HEAT)
    scale = [1.0, 1.0, 1.0] if weights is None else list(weights.values())
    expected = [scale[row] * hinton(mine[row], soft[row], HEAT[row]) for row in range(3)]
    torch.testing.assert_close(found, torch.stack(expected))


def test_several_labels_are_each_a_question_of_yes_or_no() -> None:
    spec = TextClassificationSpec(labels=("a", "b"), problem_type="multi_label_classification")
    task = build_task(spec, Letters())
    mine, soft = drawn(3, 2), drawn(3, 2, seed=1)
    assert isinstance(task, Distilled)
    found = task.divergence(SimpleNamespace(logits=mine), [{SOFT: row.numpy()} for row in soft], HEAT)
    chance, guess = (soft / HEAT[:, None]).sigmoid(), mine / HEAT[:, None]
    entropy = F.binary_cross_entropy(chance, chance, reduction="none")
    cross = F.binary_cross_entropy_with_logits(guess, chance, reduction="none")
    torch.testing.assert_close(found, HEAT.square() * (cross - entropy).sum(1))


def test_numbers_are_apart_by_their_squared_difference() -> None:
    task = build_task(TextClassificationSpec(problem_type="regression"), Letters())
    assert isinstance(task, Distilled)
    rows = [{SOFT: np.array([value], np.float32)} for value in (0.5, 2.0, -1.0)]
    found = task.divergence(SimpleNamespace(logits=torch.tensor([[0.0], [2.0], [1.0]])), rows, HEAT)
    assert found.tolist() == [0.25, 0.0, 4.0]


@pytest.mark.parametrize("side", ["left", "right"])
def test_words_that_the_teacher_does_not_read_are_trained_by_their_labels(tiny_bert_folder: Path, side: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert_folder)
    tokenizer.padding_side = side
    task = build_task(TokenClassificationSpec(labels=TWO), tokenizer)
    words = ["a", "good", "film", "was"]
    [one, other] = task.encode(
        [{"tokens": words, "tags": ["no", "yes", "no", "yes"]}, {"tokens": ["a"], "tags": ["no"]}]
    )
    assert isinstance(task, Distilled)
    soft = drawn(4, 2, seed=1).float()
    soft[2] = float("nan")
    rows = [task.with_soft_targets(one, soft.numpy()), task.with_soft_targets(other, soft[:1].numpy())]
    mine = drawn(2, task.size(one), 2).float()
    found = task.divergence(SimpleNamespace(logits=mine), rows, HEAT[1:])
    places = one["pieces"]
    expected = sum(hinton(mine[0, places[word]], soft[word], HEAT[1]) for word in (0, 1, 3))
    expected = expected + F.cross_entropy(mine[0, places[2]], torch.tensor(0))
    begin = mine.shape[1] - task.size(other) if side == "left" else 0
    alone = hinton(mine[1, begin + other["pieces"][0]], soft[0], HEAT[2])
    torch.testing.assert_close(found, torch.stack([expected, alone]).to(found))
    with pytest.raises(DataError, match=r"soft targets \(4, 2\) were given for a row of 1 words"):
        task.with_soft_targets(other, soft.numpy())


def test_answers_are_compared_over_what_can_be_one(tiny_bert_folder: Path) -> None:
    spec = QuestionAnsweringSpec(max_length=16, doc_stride=2, max_question_len=5, handle_impossible_answer=True)
    task = build_task(spec, processor_of(tiny_bert_folder))
    context = "a good film and a bad book was the best of the day and the worst of the story"
    [row] = task.encode([{"question": "good film ?", "context": context, "answers": "bad book"}])
    assert isinstance(task, Distilled)
    assert len(row["windows"]) > 1
    counts = [len(window["input_ids"]) for window in row["windows"]]
    soft = drawn(sum(counts), 2, seed=1).float()
    windows = task.with_soft_targets(row, soft.numpy())["windows"]
    starts, ends = drawn(len(windows), max(counts)).float(), drawn(len(windows), max(counts), seed=2).float()
    heat = torch.full((len(windows),), 3.0)
    found = task.divergence(SimpleNamespace(start_logits=starts, end_logits=ends), windows, heat)
    for number, window in enumerate(windows):
        can = [0, *range(window["begin"], window["end"])]
        told = soft[sum(counts[:number]) :][can]
        both = [hinton(logits[number][can], told[:, at], heat[0]) for at, logits in enumerate((starts, ends))]
        torch.testing.assert_close(found[number], torch.stack(both).mean())
    with pytest.raises(DataError, match=f"soft targets of 3 tokens were given for a row of {sum(counts)}"):
        task.with_soft_targets(row, soft[:3].numpy())


# -------------------------------------------------------------------- a pack


def taught_splits(rows: list[dict[str, Any]], soft: np.ndarray[Any, Any]) -> Splits:
    """Letter rows with a line of logits for each."""
    told = {number: row | {SOFT: soft[number]} for number, row in enumerate(rows)}
    return Splits(Split(told, len(rows)), Split(dict(enumerate(rows)), len(rows)))


def test_a_teacher_that_says_the_other_label_is_believed_row_by_row(folder: Path) -> None:
    """All the weight on a teacher who is sure of the wrong label of each row, in an order drawn anew each epoch."""
    truth = np.array([row["labels"] for row in ROWS[2]])
    pack = make_pack(folder, slots=2)
    pack.data["2"] = taught_splits(ROWS[2], (6 * (np.eye(2)[1 - truth] - 0.5)).astype(np.float32))
    believer = DistillationSpec(teacher="liar", temperature=1, weight=1)
    jobs = [make_job(name, 2, LoraSpec(r=4), num_train_epochs=8) for name in ("taught", "alone")]
    reports = run(pack, {0: [replace(jobs[0], distillation=believer), jobs[1]]})
    scores = {report.job: report.metrics["accuracy"] for report in reports if report.metrics is not None}
    assert scores["taught"] < 0.1
    assert scores["alone"] > 0.9


def test_what_nobody_teaches_trains_as_it_did(folder: Path) -> None:
    """A weight of 0 beside one of 1 in a pack: the very numbers of a job without a teacher."""
    plainly = make_job("job", 2, max_steps=5)
    soft = drawn(len(ROWS[2]), 2).float().numpy()
    pack = make_pack(folder, slots=2)
    pack.data["2"] = taught_splits(ROWS[2], soft)
    other = replace(make_job("other", 2, max_steps=5), distillation=DistillationSpec(teacher="one", weight=1))
    reports = run(pack, {0: [replace(plainly, distillation=DistillationSpec(teacher="one", weight=0)), other]})
    alone, tensors = train_alone(folder, plainly)
    assert losses(reports, "job") == pytest.approx(alone, abs=1e-9)
    assert_same(pack.left["job"], tensors[-1], 1e-9)
    assert losses(reports, "other") != pytest.approx(alone, abs=1e-3)


def test_a_step_is_hintons_loss_on_the_plain_class(folder: Path) -> None:
    """The first step's loss is computed from what the job begins with; a student that says what its teacher says has
    neither a loss nor a gradient."""
    told = DistillationSpec(teacher="one", temperature=3, weight=0.4)
    soft = drawn(len(ROWS[2]), 2).float()
    job = replace(make_job("job", 2, max_steps=1, per_device_train_batch_size=16), distillation=told)
    pack = make_pack(folder, slots=1)
    pack.data["2"] = taught_splits(ROWS[2], soft.numpy())
    slot = pack.join(job)
    member = pack.members["job"]
    own = soft_targets(pack.engine, slot, member.task, ROWS[2])
    rows = member.rows_of(0)
    mine = torch.tensor(np.stack([own[row][0] for row in rows])).double()
    hard = F.cross_entropy(mine, torch.tensor([ROWS[2][row]["labels"] for row in rows]))
    heat = torch.tensor(3.0, dtype=torch.float64)
    distances = [hinton(one, soft[row].double(), heat) for one, row in zip(mine, rows, strict=True)]
    [report] = pack.step()
    assert report.loss == pytest.approx(float(0.6 * hard + 0.4 * torch.stack(distances).mean()), abs=1e-6)
    assert report.grad_norm is not None
    assert report.grad_norm > 1e-3
    same = make_pack(folder, slots=1)
    same.data["2"] = taught_splits(ROWS[2], np.stack([row[0] for row in own]))
    same.join(replace(job, distillation=DistillationSpec(teacher="itself", temperature=1, weight=1)))
    [report] = same.step()
    assert report.loss == pytest.approx(0, abs=1e-9)
    assert report.grad_norm == pytest.approx(0, abs=1e-6)


def test_rows_without_soft_targets_teach_nobody(folder: Path) -> None:
    pack = make_pack(folder)
    job = replace(make_job("job", 2), distillation=DistillationSpec(teacher="tweets"))
    with pytest.raises(DataError, match="job 'job' has the teacher 'tweets', and its rows have no soft targets of it"):
        pack.join(job)


def test_the_card_says_who_taught(folder: Path) -> None:
    pack = make_pack(folder)
    splits = taught_splits(ROWS[2], drawn(len(ROWS[2]), 2).float().numpy())
    pack.data["2"] = replace(splits, identity={"teacher.ref": "tweets@3", "teacher.hash": "ab" * 32})
    pack.join(replace(make_job("job", 2), distillation=DistillationSpec(teacher="tweets", weight=0.25)))
    recipe = pack.export("job").card.recipe
    assert recipe is not None
    told = {"teacher": "tweets@3", "sha256": "ab" * 32, "temperature": 2.0, "weight": 0.25}
    assert recipe["distillation"] == told


# -------------------------------------------------------------------- a teacher's soft targets


def store_teacher(base: Path, store: Path, spec: TaskSpec, name: str = "large", seed: int = 1) -> Adapter:
    """An adapter whose layers and head say something."""
    engine = AdapterEngine(load_base(BaseSpec(model=str(base), dtype="float32")), slots=1, max_rank=4, train=True)
    slot = engine.init(LoraSpec(r=4), build_task(spec, engine.base.processor).head, seed)
    draw = torch.Generator().manual_seed(seed)
    moved = {key: value + 0.3 * torch.randn(value.shape, generator=draw) for key, value in engine.read(slot).items()}
    engine.write(slot, moved)
    engine.refresh([slot])
    adapter = engine.export(slot, Card(task=spec, base=str(base)))
    engine.close()
    open_store(str(store)).put(adapter, name)
    return adapter


def recipe_of(base: Path, folder: Path, **more: Any) -> Recipe:
    """A student's recipe on a few rows."""
    rows = [{"text": text, "label": label} for text, label in (("a good film", "yes"), ("a bad book", "no"))] * 4
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = {
        "base": {"model": str(base), "dtype": "float32"},
        "task": {"labels": list(TWO)},
        "data": {"train": str(folder / "train.jsonl")},
        "distillation": {"teacher": "large"},
        "tracking": {"uri": None},
        "store": str(folder / "store"),
        "output_dir": str(folder / "runs"),
    }
    return Recipe.parse(told | more)


def find(recipe: Recipe, spec: TaskSpec | None = None) -> Teacher:
    return find_teacher(recipe, spec or recipe.task, describe_base(recipe.base))


def test_soft_targets_are_what_the_adapter_answers(tiny_bert_folder: Path, tmp_path: Path) -> None:
    """In the student's order of labels, whatever the teacher's is."""
    spec = TextClassificationSpec(labels=("yes", "no", "perhaps"))
    store_teacher(tiny_bert_folder, tmp_path / "store", spec)
    mine = TextClassificationSpec(labels=("no", "perhaps", "yes"))
    teacher = find(recipe_of(tiny_bert_folder, tmp_path), mine)
    assert teacher.ref == "large@1"
    assert teacher.order == (1, 2, 0)
    engine, slot, task = _mounted(teacher)
    texts = ["a good film", "the worst of books", "so so"]
    features = task.encode([{"text": text, "label": 2} for text in texts])  # an index among the student's labels
    soft = soft_targets(engine, slot, task, features)
    raw = [{"top_k": None, "function_to_apply": "none"}] * 3
    own = build_task(spec, engine.base.processor)
    answers = predict(engine, {slot: own}, features, [slot] * 3, raw)
    for row, answer in zip(soft, answers, strict=True):
        scores = {one["label"]: one["score"] for one in answer}
        assert row[0][list(teacher.order)].tolist() == pytest.approx([scores[label] for label in mine.labels or ()])


def test_words_are_taught_over_other_tokenizers(tiny_bert_folder: Path, tmp_path: Path) -> None:
    """The teacher reads letters, the student words, and a text's end not at all."""
    letters = tmp_path / "letters"
    save_letters(tiny_bert_folder, letters)
    spec = TokenClassificationSpec(labels=("yes", "no"), max_length=11)
    store_teacher(letters, tmp_path / "store", spec)
    student = TokenClassificationSpec(labels=TWO)
    recipe = recipe_of(tiny_bert_folder, tmp_path, task={"type": "token-classification", "labels": list(TWO)})
    teacher = find(recipe, student)
    engine, slot, task = _mounted(teacher)
    row = {"tokens": ["a", "good", "film", "was"], "tags": ["no", "yes", "no", "yes"]}
    [theirs] = task.encode([row])
    assert len(theirs["input_ids"]) == 11
    assert theirs["pieces"][-1] is None
    soft = soft_targets(engine, slot, task, [theirs])
    assert soft.values.shape == (4, 2)
    assert np.isnan(soft[0]).all(1).tolist() == [False, False, False, True]
    learner = build_task(student, processor_of(tiny_bert_folder))
    assert isinstance(learner, Distilled)
    [mine] = learner.encode([row])
    pieces, given = learner.with_soft_targets(mine, soft[0])[SOFT]
    assert pieces == mine["pieces"]
    np.testing.assert_array_equal(given, soft[0])
    assert mine["pieces"] != theirs["pieces"]


def save_letters(base: Path, folder: Path) -> None:
    """The base again under a tokenizer that makes a piece of each letter."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import AutoModel, PreTrainedTokenizerFast

    known = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3}
    known |= {letter: 4 + at for at, letter in enumerate("abcdefghijklmnopqrstuvwxyz?")}
    tokenizer = Tokenizer(models.WordLevel(known, unk_token="[UNK]"))
    letter = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), letter])
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    AutoModel.from_pretrained(base).save_pretrained(folder)
    fast.save_pretrained(folder)


def test_questions_are_not_taught_in_other_tokens(tiny_bert_folder: Path, tmp_path: Path) -> None:
    save_letters(tiny_bert_folder, tmp_path / "letters")
    spec = QuestionAnsweringSpec(max_length=30, doc_stride=4, max_question_len=13, handle_impossible_answer=True)
    rows = [{"question": "good ?", "context": "a good film was the best", "answers": "film"}]
    task = build_task(spec, processor_of(tiny_bert_folder))
    other = build_task(spec, processor_of(tmp_path / "letters"))
    teacher = Teacher("large@1", "", BaseSpec(), "cpu", spec)
    _check_pieces(teacher, task, task.encode(rows), task, rows)
    with pytest.raises(RecipeError, match=r"'large@1' reads training row 1 in other tokens than the recipe's base"):
        _check_pieces(teacher, other, other.encode(rows), task, rows)


def test_a_bare_model_teaches_by_its_own_head(tiny_bert_folder: Path, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForSequenceClassification

    named = tmp_path / "bare"
    config = AutoConfig.from_pretrained(tiny_bert_folder, id2label={0: "yes", 1: "no"}, label2id={"yes": 0, "no": 1})
    model = AutoModelForSequenceClassification.from_pretrained(tiny_bert_folder, config=config).eval()
    model.save_pretrained(named)
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert_folder)
    tokenizer.save_pretrained(named)
    recipe = recipe_of(tiny_bert_folder, tmp_path, distillation={"teacher": str(named)})
    teacher = find(recipe)
    assert teacher.order == (1, 0)
    engine, slot, task = _mounted(replace(teacher, base=BaseSpec(model=str(named), dtype="float32")))
    texts = ["a good film", "the worst of books"]
    soft = soft_targets(engine, slot, task, task.encode([{"text": text} for text in texts]))
    with torch.inference_mode():
        expected = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits
    torch.testing.assert_close(torch.tensor(np.stack([row[0] for row in soft])), expected, atol=1e-5, rtol=0)
    headless = recipe.override({"distillation.teacher": str(tiny_bert_folder)})
    with pytest.raises(RecipeError, match="has no names for its outputs; write id2label"):
        find(headless)
    config.save_pretrained(tmp_path / "named")
    for file in ("model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "named" / file).write_bytes((tiny_bert_folder / file).read_bytes())
    without = find(recipe.override({"distillation.teacher": str(tmp_path / "named")}))
    with pytest.raises(AdapterError, match="has no trained head of 2 outputs for text-classification"):
        _mounted(without)


def test_soft_targets_that_are_no_numbers_are_refused(tiny_bert_folder: Path, tmp_path: Path) -> None:
    store_teacher(tiny_bert_folder, tmp_path / "store", TextClassificationSpec(labels=TWO))
    engine, slot, task = _mounted(find(recipe_of(tiny_bert_folder, tmp_path)))
    engine.write(slot, {key: value * float("nan") for key, value in engine.read(slot).items()})
    engine.refresh([slot])
    with pytest.raises(AdapterError, match="the teacher answers what is no finite number"):
        soft_targets(engine, slot, task, task.encode([{"text": "a film"}]))


# -------------------------------------------------------------------- what is refused, before anything starts


@pytest.mark.parametrize(
    ("spec", "mine", "said"),
    [
        (
            TextClassificationSpec(labels=("no", "maybe", "yes")),
            TextClassificationSpec(labels=TWO),
            "teacher 'large@1' has the labels no, maybe, yes, the recipe's are no, yes; the recipe lacks 'maybe'",
        ),
        (
            TextClassificationSpec(labels=TWO),
            TextClassificationSpec(labels=(*TWO, "perhaps")),
            "the teacher lacks 'perhaps': both must have the same",
        ),
        (
            TokenClassificationSpec(labels=TWO),
            TextClassificationSpec(labels=TWO),
            "is for token-classification, and the recipe's task is text-classification",
        ),
        (
            TextClassificationSpec(labels=TWO, problem_type="multi_label_classification"),
            TextClassificationSpec(labels=TWO),
            r"is for text-classification \(multi_label_classification\)",
        ),
    ],
)
def test_a_teacher_of_something_else(
    tiny_bert_folder: Path, tmp_path: Path, spec: TaskSpec, mine: TaskSpec, said: str
) -> None:
    store_teacher(tiny_bert_folder, tmp_path / "store", spec)
    with pytest.raises(RecipeError, match=said):
        find(recipe_of(tiny_bert_folder, tmp_path), mine)


def test_what_cannot_be_taught(tiny_bert_folder: Path, tmp_path: Path) -> None:
    recipe = recipe_of(tiny_bert_folder, tmp_path)
    with pytest.raises(AdapterNotFoundError, match="large"):
        plan_recipe(recipe)
    store_teacher(tiny_bert_folder, tmp_path / "store", TextClassificationSpec(labels=TWO))
    assert plan_recipe(recipe)["teacher"] == f"large@1 on {tiny_bert_folder.resolve()}"
    with pytest.raises(RecipeError, match="sequential-recommendation learns from no teacher; text-classification, im"):
        find(recipe.override({"base.model": str(tiny(tmp_path / "sasrec"))}), SequentialRecommendationSpec())
    with pytest.raises(RecipeError, match="people learn from their own rows alone"):
        PersonalTrainer(recipe)
    with pytest.raises(RecipeError, match=r"augmentation and distillation\.teacher are both given"):
        recipe.override({"augmentation": [{"name": "token_masking"}]})
    with pytest.raises(RecipeError, match=r"temperature without a teacher; set distillation\.teacher"):
        recipe.override({"distillation": {"temperature": 3}})
    for wrong in ({"weight": 1.5}, {"weight": -0.1}, {"temperature": 0}, {"teacher": ""}):
        with pytest.raises(RecipeError, match=f"distillation.{next(iter(wrong))}"):
            recipe.override({f"distillation.{key}": value for key, value in wrong.items()})


def test_what_a_search_may_try_of_it(tiny_bert_folder: Path, tmp_path: Path) -> None:
    from ray import tune

    recipe = recipe_of(tiny_bert_folder, tmp_path)
    check_space({"distillation.weight": tune.uniform(0, 1), "distillation.temperature": tune.choice([1, 4])}, recipe)
    with pytest.raises(RecipeError, match=r"not distillation\.teacher; run one search for each"):
        check_space({"distillation.teacher": tune.choice(["a", "b"])}, recipe)
    with pytest.raises(RecipeError, match=r"distillation\.weight is searched without a teacher"):
        check_space({"distillation.weight": tune.uniform(0, 1)}, recipe.override({"distillation": {}}))
    with pytest.raises(RecipeError, match=r"distillation\.weight"):
        check_space({"distillation.weight": tune.choice([0.5, 2])}, recipe)


def test_a_recipe_without_a_teacher_says_nothing_of_one() -> None:
    """So that the folders of earlier runs are still their recipes'."""
    assert "distillation" not in Recipe().model_dump()
    told = Recipe().override({"distillation.teacher": "large", "distillation.weight": 0.3})
    assert Recipe.model_validate_json(told.model_dump_json()) == told
    assert told.distillation.temperature == 2


def test_soft_targets_lie_end_to_end() -> None:
    rows = [np.full((count, 2), count, np.float32) for count in (3, 1, 0, 2)]
    soft = SoftTargets.of(rows)
    assert len(soft) == 4
    for mine, row in zip(soft, rows, strict=True):
        np.testing.assert_array_equal(mine, row)
