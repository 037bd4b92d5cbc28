"""Sounds as numbers: a wav, flac or ogg file, the mean of its channels, at a base's own rate. It knows no bases."""

from __future__ import annotations

import io
import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

KINDS = ("WAV", "WAVEX", "FLAC", "OGG")
LOUD = 16.0  # full scale is 1


def opened(value: Any, rate: int, most: int) -> Any:
    """float32 [samples] of a file's name, its bytes, or a row {"audio": ...}; SystemExit where it is no whole sound, or
    one of more than so many samples."""
    given = value["audio"] if isinstance(value, dict) else value
    given = given["bytes"] if isinstance(given, dict) else given
    try:
        data = given if isinstance(given, bytes) else Path(given).read_bytes()
        if not whole(data):
            raise ValueError("it is cut short")
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            if file.format not in KINDS:
                raise ValueError(f"it is {file.format}, and the kinds {', '.join(KINDS)} are read")
            samples, told, at = file.read(dtype="float32", always_2d=True), file.frames, file.samplerate
        if len(samples) < told < 1 << 62 or not len(samples):
            raise ValueError(f"{len(samples)} samples are there, and {told} are announced")
        if not np.abs(samples).max() <= LOUD:
            raise ValueError("a sample is no number, or far beyond full scale")
    except (ValueError, OSError, soundfile.LibsndfileError) as error:
        raise SystemExit(f"a sound cannot be read: {error}") from None
    found = resampled(samples.mean(axis=1, dtype=np.float32), at, rate)
    if len(found) > most:
        raise SystemExit(f"a sound is {len(found) / rate:.1f} s long; {most / rate:g} s are heard at once: give parts")
    return found


def whole(data: bytes) -> bool:
    """Whether a wav or ogg file has its end: libsndfile takes what is left for all of it."""
    at = 12
    if data[:4] in (b"RIFF", b"RIFX") and data[8:12] == b"WAVE":
        while at + 8 <= len(data):
            size: int = struct.unpack(">I" if data[:4] == b"RIFX" else "<I", data[at + 4 : at + 8])[0]
            if data[at : at + 4] == b"data":
                return size <= len(data) - at - 8 or size == 0xFFFFFFFF  # of one that was written into a pipe
            at += 8 + size + size % 2
        return False
    at, last = 0, data[:4] != b"OggS"
    while data[at : at + 4] == b"OggS" and at + 27 <= len(data):
        table = data[at + 27 : at + 27 + data[at + 26]]
        last, at = bool(data[at + 5] & 4), at + 27 + data[at + 26] + sum(table)
    return last and at <= len(data)


def resampled(samples: Any, at: int, rate: int) -> Any:
    """By a polyphase filter, a sinc in a Kaiser window, as scipy's `resample_poly`."""
    ratio = Fraction(rate, at).limit_denominator(1000)
    up, down = ratio.numerator, ratio.denominator
    if up == down:
        return samples
    wide = max(up, down)
    middle = 10 * wide
    filter = np.sinc(np.arange(-middle, middle + 1) / wide) * np.kaiser(2 * middle + 1, 5.0)
    filter = np.append((filter * (up / filter.sum())).astype(np.float32), np.zeros(up, np.float32))
    place = np.arange(-(-len(samples) * up // down)) * down + middle  # of each new sample among the filter's steps
    phase, start = place % up, place // up
    steps = (2 * middle) // up + 1
    beside = np.pad(samples, steps)
    return sum(filter[phase + step * up] * beside[start - step + steps] for step in range(steps))
