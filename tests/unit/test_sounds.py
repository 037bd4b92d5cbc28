"""Sounds as people have them: every kind, width, rate and number of channels is heard, or refused by its name."""

from __future__ import annotations

import base64
import io
import struct
import wave
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_lora.errors import DataError, RecipeError
from ray_lora.tasks import sounds
from ray_lora.tasks.sounds import KINDS, RATE, decode, is_silent, open_sound

WRITTEN = {  # how far a tone may be off, by kind and subtype: what its bits, or what its loss, leave
    ("WAV", "PCM_U8"): 1e-2,
    ("WAV", "PCM_16"): 1e-4,
    ("WAV", "PCM_24"): 1e-6,
    ("WAV", "PCM_32"): 1e-6,
    ("WAV", "FLOAT"): 1e-6,
    ("WAV", "DOUBLE"): 1e-6,
    ("WAV", "ULAW"): 2e-2,
    ("WAV", "ALAW"): 2e-2,
    ("FLAC", "PCM_16"): 1e-4,
    ("FLAC", "PCM_24"): 1e-6,
    ("OGG", "VORBIS"): 5e-2,
    ("MP3", "MPEG_LAYER_III"): 5e-2,
}


def tone(rate: int = RATE, seconds: float = 0.5, hertz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)).astype(np.float32)


def written(samples: np.ndarray, kind: str = "WAV", subtype: str | None = None, rate: int = RATE) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=kind, subtype=subtype)
    return buffer.getvalue()


def attempt(data: bytes) -> tuple[np.ndarray | None, str]:
    try:
        return decode(data, "a.wav"), ""
    except DataError as error:
        return None, str(error)


@pytest.mark.parametrize(("kind", "subtype"), WRITTEN)
def test_every_kind_and_width_is_heard(kind: str, subtype: str) -> None:
    samples = tone()
    found = decode(written(samples, kind, subtype), "wrong.txt")  # what a name's ending says counts nothing
    assert (found.dtype, found.shape) == (np.float32, samples.shape)
    assert np.abs(found - samples)[800:-800].max() < WRITTEN[kind, subtype]


def test_opus_is_heard_in_its_own_phase() -> None:
    found = decode(written(tone(48_000), "OGG", "OPUS", 48_000))
    spectrum = np.abs(np.fft.rfft(found))
    assert abs(len(found) - 8_000) <= 1
    assert spectrum.argmax() * RATE / len(found) == pytest.approx(440, abs=2)


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 22_051, 44_100, 48_000, 96_000, 192_000])
def test_every_rate_is_resampled(rate: int) -> None:
    found, due = decode(written(tone(rate), rate=rate)), tone()
    assert abs(len(found) - len(due)) <= 1
    assert np.abs(found[400:7_600] - due[400:7_600]).max() < 2e-3  # but for the edges


def test_what_is_too_high_to_be_kept_does_not_come_back_as_another_tone() -> None:
    high = decode(written(tone(48_000, hertz=10_000), rate=48_000))
    assert np.abs(high[400:-400]).max() < 2e-3


def test_channels_are_mixed() -> None:
    left, right = tone(), tone(hertz=1_000)
    found = decode(written(np.stack([left, right], axis=1), subtype="FLOAT"))
    assert np.allclose(found, (left + right) / 2, atol=1e-6)
    assert np.allclose(decode(written(np.stack([left] * 6, axis=1), "FLAC", "PCM_24")), left, atol=1e-6)


def test_python_s_own_writer_of_24_bits() -> None:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(3)
        file.setframerate(RATE)
        whole = np.round(tone() * (2**23 - 1)).astype("<i4")
        file.writeframes(b"".join(struct.pack("<i", value)[:3] for value in whole.tolist()))
    assert np.abs(decode(buffer.getvalue()) - tone()).max() < 1e-6


@pytest.mark.parametrize(
    "given_as",
    [
        bytes,
        bytearray,
        memoryview,
        lambda data: base64.b64encode(data).decode(),
        lambda data: {"bytes": data, "path": "a.wav"},
        lambda data: {"bytes": base64.b64encode(data).decode()},
    ],
)
def test_a_row_holds_it_in_many_ways(given_as: Any) -> None:
    assert np.array_equal(open_sound(given_as(written(tone()))), decode(written(tone())))


@pytest.mark.parametrize("given_as", ["https://example.org/a.wav", "a.wav", {"bytes": None, "path": "a.wav"}, 7, None])
def test_no_address_and_no_path_is_followed(given_as: Any) -> None:
    with pytest.raises(DataError, match="give the bytes of a wav, flac, ogg or mp3 file"):
        open_sound(given_as)


def test_silence_is_a_sound_and_said() -> None:
    assert is_silent(decode(written(np.zeros(100, np.float32))))
    assert is_silent(decode(written(np.full(100, 0.25, np.float32))))  # a microphone's offset
    assert not is_silent(decode(written(tone() / 100)))


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, -3])
def test_what_is_cut_short_is_refused(kind: str, share: float) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, RATE).astype(np.float32)
    data = written(noise, kind)
    cut = data[: int(share * len(data))] if share > 0 else data[: int(share)]
    with pytest.raises(DataError, match=r"a sound \('folder/a.x'\) cannot be read \("):
        decode(cut, "folder/a.x")


@given(kind=st.sampled_from(sorted(WRITTEN)), share=st.floats(0, 1), at=st.floats(0, 1), byte=st.integers(0, 255))
@settings(max_examples=60, deadline=None)
def test_torn_and_flipped_files_are_sounds_or_errors_of_ours(
    kind: tuple[str, str], share: float, at: float, byte: int
) -> None:
    data = written(tone(seconds=0.2), *kind)
    attempt(data[: int(share * len(data))])
    place = int(at * (len(data) - 1))
    found, _ = attempt(data[:place] + bytes([byte]) + data[place + 1 :])
    assert found is None or np.isfinite(found).all()


def lying(bytes_announced: int) -> bytes:
    data = bytearray(written(tone()))
    at = data.index(b"data") + 4
    data[at : at + 4] = struct.pack("<I", bytes_announced)
    return bytes(data)


def test_a_header_that_lies_is_refused_and_one_written_into_a_pipe_is_not() -> None:
    with pytest.raises(DataError, match="announces 1,000,000 bytes of samples, and 16,000 are there"):
        decode(lying(1_000_000))
    assert np.array_equal(decode(lying(0xFFFFFFFF)), decode(written(tone())))


def test_flac_that_announces_more_than_it_holds_is_refused() -> None:
    data = bytearray(written(tone(), "FLAC", "PCM_16"))
    at = 4 + 4 + 13  # fLaC, a block's header, up to the lower five bytes of STREAMINFO's 36 bits of samples
    assert int.from_bytes(data[at + 1 : at + 5], "big") == 8_000
    data[at + 1 : at + 5] = (9_000).to_bytes(4, "big")
    found, said = attempt(bytes(data))
    assert found is None
    assert "cannot be read (" in said


def bare_mp3(mode: str) -> bytes:
    """Two seconds of a tone, without the first frame, which says how long they are."""
    buffer = io.BytesIO()
    soundfile.write(buffer, tone(seconds=2), RATE, format="MP3", bitrate_mode=mode, compression_level=0.5)
    data = buffer.getvalue()
    return data[data.index(data[:2], max(data.find(b"Xing"), data.find(b"Info"))) :]


def test_a_mp3_that_does_not_say_how_long_it_is() -> None:
    """libsndfile takes the first frame's bitrate for all of them."""
    steady = bare_mp3("CONSTANT")
    assert len(decode(steady)) >= 2 * RATE
    assert len(decode(b"ID3\4\0\0\0\0\1\0" + bytes(128) + steady + b"TAG" + bytes(125))) >= 2 * RATE
    with pytest.raises(DataError, match="its bitrate varies, and it does not say how long it is"):
        decode(bare_mp3("VARIABLE"))
    with pytest.raises(DataError, match="it ends within a frame"):
        decode(steady[: len(steady) // 2 + 9])


def bomb() -> bytes:
    """Half an hour and more of silence: some kilobytes."""
    return written(np.zeros(1_801 * 8_000, np.int16), "FLAC", "PCM_16", 8_000)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: b"", "it is empty, 0 bytes"),
        (lambda: b"no sound at all" * 100, "it is no sound"),
        (lambda: b"\x89PNG\r\n\x1a\n" + bytes(2_000), "it is no sound"),
        (lambda: written(np.zeros(0, np.float32)), "it has no samples"),
        (lambda: written(np.full(9, np.nan, np.float32), subtype="FLOAT"), "no finite numbers"),
        (lambda: written(np.array([0, np.inf], np.float32), subtype="FLOAT"), "no finite numbers"),
        (lambda: written(tone() * 20_000, subtype="FLOAT"), r"loudest sample is 10,000\.0, where full scale is 1"),
        (lambda: written(tone(), "AIFF"), "it is AIFF, which is not read"),
        (lambda: written(np.zeros((9, 40), np.float32)), "40 channels; at most 32"),
        (lambda: written(tone(), rate=500), "500 samples a second; from 1,000 to 384,000"),
        (lambda: written(tone(), rate=400_000), "400,000 samples a second"),
        (bomb, "it is 1,801 s long; at most 1,800 s are taken"),
    ],
)
def test_what_is_no_sound_is_refused_by_its_name(make: Any, said: str) -> None:
    with pytest.raises(DataError, match=rf"a sound \('folder/a.wav'\) cannot be read \(.*{said}"):
        decode(make(), "folder/a.wav")


def test_a_bomb_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: Any, **__: Any) -> Any:
        raise AssertionError("it was decoded")

    data = bomb()
    monkeypatch.setattr(soundfile.SoundFile, "read", read)
    with pytest.raises(DataError, match=r"1,801 s long"):
        decode(data)


def test_kinds_are_libsndfiles() -> None:
    assert set(KINDS) <= set(soundfile.available_formats())


def test_without_the_library_the_line_that_installs_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sounds, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"pip install 'ray_lora\[speech\]'"):
        decode(written(tone()))
