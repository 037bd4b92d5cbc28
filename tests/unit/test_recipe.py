"""The recipe: what it accepts, and what it says when it does not."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import yaml

from ray_lora import errors
from ray_lora.errors import RayLoraError, RecipeError, did_you_mean
from ray_lora.recipe import Recipe, TaskSpec, check_key
from ray_lora.tasks.image_classification import ImageClassificationSpec
from ray_lora.tasks.text_classification import TextClassificationSpec

DESIGN = """
name: tweets
base: {model: minilm}
task: {type: text-classification, labels: [negative, positive]}
data:
  train: data/tweets/train.parquet
  validation: data/tweets/validation.parquet
  columns: {text: text, label: label}
lora: {r: 8, lora_alpha: 16, lora_dropout: 0.0, target_modules: all-linear}
training: {num_train_epochs: 2, learning_rate: 1.0e-3, per_device_train_batch_size: 16, seed: 0}
search:
  space: {lora.r: {grid_search: [2, 4, 8, 16]}, training.learning_rate: {loguniform: [1.0e-4, 1.0e-2]}}
  num_samples: 4
  metric: accuracy
  mode: max
scaling: {num_workers: 1, use_gpu: false}
tracking: {uri: sqlite:///mlflow.db, experiment: tweets}
store: ./store
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(DESIGN)
    return path


def test_the_recipe_of_the_docs_loads(path: Path) -> None:
    recipe = Recipe.load(path)
    assert recipe.task.labels == ("negative", "positive")
    assert recipe.search.space["training.learning_rate"] == {"loguniform": [1e-4, 1e-2]}


def test_every_key_has_a_default() -> None:
    assert Recipe.parse({}) == Recipe()


def test_round_trip(path: Path) -> None:
    recipe = Recipe.load(path)
    assert Recipe.parse(recipe.model_dump()) == recipe
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    assert Recipe.load(path) == recipe
    assert pickle.loads(pickle.dumps(recipe)) == recipe


def test_overrides_win_and_are_typed(path: Path) -> None:
    given = ["lora.r=4", "training.learning_rate=3e-4", "task.labels=[a, b]", "tracking.uri=null", "name=other"]
    recipe = Recipe.load(path, given)
    assert recipe.lora.r == 4
    assert recipe.training.learning_rate == 3e-4
    assert recipe.task.labels == ("a", "b")
    assert recipe.tracking.uri is None
    assert recipe.name == "other"


def test_override_of_a_recipe_leaves_it_as_it_was() -> None:
    recipe = Recipe()
    before = copy.deepcopy(recipe)
    assert recipe.override({"lora.r": 2, "data.columns": {"text": "t"}}).lora.r == 2
    assert recipe == before


@pytest.mark.parametrize("text", ["1e-3", "1.0e-3", "0.001", "1E-3", "+1e-3"])
def test_rates_are_numbers_however_they_are_written(path: Path, text: str) -> None:
    assert Recipe.load(path, [f"training.learning_rate={text}"]).training.learning_rate == 1e-3
    path.write_text(f"training: {{learning_rate: {text}}}\n")
    assert Recipe.load(path).training.learning_rate == 1e-3


@pytest.mark.parametrize("text", ["1e", "e3", "1e-3x", "v1e3"])
def test_words_that_look_like_numbers_stay_words(path: Path, text: str) -> None:
    path.write_text(f"name: {text}\n")
    if text[0].isdigit() or text[0].isalpha():
        assert Recipe.load(path).name == text


WRONG: list[tuple[dict[str, Any], list[str]]] = [
    ({"loraa": {}}, ["loraa", "did you mean 'lora'"]),
    ({"lora": {"rank": 3}}, ["lora.rank"]),
    ({"lora": {"lora_alfa": 3}}, ["lora.lora_alfa", "did you mean 'lora.lora_alpha'"]),
    ({"training": {"learning_rat": 1}}, ["training.learning_rat", "did you mean 'training.learning_rate'"]),
    ({"lora": {"r": 0}}, ["lora.r", "greater than or equal to 1", "given: 0"]),
    ({"lora": {"r": 2.5}}, ["lora.r", "given: 2.5"]),
    ({"lora": {"rank_pattern": {"query": 0}}}, ["rank_pattern['query'] is 0"]),
    ({"training": {"learning_rate": -1}}, ["training.learning_rate", "greater than 0"]),
    ({"training": {"per_device_train_batch_size": 0}}, ["per_device_train_batch_size"]),
    ({"training": {"lr_scheduler_type": "linaer"}}, ["lr_scheduler_type", "'linear'", "linaer"]),
    ({"task": {"labels": ["a"]}}, ["at least two different"]),
    ({"task": {"labels": ["a", "a"]}}, ["at least two different"]),
    ({"task": {"type": "telepathy"}}, ["task.type", "text-classification"]),
    ({"name": "../up"}, ["name"]),
    ({"search": {"space": {"lora.rr": {"choice": [1]}}}}, ["lora.rr", "did you mean"]),
    ({"lora": 3}, ["lora"]),
]


@pytest.mark.parametrize(("tree", "said"), WRONG, ids=[json.dumps(tree) for tree, _ in WRONG])
def test_wrong_values_are_named(tree: dict[str, Any], said: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.parse(tree)
    for words in said:
        assert words in str(caught.value)


def test_all_problems_are_named_at_once() -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.parse({"lora": {"r": 0}, "training": {"seed": -1}})
    assert len(str(caught.value).splitlines()) == 2


FILES = [
    ("{a: [1", "not valid YAML"),
    ("- 1\n- 2\n", "holds a list"),
    ("just words", "holds a str"),
    ("lora: {r: .nan}", "lora.r"),
    ("training: {learning_rate: 1e999}", "not a finite number"),
    (
        "name: a\nlora: {r: 2}\nname: b\n",
        "line 3(.|\n)*'name' stands in line 1 too|'name' stands in line 1 too(.|\n)*line 3",
    ),
    ("training:\n  seed: 1\n  seed: 1\n", "'seed' stands in line 2 too"),
    ("name: " + "[" * 5000 + "]" * 5000, "deeper than 50 levels"),
    ("name: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
    ("a: 1\n---\nb: 2\n", "expected a single document"),
]


@pytest.mark.parametrize(("text", "said"), FILES)
def test_broken_files_are_named(path: Path, text: str, said: str) -> None:
    path.write_text(text)
    with pytest.raises(RecipeError, match=said):
        Recipe.load(path)


def test_a_short_text_of_many_aliases_is_a_short_error(path: Path) -> None:
    lines = ["a: &a [" + ", ".join(["x"] * 9) + "]"]
    lines += [
        f"{this}: &{this} [{', '.join([f'*{last}'] * 9)}]" for last, this in zip("abcdefgh", "bcdefghi", strict=True)
    ]
    path.write_text("\n".join([*lines, "name: *i", "store: *i"]))
    with pytest.raises(RecipeError, match="name") as caught:
        Recipe.load(path)
    assert len(str(caught.value)) < 3000


def test_a_merged_mapping_may_be_overridden(path: Path) -> None:
    path.write_text("lora: &usual {r: 4, lora_alpha: 8}\nname: x\n")
    assert Recipe.load(path).lora.r == 4
    path.write_text("training: {<<: {seed: 3, warmup_steps: 0.1}, seed: 5}\n")
    assert (Recipe.load(path).training.seed, Recipe.load(path).training.warmup_steps) == (5, 0.1)


def test_missing_file_and_binary_file(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="does not exist"):
        Recipe.load(tmp_path / "no.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(RecipeError, match="cannot be read"):
        Recipe.load(tmp_path / "binary.yaml")
    with pytest.raises(RecipeError, match="cannot be read"):
        Recipe.load(tmp_path)


def test_empty_file_is_all_defaults(path: Path) -> None:
    path.write_text("# nothing yet\n")
    assert Recipe.load(path) == Recipe()


@pytest.mark.parametrize(
    ("override", "said"),
    [("lora.r", "has no '='"), ("lora.rnk=3", "lora.rnk"), ("lora.r.x=3", "plain value"), ("lora.r=two", "lora.r")],
)
def test_wrong_overrides_are_named(path: Path, override: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        Recipe.load(path, [override])


@pytest.mark.parametrize("override", ["lora.r=[", "name={", "lora.r=: :"])
def test_an_override_that_is_not_yaml_is_a_recipe_error(path: Path, override: str) -> None:
    with pytest.raises(RecipeError):
        Recipe.load(path, [override])


def test_keys_of_free_mappings_are_not_checked() -> None:
    check_key("data.columns.text")
    check_key("lora.rank_pattern.query")


def test_schema_names_every_section() -> None:
    schema = Recipe.model_json_schema()
    assert set(schema["properties"]) == set(Recipe.model_fields)
    assert schema["additionalProperties"] is False
    json.dumps(schema)


def test_schema_of_the_task_is_one_of_the_tasks() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(Recipe.model_json_schema())
    for task, right in [
        ({"labels": ["a", "b"]}, True),
        ({"type": "text-classification", "max_length": 8}, True),
        ({"type": "image-classification", "labels": ["a", "b"]}, True),
        ({"type": "shop.tasks:Shelf", "shelves": 3}, True),
        ({"type": "image-classification", "max_length": 8}, False),
        ({"type": "telepathy"}, False),
        ({"max_lenght": 8}, False),
    ]:
        assert validator.is_valid({"task": task}) == right, task


def test_the_options_of_a_task_are_its_own() -> None:
    assert Recipe().task == TextClassificationSpec()
    assert Recipe.parse({"task": {"type": "image-classification"}}).task == ImageClassificationSpec()
    with pytest.raises(RecipeError, match=r"'task\.max_length' is not a key of the recipe"):
        Recipe.parse({"task": {"type": "image-classification", "max_length": 8}})
    with pytest.raises(RecipeError, match="did you mean 'image-classification'"):
        Recipe.parse({"task": {"type": "images-classification"}})
    with pytest.raises(TypeError, match="abstract"):
        TaskSpec(type="text-classification")  # type: ignore[abstract]


def test_overrides_are_keys_of_the_task_that_they_choose(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("task: {labels: [a, b]}\n")
    for order in (["task.type=image-classification", "task.labels=[x, y]"], ["task.labels=[x, y]"]):
        task = Recipe.load(tmp_path / "a.yaml", [*order, "task.type=image-classification"]).task
        assert task == ImageClassificationSpec(labels=("x", "y"))
    with pytest.raises(RecipeError, match=r"'task\.max_length' is not a key"):
        Recipe.load(tmp_path / "a.yaml", ["task.max_length=8", "task.type=image-classification"])
    assert Recipe.load(tmp_path / "a.yaml", ["task.max_length=64"]).task.max_length == 64  # type: ignore[attr-defined]
    with pytest.raises(RecipeError, match=r"did you mean 'task\.max_length'"):
        Recipe.load(tmp_path / "a.yaml", ["task.max_lenght=64"])


def leaves(kind: type[RayLoraError]) -> list[type[RayLoraError]]:
    return [leaf for child in kind.__subclasses__() for leaf in [child, *leaves(child)]]


@pytest.mark.parametrize("kind", [RayLoraError, *leaves(RayLoraError)], ids=lambda kind: kind.__name__)
def test_errors_pickle_and_are_standard_errors(kind: type[RayLoraError]) -> None:
    error = pickle.loads(pickle.dumps(kind("what was given; what is allowed")))
    assert type(error) is kind
    assert str(error) == "what was given; what is allowed"
    standard = (ValueError, LookupError, RuntimeError, OSError)
    assert kind is RayLoraError or issubclass(kind, standard)


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    for name, kind in vars(errors).items():
        if isinstance(kind, type) and issubclass(kind, RayLoraError):
            assert name in (errors.__doc__ or "")


def test_did_you_mean() -> None:
    assert did_you_mean("twets", ["tweets", "movies"]) == "; did you mean 'tweets'?"
    assert did_you_mean("zzz", ["tweets"]) == ""
