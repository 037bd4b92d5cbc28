"""Fields of cards, configs and requests are bounded in length and in letters; a message is short and on one line;
one bad version spoils no list, no other version of its name and no other adapter."""

from __future__ import annotations

import json
import os
import shutil
import string
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from ray_lora.adapters.adapter import Adapter
from ray_lora.adapters.card import CARD, Card
from ray_lora.adapters.peft_folder import CONFIG, WEIGHTS, LowRank
from ray_lora.bounds import LONGEST_NAME, LONGEST_PLACE, check_tree, named, short
from ray_lora.errors import AdapterError, DataError, RayLoraError, RecipeError
from ray_lora.expressions import check_quick
from ray_lora.recipe import LoraSpec, Recipe, TaskSpec
from ray_lora.serving.http import openai_bodies, schemas, sent_rows
from ray_lora.serving.http.faults import plain
from ray_lora.store import open_store
from ray_lora.store.known import pack, unpack
from ray_lora.store.traffic import parse_traffic
from ray_lora.tasks.labels import class_word


def fuzzed(examples: int) -> settings:
    """So many examples, always the same ones; `$FUZZ_EXAMPLES` others."""
    told = os.environ.get("FUZZ_EXAMPLES")
    return settings(
        max_examples=int(told or examples),
        derandomize=told is None,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


LONGEST = 700  # letters of a message about a card: the reasons, and around them what to do
BAD: list[Any] = [
    "x" * 10**6,
    "a\nb",
    "\x1b[31mred",
    "\x00",
    "\ud800",
    "\u202eevil",
    ["x"] * 10**5,
    [[[["deep"] * 3] * 3] * 3],
    {"a": {"b": {"c": {}}}},
    {"k" * 10**5: 1},
    10**400,
    -1,
    1e308,
    True,
    "",
    [],
    {},
]
FIELDS = [*Card.model_fields, "unknown", "task.type", "task.labels", "task.max_length", "metrics.f1", "merged.how"]
DEEP: Any = []
for _ in range(400):
    DEEP = [DEEP]
values = st.one_of(
    st.sampled_from([*BAD, DEEP]),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
        max_leaves=8,
    ),
)


def adapter() -> Adapter:
    card = Card(
        task=TaskSpec.model_validate({"labels": ["no", "yes"]}),
        base="tiny",
        base_fingerprint="f" * 64,
        metrics={"accuracy": 0.9},
    )
    return Adapter(LoraSpec(r=2), {"x.query": LowRank(torch.ones(2, 4), torch.ones(4, 2))}, {}, card)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    adapter().save(folder / "whole")
    return folder / "whole"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, made: Path) -> Iterator[Path]:
    """`good` 1, and `bad` 1 and 2, of which the second is to be spoilt; nothing waits for a folder to settle."""
    root = tmp_path_factory.mktemp("store")
    for place in ("good/1", "bad/1", "bad/2"):
        shutil.copytree(made, root / place)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_LORA_SETTLE_S", "0.0001")
        time.sleep(0.01)
        yield root


def put(tree: dict[str, Any], field: str, value: Any) -> dict[str, Any]:
    """The tree with one field, by its path, replaced."""
    first, _, rest = field.partition(".")
    held = tree.get(first)
    return {**tree, first: put(dict(held) if isinstance(held, dict) else {}, rest, value) if rest else value}


def check_message(error: BaseException, most: int = LONGEST) -> None:
    text = str(error)
    assert len(text) <= most, text[:200]
    assert all(letter.isprintable() for letter in text), ascii(text[:400])


@fuzzed(150)
@given(field=st.sampled_from(FIELDS), value=values)
@example(field="metrics.f1", value=10**400)
@example(field="base_fingerprint", value={"a": 1})
@example(field="task.labels", value=["\ud800", "b"])
@example(field="sha256", value=["x"])
def test_a_card_with_any_field_harms_nobody(root: Path, field: str, value: Any) -> None:
    spoilt = root / "bad/2" / CARD
    whole = spoilt.read_text()
    spoilt.write_text(json.dumps(put(json.loads(whole), field, value)))
    try:
        store = open_store(str(root))
        entries = store.list()
        assert {"good@1", "bad@1"} <= {entry.ref for entry in entries}
        for entry in entries:
            json.dumps([entry.name, entry.base, entry.metrics, entry.task and entry.task.describe()]).encode()
            assert entry.num_parameters < 2**63
        assert store.resolve("good").version == 1
        assert store.load("bad@1")[1].sha256 == store.load("good")[1].sha256
        assert store.resolve("bad").version in (1, 2)
        try:
            store.resolve("bad@2")
        except AdapterError as error:
            check_message(error)
    finally:
        spoilt.write_text(whole)


@fuzzed(100)
@given(field=st.sampled_from([*Card.model_fields, "num_parameters", "bytes", "unknown"]), value=values)
@example(field="metrics", value={"a": "x"})
@example(field="num_parameters", value=10**400)
def test_a_tag_of_mlflow_s_with_any_field_is_an_entry_or_an_error_of_ours(root: Path, field: str, value: Any) -> None:
    whole = json.loads(pack(open_store(str(root)).resolve("good")))
    try:
        entry = unpack("good", 1, json.dumps(put(whole, field, value)))
    except AdapterError as error:
        check_message(error)
    else:
        assert isinstance(entry.base, str | None)
        assert all(isinstance(score, float) for score in entry.metrics.values())
        assert 0 <= entry.num_parameters < 2**63


@pytest.mark.parametrize(
    ("field", "limit"),
    [
        ("base", LONGEST_PLACE),
        ("architecture", LONGEST_NAME),
        ("base_revision", LONGEST_NAME),
        ("base_fingerprint", 128),
        ("sha256", 128),
    ],
)
def test_names_on_cards_have_a_length_and_no_control_characters(field: str, limit: int) -> None:
    assert getattr(Card.model_validate({field: "x" * limit}), field) == "x" * limit
    for wrong in ("x" * (limit + 1), "a\nb", "a\x1bb", "\ud800"):
        with pytest.raises(ValueError, match=field):
            Card.model_validate({field: wrong})


def test_no_field_of_a_card_is_without_a_bound() -> None:
    """Each is refused where it holds the longest text that JSON's reader takes from a card's file."""
    for name in Card.model_fields:
        for value in ("x" * 10**6, {"x" * 10**6: 1}, ["x" * 10**6], {"a": "x" * 10**6}, {"a": ["x" * 10**6]}):
            with pytest.raises(ValueError, match=r"card|Card") as caught:
                Card.model_validate({name: value})
            assert name in str(caught.value)


CONFIGS = ["r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern", "exclude_modules", "modules_to_save"]
CONFIGS += ["base_model_name_or_path", "revision", "task_type", "peft_type", "auto_mapping", "layers_pattern", "other"]
CONFIGS += ["layers_to_transform", "init_lora_weights", "use_rslora", "bias"]


@fuzzed(150)
@given(field=st.sampled_from(CONFIGS), value=values)
@example(field="target_modules", value=["x"] * 10**5)
@example(field="modules_to_save", value=["y" * 10**6])
@example(field="base_model_name_or_path", value="z" * 10**6)
def test_a_config_with_any_field_is_an_adapter_or_a_short_error(
    made: Path, tmp_path_factory: pytest.TempPathFactory, field: str, value: Any
) -> None:
    folder = tmp_path_factory.mktemp("config")
    shutil.copytree(made, folder, dirs_exist_ok=True)
    (folder / CARD).unlink()
    (folder / CONFIG).write_text(json.dumps(put(json.loads((made / CONFIG).read_text()), field, value)))
    try:
        Adapter.load(folder)
    except AdapterError as error:
        check_message(error, LONGEST + len(str(folder)))
    shutil.rmtree(folder)


HEADERS: list[dict[str, Any]] = [
    {"x": {"dtype": "F32", "shape": [10**30], "data_offsets": [0, 4]}},
    {"x": {"dtype": "F32", "shape": [9] * 10**5, "data_offsets": [0, 4]}},
    {"x": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}},
    {"x": {"dtype": "F32", "shape": ["2"], "data_offsets": [0, 4]}},
    {"x": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}},
    {"x": {"dtype": "F32", "shape": 4, "data_offsets": [0, 4]}},
    {"x": {"shape": [10**6]}},
    {"x": []},
    {"x" * 10**6: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}},
]


@pytest.mark.parametrize("header", HEADERS, ids=[json.dumps(header)[:60] for header in HEADERS])
def test_a_header_that_lies_harms_nobody(root: Path, header: dict[str, Any]) -> None:
    file = root / "bad/2" / WEIGHTS
    whole = file.read_bytes()
    told = json.dumps(header).encode()
    file.write_bytes(len(told).to_bytes(8, "little") + told + b"\0" * 4)
    try:
        store = open_store(str(root))
        assert {"good@1", "bad@1"} <= {entry.ref for entry in store.list()}
        with pytest.raises(AdapterError) as caught:
            store.resolve("bad@2")
        check_message(caught.value)
        assert store.resolve("bad").version == 1
    finally:
        file.write_bytes(whole)


def test_aliases_and_traffic_that_others_wrote_harm_nobody(root: Path) -> None:
    for name, text in [
        ("aliases.json", json.dumps({"x" * 10**5: 1})),
        ("aliases.json", json.dumps({"a\nb": 1})),
        ("aliases.json", json.dumps({"champion": 10**400})),
        ("aliases.json", json.dumps({"champion": "1" * 10**5})),
        ("traffic.json", json.dumps({"split": {"1": 1}, "began": "x" * 10**5})),
        ("traffic.json", json.dumps({"split": {"1": "x" * 10**5}})),
        ("traffic.json", " " * (2 << 20)),
    ]:
        (root / "bad" / name).write_text(text)
        store = open_store(str(root))
        assert [entry.ref for entry in store.list() if entry.name == "good"] == ["good@1"]
        assert store.resolve("good").version == 1
        with pytest.raises(AdapterError, match=name) as caught:
            store.resolve("bad@1")
        check_message(caught.value)
        (root / "bad" / name).unlink()
    with pytest.raises(AdapterError):
        parse_traffic("[" * 10**5, "traffic.json")


def written(header: Any, data: bytes) -> bytes:
    told = json.dumps(header).encode()
    return len(told).to_bytes(8, "little") + told + data


def read_or_short(folder: Path) -> None:
    """The folder is an adapter, or a short error says why not."""
    try:
        Adapter.load(folder)
    except AdapterError as error:
        check_message(error, LONGEST + len(str(folder)))


KEYS_OF_TENSORS = ["base_model.model.x.query.lora_A.weight", "base_model.model.x.query.lora_B.weight"]
tensors = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "F16", "BF16", "F64", "I64", "BOOL", "F8_E4M3", "U8", "F4", "?", ""]) | values,
        "shape": st.lists(st.sampled_from([0, 1, 2, 4, 8, 2**32, 2**63, -1, 1.5, True, "2", None]), max_size=4)
        | values,
        "data_offsets": st.lists(st.sampled_from([0, 8, 16, 32, 64, 63, 2**40, -1, "0"]), max_size=3) | values,
        "more": st.none(),
    },
)
names_of_tensors = st.one_of(
    st.sampled_from(
        [*KEYS_OF_TENSORS, "__metadata__", "base_model.model.score.weight", "_orig_mod.x.lora_A.weight", ""]
    ),
    st.text(max_size=40),
    st.just("k" * 10**5),
)


@fuzzed(200)
@given(header=st.dictionaries(names_of_tensors, tensors | values, max_size=4), data=st.binary(max_size=80))
@example(
    header={f"k{number}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for number in range(70_000)}, data=b""
)
@example(header={"k" * 10**6: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, data=b"\0" * 4)
def test_a_weights_file_of_any_header_is_an_adapter_or_a_short_error(
    made: Path, tmp_path_factory: pytest.TempPathFactory, header: dict[str, Any], data: bytes
) -> None:
    folder = tmp_path_factory.mktemp("weights")
    shutil.copytree(made, folder, dirs_exist_ok=True)
    (folder / CARD).unlink()
    (folder / WEIGHTS).write_bytes(written(header, data))
    read_or_short(folder)
    shutil.rmtree(folder)


@fuzzed(150)
@given(
    file=st.sampled_from([CONFIG, CARD, WEIGHTS]),
    cut=st.integers(0, 600),
    bits=st.lists(st.tuples(st.integers(0, 600), st.integers(0, 255)), max_size=4),
    more=st.binary(max_size=16),
)
def test_a_folder_of_any_bytes_is_an_adapter_or_a_short_error(
    made: Path,
    tmp_path_factory: pytest.TempPathFactory,
    file: str,
    cut: int,
    bits: list[tuple[int, int]],
    more: bytes,
) -> None:
    """Files cut short, with bytes changed and bytes added."""
    folder = tmp_path_factory.mktemp("bytes")
    shutil.copytree(made, folder, dirs_exist_ok=True)
    content = bytearray((made / file).read_bytes())
    for place, byte in bits:
        content[place % len(content)] = byte
    (folder / file).write_bytes(bytes(content[: len(content) - cut] if cut < len(content) else content) + more)
    read_or_short(folder)
    shutil.rmtree(folder)


# -------------------------------------------------------------------------------------------------------- requests


REQUESTS: list[type[BaseModel]] = [
    *(kind for kind in vars(schemas).values() if isinstance(kind, type) and kind.__name__.endswith("Request")),
    openai_bodies.CompletionRequest,
    openai_bodies.ChatRequest,
    sent_rows.RowsRequest,
    sent_rows.ForgetRequest,
]
# what people send to be answered: bounded by the size of a body and by `max_text_chars`, as its answer is
CONTENT = {"inputs", "input", "parameters", "prompt", "messages", "rows", "stop"}
KEYS = {"person", "group"}  # data, of any letters
REQUIRED: dict[str, Any] = {"inputs": "a", "input": "a", "prompt": "a", "messages": [], "rows": [], "person": "p"}
REQUIRED |= {"lora_name": "a", "id": "a", "value": True, "model": "a"}


@pytest.mark.parametrize("kind", REQUESTS, ids=lambda kind: kind.__name__)
def test_every_field_of_a_request_is_bounded(kind: type[BaseModel]) -> None:
    given = {name: REQUIRED[name] for name, field in kind.model_fields.items() if field.is_required()}
    kind.model_validate(given)
    for name in kind.model_fields.keys() - CONTENT:
        for wrong in ("x" * 5000, "a\nb", "\x1b", "\x00"):
            if name in KEYS and len(wrong) < 5000:
                continue
            told = {**given, name: wrong}
            if kind.model_config.get("extra") == "ignore" and name not in kind.model_fields:
                continue
            with pytest.raises(ValueError, match=name):
                kind.model_validate(told)


@given(st.text(max_size=2000))
def test_a_message_is_short_and_shows_no_place(text: str) -> None:
    assert len(plain(text)) <= 400


def test_a_message_is_cut_wherever_it_comes_from() -> None:
    for kind in (RayLoraError, DataError, AdapterError, RecipeError):
        assert len(str(kind("x" * 10**6))) <= 4000
    assert str(DataError("row 1: a\nrow 2: b")) == "row 1: a\nrow 2: b"


@given(st.text())
@example("\ud800\n\x1b")
def test_what_is_shown_of_a_value_is_short_and_on_one_line(text: str) -> None:
    for shown in (short(text), short(text, 10), short([text]), named(text)):
        assert "\n" not in shown
        assert len(shown) <= 900
        shown.encode()
    if len(text) <= 80 and set(text) <= set(string.printable[:95]):
        assert short(text) == text


def test_trees_have_a_depth_a_size_and_letters() -> None:
    assert check_tree({"a": ["b\tc\nd", 1, 2.5, None, True, "é😀"]})
    for wrong, said in [
        (DEEP, "deeper than 50 levels"),
        ([0] * (1 << 18), "more than 262144 values"),
        ({"a": {"b": "x" * 70_000}}, "a.b has 70,000 letters"),
        ({"a": ["\x07"]}, r"a.0 holds the control character '\\x07'"),
        ({"a": "\ud800"}, "half of a surrogate pair"),
        ({"a": 2**63}, "a is a whole number of 64 bits"),
        ({"x" * 600: 1}, "which is no name"),
    ]:
        with pytest.raises(ValueError, match=said):
            check_tree(wrong)


# -------------------------------------------------------------------------------------------------------- what else


@pytest.mark.parametrize("label", ["x" * 600, "a\x07b", "\x1b[0m"])
def test_a_label_that_no_card_would_hold_is_refused_before_anything_trains(label: str) -> None:
    with pytest.raises(DataError):
        class_word(label)


@pytest.mark.parametrize(
    "expression", ["(x+)+y", "(x|x)*y", "(?:x|xx)+y", "x*x*x*x*x*x*x*x*x*x*y", "(x*)*y", "(?x) (x+) +y"]
)
def test_an_expression_that_would_be_matched_for_ever_is_refused(
    expression: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray_lora.expressions._PATIENCE_S", 0.3)
    with pytest.raises(ValueError, match="list the names instead"):
        check_quick([expression + "$"], ["x" * 100])


@pytest.mark.parametrize(
    "expression",
    [
        r".*\.(q_proj|v_proj)",
        r"^(?!.*visual).*(?:q_proj|k_proj|v_proj).*$",
        r"(?:.*?(?:language|text).*?(?:self_attn|mlp).*?(?:k_proj|v_proj|q_proj).*?)|(?:\bmodel\.layers\.[\d]{1,}\.q_proj)",
        r"(?:layers\.\d+\.)*query",
    ],
)
def test_an_expression_as_people_write_them_is_not_refused(expression: str) -> None:
    check_quick([expression], [f"model.layers.{number}.self_attn.q_proj" for number in range(100)])


def test_an_adapter_whose_expression_is_matched_for_ever_is_refused(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray_lora.expressions._PATIENCE_S", 0.3)
    for number, field in enumerate(({"target_modules": "(x|x)*!"}, {"rank_pattern": {"(x|x)*!": 2}})):
        folder = tmp_path / str(number)
        long = Adapter(LoraSpec(r=2), {"x" * 60: LowRank(torch.ones(2, 4), torch.ones(4, 2))}, {})
        long.save(folder)
        (folder / CONFIG).write_text(json.dumps(json.loads((folder / CONFIG).read_text()) | field))
        with pytest.raises(AdapterError, match="list the names instead"):
            Adapter.load(folder)


FILES = [
    (b"lora: {r: " + b"9" * 5000 + b"}", "cannot be read"),
    (b"# " + b"x" * (2 << 20), "more than 1,048,576 bytes"),
    (b"".join(b"k%d: 1\n" % number for number in range(20_000)), "and 19980 more"),
    (b'store: "a\\ab"', "control character"),
    (b"name: x\0", "not valid YAML"),
    ("name: x".encode("utf-16"), "cannot be read"),
]


@pytest.mark.parametrize(("data", "said"), FILES, ids=[said for _, said in FILES])
def test_a_recipe_that_is_too_much_is_a_short_error(tmp_path: Path, data: bytes, said: str) -> None:
    (tmp_path / "r.yaml").write_bytes(data)
    with pytest.raises(RecipeError, match=said) as caught:
        Recipe.load(tmp_path / "r.yaml")
    assert len(str(caught.value)) < 2000


def test_a_recipe_in_other_editors_bytes_is_read(tmp_path: Path) -> None:
    for data in (b"\xef\xbb\xbfname: x\n", b"name: x\r\nlora:\r\n  r: 3\r\n"):
        (tmp_path / "r.yaml").write_bytes(data)
        assert Recipe.load(tmp_path / "r.yaml").name == "x"
    for path in ("x\0y", "x" * 5000, "/dev/zero"):
        with pytest.raises(RecipeError) as caught:
            Recipe.load(path)
        assert len(str(caught.value)) < 700


@pytest.mark.parametrize(
    "tree",
    [{"x" * 10**6: 1}, {"lora": {"y" * 500: 1}}, {"task": {"type": "z" * 60_000}}, {"training": {"max_steps": 0}}],
    ids=["key", "inner key", "type", "no steps"],
)
def test_what_is_wrong_in_a_recipe_is_said_in_a_few_words(tree: dict[str, Any]) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.parse(tree)
    assert len(str(caught.value)) < 700
