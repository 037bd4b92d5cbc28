"""Transforms of sounds change what they say that they change, and follow from the draw alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from ray_lora.augmentation.apply import altered
from ray_lora.recipe import TransformSpec
from ray_lora.tasks import build_task
from ray_lora.tasks.augmented import Hidden, Sound
from ray_lora.tasks.speech.options import SpeechRecognitionSpec
from ray_lora.training.figures import write_figures
from ray_lora.training.sheet import _draw_sound
from tests.unit.bases import open_base
from tests.unit.speech import rows, save_whisper
from tests.unit.test_sounds import RATE, tone, written

MOST = 30 * RATE
EVERY: list[dict[str, Any]] = [
    {"name": "speed"},
    {"name": "gain"},
    {"name": "background_noise", "p": 1.0},
    {"name": "time_mask"},
    {"name": "frequency_mask"},
]


def transform(**told: Any) -> TransformSpec:
    return TransformSpec.model_validate(told)


def sound(seconds: float = 2.0, hertz: float = 440.0, most: int = MOST) -> Sound:
    return Sound(torch.from_numpy(tone(RATE, seconds, hertz)), RATE, most)


def draw(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def loudest(view: Sound) -> float:
    """The frequency that is loudest, in hertz."""
    spectrum = np.abs(np.fft.rfft(view.samples.numpy()))
    return float(spectrum.argmax() * RATE / len(view.samples))


@pytest.mark.parametrize("factor", [0.8, 1.25])
def test_speed_changes_length_and_pitch_together(factor: float) -> None:
    found = transform(name="speed", factor=[factor, factor])(sound(), draw())
    assert len(found.samples) == pytest.approx(2 * RATE / factor, abs=2)
    assert loudest(found) == pytest.approx(440 * factor, abs=1)
    assert found.samples.dtype == torch.float32


def test_what_would_be_longer_than_the_base_hears_stays() -> None:
    view = sound(most=2 * RATE)
    assert transform(name="speed", factor=[0.9, 0.9])(view, draw()) is view
    assert len(transform(name="speed", factor=[1.1, 1.1])(view, draw()).samples) < 2 * RATE


@pytest.mark.parametrize(("decibels", "peak"), [(-6.0206, 0.25), (6.0206, 1.0), (20.0, 1.0)])
def test_gain_is_of_decibels_and_cut_at_full_scale(decibels: float, peak: float) -> None:
    found = transform(name="gain", decibels=[decibels, decibels])(sound(), draw())
    assert found.samples.abs().max().item() == pytest.approx(peak, abs=1e-3)


@pytest.mark.parametrize("decibels", [0.0, 20.0])
def test_noise_is_so_far_below(decibels: float) -> None:
    view = sound(4.0)
    found = transform(name="background_noise", p=1.0, decibels=[decibels, decibels])(view, draw())
    noise = found.samples - view.samples
    ratio = 20 * torch.log10(view.samples.square().mean().sqrt() / noise.square().mean().sqrt())
    assert ratio.item() == pytest.approx(decibels, abs=0.2)
    silent = Sound(torch.zeros(100), RATE, MOST)
    assert torch.equal(transform(name="background_noise", p=1.0)(silent, draw()).samples, silent.samples)


@pytest.mark.parametrize(("name", "along"), [("time_mask", "time"), ("frequency_mask", "frequency")])
def test_masks_hide_at_most_their_share(name: str, along: str) -> None:
    view = sound()
    widths = []
    for seed in range(50):
        found = transform(name=name, share=0.3, count=3)(view, draw(seed))
        assert found.samples is view.samples
        assert len(found.hidden) == 3
        assert all(one.along == along and 0 <= one.start <= one.end <= 1 for one in found.hidden)
        widths += [one.end - one.start for one in found.hidden]
    assert 0.25 < max(widths) <= 0.3
    both = transform(name="time_mask")(transform(name="frequency_mask")(view, draw()), draw())
    assert [one.along for one in both.hidden] == ["frequency"] * 2 + ["time"] * 2


def test_what_is_hidden_of_features_is_their_mean_and_nothing_else() -> None:
    features = torch.from_numpy(draw().standard_normal((80, 200))).float()
    view = Sound(torch.zeros(1), RATE, MOST, (Hidden("time", 0.1, 0.2), Hidden("frequency", 0.5, 0.6)))
    hidden = torch.zeros_like(features, dtype=torch.bool)
    hidden[:, 10:20] = True
    hidden[40:48] = True
    found = view.hide(features, frames=100)  # the other half is what the base fills up with
    assert torch.equal(found[~hidden], features[~hidden])
    assert torch.equal(found[hidden], features.mean().expand(int(hidden.sum())))
    assert torch.equal(view.hide(features[None], 100)[0], found)
    assert view.hide(features)[0, 20:40].eq(features.mean()).all()
    assert Sound(torch.zeros(1), RATE, MOST).hide(features) is features


class Task:
    """Of a task, what `altered` asks of it."""

    augments = frozenset({"sounds"})

    def view(self, features: dict[str, Any]) -> Sound:
        return Sound(features["samples"], RATE, MOST, features.get("hidden", ()))

    def with_view(self, features: dict[str, Any], view: Sound) -> dict[str, Any]:
        return features | {"samples": view.samples, "hidden": view.hidden}


def test_what_is_drawn_follows_from_seed_epoch_and_row_alone() -> None:
    told = [transform(**one) for one in EVERY]
    features = {"samples": sound().samples}
    made = {
        drawn: altered(Task(), told, features, drawn)
        for drawn in ((0, 1, 2, 0), (0, 1, 3, 0), (0, 2, 2, 0), (1, 1, 2, 0))
    }  # type: ignore[arg-type]
    again = altered(Task(), told, features, (0, 1, 2, 0))  # type: ignore[arg-type]
    first = made[0, 1, 2, 0]
    assert torch.equal(again["samples"], first["samples"])
    assert again["hidden"] == first["hidden"]
    assert len({one["hidden"] for one in made.values()}) == 4
    assert torch.equal(features["samples"], sound().samples)


@pytest.mark.parametrize(
    "told",
    [
        {"name": "speed", "factor": [1.1, 0.9]},
        {"name": "speed", "factor": [0, 1]},
        {"name": "gain", "decibels": [-400, 0]},
        {"name": "time_mask", "share": 0},
        {"name": "frequency_mask", "count": 0},
        {"name": "gain", "level": 3},
    ],
)
def test_wrong_options_are_refused(told: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        transform(**told)


def test_a_sheet_shows_what_is_hidden() -> None:
    from matplotlib.figure import Figure

    axis = Figure().subplots()
    _draw_sound(Sound(sound().samples, RATE, MOST, (Hidden("time", 0.25, 0.5), Hidden("frequency", 0.5, 1.0))), axis)
    boxes = [(patch.get_x(), patch.get_y(), patch.get_width(), patch.get_height()) for patch in axis.patches]
    assert boxes == [(0.5, 0, 0.5, 8_000), (0, 4_000, 2.0, 4_000)]
    assert len(axis.images) == 1


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Any:
    base = open_base(save_whisper(tmp_path_factory.mktemp("speech") / "whisper"))
    return build_task(SpeechRecognitionSpec(), base.processor)


def test_masks_lie_on_what_whisper_hears(speech: Any) -> None:
    """In the sound's own part of the window, and nowhere else; a row as it was read stays."""
    features = speech.encode([{"audio": written(tone(seconds=0.5)), "text": "uno"}])
    told = [transform(name="time_mask", count=1, share=0.5), transform(name="frequency_mask", count=1)]
    found = altered(speech, told, features[0], (0, 1, 0, 0))
    before, after = (speech.collate([one])["input_features"][0] for one in (features[0], found))
    assert before.shape == after.shape == (20, 100)
    (time, frequency), changed = found["hidden"], (before != after).numpy()
    assert changed.any()
    inside = np.zeros_like(changed)
    inside[:, round(time.start * 50) : round(time.end * 50)] = True
    inside[round(frequency.start * 20) : round(frequency.end * 20)] = True
    assert not changed[~inside].any()
    assert torch.equal(after[torch.from_numpy(inside)], before.mean().expand(int(inside.sum())))
    assert not features[0].get("hidden")


def test_transcripts_are_written_as_a_page(speech: Any, tmp_path: Path) -> None:
    features = speech.encode(rows(2))
    write_figures(
        speech, [{"text": one["reference"] + " <b>"} for one in features], features, tmp_path / "job" / "figures"
    )
    assert [path.name for path in (tmp_path / "job" / "figures").iterdir()] == ["transcripts.html"]
    html = (tmp_path / "job" / "figures" / "transcripts.html").read_text(encoding="utf-8")
    assert "<ins>b</ins>" in html
    assert "<b>lower</b>" in html
