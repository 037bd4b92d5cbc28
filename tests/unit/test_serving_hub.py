"""Hugging Face's own client, as it is: each method, compared with transformers' pipeline on the merged model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from huggingface_hub import InferenceClient, constants
from peft import PeftModel
from transformers import (
    AutoModel,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    pipeline,
)
from transformers.pipelines.document_question_answering import select_starts_ends

from tests.unit.bases import quiet_peft
from tests.unit.http_server import serving
from tests.unit.serving_world import TAGS, card, make_adapter, make_answerer, make_base, make_tagger

LABELS = ["negative", "positive", "mixed"]
TEXT = "a lovely day but the film was very dull"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tweets` classifies, `topics` gives labels, `stars` a number, `tagger` tags words, `plain` has no card."""
    root = tmp_path_factory.mktemp("hub")
    base = make_base(root / "base")
    card(make_adapter(base, root / "store" / "tweets", seed=0, labels=3), base, LABELS)
    make_adapter(base, root / "store" / "plain", seed=1, labels=3)
    topics = {"problem_type": "multi_label_classification"}
    card(make_adapter(base, root / "store" / "topics", seed=2, labels=3), base, LABELS, **topics)
    card(make_adapter(base, root / "store" / "stars", seed=3, labels=1), base, None, problem_type="regression")
    make_tagger(root)
    (root / "keys.yaml").write_text("[{key: secret, adapters: [tweets]}]")
    return root


@pytest.fixture(scope="module")
def address(world: Path) -> Iterator[str]:
    with serving(world) as address:
        yield address


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client asks this machine, and nothing else."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def client(address: str, ref: str, **options: Any) -> InferenceClient:
    return InferenceClient(model=f"{address}/models/{ref}", **options)


def merged(world: Path, folder: Path, kind: Any, labels: list[str]) -> Any:
    with quiet_peft():
        plain = kind.from_pretrained(world / "base", num_labels=len(labels), attn_implementation="eager")
        model = PeftModel.from_pretrained(plain, str(folder)).merge_and_unload()
    model.config.id2label = dict(enumerate(labels))
    return model.eval()


def test_text_classification(address: str, world: Path) -> None:
    model = merged(world, world / "store/tweets", AutoModelForSequenceClassification, LABELS)
    theirs = pipeline("text-classification", model=model, tokenizer=AutoTokenizer.from_pretrained(world / "base"))
    ours = client(address, "tweets").text_classification(TEXT)
    wanted: Any = theirs(TEXT, top_k=None)
    assert [element.label for element in ours] == [element["label"] for element in wanted]
    assert [element.score for element in ours] == pytest.approx([element["score"] for element in wanted], abs=1e-5)
    best = client(address, "tweets@1").text_classification(TEXT, top_k=1, function_to_apply="sigmoid")
    wanted = theirs(TEXT, top_k=1, function_to_apply="sigmoid")
    assert [(element.label, pytest.approx(element.score, abs=1e-5)) for element in best] == [
        (element["label"], element["score"]) for element in wanted
    ]
    assert client(address, "plain").text_classification(TEXT)[0].label.startswith("LABEL_")


@pytest.mark.parametrize(
    ("ref", "problem", "labels"),
    [("topics", "multi_label_classification", LABELS), ("stars", "regression", ["LABEL_0"])],
)
def test_several_labels_and_numbers(address: str, world: Path, ref: str, problem: str, labels: list[str]) -> None:
    model = merged(world, world / "store" / ref, AutoModelForSequenceClassification, labels)
    model.config.problem_type = problem
    theirs = pipeline("text-classification", model=model, tokenizer=AutoTokenizer.from_pretrained(world / "base"))
    pair = {"text": "a lovely day", "text_pair": "the film was dull"}
    for given in (TEXT, pair):
        for options in ({}, {"top_k": 1}, {"function_to_apply": "none"}):
            wanted: Any = theirs(given, **{"top_k": None, **options})
            answer = httpx.post(
                f"{address}/models/{ref}", json={"inputs": given, "parameters": options}, timeout=None
            ).json()[0]
            ours = answer if given is pair else client(address, ref).text_classification(TEXT, **options)  # type: ignore[arg-type]
            found = [(item["label"], item["score"]) for item in ours]
            assert found == [(item["label"], pytest.approx(item["score"], abs=1e-5)) for item in wanted]
    both = httpx.post(f"{address}/v1/predict", json={"model": ref, "inputs": [TEXT, pair]}, timeout=None).json()[
        "predictions"
    ]
    for given, mine in zip((TEXT, pair), both, strict=True):
        best: Any = theirs(given, top_k=1)
        assert mine == {"label": best[0]["label"], "score": pytest.approx(best[0]["score"], abs=1e-5)}
    [data] = httpx.post(f"{address}/classify", json={"model": ref, "input": TEXT}, timeout=None).json()["data"]
    every: Any = theirs(TEXT, top_k=None)
    scores = {item["label"]: item["score"] for item in every}
    assert data["probs"] == pytest.approx([scores[label] for label in labels], abs=1e-5)
    assert (data["label"], data["num_classes"]) == (every[0]["label"], len(labels))


@pytest.mark.parametrize("strategy", [None, "simple", "first", "max"])
@pytest.mark.filterwarnings("ignore:Tokenizer does not support real words")
def test_token_classification(address: str, world: Path, strategy: Any) -> None:
    model = merged(world, world / "store/tagger/1", AutoModelForTokenClassification, list(TAGS))
    theirs = pipeline("token-classification", model=model, tokenizer=AutoTokenizer.from_pretrained(world / "base"))
    ours = client(address, "tagger").token_classification(TEXT, aggregation_strategy=strategy)
    wanted: Any = theirs(TEXT, aggregation_strategy=strategy or "none")
    assert ours
    for element, other in zip(ours, wanted, strict=True):
        assert (element.start, element.end, element.word) == (other["start"], other["end"], other["word"])
        assert element.score == pytest.approx(float(other["score"]), abs=1e-5)
        assert (element.entity_group or element["entity"]) == other.get("entity_group", other.get("entity"))


CONTEXT = f"{TEXT} . so bright and calm , not very loud , glad and sad and slow {TEXT}"
QUESTION = {"question": "not bad ?", "context": CONTEXT}


def spans_of(world: Path, count: int) -> tuple[list[tuple[str, float]], float, int]:
    """The context's answers, best first, from `count` of each window; how likely there is none; windows.

    Which spans a window has is transformers' own code, on the merged model.
    """
    model = merged(world, world / "store/answerer/1", AutoModelForQuestionAnswering, ["start", "end"])
    tokenizer = AutoTokenizer.from_pretrained(world / "base")
    told: Any = {"max_length": 24, "stride": 4, "truncation": "only_second", "return_overflowing_tokens": True}
    encoded = tokenizer(QUESTION["question"], CONTEXT, return_offsets_mapping=True, **told)
    assert "token_type_ids" in tokenizer.model_input_names
    found: dict[str, float] = {}
    null = 1.0
    for number in range(len(encoded["input_ids"])):
        with torch.inference_mode():
            given = model(**{name: torch.tensor([encoded[name][number]]) for name in tokenizer.model_input_names})
        hidden = np.array([[0 if of == 1 or at == 0 else 1 for at, of in enumerate(encoded.sequence_ids(number))]])
        logits = (given.start_logits.numpy(), given.end_logits.numpy())
        starts, ends, scores, null = select_starts_ends(
            *logits, hidden, np.ones_like(hidden), null, count, handle_impossible_answer=True, max_answer_len=6
        )
        mine: dict[str, float] = {}
        for start, end, score in zip(starts, ends, scores, strict=True):
            places = encoded["offset_mapping"][number]
            text = CONTEXT[places[start][0] : places[end][1]]
            mine[text] = mine.get(text, 0.0) + float(score)
        found |= {text: max(score, found.get(text, 0.0)) for text, score in mine.items()}
    found.pop("", None)
    return sorted(found.items(), key=lambda item: -item[1]), null, len(encoded["input_ids"])


def test_question_answering(tmp_path: Path) -> None:
    """A context of several windows, of which the surest one counts."""
    world = make_answerer(tmp_path)
    ranked, _, windows = spans_of(world, 12)
    more, null, _ = spans_of(world, 20)
    assert windows >= 3
    with serving(world) as address:
        asked = client(address, "answerer")
        best: Any = asked.question_answering(**QUESTION, max_answer_len=6, handle_impossible_answer=False)
        assert (best.answer, best.score) == (ranked[0][0], pytest.approx(ranked[0][1], abs=1e-5))
        assert CONTEXT[best.start : best.end] == best.answer
        several: Any = asked.question_answering(**QUESTION, max_answer_len=6, top_k=5)
        wanted = sorted([*more, ("", null)], key=lambda item: -item[1])[:5]
        assert [one.answer for one in several] == [text for text, _ in wanted]
        assert [one.score for one in several] == pytest.approx([score for _, score in wanted], abs=1e-5)
        answer = httpx.post(f"{address}/models/answerer", json={"inputs": [QUESTION, QUESTION]}, timeout=None)
        assert len(answer.json()) == 2
        for body, says in [
            ({"inputs": "what?"}, "has no 'context'"),
            ({"inputs": {**QUESTION, "context": " "}}, "context: text ' ' is empty"),
            ({"inputs": QUESTION, "parameters": {"doc_stride": 9}}, "it was trained with its task.doc_stride"),
            ({"inputs": QUESTION, "parameters": {"top_k": 0}}, "top_k 0 must be a whole number"),
        ]:
            refused = httpx.post(f"{address}/models/answerer", json=body, timeout=None)
            assert (refused.status_code, says in refused.text) == (400, True), refused.text


def test_features_and_similarity(address: str, world: Path) -> None:
    tokenizer, model = AutoTokenizer.from_pretrained(world / "base"), AutoModel.from_pretrained(world / "base").eval()

    def pooled(text: str) -> Any:
        with torch.inference_mode():
            return model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0).numpy()

    asked = client(address, "base")
    np.testing.assert_allclose(asked.feature_extraction(TEXT), pooled(TEXT), atol=1e-5)
    assert np.linalg.norm(asked.feature_extraction(TEXT, normalize=True)) == pytest.approx(1, abs=1e-5)
    one, two = (pooled(text) for text in ("good", "not good"))
    source = pooled(TEXT)
    cosines = [float(source @ v / np.linalg.norm(source) / np.linalg.norm(v)) for v in (one, two)]
    assert asked.sentence_similarity(TEXT, other_sentences=["good", "not good"]) == pytest.approx(cosines, abs=1e-5)


def test_several_inputs_and_the_headers(address: str) -> None:
    answer = httpx.post(
        f"{address}/models/tweets", json={"inputs": [TEXT, "good"], "parameters": {"top_k": 2}}, timeout=None
    )
    assert [len(ranked) for ranked in answer.json()] == [2, 2]
    assert answer.headers["x-adapter"] == "tweets@1"
    assert len(answer.headers["x-adapter-sha256"]) == 64


@pytest.mark.parametrize(
    ("ref", "body", "status", "says"),
    [
        ("nobody", {"inputs": TEXT}, 404, "not in the store"),
        ("tweets", {"inputs": ""}, 400, "is empty or not a string"),
        ("tweets", {"inputs": TEXT, "parameters": {"top_kk": 1}}, 400, "are not known to this task"),
        ("tweets", {"input": TEXT}, 400, "inputs"),
        ("tagger", {"inputs": TEXT, "parameters": {"aggregation_strategy": "most"}}, 400, "must be one of none"),
        ("base", {"inputs": {"sentences": ["a"]}}, 400, "source_sentence"),
        ("base", {"inputs": TEXT, "truncate": False}, 400, "leave it out"),
        ("base", {"inputs": TEXT, "parameters": {"dimensions": 3}}, 400, "it takes normalize, truncate"),
    ],
)
def test_what_is_wrong_is_said_as_everywhere(address: str, ref: str, body: Any, status: int, says: str) -> None:
    answer = httpx.post(f"{address}/models/{ref}", json=body, timeout=None)
    assert answer.status_code == status, answer.text
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert says in answer.json()["error"]["message"]


def test_keys_are_the_client_s_own(world: Path) -> None:
    with serving(world, keys=str(world / "keys.yaml")) as address:
        assert client(address, "tweets", token="secret").text_classification(TEXT)
        for ref, token, status in (("tagger", "secret", 403), ("tweets", "other", 401)):
            with pytest.raises(Exception, match=str(status)):
                client(address, ref, token=token).text_classification(TEXT)
