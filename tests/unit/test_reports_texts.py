"""What people have reported of tools that read texts, tried here with small inputs: see `docs/reports.md`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from ray_lora.engine import AdapterEngine
from ray_lora.errors import DataError, RecipeError
from ray_lora.inference.predict import predict
from ray_lora.recipe import LoraSpec, Recipe
from ray_lora.running.sources import inspect
from ray_lora.tasks import Task, build_task
from ray_lora.tasks.question_answering import QuestionAnsweringSpec
from ray_lora.tasks.spans import other_scheme
from ray_lora.tasks.text_classification import TextClassificationSpec
from ray_lora.tasks.token_classification import TokenClassificationSpec
from tests.conftest import WORDS, save_tiny_bert
from tests.unit.bases import open_base, quiet_peft, reopen
from tests.unit.test_text_problems import save
from tests.unit.test_token_classification import byte_pieces, folder_of, word_pieces

SMALL = QuestionAnsweringSpec(max_length=24, doc_stride=8, max_question_len=8, handle_impossible_answer=False)
GRIN = "\N{GRINNING FACE}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_bert(tmp_path_factory.mktemp("reports") / "bert", seed=0)


@pytest.fixture(scope="module")
def words(folder: Path) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words, with the positions of its base."""
    found: PreTrainedTokenizerFast = open_base(folder).processor
    return found


def byte_reader(trim: bool) -> PreTrainedTokenizerFast:
    """RoBERTa's kind: a character may be of several tokens. Untrimmed, a token holds the blank before it."""
    made = byte_pieces("right")
    made.add_special_tokens({"cls_token": "<s>", "sep_token": "</s>"})
    made.backend_tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", made.sep_token_id), ("<s>", made.cls_token_id), trim_offsets=trim, add_prefix_space=False
    )
    made.segments = 0
    return made


def dropping() -> PreTrainedTokenizerFast:
    """BERT's kind, which leaves accents out."""
    made = word_pieces()
    made.backend_tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    made.segments = 2
    return made


def live(folder: Path, spec: Any, processor: Any = None) -> tuple[AdapterEngine, Task, int]:
    """An engine with one adapter whose values are all drawn."""
    base = open_base(folder, torch.float64, processor)
    engine, task = AdapterEngine(base, slots=1, max_rank=2), build_task(spec, base.processor)
    slot = engine.init(LoraSpec(r=2), task.head, seed=0, peft_type=task.peft_type)
    draw = torch.Generator().manual_seed(0)
    engine.write(slot, {k: torch.randn(v.shape, generator=draw).to(v) * 0.4 for k, v in engine.read(slot).items()})
    engine.refresh([slot])
    return engine, task, slot


# ------------------------------------------------------------------------------------------------ question answering


def reads(task: Any, context: str, likely: Mapping[str, float] | None = None, **parameters: Any) -> Any:
    """The answer where a token's logits, as first and as last, are what is said of its text; "": no answer."""
    [features] = task.encode([{"question": "what", "context": context}])
    windows = features["windows"]
    logits = torch.zeros(len(windows), max(len(window["input_ids"]) for window in windows))
    for row, window in enumerate(windows):
        logits[row, 0] = (likely or {}).get("", 0)
        for token in range(window["begin"], window["end"]):
            begin, end = window["offsets"][token]
            logits[row, token] = (likely or {}).get(context[begin:end], 0)
    parts = task.decode(SimpleNamespace(start_logits=logits, end_logits=logits), windows, parameters)
    return task.whole(parts, features, parameters)


@pytest.mark.parametrize("answer", [GRIN, "京", "東京", "is", "Lima", f"Lima {GRIN}", "\N{THUMBS UP SIGN}\U0001f3fd"])
def test_an_answer_of_characters_of_several_tokens_is_taught_whole(answer: str) -> None:
    """PaddleNLP#4498, tokenizers#977: one character, several tokens, one place."""
    task: Any = build_task(QuestionAnsweringSpec(max_length=90, max_question_len=8, doc_stride=8), byte_reader(True))
    context = f"it is 東京 now, or Lima {GRIN} \N{THUMBS UP SIGN}\U0001f3fd"
    at = context.index(answer)
    row = {"question": "what", "context": context, "answers": {"text": [answer], "answer_start": [at]}}
    [features] = task.encode([row])
    [window], [(start, stop)] = features["windows"], features["targets"]
    told = byte_reader(True).decode(window["input_ids"][start : stop + 1])
    assert told.strip() == answer


def test_an_answer_that_no_window_holds_is_told(words: Any) -> None:
    """transformers#8904: windows without an answer are taught that there is none, also where none has it."""
    task: Any = build_task(SMALL, words)
    context = " ".join(WORDS[:40])
    answer = " ".join(WORDS[5:30])
    row = {"question": "what", "context": context, "answers": answer}
    [features] = task.encode([row])
    assert features["cut"] == "answers longer than what two windows share, 8 tokens,"
    task = build_task(SMALL, dropping())
    row = {"question": "what", "context": "the rain \u0301 sings", "answers": "\u0301"}
    with pytest.raises(DataError, match=r"nothing of the answer .* is a token of this base"):
        task.encode([row])


def test_an_answer_has_no_blanks_around_it_and_stands_where_it_is_said_to() -> None:
    """FARM#449, haystack#3526: places one beside the answer's, and answers of nothing but blanks."""
    task = build_task(QuestionAnsweringSpec(max_length=64, max_question_len=8, doc_stride=8), byte_reader(False))
    context = "the city is  L\n\nnow"
    found = reads(task, context, {"L": 9, " ": 8})
    assert (found["answer"], found["start"], found["end"]) == ("L", 13, 14)
    several = reads(task, context, {"\n": 9, " ": 9}, top_k=50, handle_impossible_answer=False)
    for one in several:
        assert one["answer"]
        assert one["answer"] == one["answer"].strip() == context[one["start"] : one["end"]]


@pytest.mark.parametrize("answer", ["国語", "挿し絵", "Lima"])
def test_an_answer_in_a_language_without_blanks_is_not_its_sentence(answer: str) -> None:
    """transformers#17706: alignment to words gave the whole context."""
    task: Any = build_task(QuestionAnsweringSpec(max_length=120, max_question_len=8, doc_stride=8), byte_reader(True))
    context = "小学校の国語の教科書に挿し絵がある Limab ok"
    row = {"question": "what", "context": context}
    [features] = task.encode([row | {"answers": {"text": [answer], "answer_start": [context.index(answer)]}}])
    [window], [(start, stop)] = features["windows"], features["targets"]
    logits = torch.zeros(2, 1, len(window["input_ids"]))
    logits[0, 0, start] = logits[1, 0, stop] = 20
    parts = task.decode(SimpleNamespace(start_logits=logits[0], end_logits=logits[1]), [window], {})
    found = task.whole(parts, features, {})
    assert found["answer"] == ("Limab" if answer == "Lima" else answer)  # with blanks, words are kept whole


def test_a_score_is_a_probability_however_many_windows_hold_the_answer(words: Any) -> None:
    """transformers#26286, #38761: equal answers are summed, and windows overlap."""
    task: Any = build_task(SMALL, words)
    context = " ".join(["good"] * 14 + ["plot"] + ["bad"] * 12)
    [features] = task.encode([{"question": "what", "context": context}])
    holding = [any(context[b:e] == "plot" for b, e in window["offsets"]) for window in features["windows"]]
    assert sum(holding) == 2
    found = reads(task, context, {"plot": 9})
    assert found["answer"] == "plot"
    assert 0.9 < found["score"] <= 1


def test_an_answer_stands_where_it_is_likeliest(words: Any) -> None:
    """eva-n27/BERT-for-Chinese-Question-Answering#9: words that stand several times."""
    task = build_task(SMALL, words)
    context = " ".join(["plot", *["bad"] * 20, "Plot", *["good"] * 3])
    found = reads(task, context, {"": 5, "Plot": 9, "plot": 1})
    assert (found["answer"], found["start"]) == ("Plot", context.index("Plot"))


def test_several_answers_are_a_list_however_many_there_are(words: Any) -> None:
    """transformers#21108: `top_k` gave a dict where there was one answer. #38984: fewer than were asked for."""
    task = build_task(SMALL, words)
    [only] = reads(task, "plot", {"plot": 9}, top_k=3)
    assert only["answer"] == "plot"
    assert reads(task, "plot", {"plot": 9}, top_k=1) == reads(task, "plot", {"plot": 9}) == only
    several = reads(task, "good plot", top_k=3)
    assert sorted(one["answer"] for one in several) == ["good", "good plot", "plot"]


@pytest.mark.parametrize("padding", ["left", "right"])
def test_questions_share_a_pass_whichever_side_is_padded(folder: Path, padding: str) -> None:
    """transformers#18047, reward-bench#137: an answer that follows from its neighbours."""
    processor = open_base(folder).processor
    processor.padding_side = padding
    spec = QuestionAnsweringSpec(max_length=60, doc_stride=8, max_question_len=8)
    engine, task, slot = live(folder, spec, processor)
    rows = [
        {"question": "good day", "context": "bad film good plot", "answers": {"text": ["plot"], "answer_start": [14]}},
        {"question": "good", "context": " ".join(WORDS[:30]), "answers": {"text": ["the"], "answer_start": [0]}},
    ]
    features = task.encode(rows)
    alone = [predict(engine, {slot: task}, [one], [slot])[0] for one in features]
    for one, other in zip(predict(engine, {slot: task}, features, [slot] * 2), alone, strict=True):
        assert one | {"score": 0} == other | {"score": 0}
        assert one["score"] == pytest.approx(other["score"], abs=1e-6)
    reading: Any = task
    windows = [window for one in features for window in reading.windows(one)]

    def loss(some: Any) -> Any:
        batch = reading.collate(some)
        with torch.no_grad():
            [(_, outputs)] = engine.forward(batch, torch.full((len(some),), slot))
        return reading.loss(outputs, some)[0]

    torch.testing.assert_close(loss(windows), torch.cat([loss([one]) for one in windows]))
    engine.close()


def test_a_tokenizer_that_cuts_from_the_left_reads_all_the_same(folder: Path) -> None:
    """huggingface/tokenizers#1326: a panic, as a question was not cut and no room was left to the context."""
    left, right = (open_base(folder).processor for _ in range(2))
    left.truncation_side = "left"
    row = {"question": " ".join(WORDS[:20]), "context": " ".join(WORDS[:40])}
    read = []
    for processor in (left, right):
        task: Any = build_task(SMALL, processor)
        [features] = task.encode([row])
        windows = features["windows"]
        assert features["cut"] == "questions longer than task.max_question_len, 8 tokens,"
        assert [window["input_ids"][1:9] for window in windows] == [windows[0]["input_ids"][1:9]] * len(windows)
        starts = [window["offsets"][window["begin"]] for window in windows]
        assert starts == sorted(starts)
        read.append({place for window in windows for place in window["offsets"][window["begin"] : window["end"]]})
    assert read[0] == read[1]


# ------------------------------------------------------------------------------------------------------------ entities

TAGS = ("B-city", "I-city", "O")


def inspected(folder: Path, rows: list[dict[str, Any]], **task: Any) -> Any:
    """What a recipe's options become, over a csv file as pandas writes it."""
    path = folder / "train.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    return inspect(Recipe.parse({"base": {"model": "any"}, "task": task, "data": {"train": str(path)}}))[0]


@pytest.mark.parametrize("text", ["good day here", "good  day here", " good\tday \n here ", "good\u00a0day\r\nhere"])
def test_labels_stand_at_their_words_whatever_blanks_are_between(words: Any, text: str) -> None:
    """explosion/spacy-stanza#30: entities after a second blank were left out."""
    task = build_task(TokenClassificationSpec(labels=TAGS), words)
    [features] = task.encode([{"tokens": text, "tags": "B-city O I-city"}])
    assert features["labels"] == [-100, 0, 2, 1, -100]
    assert [text[slice(*features["offsets"][piece])] for piece in features["pieces"]] == text.split()


@pytest.mark.parametrize(
    "row",
    [
        {"tokens": ["Ada", "lives"], "tags": ["B-who", "O"]},
        {"tokens": "Ada lives", "tags": np.array([1, 0])},
        {"tokens": np.array(["Ada", "lives"]), "tags": "B-who O"},
        {"tokens": "Ada", "tags": [0]},
    ],
    ids=str,
)
def test_a_list_that_was_written_as_a_text_is_no_row_of_words(tmp_path: Path, row: dict[str, Any]) -> None:
    """textflint#26: a table of pandas has "['Ada', 'lives']", whose words and labels were taken with their quotes."""
    with pytest.raises(DataError, match=r"row 1: (tokens|tags) .* are a list written as a text; write words"):
        inspected(tmp_path, [row, {"tokens": "a b", "tags": "X Y"}], type="token-classification")


def test_brackets_of_a_text_are_its_own(tmp_path: Path) -> None:
    rows = [{"tokens": "[ edit ]", "tags": "O B-a O"}, {"tokens": "[", "tags": "[X]"}]
    assert inspected(tmp_path, rows, type="token-classification").labels == ("B-a", "O", "[X]")


@pytest.mark.parametrize("tags", ["B-a I-a E-a S-b B-b", "B-a I-a L-a U-b B-b", "B-a M-a E-a S-b B-b"])
def test_labels_of_another_scheme_are_refused(tmp_path: Path, tags: str) -> None:
    """chakki-works/seqeval#25, #71, flairNLP/flair#75: entities of several words were counted in parts."""
    rows = [{"tokens": "a b", "tags": "O O"}, {"tokens": "a b c d e", "tags": tags}, {"tokens": "a", "tags": "X"}]
    labels = sorted({"O", *tags.split()})
    with pytest.raises(DataError, match=r"row 2: label '[ESLUM]-.' is of a scheme that is not read here; write IOB2"):
        inspected(tmp_path, rows, type="token-classification", labels=labels)
    assert other_scheme(("B-mail", "I-mail", "E-commerce", "S-Bahn", "O")) is None


def test_right_answers_score_1_in_whichever_way_entities_begin(words: Any) -> None:
    """chakki-works/seqeval#23, Hironsan/anago#20: 0 for what was right, or 1 for what was not."""
    task: Any = build_task(TokenClassificationSpec(labels=TAGS), words)

    def score(truth: str, guess: str) -> float:
        [row] = task.encode([{"tokens": "good bad day", "tags": truth}])
        answer = [{"index": piece, "entity": tag} for piece, tag in zip(row["pieces"], guess.split(), strict=True)]
        return float(task.score([answer], [row])["f1"])

    for tags in ("B-city I-city O", "I-city I-city O", "O I-city B-city"):  # IOB2, no B- at all, IOB1
        assert score(tags, tags) == 1
    assert score("B-city I-city O", "I-city I-city O") == 0  # strict where the rows are
    assert score("I-city O I-city", "I-city O O") == pytest.approx(2 / 3)


def test_windows_of_a_tokenizer_that_cuts_from_the_left_are_in_order(folder: Path) -> None:
    """huggingface/tokenizers#860"""
    processor = open_base(folder).processor
    processor.truncation_side = "left"
    task: Any = build_task(TokenClassificationSpec(labels=TAGS, max_length=12, stride=4), processor)
    [features] = task.encode([{"tokens": WORDS[:30], "tags": ["O"] * 30}])
    assert len(features["windows"]) > 2
    assert None not in features["pieces"]
    assert features["pieces"] == sorted(features["pieces"])
    assert sum(label != -100 for window in features["labels"] for label in window) == 30


@pytest.mark.parametrize("asked", ["[SEP] day", "good [CLS] day [PAD]", "[MASK]"])
def test_words_that_are_special_tokens_have_labels(words: Any, asked: str) -> None:
    """huggingface/tokenizers#787: what a person writes is a word, whatever the base calls so."""
    task = build_task(TokenClassificationSpec(labels=TAGS), words)
    [features] = task.encode([{"tokens": asked, "tags": " ".join(["B-city"] * len(asked.split()))}])
    assert features["pieces"] == list(range(1, len(asked.split()) + 1))


@pytest.mark.parametrize("strategy", ["none", "simple", "first"])
def test_places_are_of_characters_behind_any_emoji(tmp_path: Path, strategy: str) -> None:
    """dataqa/jupyter-annotate#3, argilla#2353: places in units of UTF-16 lay behind their words."""
    tokenizer = byte_pieces("right")
    engine, task, slot = live(
        folder_of("gpt2", tokenizer, tmp_path / "base"), TokenClassificationSpec(labels=TAGS, max_length=40), tokenizer
    )
    text = f"the {GRIN} e\u0301t\u00e9 \N{THUMBS UP SIGN}\U0001f3fd\u200d a\r\n京 a"
    told = {"aggregation_strategy": strategy, "ignore_labels": []}
    [answer] = predict(engine, {slot: task}, task.encode([{"tokens": text}]), [slot], [told])
    assert len(answer) > (10 if strategy == "none" else 1)
    assert {place for one in answer for place in range(one["start"], one["end"])} == set(range(len(text)))
    engine.close()


def test_labels_that_only_rows_of_scores_have_are_named(tmp_path: Path) -> None:
    """transformers#9660, Hironsan/anago#37: a KeyError after the first epoch."""
    for name, tags in (("train", "B-city O"), ("validation", "I-time O")):
        pd.DataFrame([{"tokens": "a b", "tags": tags}]).to_csv(tmp_path / f"{name}.csv", index=False)
    data = {name: str(tmp_path / f"{name}.csv") for name in ("train", "validation")}
    recipe = Recipe.parse({"base": {"model": "any"}, "task": {"type": "token-classification"}, "data": data})
    with pytest.raises(DataError, match=r"validation\.csv, row 1: label 'I-time' is not one of 'B-city', 'O'"):
        inspect(recipe)


# ------------------------------------------------------------------------------------------------- text classification


def classified(labels: tuple[str, ...] = ("no", "yes"), **told: Any) -> TextClassificationSpec:
    return TextClassificationSpec(labels=labels, **told)


@pytest.fixture(scope="module")
def roberta(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[AdapterEngine, Task, int, Any]]:
    """RoBERTa with an adapter, and plain PEFT's model of it."""
    root = tmp_path_factory.mktemp("roberta")
    engine, task, slot = live(save("roberta", root / "base"), classified())
    engine.export(slot).save(root / "adapter")
    with quiet_peft():
        theirs = reopen(root / "base", root / "adapter", 2, dtype=torch.float64)
    yield engine, task, slot, theirs
    engine.close()


@pytest.mark.parametrize(
    "text", ["good", "good [PAD] day film", "[PAD] [PAD]", "[SEP] good [CLS] day", "[PAD] a [PAD]"]
)
def test_a_text_with_the_names_of_special_tokens_is_answered_as_by_the_plain_class(roberta: Any, text: str) -> None:
    """sentence-transformers#3879, transformers#1761: RoBERTa's positions leave out padding tokens, a person's too."""
    engine, task, slot, theirs = roberta
    given = engine.base.processor(text, return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        [wanted] = theirs(**given).logits.softmax(-1).tolist()
    for beside in ([], ["bad day", "good bad film day good bad film day [PAD]"]):
        features = task.encode([{"text": one} for one in [text, *beside]])
        answers = predict(engine, {slot: task}, features, [slot] * len(features), [{"top_k": None}] * len(features))
        assert {one["label"]: one["score"] for one in answers[0]} == {
            label: pytest.approx(score, abs=1e-6) for label, score in zip(("no", "yes"), wanted, strict=True)
        }


def test_a_text_of_which_nothing_is_a_token_is_refused(words: Any, tmp_path: Path) -> None:
    """flairNLP/flair#152: empty texts ended the tagger and the classifier."""
    letters = Tokenizer(models.BPE({letter: at for at, letter in enumerate("abcdefgh")}, []))
    letters.pre_tokenizer = pre_tokenizers.Whitespace()
    bare = PreTrainedTokenizerFast(tokenizer_object=letters, pad_token="a")  # no unknown token, none at the ends
    for spec, column in ((classified(), "text"), (TokenClassificationSpec(labels=TAGS), "tokens")):
        task = build_task(spec, bare)
        assert task.encode([{column: "b zz c"}])[0]["input_ids"] == [1, 2]
        with pytest.raises(DataError, match="nothing of the text 'zz' is a token of this base"):
            task.encode([{column: "b"}, {column: "zz"}])
        for text in ("", " \u200b\ufeff", "\ud83d", "\0"):
            with pytest.raises(DataError, match="text"):
                build_task(spec, words).encode([{column: text}])


@pytest.mark.parametrize(
    "spec", [classified(max_length=2), TokenClassificationSpec(labels=TAGS, max_length=2)], ids=str
)
def test_a_length_that_leaves_nothing_of_a_text_is_refused(words: Any, spec: Any) -> None:
    """transformers#22789: lengths that no text fits in."""
    with pytest.raises(
        RecipeError, match=r"max_length 2 leaves no token to a text beside 2 special ones .* to 3 or more"
    ):
        build_task(spec, words)
    build_task(spec.model_copy(update={"max_length": 3}), words)


@pytest.mark.parametrize(
    "labels", [["price"], [], ["price", "speed"], np.array(["price", "speed"]), "[price, speed]", [1]]
)
def test_labels_that_were_written_as_a_list_are_refused(tmp_path: Path, labels: Any) -> None:
    """doccano#1865, simpletransformers#51: "['price']" was a label of its own."""
    rows = [{"text": "cheap", "label": labels}, {"text": "fast", "label": "speed|price"}]
    told = {"type": "text-classification", "problem_type": "multi_label_classification"}
    with pytest.raises(DataError, match=r"row 1: labels .* are a list written as a text; write a\|b"):
        inspected(tmp_path, rows, **told)


def test_words_that_a_table_may_take_for_nothing_are_labels(tmp_path: Path) -> None:
    """pandas#24681, cellxgene#1115: "NA" and "null" were missing values."""
    names = ["NA", "None", "nan", "null", "N/A"]
    rows = [{"text": f"{name} {at}", "label": name} for at, name in enumerate(names)]
    assert inspected(tmp_path, rows, type="text-classification").labels == tuple(sorted(names))
    rows.append({"text": "a", "label": float("nan")})
    with pytest.raises(DataError, match=r"row 6: .*empty"):
        inspected(tmp_path, rows, type="text-classification")


def test_scores_are_of_their_labels_in_whichever_order_these_are_named(words: Any) -> None:
    """setfit#462, ktrain#277: scores of sorted labels beside names that were not sorted."""
    task: Any = build_task(classified(("yes", "no", "perhaps")), words)
    logits = SimpleNamespace(logits=torch.tensor([[3.0, 1.0, 2.0]]))
    [features] = task.encode([{"text": "good", "label": "no"}])
    assert features["labels"] == 1
    [ranked] = task.decode(logits, [features], {"top_k": None})
    assert [one["label"] for one in ranked] == ["yes", "perhaps", "no"]
    assert task.probabilities(ranked) == pytest.approx(torch.tensor([3.0, 1.0, 2.0]).softmax(-1).tolist())
    assert task.decode(logits, [features], {"top_k": 1}) == [[ranked[0]]]  # transformers#25251: a list, if asked for
    assert task.decode(logits, [features], {}) == [ranked[0]]


def test_a_number_is_answered_as_it_is_and_one_that_no_loss_holds_is_refused(words: Any, tmp_path: Path) -> None:
    """transformers#33973, #8259: a sigmoid of the number."""
    spec = TextClassificationSpec(problem_type="regression")
    task: Any = build_task(spec, words)
    assert task.decode(SimpleNamespace(logits=torch.tensor([[41.5]])), [{}], {}) == [
        {"label": "LABEL_0", "score": 41.5}
    ]
    for number in (1e39, -1e20, "1e300"):
        rows = [{"text": "a", "label": 1}, {"text": "b", "label": number}]
        with pytest.raises(DataError, match=r"row 2: label .* is beyond 1e\+16"):
            inspected(tmp_path, rows, type="text-classification", problem_type="regression")
    [row] = task.encode([{"text": "a", "label": 1e16}])
    loss, _ = task.loss(SimpleNamespace(logits=torch.zeros(1, 1)), [row])
    assert loss.sum().isfinite()


def test_balanced_weights_of_a_label_without_a_row_are_refused(tmp_path: Path) -> None:
    """doc2graph#18, PyTorch-ENet#35: as many weights as there happened to be labels."""
    rows = [{"text": "a", "label": "no"}, {"text": "b", "label": "yes"}]
    told = {"type": "text-classification", "class_weights": "balanced"}
    with pytest.raises(DataError, match="label 'perhaps' has no training row, so it has no balanced weight"):
        inspected(tmp_path, rows, labels=["no", "perhaps", "yes"], **told)
    assert inspected(tmp_path, rows, **told).class_weights == {"no": 1.0, "yes": 1.0}


def test_a_short_text_is_kept_whole_beside_a_long_one(words: Any) -> None:
    """terrifyzhao/bert-utils#17, transformers#17305: which of two texts is cut."""
    task: Any = build_task(classified(max_length=12), words)
    long = " ".join(WORDS[:20])
    for row in ({"text": long, "text_pair": "good day"}, {"text": "good day", "text_pair": long}):
        [features] = task.encode([row])
        told = words.convert_ids_to_tokens(features["input_ids"])
        split = told.index("[SEP]")
        short = told[1:split] if row["text"] == "good day" else told[split + 1 : -1]
        assert short == ["good", "day"]
        assert len(told) == 12
        assert features["token_type_ids"] == [0] * (split + 1) + [1] * (11 - split)
        assert "cut" in features
