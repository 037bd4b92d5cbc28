"""A base that says a letter a frame answers as transformers' pipeline does, whoever shares the pass; and what its
letters cannot spell is refused by row."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
import torch
import transformers
from peft import PeftModel

from ray_lora.data.check import on_base, wrong_rows
from ray_lora.engine import AdapterEngine
from ray_lora.errors import RecipeError
from ray_lora.inference.predict import predict
from ray_lora.recipe import LoraSpec
from ray_lora.tasks import build_task
from ray_lora.tasks.speech.options import SpeechRecognitionSpec
from tests.unit.bases import open_base, quiet_peft
from tests.unit.speech import RATE, plain, rows, save_wav2vec2, tone, wav

SAID = ("has '2'", "has 'Ì'", "they do not belong together", "has no letter")
TARGETS = ("q_proj", "v_proj", "intermediate_dense")


@pytest.fixture(scope="module", params=["layer", "group"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A base of either kind, an engine with two adapters, and the plain pipeline of each."""
    folder = save_wav2vec2(tmp_path_factory.mktemp("letters") / request.param, request.param)
    engine = AdapterEngine(open_base(folder), slots=3, max_rank=8)
    task = build_task(SpeechRecognitionSpec(), engine.base.processor)
    pipelines = {}
    for seed in (1, 2):
        slot = engine.init(LoraSpec(r=2 + seed, target_modules=TARGETS), task.head, seed=seed)
        draw = torch.Generator().manual_seed(seed)
        fresh = {key: torch.randn(part.shape, generator=draw) * 0.2 for key, part in engine.read(slot).items()}
        engine.write(slot, fresh)
        engine.refresh([slot])
        engine.export(slot).save(out := tmp_path_factory.mktemp("adapter"))
        with quiet_peft():
            merged = PeftModel.from_pretrained(plain(folder), str(out)).merge_and_unload().eval()
        pipelines[slot] = transformers.pipeline(
            "automatic-speech-recognition",
            model=merged,
            tokenizer=engine.base.processor.tokenizer,
            feature_extractor=engine.base.processor.feature_extractor,
        )
    yield engine, task, pipelines
    engine.close()


def test_rows_of_several_adapters_are_heard_as_by_the_pipeline(served: Any) -> None:
    engine, task, pipelines = served
    sounds = [tone(seconds, seed) for seed, seconds in enumerate((0.3, 0.9, 0.3, 0.61, 1.2, 0.9))]
    features = task.encode([{"audio": wav(sound)} for sound in sounds])
    slots = [1, 2, 2, 1, 2, 1]
    answers = predict(engine, {1: task, 2: task}, features, slots)
    expected = [pipelines[slot](sound.copy()) for sound, slot in zip(sounds, slots, strict=True)]
    assert answers == expected
    assert len({answer["text"] for answer in answers}) > 3
    shares = engine.sharing_of(1).lengths
    assert shares == ("padded" if task.base.masks else "equal")  # of the other kind company would change an answer


@pytest.mark.parametrize("times", ["char", "word"])
def test_a_long_sound_and_its_times_are_the_pipeline_s(
    served: Any, times: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, task, pipelines = served
    task = build_task(SpeechRecognitionSpec(overlap=0.2), engine.base.processor)
    task._window = RATE  # not of thirty seconds, which take as long
    sound = tone(3.3, 7)
    [feature] = task.encode([{"audio": wav(sound)}])
    assert len(task.windows(feature)) > 3
    [answer] = predict(engine, {2: task}, [feature], [2], [{"return_timestamps": times}])
    expected = pipelines[2](sound.copy(), chunk_length_s=1, stride_length_s=0.2, return_timestamps=times)
    assert answer["text"] == expected["text"]
    assert [(chunk["text"], tuple(chunk["timestamp"])) for chunk in answer["chunks"]] == [
        (chunk["text"], chunk["timestamp"]) for chunk in expected["chunks"]
    ]
    [phrases] = predict(engine, {2: task}, [feature], [2], [{"return_timestamps": True}])
    assert " ".join(" ".join(chunk["text"] for chunk in phrases["chunks"]).split()) == " ".join(answer["text"].split())
    assert all(chunk["timestamp"][1] - chunk["timestamp"][0] <= 6 for chunk in phrases["chunks"])


def test_what_its_letters_cannot_spell_is_refused_by_row(served: Any) -> None:
    task = on_base(SpeechRecognitionSpec(), served[0].base.processor)
    [sound] = [row["audio"] for row in rows(1)]
    texts = ["Uno, due: l'uno!", "uno-due", "uno 2", "così", "uno " * 40, "?!"]
    table = pa.table({"audio": [sound] * len(texts), "text": texts})
    found = wrong_rows(task, task.spec, table)  # type: ignore[union-attr]
    assert [row for row, _ in found] == [2, 3, 4, 5]
    for (_, said), part in zip(
        found, ("has '2'", "has 'Ì'", "they do not belong together", "has no letter"), strict=True
    ):
        assert part in said
    [feature] = task.encode([{"audio": sound, "text": "l'uno-due!"}])  # type: ignore[union-attr]
    written = served[0].base.processor.tokenizer.convert_ids_to_tokens(feature["labels"])
    assert "".join(written) == "L'UNO|DUE"


@pytest.mark.parametrize(("option", "value"), [("language", "it"), ("max_length", 20)])
def test_options_of_bases_that_write_are_refused(served: Any, option: str, value: Any) -> None:
    with pytest.raises(RecipeError, match=rf"task\.{option} is .*leave it out"):
        build_task(SpeechRecognitionSpec(**{option: value}), served[0].base.processor)


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"language": "it"}, "are not known to this task on a base that says letters"),
        ({"return_timestamps": "phrase"}, "must be true, false, 'char' or 'word'"),
        ({"return_timestamps": 1}, "must be true, false, 'char' or 'word'"),
        ({"temperature": 0.5}, "leave it out"),
    ],
)
def test_parameters_are_checked(served: Any, parameters: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        served[1].check_parameters(parameters)


def test_a_sound_too_fast_for_its_letters_is_trained_on_as_it_was(served: Any) -> None:
    from dataclasses import replace

    task = served[1]
    [feature] = task.encode([{"audio": wav(tone(0.3, 1)), "text": "abcdefgh"}])
    view = task.view(feature)
    slower = replace(view, samples=torch.cat([view.samples, view.samples]))
    assert len(task.with_view(feature, slower)["samples"]) == 2 * len(view.samples)
    assert task.with_view(feature, replace(view, samples=view.samples[:900])) is feature
