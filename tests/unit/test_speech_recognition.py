"""Whisper writes what it writes without this library: token by token, of any adapters, of long sounds, with timestamps;
and what it cannot do is refused by name."""

from __future__ import annotations

import base64
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
import transformers
from peft import PeftModel

from ray_lora.adapters.adapter import Card
from ray_lora.bases.load import load_base
from ray_lora.data.check import on_base, wrong_rows
from ray_lora.engine import AdapterEngine, HeadSpec
from ray_lora.errors import AdapterError, DataError, RecipeError
from ray_lora.inference.finite import NotFiniteError
from ray_lora.inference.predict import predict
from ray_lora.recipe import BaseSpec, LoraSpec
from ray_lora.store import open_store
from ray_lora.tasks import Features, Task, build_task
from ray_lora.tasks.speech.heard import Cut, cuts
from ray_lora.tasks.speech.options import SpeechRecognitionSpec
from tests.conformance.answers import written_there
from tests.unit.bases import open_base, quiet_peft
from tests.unit.http_server import serving
from tests.unit.speech import RATE, plain, rows, save_whisper, tone, wav

TARGETS = ("q_proj", "v_proj", "out_proj", "fc1", "fc2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_whisper(tmp_path_factory.mktemp("speech") / "whisper")


@pytest.fixture(scope="module")
def multilingual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_whisper(tmp_path_factory.mktemp("speech") / "multilingual", languages=("en", "it", "ja"))


def task_on(folder: Path, **options: Any) -> Task:
    return build_task(SpeechRecognitionSpec(**options), open_base(folder).processor)


def adapter(engine: AdapterEngine, head: HeadSpec, seed: int) -> int:
    """An adapter that changes what is written."""
    slot = engine.init(LoraSpec(r=2 + seed, target_modules=TARGETS), head, seed=seed)
    draw = torch.Generator().manual_seed(seed)
    engine.write(
        slot, {key: torch.randn(value.shape, generator=draw) * 0.2 for key, value in engine.read(slot).items()}
    )
    engine.refresh([slot])
    return slot


@pytest.fixture(scope="module")
def served(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An engine with two adapters, and for each the plain class into which it is merged."""
    engine = AdapterEngine(open_base(folder), slots=3, max_rank=8)
    task = build_task(SpeechRecognitionSpec(), engine.base.processor)
    merged = {0: plain(folder)}
    for seed in (1, 2):
        slot = adapter(engine, task.head, seed)
        engine.export(slot).save(out := tmp_path_factory.mktemp("adapter"))
        with quiet_peft():
            merged[slot] = PeftModel.from_pretrained(plain(folder), str(out)).merge_and_unload().eval()
    yield engine, task, merged
    engine.close()


def generated(model: Any, task: Any, feature: Features, parameters: dict[str, Any] | None = None) -> str:
    """A plain model's text of one row, by transformers' `generate`; not by Whisper's, which hears a window again where
    random weights write timestamps that nobody asked for."""
    begun, inputs = task.begin(feature, parameters or {}), task.collate([feature])
    prompt = torch.tensor([list(begun.tokens)])
    tokens = transformers.GenerationMixin.generate(model, inputs["input_features"], decoder_input_ids=prompt)[0]
    return str(task._tokenizer.decode(tokens.tolist(), skip_special_tokens=True))


def pipeline(model: Any, task: Any) -> Any:
    """transformers' pipeline on a model that writes by itself, all of a text anew for each token."""

    def generate(input_features: Any, return_timestamps: bool = False, **_: Any) -> Any:
        begun = task.begin({"samples": input_features}, {"return_timestamps": return_timestamps})
        written = written_there(task, model, begun, {"input_features": input_features})
        return torch.tensor([written])

    model.generate = generate
    return transformers.pipeline(
        "automatic-speech-recognition", model=model, tokenizer=task._tokenizer, feature_extractor=task._extractor
    )


def test_rows_of_several_adapters_are_written_as_generate_writes_each(served: Any) -> None:
    engine, task, merged = served
    features = task.encode([{"audio": row["audio"]} for row in rows(6)])
    slots = [1, 2, 1, 2, 2, 1]
    answers = predict(engine, {1: task, 2: task}, features, slots)
    for feature, slot, answer in zip(features, slots, answers, strict=True):
        assert answer == {"text": generated(merged[slot], task, feature)}
    assert len({answer["text"] for answer in answers}) > 3
    alone = [predict(engine, {s: task}, [f], [s])[0] for f, s in zip(features, slots, strict=True)]
    assert alone == answers
    told: list[dict[str, Any]] = [{"max_new_tokens": 2}, {}, {"max_new_tokens": 3}, {"max_new_tokens": 5}, {}, {}]
    some = predict(engine, {1: task, 2: task}, features, slots, told)  # which end before the others
    assert [some[row] for row in (1, 4, 5)] == [answers[row] for row in (1, 4, 5)]
    assert all(some[row] != answers[row] for row in (0, 2, 3))


@pytest.mark.parametrize("timestamps", [False, True])
def test_a_long_sound_is_heard_in_pieces_as_by_the_pipeline(served: Any, timestamps: bool) -> None:
    engine, task, merged = served
    sound = tone(3.1, seed=9)
    [feature] = task.encode([{"audio": wav(sound)}])
    assert len(task.windows(feature)) > 3
    [answer] = predict(engine, {2: task}, [feature], [2], [{"return_timestamps": timestamps}])
    overlap = task._overlap / RATE
    told = {"return_timestamps": True} if timestamps else {}
    expected = pipeline(merged[2], task)(sound.copy(), chunk_length_s=1, stride_length_s=overlap, **told)
    assert answer["text"] == expected["text"]
    if timestamps:
        assert [chunk["text"] for chunk in answer["chunks"]] == [chunk["text"] for chunk in expected["chunks"]]
        for ours, theirs in zip(answer["chunks"], expected["chunks"], strict=True):
            begins, ends = theirs["timestamp"]
            assert ours["timestamp"][0] == pytest.approx(begins or 0.0)
            assert ours["timestamp"][1] == pytest.approx(max(begins or 0.0, 3.1) if ends is None else ends)


def test_pieces_overlap_and_leave_nothing_out() -> None:
    assert cuts(96_000, 96_000, 16_000) == [Cut(0, 96_000, 0, 0)]
    assert cuts(200_000, 96_000, 16_000) == [
        Cut(0, 96_000, 0, 16_000),
        Cut(64_000, 160_000, 16_000, 16_000),
        Cut(128_000, 200_000, 16_000, 0),
    ]
    for samples in range(1, 400):
        found = cuts(samples, 30, 7)
        assert found[0].start == 0
        assert found[-1].end == samples
        assert all(one.end - one.right == other.start + other.left for one, other in pairwise(found))


def test_gradients_are_those_of_plain_peft(folder: Path, tmp_path: Path) -> None:
    engine = AdapterEngine(open_base(folder, torch.float64), slots=2, max_rank=8, train=True)
    task = build_task(SpeechRecognitionSpec(), engine.base.processor)
    other, slot = adapter(engine, task.head, 2), adapter(engine, task.head, 1)
    engine.export(slot).save(tmp_path)
    features = task.encode(rows(4))
    ((_, outputs),) = engine.forward(task.collate(features), torch.tensor([slot, other, slot, other]))
    sums, _ = task.loss(outputs, features)
    sums.sum().backward()
    with quiet_peft():
        model: Any = PeftModel.from_pretrained(plain(folder), str(tmp_path), is_trainable=True).double().eval()
    mine = [features[0], features[2]]
    inputs = task.collate(mine)
    logits = model(**inputs | {"input_features": inputs["input_features"].double()}).logits
    labels = torch.full(inputs["decoder_input_ids"].shape, -100)
    for row, feature in enumerate(mine):
        told = [*feature["labels"], task.end]
        labels[row, len(task._prompt) - 1 : len(task._prompt) - 1 + len(told)] = torch.tensor(told)
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum")
    loss.backward()
    assert sums.detach()[[0, 2]].sum().item() == pytest.approx(loss.item(), abs=1e-9)
    compared = 0
    for name, layer in engine.layers.items():
        if layer.ranks[slot]:
            part = model.base_model.model.get_submodule(f"model.{name}")
            for ours, theirs in ((layer.A, part.lora_A), (layer.B, part.lora_B)):
                grad, weight = ours.grad[slot], theirs["default"].weight.grad
                torch.testing.assert_close(grad[: weight.shape[0], : weight.shape[1]], weight, atol=1e-9, rtol=0)
                compared += bool(weight.any())
    assert compared == 2 * 26
    engine.close()


def test_an_adapter_that_is_no_number_is_said_and_leaves_others_alone(folder: Path) -> None:
    engine = AdapterEngine(open_base(folder), slots=2, max_rank=8)
    task = build_task(SpeechRecognitionSpec(), engine.base.processor)
    right, wrong = adapter(engine, task.head, 1), adapter(engine, task.head, 2)
    features = task.encode(rows(4))
    alone = predict(engine, {right: task}, features[:1], [right])
    engine.write(wrong, {key: torch.full_like(value, torch.nan) for key, value in engine.read(wrong).items()})
    engine.refresh([wrong])
    tasks = {right: task, wrong: task}
    with pytest.raises(NotFiniteError) as caught:
        predict(engine, tasks, features, [right, wrong, right, wrong])
    assert caught.value.slots == {wrong}
    assert predict(engine, {right: task}, features[:1], [right]) == alone
    engine.close()


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"temperature": 0.4}, "temperature is 0.4; the likeliest words are written"),
        ({"return_timestamps": "char"}, "return_timestamps is 'char'; it must be true, false or 'word'"),
        ({"max_new_tokens": 39}, "max_new_tokens is 39; it must be a whole number from 1 to 38"),
        ({"max_new_tokens": True}, "max_new_tokens is True"),
        ({"language": "it"}, "language is 'it', and this base has no tokens of languages"),
        ({"task": "translate"}, "parameters .'task'. are not known"),
    ],
)
def test_parameters_that_cannot_be_are_refused(folder: Path, parameters: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        task_on(folder).check_parameters(parameters)


def test_parameters_that_can_be(served: Any) -> None:
    engine, task, _ = served
    features = task.encode(rows(3))
    told: list[dict[str, Any]] = [{"max_new_tokens": 2, "temperature": 0}, {}, {"return_timestamps": True}]
    short, whole, timed = predict(engine, {2: task}, features, [2] * 3, told)
    assert len(task._tokenizer(short["text"], add_special_tokens=False)["input_ids"]) <= 6  # broken letters have three
    assert len(whole["text"]) > 2
    assert all(0 <= chunk["timestamp"][0] <= chunk["timestamp"][1] for chunk in timed["chunks"])


def test_a_base_of_several_languages_is_told_which(multilingual: Path) -> None:
    with pytest.raises(RecipeError, match=r"this base knows 3 languages; say which one: task.language"):
        task_on(multilingual)
    with pytest.raises(RecipeError, match=r"'French' is no language of this base.* it knows en, it, ja"):
        task_on(multilingual, language="French")
    engine = AdapterEngine(open_base(multilingual), slots=1, max_rank=8)
    model = plain(multilingual)
    for language, lead in (("it", " "), ("Italian", " "), ("ja", "")):
        task = build_task(SpeechRecognitionSpec(language=language), engine.base.processor)
        slot = adapter(engine, task.head, 0)
        engine.write(slot, {key: torch.zeros_like(value) for key, value in engine.read(slot).items()})
        engine.refresh([slot])
        features = task.encode(rows(2))
        assert task._tokenizer.decode(features[0]["labels"]) == f"{lead}uno"
        asked = [{"language": "en"}, {}]
        answers = predict(engine, {slot: task}, features, [slot] * 2, asked)
        for feature, answer, code in zip(features, answers, ("en", task.spec.language), strict=True):
            assert answer == {"text": generated(model, task, feature, {"language": code})}
        engine.evict(slot)
    engine.close()


def test_what_is_too_long_to_learn_from_is_named(folder: Path) -> None:
    import pyarrow as pa

    task = task_on(folder)
    long = {"audio": wav(tone(1.25, 0)), "text": "uno"}
    with pytest.raises(DataError, match=r"the sound is 1.2 s long, and this base learns from at most 1 s; cut it"):
        task.encode([long])
    table = pa.Table.from_pylist([*rows(2), long])
    asked = on_base(task.spec, open_base(folder).processor)
    [(row, why)] = wrong_rows(asked, task.spec, table)
    assert (row, why[:25]) == (2, "the sound is 1.2 s long, ")
    [cut] = task_on(folder, max_length=8).encode([{"audio": rows(1)[0]["audio"], "text": "quattro cinque"}])
    assert cut["cut"] == "longer than what is written, 8 tokens,"
    assert len(cut["labels"]) == 6
    with pytest.raises(RecipeError, match=r"task.max_length is 41, the base has 40 positions"):
        task_on(folder, max_length=41)
    with pytest.raises(RecipeError, match=r"task.overlap is 0.5 seconds at either end, the base hears 1 at once"):
        task_on(folder, overlap=0.5)


def test_other_classes_that_write_are_refused_by_name(folder: Path, tmp_path: Path, tiny_bert_folder: Path) -> None:
    with pytest.raises(RecipeError, match="needs a Whisper or a Wav2Vec2 with its tokenizer and feature extractor"):
        task_on(tiny_bert_folder)
    config = transformers.Speech2TextConfig(
        vocab_size=60, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, conv_channels=16,
    )  # fmt: skip
    transformers.Speech2TextModel(config).save_pretrained(tmp_path)
    base = load_base(BaseSpec(model=str(tmp_path), dtype="float32"))
    with pytest.raises(AdapterError, match="AutoModelForSpeechSeq2Seq on 'speech_to_text' was not compared"):
        base.plain(HeadSpec("AutoModelForSpeechSeq2Seq", 60))


def test_silent_sounds_are_told_and_right(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    import pyarrow as pa

    silent = {"bytes": wav(np.zeros(800, np.float32)), "path": "quiet.wav"}
    heard = {"bytes": wav(tone(0.1, 0)), "path": "a.wav"}
    block = pa.table({"audio": [heard, silent, heard], "text": ["uno", "due", "tre"]})
    assert not wrong_rows(task_on(folder), SpeechRecognitionSpec(), block)
    assert [one.message for one in caplog.records] == [
        "1 of 3 sounds are silent, such as 'quiet.wav'; their words are learned all the same"
    ]


# -------------------------------------------------------------------- served


def test_it_is_served_as_it_is_predicted(served: Any, folder: Path, tmp_path: Path) -> None:
    engine, task, _ = served
    store = open_store(str(tmp_path / "store"))
    for name, slot in (("one", 1), ("two", 2)):
        store.put(engine.export(slot, Card(task=task.spec)), name)
    sounds = {"short": wav(tone(0.7, 3)), "long": wav(tone(2.3, 4))}
    features = task.encode([{"audio": sound} for sound in sounds.values()])
    with serving(tmp_path, base=str(folder)) as address:
        for name, slot in (("one", 1), ("two", 2)):
            here = predict(engine, {slot: task}, features, [slot] * 2, [{"return_timestamps": True}] * 2)
            for sound, answer in zip(sounds.values(), here, strict=True):
                form = {"model": name, "response_format": "verbose_json"}
                told = httpx.post(
                    f"{address}/v1/audio/transcriptions", data=form, files={"file": ("a.wav", sound)}, timeout=None
                )
                assert told.status_code == 200, told.text
                assert told.json()["text"] == answer["text"].strip()
                assert [one["start"] for one in told.json()["segments"]] == [
                    chunk["timestamp"][0] for chunk in answer["chunks"]
                ]
        inputs = [base64.b64encode(sound).decode() for sound in sounds.values()]
        told = httpx.post(f"{address}/v1/predict", json={"model": "two", "inputs": inputs}, timeout=None)
        assert told.json()["predictions"] == predict(engine, {2: task}, features, [2, 2])
        wrong = {"model": "two", "inputs": inputs[:1], "parameters": {"temperature": 1}}
        refused = httpx.post(f"{address}/v1/predict", json=wrong, timeout=None)
        assert (refused.status_code, "temperature is 1" in refused.text) == (400, True)
