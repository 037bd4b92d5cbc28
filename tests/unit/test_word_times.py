"""Whisper's words have transformers' times: of several adapters at once, in long sounds, over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import openai
import pytest
import torch
import transformers
from transformers import LogitsProcessorList, WhisperTimeStampLogitsProcessor

from ray_lora.adapters.adapter import Card
from ray_lora.engine import AdapterEngine
from ray_lora.errors import RecipeError
from ray_lora.inference.predict import predict
from ray_lora.recipe import LoraSpec
from ray_lora.store import open_store
from ray_lora.tasks import build_task
from ray_lora.tasks.speech.options import SpeechRecognitionSpec
from ray_lora.tasks.speech.word_times import frames_of
from tests.unit.bases import open_base
from tests.unit.http_server import serving
from tests.unit.speech import RATE, save_wav2vec2, tone, wav
from tests.unit.test_speech_recognition import folder, served

__all__ = ["folder", "served"]  # fixtures
WORDS = {"return_timestamps": "word"}


def pipeline(model: Any, task: Any, most: int | None = None) -> Any:
    """transformers' pipeline, whose model writes by `generate` and times by its own dynamic time warping; not by
    Whisper's `generate` as a whole, which hears a window again where random weights write many timestamps."""

    def generate(input_features: Any, attention_mask: Any, return_token_timestamps: bool = False, **_: Any) -> Any:
        assert return_token_timestamps
        begun = task.begin({"samples": input_features}, WORDS)
        rules = WhisperTimeStampLogitsProcessor(task.base.settings, begin_index=len(begun.tokens))
        found = transformers.GenerationMixin.generate(
            model,
            input_features,
            decoder_input_ids=torch.tensor([list(begun.tokens)]),
            logits_processor=LogitsProcessorList([rules]),
            max_length=len(begun.tokens) + (most or begun.most),
            output_attentions=True,
            return_dict_in_generate=True,
        )
        heads = model.generation_config.alignment_heads
        frames, first = attention_mask.sum(-1), len(begun.tokens)
        times = model._extract_token_timestamps(found, heads, num_frames=frames, num_input_ids=first)
        tokens = found.sequences[:, first:]
        if int(tokens[0, -1]) == task.end:
            tokens = tokens[:, :-1]
        return {"sequences": tokens, "token_timestamps": times[:, first:]}

    model.generate = generate
    return transformers.pipeline(
        "automatic-speech-recognition", model=model, tokenizer=task._tokenizer, feature_extractor=task._extractor
    )


def due(found: Any) -> list[tuple[str, float, float]]:
    """A pipeline's chunks."""
    return [(chunk["text"], *chunk["timestamp"]) for chunk in found["chunks"]]


@pytest.fixture
def plain(served: Any) -> Iterator[Any]:
    """The merged plain models, which are given their own `generate` back."""
    _, _, merged = served
    yield merged
    for model in merged.values():
        vars(model).pop("generate", None)


def test_words_of_several_adapters_have_transformers_times(served: Any, plain: Any) -> None:
    engine, task, _ = served
    sounds = [tone(0.3 + number / 18, number) for number in range(12)]
    features, slots = task.encode([{"audio": wav(sound)} for sound in sounds]), [1, 2, 0, 2, 1, 0] * 2
    answers = predict(engine, dict.fromkeys(slots, task), features, slots, [WORDS] * 12)
    for sound, feature, slot, answer in zip(sounds, features, slots, answers, strict=True):
        expected = pipeline(plain[slot], task)(sound.copy(), **WORDS)
        assert answer["text"] == expected["text"]
        assert due(answer) == due(expected)
        assert answer == predict(engine, {slot: task}, [feature], [slot], [WORDS])[0]
        assert all(0 <= begins <= ends <= len(sound) / RATE for _, begins, ends in due(answer))
    assert len({times for answer in answers for _, *pair in due(answer) for times in pair}) > 12
    assert len({str(due(answer)) for answer in answers}) > 9
    mixed: list[dict[str, Any]] = [WORDS, {"return_timestamps": True}, {}, *[WORDS] * 9]
    some = predict(engine, dict.fromkeys(slots, task), features, slots, mixed)
    assert [some[row] for row in (0, *range(3, 12))] == [answers[0], *answers[3:]]
    assert "chunks" not in some[2]


@pytest.mark.parametrize("most", [1, 2, 7])
def test_a_text_that_is_cut_has_them_too(served: Any, plain: Any, most: int) -> None:
    engine, task, _ = served
    sound = tone(0.8, 5)
    [feature] = task.encode([{"audio": wav(sound)}])
    [answer] = predict(engine, {1: task}, [feature], [1], [WORDS | {"max_new_tokens": most}])
    assert due(answer) == due(pipeline(plain[1], task, most)(sound.copy(), **WORDS))


def test_words_of_a_long_sound_are_joined_as_by_the_pipeline(served: Any, plain: Any) -> None:
    engine, task, _ = served
    sound = tone(3.1, seed=9)
    [feature] = task.encode([{"audio": wav(sound)}])
    [answer] = predict(engine, {2: task}, [feature], [2], [WORDS])
    overlap = task._overlap / RATE
    expected = pipeline(plain[2], task)(sound.copy(), chunk_length_s=1, stride_length_s=overlap, **WORDS)
    assert answer["text"] == expected["text"]
    assert due(answer) == due(expected)
    assert len(answer["chunks"]) > 3


def test_the_shortest_sounds(served: Any) -> None:
    engine, task, _ = served
    for samples in (1, 160, 161, 319, 320, 480, 16_000):
        [feature] = task.encode([{"audio": wav(tone(1.0, 1)[:samples])}])
        heard = task._extractor(feature["samples"].numpy(), sampling_rate=RATE, return_attention_mask=True)
        assert frames_of(samples, task._extractor.hop_length) == int(heard["attention_mask"].sum())
        [answer] = predict(engine, {1: task}, [feature], [1], [WORDS])
        assert all(0 <= begins <= ends <= max(samples / RATE, 0.02) for _, begins, ends in due(answer))


def test_a_base_that_does_not_say_which_heads_follow_is_refused(folder: Path) -> None:
    base = open_base(folder)
    told = vars(base.processor.speech) | {"aligned": ()}
    processor = SimpleNamespace(
        speech=type(base.processor.speech)(**told),
        tokenizer=base.processor.tokenizer,
        feature_extractor=base.processor.feature_extractor,
    )
    task = build_task(SpeechRecognitionSpec(), processor)
    with pytest.raises(RecipeError, match="does not say which of its heads follow the sound"):
        task.check_parameters(WORDS)
    task.check_parameters({"return_timestamps": True})


def test_openais_client_is_told_words(served: Any, folder: Path, tmp_path: Path) -> None:
    engine, task, _ = served
    sound = wav(tone(2.3, 4))
    store = open_store(str(tmp_path / "store"))
    store.put(engine.export(2, Card(task=task.spec)), "two")
    features = task.encode([{"audio": sound}])
    by_word, by_sentence = predict(engine, {2: task}, features * 2, [2, 2], [WORDS, {"return_timestamps": True}])
    with serving(tmp_path, base=str(folder)) as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)

        def ask(*kinds: Any) -> Any:
            return client.audio.transcriptions.create(
                model="two", file=("a.wav", sound), response_format="verbose_json", timestamp_granularities=list(kinds)
            )

        words = [(text.strip(), *times) for text, *times in due(by_word)]
        told = ask("word")
        assert (told.text, told.segments) == (by_word["text"].strip(), None)
        assert [(one.word, one.start, one.end) for one in told.words] == words
        both = ask("word", "segment")
        assert [(one.word, one.start, one.end) for one in both.words] == words
        assert [(one.text, one.start, one.end) for one in both.segments] == due(by_sentence)
        assert ask("segment").words is None


def test_letters_have_times_of_words_as_well(tmp_path: Path) -> None:
    base = open_base(save_wav2vec2(tmp_path / "base"))
    engine = AdapterEngine(base, slots=1, max_rank=2)
    task = build_task(SpeechRecognitionSpec(), base.processor)
    sound = wav(tone(1.5, 4))
    slot = engine.init(LoraSpec(r=2, target_modules=("q_proj",)), task.head, seed=0)
    open_store(str(tmp_path / "store")).put(engine.export(slot, Card(task=task.spec)), "letters")
    [answer] = predict(engine, {slot: task}, task.encode([{"audio": sound}]), [slot], [WORDS])
    engine.close()
    with serving(tmp_path) as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        told = client.audio.transcriptions.create(
            model="letters", file=("a.wav", sound), response_format="verbose_json", timestamp_granularities=["word"]
        )
        assert [(one.word, one.start, one.end) for one in told.words or ()] == due(answer)
    assert due(answer)
