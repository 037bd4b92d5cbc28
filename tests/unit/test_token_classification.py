"""Labels of words: answers are the Hugging Face pipeline's, spans are strict, and a word's piece is its own."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from peft import PeftModel
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoModel, PreTrainedTokenizerFast, pipeline

from ray_lora.engine import AdapterEngine
from ray_lora.errors import DataError, RecipeError
from ray_lora.inference.predict import predict
from ray_lora.inference.windows import spread_windows
from ray_lora.recipe import Json, LoraSpec, Recipe
from ray_lora.running.sources import inspect
from ray_lora.tasks import Row, Task, build_task
from ray_lora.tasks.spans import STRATEGIES, entities
from ray_lora.tasks.token_classification import TokenClassificationSpec
from ray_lora.tasks.words import pieces_of, places_of
from tests.conformance import CHECKS, Case
from tests.conftest import sentences
from tests.unit.bases import VOCABULARY, open_base, plain, quiet_peft, save_base
from tests.unit.cases import TAGS, tagged_case

ARCHITECTURE = "AutoModelForTokenClassification"
LABELS = ("B-city", "B-who", "I-city", "I-who", "O")
TEXTS = [
    "the cloud sings",
    "Quiet rain, quiet snow!",
    "it's so-so",
    "  two  blanks ",
    "Zürich naïve 東京 \N{GRINNING FACE}",
    "a",
]


def word_pieces() -> PreTrainedTokenizerFast:
    """BERT's kind: pieces that go on are marked."""
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    made.train_from_iterator(
        sentences(50, seed=0), trainers.WordPieceTrainer(vocab_size=VOCABULARY, special_tokens=special)
    )
    pieces = [*special, *sorted(set(made.get_vocab()) - set(special))]  # the trainer's own order is chance
    made.model = models.WordPiece({piece: number for number, piece in enumerate(pieces)}, unk_token="[UNK]")
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    made.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


def byte_pieces(side: str) -> PreTrainedTokenizerFast:
    """GPT's kind: bytes, with the blank before a word in the word's first piece."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        sentences(50, seed=0),
        trainers.BpeTrainer(vocab_size=300, special_tokens=["<pad>"], initial_alphabet=alphabet),
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", padding_side=side)


def test_strict_spans() -> None:
    """As seqeval reads IOB2 in its strict mode."""
    assert entities(["B-a", "I-a", "O", "B-b", "B-b"]) == {("a", 0, 2), ("b", 3, 4), ("b", 4, 5)}
    assert entities(["I-a", "B-a", "I-b", "I-a", "O", "I-a"]) == {("a", 1, 2)}
    assert entities(["NOUN", "NOUN", "O", "B"]) == {("NOUN", 0, 1), ("NOUN", 1, 2), ("B", 3, 4)}
    assert entities(["B-x-y", "I-x-y"]) == {("x-y", 0, 2)}
    assert entities([]) == set()


@pytest.mark.parametrize("tokenizer", [word_pieces(), byte_pieces("right")], ids=["pieces", "bytes"])
@pytest.mark.parametrize("last", [False, True])
def test_a_words_piece_lies_in_the_word(tokenizer: PreTrainedTokenizerFast, last: bool) -> None:
    for text in [*sentences(10, seed=3), *(text for text in TEXTS if "  " not in text)]:
        words = text.split(" ")
        told = tokenizer(text, return_offsets_mapping=True, return_special_tokens_mask=True)
        pieces = pieces_of(places_of(words, text), told["offset_mapping"], told["special_tokens_mask"], last)
        at = 0
        for word, piece in zip(words, pieces, strict=True):
            assert piece is not None
            begin, end = told["offset_mapping"][piece]
            assert at <= end - 1 < at + len(word)
            assert (end == at + len(word)) if last else (begin <= at)
            at += len(word) + 1


def test_a_word_that_the_tokenizer_drops_or_cuts_has_no_piece(tmp_path: Path) -> None:
    task = build_task(TokenClassificationSpec(labels=LABELS, max_length=6), word_pieces())
    rows = [{"tokens": ["the", "\u0301", "rain", "cloud", "sings", "quiet"], "tags": ["O"] * 6}]
    [features] = task.encode(rows)
    assert features["pieces"][1] is None
    assert features["pieces"][-1] is None
    assert len(features["input_ids"]) == 6
    answer = [{"index": index, "entity": "B-city"} for index in range(len(features["input_ids"]))]
    assert task.score([answer], [features])["accuracy"] == features["pieces"].count(None) / 6  # what is cut is "O"


def folder_of(kind: str, tokenizer: PreTrainedTokenizerFast, folder: Path) -> Path:
    """A base with room for the tokenizer's pieces."""
    backbone = AutoModel.from_pretrained(save_base(kind, folder))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        backbone.get_input_embeddings().weight.data.normal_(0, 0.2)
    backbone.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings("ignore:Tokenizer does not support real words")
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_answers_are_the_pipelines(strategy: str, engine: tuple[AdapterEngine, Task, int, Any]) -> None:
    """Of plain PEFT's merged model, row by row; rows of different lengths in one pass here."""
    here, task, slot, theirs = engine
    parameters = [{"aggregation_strategy": strategy}] * len(TEXTS)
    features = task.encode([{"tokens": text} for text in TEXTS])
    answers = predict(here, {slot: task}, features, [slot] * len(TEXTS), parameters)
    assert any(answers)
    for text, answer in zip(TEXTS, answers, strict=True):
        wanted = theirs(text, aggregation_strategy=strategy)
        assert [{**part, "score": None} for part in answer] == [{**part, "score": None} for part in wanted]
        assert [part["score"] for part in answer] == pytest.approx([float(part["score"]) for part in wanted], abs=1e-4)


def test_a_text_of_any_length_is_cut_as_the_pipeline_cuts_it(engine: tuple[AdapterEngine, Task, int, Any]) -> None:
    here, task, slot, theirs = engine
    text = " ".join(sentences(4000, seed=5))
    assert len(text) > 100_000
    [features] = task.encode([{"tokens": text}])
    assert features["cut"] == "longer than task.max_length, 40 tokens,"
    [answer] = predict(here, {slot: task}, [features], [slot], [{"ignore_labels": []}])
    wanted = theirs(text, ignore_labels=[])
    assert [(part["start"], part["entity"]) for part in answer] == [(part["start"], part["entity"]) for part in wanted]


@pytest.fixture(params=["bert", "llama", "gpt2"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    kind: str = request.param
    tokenizer = word_pieces() if kind == "bert" else byte_pieces("left" if kind == "llama" else "right")
    folder = folder_of(kind, tokenizer, tmp_path / "base")
    base = open_base(folder, torch.float64, tokenizer)
    here = AdapterEngine(base, slots=2, max_rank=4)
    task = build_task(TokenClassificationSpec(labels=LABELS, max_length=40, piece="last"), tokenizer)
    slot = here.init(LoraSpec(r=4), task.head, seed=0, peft_type=task.peft_type)
    draw = torch.Generator().manual_seed(0)
    here.write(slot, {k: torch.randn(v.shape, generator=draw).to(v) * 0.4 for k, v in here.read(slot).items()})
    here.refresh([slot])
    here.export(slot).save(tmp_path / "adapter")
    with quiet_peft():
        merged = PeftModel.from_pretrained(
            plain(folder, len(LABELS), architecture=ARCHITECTURE), str(tmp_path / "adapter")
        ).merge_and_unload()
    merged.config.id2label = dict(enumerate(LABELS))
    tokenizer.model_max_length = 40
    yield here, task, slot, pipeline("token-classification", model=merged.eval().double(), tokenizer=tokenizer)
    here.close()


@pytest.mark.filterwarnings("ignore:Tokenizer does not support real words")
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("stride", [0, 5])
def test_a_long_text_is_read_in_windows_as_the_pipeline_does(
    strategy: str, stride: int, engine: tuple[AdapterEngine, Task, int, Any]
) -> None:
    here, _, slot, theirs = engine
    tokenizer = theirs.tokenizer
    own = copy.deepcopy(tokenizer)
    tokenizer.padding_side = "right"  # padded on the left, the pipeline's own windows have no numbers
    task = build_task(TokenClassificationSpec(labels=LABELS, max_length=16, piece="last", stride=stride), own)
    texts = [" ".join([*TEXTS[:3], *sentences(count, seed=count)]) for count in (0, 1, 9)]
    features = task.encode([{"tokens": text} for text in texts])
    counts = [len(spread_windows({1: task}, [row], [1]).features) for row in features]
    assert counts[0] < counts[-1] >= 4
    parameters = [{"aggregation_strategy": strategy, "ignore_labels": []}] * len(texts)
    answers = predict(here, {slot: task}, features, [slot] * len(texts), parameters)
    tokenizer.model_max_length = 16
    for text, answer in zip(texts, answers, strict=True):
        if strategy == "none":  # the pipeline has no answer: here every piece of the text has one label
            offsets = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)["offset_mapping"]
            assert [(piece["start"], piece["end"]) for piece in answer] == list(offsets)
            assert len({piece["index"] for piece in answer}) == len(answer)
        else:
            wanted = theirs(text, aggregation_strategy=strategy, ignore_labels=[], stride=stride)
            assert [{**part, "score": None} for part in answer] == [{**part, "score": None} for part in wanted]
            scores = [float(part["score"]) for part in wanted]
            assert [part["score"] for part in answer] == pytest.approx(scores, abs=1e-4)


def strided_case(folder: Path) -> Case:
    """The conformance case of words, its rows read in windows of four words."""
    whole = tagged_case(folder)
    spec = TokenClassificationSpec(labels=TAGS, max_length=6, stride=2)
    task = build_task(spec, whole.open().processor)

    def perfect(row: Row) -> Json:
        pieces = task.encode([row])[0]["pieces"]
        return [{"entity": tag, "index": at} for at, tag in zip(pieces, row["tags"], strict=True) if tag != "O"]

    return replace(whole, spec=spec, perfect=perfect)


@pytest.mark.parametrize("check", CHECKS)
def test_windows_keep_the_rules(check: Callable[[Case, Path], None], tiny_bert_folder: Path, tmp_path: Path) -> None:
    check(strided_case(tiny_bert_folder), tmp_path)


def test_every_word_has_its_label_in_one_window(tiny_bert_folder: Path) -> None:
    task = strided_case(tiny_bert_folder).task
    words = sentences(1, seed=4, longest=12)[0].split() * 3
    [features] = task.encode([{"tokens": words, "tags": ["B-sky"] * len(words)}])
    assert None not in features["pieces"]
    assert sum(label >= 0 for labels in features["labels"] for label in labels) == len(words)
    assert "cut" not in features
    with pytest.raises(RecipeError, match=r"task\.stride 6 must be less than the 4 tokens of a window"):
        build_task(TokenClassificationSpec(labels=TAGS, max_length=6, stride=6), task._tokenizer)


@pytest.mark.parametrize(
    ("parameters", "what"),
    [
        ({"aggregation_strategy": "last"}, "must be one of none, simple, first, average, max"),
        ({"ignore_labels": "O"}, "must be a list of labels"),
        ({"stride": 3}, "takes aggregation_strategy and ignore_labels"),
    ],
)
def test_wrong_parameters(parameters: dict[str, Any], what: str) -> None:
    task = build_task(TokenClassificationSpec(labels=LABELS), word_pieces())
    with pytest.raises(RecipeError, match=what):
        task.check_parameters(parameters)


@pytest.mark.parametrize("tokens", ["", " ", [], [" "], ["a", 3], 7, {"a": 1}, None])
def test_what_is_no_text_is_refused(tokens: Any) -> None:
    task = build_task(TokenClassificationSpec(labels=LABELS), word_pieces())
    with pytest.raises(DataError, match="give a non-empty string or a list of such words"):
        task.encode([{"tokens": tokens}])


ROWS = [
    {"tokens": ["Ada", "met", "Grace"], "tags": ["B-who", "O", "B-who"]},
    {"tokens": ["in", "New", "York"], "tags": ["O", "B-city", "I-city"]},
]


def write(rows: Any, path: Path) -> str:
    """The rows as a file of the kind that the path's ending names; csv holds words between blanks."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        lines = [",".join((" ".join(map(str, row["tokens"])), " ".join(map(str, row["tags"])))) for row in rows]
        path.write_text("\n".join(["tokens,tags", *lines]))
    return str(path)


def told(path: str) -> Recipe:
    return Recipe.parse({"task": {"type": "token-classification"}, "data": {"train": path}})


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv"])
def test_files_teach_labels_and_hold_words(kind: str, tmp_path: Path) -> None:
    spec, counts = inspect(told(write(ROWS, tmp_path / f"rows.{kind}")))
    assert spec.describe()["labels"] == ["B-city", "B-who", "I-city", "O"]
    assert counts == {"train": 2}


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv"])
def test_numbers_as_labels_are_their_words(kind: str, tmp_path: Path) -> None:
    """As of a data set whose tags are class numbers: 10 comes after 2, and 2 is not the third label."""
    rows = [{"tokens": ["a", "b", "c"], "tags": [10, 2, 0]}, {"tokens": ["a"], "tags": [2]}]
    spec, _ = inspect(told(write(rows, tmp_path / f"rows.{kind}")))
    assert spec.describe()["labels"] == ["0", "2", "10"]
    task = build_task(spec.model_copy(update={"max_length": None}), byte_pieces("right"))
    [features] = task.encode([{"tokens": rows[0]["tokens"], "tags": rows[0]["tags"]}])
    assert [spec.describe()["labels"][tag] for tag in features["tags"]] == ["10", "2", "0"]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"tokens": ["a", "b"], "tags": ["O"]}, "2 tokens have 1 tags; give one for each token"),
        ({"tokens": ["a", " "], "tags": ["O", "O"]}, "is empty or not a string"),
        ({"tokens": ["a", "\u200b"], "tags": ["O", "O"]}, "is empty or not a string"),
        ({"tokens": ["a"], "tags": [""]}, "is blank"),
    ],
)
def test_wrong_rows_are_named_by_file_and_number(row: Any, why: str, tmp_path: Path) -> None:
    path = write([*ROWS, row], tmp_path / "rows.parquet")
    with pytest.raises(DataError, match=re.escape(f"{path}, row 3: ") + f".*{why}"):
        inspect(told(path))
