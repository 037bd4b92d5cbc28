"""Bundles that hear: sounds are read, and said, as the library does it, by the runner where no torch is."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from scipy.signal import resample_poly

from ray_lora.export.edge import runner, writer
from ray_lora.export.edge.sounds import opened, resampled
from ray_lora.export.exporting import export_refs
from ray_lora.recipe import LoraSpec
from ray_lora.tasks.sounds import open_sound
from ray_lora.tasks.speech.options import SpeechRecognitionSpec
from tests.unit.exported import by_the_runner, put, run_there, said
from tests.unit.speech import RATE, save_wav2vec2, save_whisper, tone, wav

SECONDS = (0.3, 0.9, 0.05, 0.61, 1.2, 0.9)
TARGETS = ("q_proj", "v_proj", "intermediate_dense")


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Files of several lengths and rates, one of two channels."""
    folder = tmp_path_factory.mktemp("sounds")
    for number, seconds in enumerate(SECONDS):
        rate = (16_000, 44_100, 8_000)[number % 3]
        here, there = (np.arange(int(seconds * steps)) / steps for steps in (rate, RATE))
        samples = np.interp(here, there, tone(seconds, number))
        both = np.stack([samples, samples[::-1]], 1) if number == 1 else samples
        (folder / f"{number}.wav").write_bytes(wav(both.astype(np.float32), rate))
    return [str(path) for path in sorted(folder.iterdir())]


@pytest.mark.parametrize("norm", ["layer", "group"])
def test_a_base_that_says_letters_answers_as_the_library(norm: str, sounds: list[str], tmp_path: Path) -> None:
    base, store = save_wav2vec2(tmp_path / "base", norm), tmp_path / "store"
    for seed, name in enumerate(("one", "two")):
        lora = LoraSpec(r=4 - 2 * seed, target_modules=TARGETS[: 3 - seed])
        put(store, base, name, SpeechRecognitionSpec(), lora, seed)
    wanted = {name: said(store, name, sounds) for name in ("one", "two")}
    assert len({answer["text"] for answers in wanted.values() for answer in answers}) > 6
    card = export_refs(["one", "two"], tmp_path / "shared", store=str(store))
    assert card["figures"]["float"]["parity"]["same"] == 1.0
    found = runner.Bundle(tmp_path / "shared").answer([*sounds, *sounds], ["one", "two"] * len(sounds))
    assert found == [wanted[name][at % len(sounds)] for at, name in enumerate(["one", "two"] * len(sounds))]
    assert by_the_runner(tmp_path / "shared", "two", sounds) == wanted["two"]


@pytest.mark.parametrize("languages", [(), ("en", "it")])
def test_whisper_writes_the_library_s_tokens(languages: tuple[str, ...], sounds: list[str], tmp_path: Path) -> None:
    """One adapter merged; and two as inputs of the same two graphs, of which the second has fewer layers."""
    base, store = save_whisper(tmp_path / "base", languages=languages), tmp_path / "store"
    spec = SpeechRecognitionSpec(language="it" if languages else None, max_length=None if languages else 17)
    names = ("one", "two") if languages else ("one",)
    for seed, name in enumerate(names):
        layers = ("q_proj", "v_proj", "out_proj", "fc1", "fc2")
        put(store, base, name, spec, LoraSpec(r=4, target_modules=layers[2 * seed :]), seed)
    files = [path for path in sounds if len(open_sound(Path(path).read_bytes())) <= RATE]
    wanted = {name: said(store, name, files) for name in names}
    assert len({answer["text"] for answer in wanted["one"]}) == len(files) > 4
    card = export_refs(names, tmp_path / "out", merge=not languages, store=str(store))
    parity = card["figures"]["float"]["parity"]
    assert (parity["rows"], parity["same"]) == (7, 1.0)
    assert 0 < parity["largest"] < 5e-5
    bundle = writer.Bundle(tmp_path / "out")
    for name in (*names, "one"):
        assert bundle.answer(files, [name] * len(files)) == wanted[name]
    assert by_the_runner(tmp_path / "out", names[-1], files) == wanted[names[-1]]
    assert (card["figures"]["adapter_bytes"]["one"] > 4_000) == bool(languages)


def test_an_encoder_that_no_adapter_changes_is_given_none(sounds: list[str], tmp_path: Path) -> None:
    base, store = save_whisper(tmp_path / "base"), tmp_path / "store"
    put(store, base, "one", SpeechRecognitionSpec(max_length=17), LoraSpec(r=2, target_modules=r".*decoder.*\.fc1"))
    card = export_refs(["one"], tmp_path / "out", store=str(store))
    assert card["figures"]["float"]["parity"]["same"] == 1.0
    asked = writer.Bundle(tmp_path / "out").asked
    assert asked["encoder"] == {"input_features"}
    assert len([name for name in asked["graph"] if name.endswith("fc1.A")]) == 2


def test_rows_of_data_are_compared_and_what_was_not_compared_is_refused(sounds: list[str], tmp_path: Path) -> None:
    base, store = save_wav2vec2(tmp_path / "base"), tmp_path / "store"
    put(store, base, "one", SpeechRecognitionSpec(), LoraSpec(r=2, target_modules=TARGETS))
    (tmp_path / "rows").mkdir()
    for number in range(3):
        (tmp_path / "rows" / f"{number}.wav").write_bytes(wav(tone(0.4, number)))
    (tmp_path / "rows" / "metadata.csv").write_text("file_name,text\n" + "".join(f"{n}.wav,UNO\n" for n in range(3)))
    card = export_refs(["one"], tmp_path / "out", data=str(tmp_path / "rows"), merge=True, store=str(store))
    assert card["figures"]["float"]["parity"]["rows"] == 3
    assert by_the_runner(tmp_path / "out", "one", sounds) == said(store, "one", sounds)
    with pytest.raises(SystemExit, match=r"a sound is 30\.1 s long; 30 s are heard at once"):
        runner.Bundle(tmp_path / "out").answer([{"audio": wav(np.zeros(int(30.1 * RATE), np.float32))}], ["one"])
    small = export_refs(["one"], tmp_path / "small", int8=True, store=str(store))["figures"]["int8"]
    assert 0 < small["parity"]["largest"] < 0.5


def test_sounds_are_read_as_the_library_reads_them() -> None:
    draw = np.random.default_rng(0)
    for rate in (8_000, 11_025, 12_345, 16_000, 44_100, 96_000):
        for count in (1, 7, 1_003):
            samples = draw.standard_normal(count).astype(np.float32)
            ratio = Fraction(RATE, rate).limit_denominator(1000)
            found = resampled(samples, rate, RATE)
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, resample_poly(samples, ratio.numerator, ratio.denominator), atol=1e-5)
    for kind, subtype in (("WAV", "PCM_16"), ("FLAC", "PCM_24"), ("OGG", "VORBIS")):
        file = io.BytesIO()
        soundfile.write(file, 0.1 * draw.standard_normal((5_000, 2)), 44_100, format=kind, subtype=subtype)
        whole = file.getvalue()
        np.testing.assert_allclose(opened({"audio": whole}, RATE, RATE), open_sound(whole), atol=1e-5)
        np.testing.assert_allclose(opened({"audio": {"bytes": whole}}, RATE, RATE), open_sound(whole), atol=1e-5)
        with pytest.raises(SystemExit, match="a sound cannot be read"):
            opened(whole[: len(whole) // 2], RATE, RATE)


@pytest.mark.network
def test_a_runner_that_hears_needs_no_torch(sounds: list[str], tmp_path: Path, without_torch: Path) -> None:
    base, store = save_wav2vec2(tmp_path / "base"), tmp_path / "store"
    put(store, base, "one", SpeechRecognitionSpec(), LoraSpec(r=2, target_modules=TARGETS))
    export_refs(["one"], tmp_path / "out", merge=True, store=str(store))
    assert run_there(without_torch, tmp_path / "out", "one", sounds) == said(store, "one", sounds)


@pytest.mark.parametrize("samples", [np.full(9, np.nan), np.full(9, 99.0), np.zeros(0)])
def test_what_is_no_sound_is_refused(samples: Any, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="a sound cannot be read"):
        opened(wav(samples), RATE, RATE)
    with pytest.raises(SystemExit, match="a sound cannot be read"):
        opened(str(tmp_path / "none.wav"), RATE, RATE)
    file = io.BytesIO()
    soundfile.write(file, np.zeros(2_000), RATE, format="MP3")
    with pytest.raises(SystemExit, match="it is MP3, and the kinds WAV, WAVEX, FLAC, OGG are read"):
        opened(file.getvalue(), RATE, RATE)
