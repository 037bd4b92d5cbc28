"""Sounds in rows: the bytes of a WAV, FLAC, OGG (Vorbis, Opus) or MP3 file, base64 text of them, or
{"bytes": ..., "path": ...} as `datasets` writes it.

    open_sound(b"<WAV bytes>")        # float32 (samples,), one channel, 16,000 samples a second

Of any rate, number of channels and width of samples, by libsndfile; resampled by scipy's polyphase filter. What a file
is is said by its bytes; a name's ending says nothing, and no path and no address is followed from here.
"""

from __future__ import annotations

import base64
import io
import struct
from collections.abc import Mapping
from fractions import Fraction
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from ray_lora.errors import DataError, RecipeError
from ray_lora.tasks.mp3_frames import frames, says_length

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from soundfile import SoundFile

RATE = 16_000  # samples a second, of what is given back
KINDS = ("WAV", "WAVEX", "FLAC", "OGG", "MP3")  # libsndfile's names. It knows others, whose ends it does not miss
MOST_SECONDS = 1_800
_MOST_SAMPLES = MOST_SECONDS * 48_000  # of one channel, 350 MB while a file is read
_RATES = (1_000, 384_000)
_MOST_CHANNELS = 32
_BLOCK = 1 << 18  # samples of all channels that are read at once
_LOUD = 16.0  # full scale is 1; what lossy kinds and floats have above it is far less
_FINEST = 1_000  # of the ratio of two rates; one that is not met is missed by less than a millionth
_MP3_FRAME = 1_152  # samples
_UNKNOWN = 0xFFFFFFFF  # the size of samples in a WAV header that was written before them, as by ffmpeg into a pipe
_WHAT = "give the bytes of a wav, flac, ogg or mp3 file, or base64 text of them"


def open_sound(sound: Any) -> NDArray[np.float32]:
    """A sound in any of the ways in which a row holds one, as `decode` gives it.

    Raises:
        DataError: it cannot be read to its end. RecipeError: the library is not installed.
    """
    name = ""
    if isinstance(sound, Mapping):
        path = sound.get("path")
        name = path if isinstance(path, str) else ""
        if sound.get("bytes") is None:
            raise DataError(f"a sound has no bytes, only the path {path!r}; write its bytes beside the path; {_WHAT}")
        sound = sound["bytes"]
    if isinstance(sound, str):
        try:
            sound = base64.b64decode(sound, validate=True)
        except ValueError as error:
            raise _wrong(name, str(error)) from None
    if not isinstance(sound, (bytes, bytearray, memoryview)):
        raise DataError(f"{_called(name)} is a {type(sound).__name__}; {_WHAT}")
    return decode(bytes(sound), name)


def decode(data: bytes, name: str = "") -> NDArray[np.float32]:
    """A file's samples: float32 (samples,), at `RATE`, its channels' mean.

    Full scale is from -1 to 1; lossy kinds and files of floats may go somewhat beyond. Silence is a sound.

    Args:
        name: of the file, for messages.

    Raises:
        DataError: it is no sound of `KINDS`, ends before its end, announces more than it holds, has no samples, or
            some that are no numbers, is far too loud, or is longer than `MOST_SECONDS` or 48,000 samples of each of
            these. RecipeError: the library is not installed.
    """
    check_installed()
    import soundfile

    try:
        if not data:
            raise ValueError("it is empty, 0 bytes")
        _check_whole(data)
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            _check_header(file)
            samples, rate = _mixed(file), file.samplerate
            _check_length(file, len(samples), data)
    except soundfile.LibsndfileError as error:
        said = "it is no sound, or one whose beginning is broken" if error.code in (1, 3) else error.error_string
        raise _wrong(name, said or "its samples are broken, or it is cut short") from None
    except ValueError as error:
        raise _wrong(name, str(error)) from None
    return _resampled(samples, rate)


def seconds_of(data: bytes) -> float:
    """How long a file that `decode` takes says that it is; nothing is decoded."""
    import soundfile

    with soundfile.SoundFile(io.BytesIO(data)) as file:
        return float(file.frames / file.samplerate)


def is_silent(samples: NDArray[np.float32]) -> bool:
    """Whether nothing can be heard: no sample differs from the others by more than the last of 16 bits."""
    return bool(np.ptp(samples) <= 2 / 2**15)


def check_installed() -> None:
    """RecipeError unless what reads sounds is installed."""
    if find_spec("soundfile") is None:
        raise RecipeError("sounds are read by soundfile, which is not installed: pip install 'ray_lora[speech]'")


def _called(name: str) -> str:
    return f"a sound ({name!r})" if name else "a sound"


def _wrong(name: str, why: str) -> DataError:
    return DataError(f"{_called(name)} cannot be read ({why}); {_WHAT}")


def _check_whole(data: bytes) -> None:
    """ValueError where a WAV or OGG file ends before its end: libsndfile takes what is left for the whole."""
    if data[:4] in (b"RIFF", b"RIFX") and data[8:12] == b"WAVE":
        at, order = 12, "<" if data[:4] == b"RIFF" else ">"
        while at + 8 <= len(data):
            name, size = data[at : at + 4], struct.unpack(f"{order}I", data[at + 4 : at + 8])[0]
            left = len(data) - at - 8
            if name == b"data" and size > left and size != _UNKNOWN:
                raise ValueError(
                    f"its header announces {size:,} bytes of samples, and {left:,} are there: it is cut short, or its "
                    "header is wrong"
                )
            if name == b"data":
                return
            at += 8 + size + size % 2
        raise ValueError("it ends before its samples")
    if data[:4] == b"OggS":
        at, last = 0, False
        while data[at : at + 4] == b"OggS" and at + 27 <= len(data):
            table = data[at + 27 : at + 27 + data[at + 26]]
            last = bool(data[at + 5] & 4)
            at += 27 + data[at + 26] + sum(table)
        if not last or at > len(data):
            raise ValueError("it ends before its last page: it is cut short")


def _check_header(file: SoundFile) -> None:
    """ValueError unless what a header says can be taken; before anything is decoded."""
    if file.format not in KINDS:
        raise ValueError(f"it is {file.format}, which is not read")
    if file.format == "MP3" and file.subtype != "MPEG_LAYER_III":
        raise ValueError(f"it is {file.subtype}, which is not read")
    if not _RATES[0] <= file.samplerate <= _RATES[1]:
        raise ValueError(f"it has {file.samplerate:,} samples a second; from {_RATES[0]:,} to {_RATES[1]:,} are taken")
    if file.channels > _MOST_CHANNELS:
        raise ValueError(f"it has {file.channels} channels; at most {_MOST_CHANNELS} are taken")
    if file.frames < 1 << 62:  # else a stream that does not say how long it is
        _check_size(file.frames, file.samplerate)


def _check_size(frames: int, rate: int) -> None:
    if frames > MOST_SECONDS * rate:
        raise ValueError(f"it is {frames / rate:,.0f} s long; at most {MOST_SECONDS:,} s are taken, cut it")
    if frames > _MOST_SAMPLES:
        raise ValueError(f"it has {frames:,} samples; at most {_MOST_SAMPLES:,} are taken, cut it or lower its rate")


def _mixed(file: SoundFile) -> NDArray[np.float32]:
    """The mean of a file's channels, at its own rate. ValueError where that is no sound, or too long a one."""
    blocks: list[NDArray[np.float32]] = []
    count = 0
    while len(block := file.read(_BLOCK // file.channels, dtype="float32", always_2d=True)):
        count += len(block)
        _check_size(count, file.samplerate)
        if not np.isfinite(block).all():
            raise ValueError("some of its samples are no finite numbers")
        blocks.append(block.mean(axis=1, dtype=np.float32))
    if not blocks:
        raise ValueError("it has no samples")
    samples = np.concatenate(blocks)
    loudest = float(np.abs(samples).max())
    if loudest > _LOUD:
        raise ValueError(f"its loudest sample is {loudest:,.1f}, where full scale is 1; scale it")
    return samples


def _check_length(file: SoundFile, read: int, data: bytes) -> None:
    """ValueError where a file holds less than it announces, or more than libsndfile gives of it."""
    if file.format == "MP3":
        found = frames(data)
        if not found.whole:
            raise ValueError("it ends within a frame: it is cut short")
        if not says_length(data):  # what is announced is libsndfile's guess
            if read < found.samples - 2 * _MP3_FRAME:
                raise ValueError("its bitrate varies, and it does not say how long it is; write it anew, or as flac")
            return
    if read < file.frames < 1 << 62:
        raise ValueError(f"its header announces {file.frames:,} samples, and {read:,} are there: it is cut short")


def _resampled(samples: NDArray[np.float32], rate: int) -> NDArray[np.float32]:
    if rate == RATE:
        return samples
    from scipy.signal import resample_poly

    ratio = Fraction(RATE, rate).limit_denominator(_FINEST)
    found: NDArray[np.float32] = resample_poly(samples, ratio.numerator, ratio.denominator)
    return found.astype(np.float32, copy=False)
