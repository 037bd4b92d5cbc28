"""Text classification of pairs, of several labels, of numbers: as transformers' own pipeline, alone and mixed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
import transformers
from sklearn.utils.class_weight import compute_class_weight
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, pipeline

from ray_lora.adapters.adapter import Adapter, Card
from ray_lora.bases.plain import HeadSpec
from ray_lora.bases.segments import segments_of
from ray_lora.data.check import check_table, learn
from ray_lora.data.read import canonical, read, read_inputs, roles
from ray_lora.engine import AdapterEngine, backbone
from ray_lora.errors import DataError, RecipeError
from ray_lora.inference.predict import passes, predict
from ray_lora.inference.stored import alone
from ray_lora.recipe import DataSpec, LoraSpec, Recipe, TaskSpec
from ray_lora.running.sources import check_tables, read_tables
from ray_lora.tasks import Row, Task, build_task, plain_spec, row_of, task_of
from ray_lora.tasks.text_classification import TextClassificationSpec
from tests.conftest import WORDS, sentences
from tests.unit.bases import open_base, plain, quiet_peft, reopen

LABELS = ("no", "perhaps", "yes")
SPECS = {
    "single": TextClassificationSpec(labels=LABELS),
    "multi": TextClassificationSpec(labels=LABELS, problem_type="multi_label_classification"),
    "number": TextClassificationSpec(problem_type="regression"),
}
KINDS = ("bert", "roberta", "roberta of one type", "distilbert")


def save(kind: str, folder: Path) -> Path:
    """A random base of two layers, and a tokenizer of `WORDS` that joins two texts."""
    vocabulary = {word: at for at, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep")}
    names = ["input_ids", "token_type_ids", "attention_mask"]  # also where the class has no place for them
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=40, model_input_names=names, **special)
    tokenizer.save_pretrained(folder)
    size = {"vocab_size": len(vocabulary), "pad_token_id": 0}
    encoder = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    if kind == "bert":
        config: Any = transformers.BertConfig(**size, **encoder, max_position_embeddings=40)
    elif kind == "distilbert":
        config = transformers.DistilBertConfig(
            **size, dim=32, hidden_dim=64, n_layers=2, n_heads=4, max_position_embeddings=40
        )
    else:
        types = 1 if kind.endswith("one type") else 2
        config = transformers.RobertaConfig(**size, **encoder, max_position_embeddings=41, type_vocab_size=types)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModel.from_config(config)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.data.normal_(0, parameter[0].numel() ** -0.5)
        model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    return {kind: save(kind, root / kind) for kind in KINDS}


@pytest.fixture
def engine(bases: dict[str, Path]) -> Iterator[AdapterEngine]:
    engine = AdapterEngine(open_base(bases["bert"]), slots=3)
    yield engine
    engine.close()


def some_adapter(engine: AdapterEngine, task: Task, seed: int = 1) -> int:
    targets = tuple(name for name, layer in engine.layers.items() if not layer.embedding)[:4]
    slot = engine.init(LoraSpec(r=2, target_modules=targets), task.head, seed=seed, peft_type="SEQ_CLS")
    draw = torch.Generator().manual_seed(seed)
    engine.write(slot, {key: torch.randn(v.shape, generator=draw) * 0.3 for key, v in engine.read(slot).items()})
    engine.refresh([slot])
    return slot


def asked(count: int = 9) -> list[Row]:
    """Every other row of two texts, of unlike lengths."""
    firsts, seconds = sentences(count, seed=3), sentences(count, seed=4)
    return [
        {"text": one} | ({"text_pair": two} if at % 2 else {})
        for at, (one, two) in enumerate(zip(firsts, seconds, strict=True))
    ]


def theirs(engine: AdapterEngine, slot: int, task: Task, folder: Path, types: bool) -> Any:
    """transformers' pipeline of the merged model."""
    engine.export(slot).save(folder)
    with quiet_peft():
        model = reopen(engine.base.folder, folder, task.head.num_labels).merge_and_unload().eval()
    model.config.problem_type = task.spec.problem_type  # type: ignore[attr-defined]
    model.config.id2label = dict(enumerate(task.labels))  # type: ignore[attr-defined]
    tokenizer = transformers.AutoTokenizer.from_pretrained(engine.base.folder)
    if not types:
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
    return pipeline("text-classification", model=model, tokenizer=tokenizer)


# -------------------------------------------------------------------- pairs


@pytest.mark.parametrize("joined", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_one_and_of_two_texts_share_a_pass_and_are_those_of_the_pipeline(
    bases: dict[str, Path], kind: str, joined: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_LORA_CACHE", str(tmp_path / "cache"))  # what was found of the base is not remembered
    if not joined:
        monkeypatch.setattr(backbone, "can_join", lambda base: False)
    engine = AdapterEngine(open_base(bases[kind]), slots=2)
    task = build_task(SPECS["single"], engine.base.processor)
    slots = [some_adapter(engine, task, seed) for seed in (1, 2)]
    rows = asked()
    features = task.encode(rows)
    owners = [slots[at // 2 % 2] for at in range(len(rows))]
    tasks = dict.fromkeys(slots, task)
    assert (engine.sharing_of(slots[0]).lengths == "joined") == joined
    assert min(map(len, passes(engine, tasks, features, owners))) > 1
    typed = kind in ("bert", "roberta")
    assert [("token_type_ids" in row) for row in features] == [typed and "text_pair" in row for row in rows]
    whole = {"top_k": 3, "function_to_apply": "none"}
    answers = predict(engine, tasks, features, owners, [whole] * len(rows))
    for number, slot in enumerate(slots):
        pipe = theirs(engine, slot, task, tmp_path / str(number), typed)
        for row, owner, answer in zip(rows, owners, answers, strict=True):
            if owner == slot:
                wanted = {item["label"]: item["score"] for item in pipe(dict(row), **whole)}
                assert {item["label"]: item["score"] for item in answer} == pytest.approx(wanted, abs=2e-5)
    engine.close()


def test_the_second_text_and_its_type_matter(engine: AdapterEngine) -> None:
    task = build_task(SPECS["single"], engine.base.processor)
    slot = some_adapter(engine, task)
    features = task.encode([{"text": "the film", "text_pair": "a book"}, {"text": "a book", "text_pair": "the film"}])
    untyped = [{"input_ids": row["input_ids"]} for row in features]
    answers = [predict(engine, {slot: task}, given, [slot] * 2) for given in (features, untyped)]
    assert len({round(answer["score"], 5) for both in answers for answer in both}) == 4


def test_long_texts_are_cut_as_the_pipeline_cuts_them_and_counted(engine: AdapterEngine, tmp_path: Path) -> None:
    task = build_task(SPECS["single"].model_copy(update={"max_length": 16}), engine.base.processor)
    slot = some_adapter(engine, task)
    long = " ".join(sentences(400, seed=5))
    rows: list[Row] = [
        {"text": long[:100_000]},
        {"text": "x" * 100_000},
        {"text": "the film", "text_pair": long},
        {"text": long, "text_pair": "the film"},
        {"text": long, "text_pair": long},
        {"text": "the film was", "text_pair": "a book"},
    ]
    features = task.encode(rows)
    assert [row.get("cut") is not None for row in features] == [True, False, True, True, True, False]
    pipe = theirs(engine, slot, task, tmp_path / "a", types=True)
    for row, answer in zip(rows, predict(engine, {slot: task}, features, [slot] * len(rows)), strict=True):
        wanted = pipe(dict(row), truncation=True, max_length=16)
        assert (answer["label"], answer["score"]) == (wanted["label"], pytest.approx(wanted["score"], abs=1e-5))


def test_pairs_that_a_base_cannot_read_are_refused(bases: dict[str, Path], engine: AdapterEngine) -> None:
    pair = {"text": "the film", "text_pair": "a book"}
    task = build_task(SPECS["single"].model_copy(update={"max_length": 4}), engine.base.processor)
    with pytest.raises(DataError, match="two texts need 5 tokens or more, and rows are cut at 4"):
        task.encode([pair])
    processor = open_base(bases["bert"]).processor
    processor.segments = None  # as of XLNet
    with pytest.raises(DataError, match="token_type_ids of a kind that was not compared"):
        build_task(SPECS["single"], processor).encode([pair])
    for value, said in ((None, "text_pair None"), (" ", "text_pair ' '"), (["a"], r"text_pair \['a'\]")):
        with pytest.raises(DataError, match=said):
            build_task(SPECS["single"], engine.base.processor).encode([{"text": "a", "text_pair": value}])


def test_a_request_has_one_text_or_two(engine: AdapterEngine) -> None:
    task = build_task(SPECS["single"], engine.base.processor)
    assert row_of(task, "a") == row_of(task, {"text": "a", "id": 7}) == {"text": "a"}
    pair = {"text": "a", "text_pair": "b"}
    assert row_of(task, pair | {"label": "no"}) == pair
    with pytest.raises(RecipeError, match="'textpair' is no column of this task; did you mean 'text_pair'"):
        row_of(task, {"text": "a", "textpair": "b"})
    with pytest.raises(RecipeError, match="has no 'text'"):
        row_of(task, {"text_pair": "b"})


def test_a_file_has_the_second_column_for_all_rows_or_for_none(tmp_path: Path) -> None:
    columns = task_of(SPECS["single"]).columns

    def table(text: str, name: str = "rows.csv", **mapped: str) -> pa.Table:
        (tmp_path / name).write_text(text)
        data, path = DataSpec(columns=mapped), str(tmp_path / name)
        found = canonical(read(path, roles(data, columns)), data, columns, "rows")
        check_table(task_of(SPECS["single"]), SPECS["single"], found, "rows")
        return found

    assert table("text,label\na,no\n").column_names == ["text", "label"]
    assert table("text,label,text_pair\na,no,007\n").column("text_pair").to_pylist() == ["007"]
    assert table("text,label,other\na,no,b\n", text_pair="other").column("text_pair").to_pylist() == ["b"]
    with pytest.raises(DataError, match="rows has no column 'second'"):
        table("text,label\na,no\n", text_pair="second")
    with pytest.raises(DataError, match="rows, row 2: text_pair '' is empty"):
        table("text,label,text_pair\na,no,b\na,no,\n")
    with pytest.raises(DataError, match="rows: 'textpair' is no column of this task; did you mean 'text_pair'"):
        table("text,label,textpair\na,no,b\n")
    lines = '{"text": "a", "label": "no", "text_pair": "b"}\n{"text": "a", "label": "no"}\n'
    with pytest.raises(DataError, match="rows, row 2: column 'text_pair' is empty; fill it"):
        table(lines, "rows.jsonl")
    (tmp_path / "inputs.csv").write_text("text_pair,text,label\nb,a,no\n")
    assert read_inputs(str(tmp_path / "inputs.csv"), columns) == [{"text": "a", "text_pair": "b"}]


def test_rows_that_train_and_rows_that_score_are_alike(tmp_path: Path) -> None:
    (tmp_path / "one.csv").write_text("text,label\na,no\nb,yes\n")
    (tmp_path / "two.csv").write_text("text,label,text_pair\na,no,c\nb,yes,d\n")
    for train, validation in (("one", "two"), ("two", "one")):
        data = {"train": str(tmp_path / f"{train}.csv"), "validation": str(tmp_path / f"{validation}.csv")}
        with pytest.raises(DataError, match=r"one\.csv has no column 'text_pair', which .*two\.csv has"):
            read_tables(Recipe.model_validate({"data": data}), None)


# -------------------------------------------------------------------- several labels, and numbers


@pytest.mark.parametrize("parameters", [{}, {"top_k": 1}, {"top_k": 2}, {"top_k": 9}, {"function_to_apply": "none"}])
@pytest.mark.parametrize("problem", SPECS)
def test_answers_are_those_of_the_pipeline(
    engine: AdapterEngine, problem: str, parameters: dict[str, Any], tmp_path: Path
) -> None:
    task, rows = build_task(SPECS[problem], engine.base.processor), asked(6)
    slot = some_adapter(engine, task)
    ours = predict(engine, {slot: task}, task.encode(rows), [slot] * len(rows), [parameters] * len(rows))
    pipe = theirs(engine, slot, task, tmp_path / "a", types=True)
    for row, mine in zip(rows, ours, strict=True):
        other = pipe(dict(row), **parameters)
        assert isinstance(mine, list) == isinstance(other, list) == ("top_k" in parameters)
        mine, other = (found if isinstance(found, list) else [found] for found in (mine, other))
        assert [item["label"] for item in mine] == [item["label"] for item in other]
        assert [item["score"] for item in mine] == pytest.approx([item["score"] for item in other], abs=1e-5)
    everything = {
        item["label"]: item["score"]
        for item in predict(engine, {slot: task}, task.encode(rows[:1]), [slot], [task.full])[0]
    }
    assert everything == pytest.approx(
        {item["label"]: item["score"] for item in pipe(dict(rows[0]), top_k=None)}, abs=1e-5
    )


def test_problems_of_all_kinds_share_a_pass(engine: AdapterEngine) -> None:
    tasks: dict[int, Task] = {}
    engine.reserve_head(HeadSpec("AutoModelForSequenceClassification", 3))
    for seed, spec in enumerate(SPECS.values()):
        task = build_task(spec, engine.base.processor)
        tasks[some_adapter(engine, task, seed)] = task
    owners = [list(tasks)[row % 3] for row in range(9)]
    features = [tasks[slot].encode([row])[0] for slot, row in zip(owners, asked(), strict=True)]
    assert len(passes(engine, tasks, features, owners)) == 1
    mixed = predict(engine, tasks, features, owners)
    for row, slot in enumerate(owners):
        [single] = predict(engine, tasks, [features[row]], [slot])
        assert mixed[row]["label"] == single["label"]
        assert mixed[row]["score"] == pytest.approx(single["score"], abs=1e-5)


@pytest.mark.parametrize("problem", SPECS)
def test_the_loss_is_that_of_the_plain_class(engine: AdapterEngine, problem: str, bases: dict[str, Path]) -> None:
    task = build_task(SPECS[problem], engine.base.processor)
    held: dict[str, list[Any]] = {
        "single": ["no", "yes", "yes"],
        "multi": [["no", "yes"], [], ["perhaps"]],
        "number": [0.5, -2, 3.25],
    }
    rows = [{"text": text, "label": label} for text, label in zip(sentences(3), held[problem], strict=True)]
    features = task.encode(rows)
    model = plain(bases["bert"], task.head.num_labels)
    model.config.problem_type = task.spec.problem_type  # type: ignore[attr-defined]
    targets = {
        "single": torch.tensor([0, 2, 2]),
        "multi": torch.tensor([[1.0, 0, 1], [0, 0, 0], [0, 1, 0]]),
        "number": torch.tensor([0.5, -2, 3.25]),
    }
    with torch.no_grad():
        outputs = model(**task.collate(features), labels=targets[problem])
    sums, counts = task.loss(outputs, features)
    assert (sums.sum() / counts.sum()).item() == pytest.approx(outputs.loss.item(), abs=1e-6)


def test_scores_of_several_labels(engine: AdapterEngine) -> None:
    task = build_task(SPECS["multi"], engine.base.processor)
    held = [["no", "yes"], ["no"], []]
    features = task.encode([{"text": "a", "label": labels} for labels in held])
    said = [["no"], ["no"], []]
    answers = [[{"label": label, "score": 0.5 if label in found else 0.49} for label in LABELS] for found in said]
    assert task.score(answers, features) == pytest.approx({"f1_macro": 1 / 3, "f1_micro": 0.8, "accuracy": 2 / 3})
    assert set(task.figures(answers, features)) == {"f1"}


def test_scores_of_numbers(engine: AdapterEngine) -> None:
    task = build_task(SPECS["number"], engine.base.processor)
    features = task.encode([{"text": "a", "label": label} for label in (1, 2.0, "3", 4)])
    answers = [{"label": "LABEL_0", "score": score} for score in (1.5, 1.5, 3.0, 4.5)]
    wanted = float(np.corrcoef([1, 2, 3, 4], [1.5, 1.5, 3.0, 4.5])[0, 1])
    assert task.score(answers, features) == pytest.approx({"mse": 0.1875, "mae": 0.375, "pearson": wanted})
    same = [{"label": "LABEL_0", "score": 2.0}] * 4
    assert task.score(same, features)["pearson"] == 0.0
    assert task.score(answers[:1], features[:1])["pearson"] == 0.0


RIGHT = {
    "single": {"text": ["a", "b"], "label": ["no", "yes"]},
    "multi": {"text": ["a", "b"], "label": [["no"], ["yes", "no"]]},
    "number": {"text": ["a", "b"], "label": [1, 2.5]},
}


@pytest.mark.parametrize(
    ("problem", "name", "value", "said"),
    [
        ("multi", "rows.csv", "no|yess", "label 'yess' is not one of 'no', 'perhaps', 'yes'; did you mean 'yes'?"),
        ("multi", "rows.csv", "", "labels '' hold an empty one"),
        ("multi", "rows.csv", "no||yes", "labels 'no||yes' hold an empty one"),
        ("multi", "rows.csv", "no | yes", "label 'no ' of 'no | yes' has blanks around it; write a|b"),
        ("multi", "rows.csv", "no|no", "label 'no' comes twice"),
        ("multi", "rows.csv", "0|1", "label '0' is not one of 'no', 'perhaps', 'yes'"),
        ("multi", "rows.jsonl", ["no", "maybe"], "label 'maybe' is not one of"),
        ("multi", "rows.jsonl", ["no", ""], "label '' is blank"),
        ("multi", "rows.parquet", ["no", None], "the label is empty"),
        ("number", "rows.csv", "much", "label 'much' is no finite number; write one, such as 3.5"),
        ("number", "rows.csv", "1_0", "label '1_0' is no finite number"),
        ("number", "rows.csv", "inf", "label inf is no finite number"),
        ("number", "rows.parquet", float("nan"), "label nan is no finite number"),
        ("number", "rows.jsonl", None, "column 'label' is empty"),
    ],
)
def test_labels_that_do_not_fit_are_refused_by_file_and_row(
    problem: str, name: str, value: Any, said: str, tmp_path: Path
) -> None:
    spec, path = SPECS[problem], tmp_path / name
    task = task_of(spec)

    def check(labels: Sequence[Any]) -> None:
        if name.endswith("csv"):
            written = ["|".join(label) if isinstance(label, list) else str(label) for label in labels]
            path.write_text("text,label\n" + "".join(f'a,"{label}"\n' for label in written))
        elif name.endswith("jsonl"):
            path.write_text("".join(json.dumps({"text": "a", "label": label}) + "\n" for label in labels))
        else:
            pa.parquet.write_table(pa.table({"text": ["a"] * len(labels), "label": list(labels)}), path)
        table = canonical(read(str(path), roles(DataSpec(), task.columns)), DataSpec(), task.columns, str(path))
        check_table(task, spec, table, str(path))

    right: list[Any] = RIGHT[problem]["label"]
    check(right)
    with pytest.raises(DataError) as caught:
        check([*right, value])
    [line] = str(caught.value).splitlines()
    assert line.startswith(f"{path}, row 3: ")
    assert said in line


def test_labels_that_could_be_several_are_refused_unless_they_are_listed() -> None:
    table = pa.table({"text": ["a", "b"], "label": ["no, yes", "no|yes"]})
    spec = TextClassificationSpec(problem_type="multi_label_classification")
    task = task_of(spec)
    learned = learn(task, spec, [table])
    assert learned.labels == ("no", "yes")  # type: ignore[attr-defined]
    with pytest.raises(DataError, match="row 1: label 'no, yes' could be several; write"):
        check_table(task, learned, table, "rows")
    listed = spec.model_copy(update={"labels": ("no", "no, yes", "yes")})
    check_table(task, listed, table, "rows")
    with pytest.raises(DataError, match=r"row 1: labels 7 are a int; give a list of labels"):
        learn(task, spec, [pa.table({"text": ["a"], "label": [7]})])


# -------------------------------------------------------------------- weights


def test_balanced_weights_are_those_of_scikit_learn_over_all_blocks() -> None:
    words = ["b", "a", "a", "c", "a", "b", "a"]
    table = pa.table({"text": ["x"] * len(words), "label": words})
    blocks = [table.slice(0, 2), table.slice(2, 4), table.slice(6)]
    wanted = compute_class_weight("balanced", classes=np.array(["a", "b", "c"]), y=words)
    for spec, given in (
        (TextClassificationSpec(class_weights="balanced"), blocks),
        (TextClassificationSpec(class_weights="balanced"), [table]),
        (TextClassificationSpec(class_weights="balanced", labels=("a", "b", "c")), blocks),
    ):
        found: Any = learn(task_of(spec), spec, given)
        assert list(found.class_weights) == ["a", "b", "c"]
        assert list(found.class_weights.values()) == pytest.approx(wanted.tolist(), abs=1e-12)
        assert TaskSpec.recall(json.loads(json.dumps(found.recorded()))) == found
    indices = pa.table({"text": ["x"] * 3, "label": [0, 1, 1]})
    spec = TextClassificationSpec(class_weights="balanced", labels=("a", "b"))
    assert learn(task_of(spec), spec, [indices]).class_weights == {"a": 1.5, "b": 0.75}  # type: ignore[attr-defined]


def test_the_weighted_loss_is_torch_s(engine: AdapterEngine) -> None:
    spec = TextClassificationSpec(labels=LABELS, class_weights={"yes": 4, "no": 0.25})
    task = build_task(spec, engine.base.processor)
    features = task.encode([{"text": "a", "label": LABELS[row % 3]} for row in range(5)])
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    sums, counts = task.loss(transformers.modeling_outputs.SequenceClassifierOutput(logits=logits), features)
    plain_loss = torch.nn.CrossEntropyLoss(weight=torch.tensor([0.25, 1, 4]))
    wanted = plain_loss(logits, torch.tensor([0, 1, 2, 0, 1]))
    assert (sums.sum() / counts.sum()).item() == pytest.approx(wanted.item(), abs=1e-6)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"class_weights": {"no": 0}}, r"the weight of 'no' is 0; give a finite number above 0"),
        ({"class_weights": {"no": -1.5}}, r"the weight of 'no' is -1\.5"),
        ({"class_weights": {"no": True}}, r"the weight of 'no' is True"),
        ({"class_weights": {1: 2}}, r"1 is read as a int; quote it"),
        ({"class_weights": "balance"}, r"'balance' is no kind of weights; write balanced"),
        ({"class_weights": {"yess": 2}, "labels": LABELS}, r"names 'yess', which is not one of .*did you mean 'yes'"),
        ({"class_weights": "balanced", "problem_type": "regression"}, r"regression has none; leave them out"),
        ({"class_weights": {"no": 2}, "problem_type": "multi_label_classification"}, r"multi_label_.* has none"),
        ({"problem_type": "regression", "labels": LABELS}, r"regression predicts a number and has no labels"),
        ({"problem_type": "multilabel"}, r"single_label_classification"),
    ],
)
def test_options_that_do_not_fit_are_refused_by_name(options: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        Recipe.load("examples/tweets.yaml").override({"task": {"type": "text-classification", **options}})


def test_weights_are_compared_with_the_labels_that_the_rows_teach(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text,label\na,no\nb,yes\n")

    def taught(**options: Any) -> TaskSpec:
        recipe = Recipe.model_validate({"task": options, "data": {"train": str(tmp_path / "rows.csv")}})
        return check_tables(recipe, read_tables(recipe, None))

    with pytest.raises(
        RecipeError, match=r"task\.class_weights names 'yess', which is not one of 'no', 'yes'; did you"
    ):
        taught(class_weights={"yess": 2})
    with pytest.raises(DataError, match="label 'never' has no training row, so it has no balanced weight"):
        taught(class_weights="balanced", labels=["no", "yes", "never"])
    assert taught(class_weights="balanced").class_weights == {"no": 1, "yes": 1}  # type: ignore[attr-defined]
    with pytest.raises(RecipeError, match=r"task\.class_weights are not known"):
        build_task(TextClassificationSpec(labels=LABELS, class_weights="balanced"), object_with_a_tokenizer())


def object_with_a_tokenizer() -> Any:
    class Tokenizer:
        pad_token_id = 0

    return Tokenizer()


# -------------------------------------------------------------------- what is kept


def test_what_was_recorded_before_is_recorded_as_before() -> None:
    spec = TextClassificationSpec(labels=("a", "b"))
    assert spec.recorded() == {"type": "text-classification", "labels": ["a", "b"], "max_length": 128}
    assert "problem_type" not in Card(task=spec).model_dump_json()
    weighed = TextClassificationSpec(labels=("a", "b"), class_weights={"a": 2})
    assert weighed.recorded() == spec.recorded() | {"class_weights": {"a": 2.0}}
    assert hash(weighed) == hash(TextClassificationSpec(labels=("a", "b"), class_weights={"a": 2.0}))
    assert SPECS["number"].recorded()["problem_type"] == "regression"
    assert SPECS["number"].describe() == {"problem_type": "regression"}


def test_a_plain_folder_with_one_output_is_a_number(engine: AdapterEngine, tmp_path: Path) -> None:
    head = HeadSpec("AutoModelForSequenceClassification", 1)
    assert plain_spec(head, ("quality",)) == TextClassificationSpec(problem_type="regression", max_length=None)
    task = build_task(SPECS["number"], engine.base.processor)
    slot = some_adapter(engine, task)
    [wanted] = predict(engine, {slot: task}, task.encode([{"text": "the film"}]), [slot])
    engine.export(slot).save(tmp_path / "theirs")
    for path in (tmp_path / "theirs").iterdir():  # what plain PEFT does not write
        if path.name not in ("adapter_config.json", "adapter_model.safetensors"):
            path.unlink()
    told = json.loads((tmp_path / "theirs" / "adapter_config.json").read_text())
    told["base_model_name_or_path"] = str(engine.base.folder)
    (tmp_path / "theirs" / "adapter_config.json").write_text(json.dumps(told))
    single, at, known = alone(Adapter.load(tmp_path / "theirs"), "theirs", dtype="float32")
    [answer] = predict(single, {at: known}, known.encode([{"text": "the film"}]), [at])
    assert answer == {"label": "LABEL_0", "score": pytest.approx(wanted["score"], abs=1e-6)}
    single.close()


def test_token_types_are_told_where_it_is_known_what_they_do(bases: dict[str, Path]) -> None:
    found = {kind: open_base(folder).processor.segments for kind, folder in bases.items()}
    assert found == {"bert": 2, "roberta": 2, "roberta of one type": 1, "distilbert": 0}
    for config in (
        transformers.XLNetConfig(d_model=8, n_layer=1, n_head=2),
        transformers.GPT2Config(n_embd=8, n_head=2),
    ):
        with torch.device("meta"):
            assert segments_of(transformers.AutoModel.from_config(config), config) is None
