"""Answers that scores have written: as plain PEFT writes them, compared whole; and the samples of a job."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from ray_lora.adapters.adapter import Adapter
from ray_lora.engine import AdapterEngine
from ray_lora.inference.continued import Ask, continued
from ray_lora.inference.predict import predict
from ray_lora.recipe import LoraSpec, TaskSpec, TrainingSpec
from ray_lora.tasks import build_task, scoring_of, task_of
from ray_lora.tasks.exact_match import exact_match
from ray_lora.tasks.generation_options import TextGenerationSpec
from ray_lora.training.figures import FIGURES, SAMPLES
from ray_lora.training.job import Job
from ray_lora.training.pack import Pack
from ray_lora.training.shards import Split, Splits
from tests.unit.bases import open_base
from tests.unit.writing_world import Alone, make_adapter, make_base

PLACES = {"Peru": "Lima", "Mali": "Bamako"}
ROWS = [{"prompt": f"the capital of {place} is", "completion": f" {capital}"} for place, capital in PLACES.items()]
SPEC = TextGenerationSpec(max_length=24, answer_tokens=4)
LORA = LoraSpec(r=4, target_modules=("q_proj", "v_proj", "down_proj"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("writes") / "base")


@pytest.mark.parametrize(("normalisation", "matched"), [("squad", 3 / 4), ("lower", 2 / 4), ("none", 1 / 4)])
def test_texts_are_compared_as_the_name_says(normalisation: str, matched: float) -> None:
    answers = ["The Lima.", "LIMA!", " Lima  ", None]
    assert exact_match(answers, ["Lima"] * 4, normalisation) == pytest.approx(matched)  # type: ignore[arg-type]
    assert exact_match([None], ["Lima"], normalisation) == 0.0  # type: ignore[arg-type]


def test_answers_are_plain_pefts_and_only_ended_ones_match(base: Path, tmp_path: Path) -> None:
    """Two adapters and the base in one call; one answer is cut where its bound is, and is no match then."""
    folders = [make_adapter(base, tmp_path / str(seed), seed) for seed in (1, 2)]
    engine = AdapterEngine(open_base(base), slots=2, max_rank=4)
    slots = [engine.load(Adapter.load(folder)) for folder in folders]
    task = build_task(SPEC, engine.base.processor)
    features = task.encode([*ROWS, *ROWS])
    owners = [slots[0], slots[1], slots[1], slots[0]]
    answers = predict(engine, dict.fromkeys(slots, task), features, owners, [scoring_of(task)] * 4)
    alone = dict(zip(slots, (Alone(base, folder) for folder in folders), strict=True))
    for row, slot, answer in zip(features, owners, answers, strict=True):
        tokens = alone[slot].ids(row["input_ids"], 4)
        ended = 1 in tokens
        assert answer["text"] == engine.base.processor.decode(tokens, skip_special_tokens=True)
        assert answer["ended"] == ended
    assert len({answer["text"] for answer in answers}) > 1
    perfect = [{"loss": 0.0, "tokens": 1, "text": row["completion"], "ended": True} for row in ROWS]
    assert task.score(perfect, features[:2])["exact_match"] == 1.0
    assert task.score([perfect[0] | {"ended": False}, perfect[1]], features[:2])["exact_match"] == 0.5
    engine.close()


def test_more_rows_than_there_is_room_for_wait(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = AdapterEngine(open_base(base), slots=1, max_rank=4)
    task = build_task(SPEC, engine.base.processor)
    asks = [Ask(0, list(range(2, 2 + size)), 5, frozenset()) for size in (3, 9, 4, 6)]
    whole = continued(engine, task.head, asks)
    monkeypatch.setattr("ray_lora.inference.continued._CAPACITY", 14)
    assert continued(engine, task.head, asks) == whole
    engine.close()


def test_cards_say_nothing_of_what_is_not_asked_for() -> None:
    plain = TextGenerationSpec()
    assert plain.recorded() == {"type": "text-generation", "rows": "prompt", "loss": "answer", "max_length": 512}
    assert TaskSpec.recall(SPEC.recorded()) == SPEC
    assert "exact_match" not in task_of(plain).metrics
    assert task_of(SPEC).metrics["exact_match"] == "max"
    with pytest.raises(ValidationError, match="rows: text have none"):
        TextGenerationSpec(rows="text", answer_tokens=4)
    with pytest.raises(ValidationError, match="set answer_tokens too"):
        TextGenerationSpec(normalisation="none")


@pytest.mark.parametrize("rows", ["prompt", "text", "messages"])
def test_a_job_shows_what_base_and_adapter_write(base: Path, tmp_path: Path, rows: str) -> None:
    written = {
        "prompt": ROWS,
        "text": [{"text": row["prompt"] + row["completion"]} for row in ROWS],
        "messages": [
            {"messages": [{"role": "user", "content": place}, {"role": "assistant", "content": capital}]}
            for place, capital in PLACES.items()
        ],
    }[rows]
    spec = TextGenerationSpec(rows=rows, max_length=24, answer_tokens=None if rows == "text" else 4)
    engine = AdapterEngine(open_base(base), slots=2, max_rank=4, train=True)
    task = build_task(spec, engine.base.processor)
    split = Split(dict(enumerate(task.encode(written))), len(written))
    steps = 30 if rows == "prompt" else 1
    training = TrainingSpec(max_steps=steps, eval_steps=steps, learning_rate=3e-2, per_device_train_batch_size=2)
    pack = Pack(engine, {"rows": Splits(split, split)}, output=tmp_path)
    for name in ("one", "two"):
        pack.join(Job(name, "rows", spec, LORA, training))
    reports = []
    while pack.members:
        reports += pack.step()
    engine.close()
    shown = (tmp_path / "two" / FIGURES / SAMPLES).read_text()
    assert shown.count("<tr>") == 3
    if rows == "prompt":
        assert reports[-1].metrics is not None
        assert reports[-1].metrics["exact_match"] == 1.0
        for row in ROWS:
            cells = shown.split(f"<td>{row['prompt']}")[1].split("\n")[0].split("<td>")[1:]
            assert cells[0] == cells[2] == row["completion"]
            assert cells[1] != row["completion"]


def test_samples_that_cannot_be_written_stop_nothing(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no room")

    monkeypatch.setattr("ray_lora.training.samples.continued", broken)
    spec = TextGenerationSpec(max_length=24)
    engine = AdapterEngine(open_base(base), slots=1, max_rank=4, train=True)
    task = build_task(spec, engine.base.processor)
    split = Split(dict(enumerate(task.encode(ROWS))), len(ROWS))
    pack = Pack(engine, {"rows": Splits(split, split)}, output=tmp_path)
    pack.join(Job("one", "rows", spec, LORA, TrainingSpec(max_steps=1)))
    [report] = pack.step()
    engine.close()
    assert report.done
    assert "no samples of one were written: RuntimeError: no room" in caplog.text
    assert not (tmp_path / "one" / FIGURES / SAMPLES).exists()
    assert (tmp_path / "one" / "adapter" / "adapter_config.json").exists()
