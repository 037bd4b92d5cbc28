"""The frames of an MP3 file, counted: libsndfile guesses how long a file is that does not say so itself, and drops what
is behind its guess.

    frames(data)     # Frames(samples=33408, whole=True)

MPEG 1, 2 and 2.5, layer III (ISO/IEC 11172-3, 13818-3). It reads headers and decodes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

_BITRATES = (  # 1,000 bits a second, of MPEG 1 and of the others
    (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
)
_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}  # by version's bits
_JUNK = 4_096  # bytes before the first frame, beside tags


@dataclass(frozen=True)
class Frames:
    """What the frames that follow each other from the first one on hold.

    Attributes:
        samples: of each channel; those by which encoders fill up are among them.
        whole: whether the last one is all there.
    """

    samples: int
    whole: bool


def frames(data: bytes) -> Frames:
    """Counted up to the end, or to what is no frame, such as a tag."""
    at = _begin(data)
    samples = 0
    while at + 4 <= len(data) and (found := _frame(data[at : at + 4])) is not None:
        size, held = found
        if at + size > len(data):
            return Frames(samples, False)
        at, samples = at + size, samples + held
    return Frames(samples, True)


def says_length(data: bytes) -> bool:
    """Whether the first frame holds no sound but a header that counts the others: Xing's (LAME's Info) or VBRI."""
    at = _begin(data)
    found = _frame(data[at : at + 4]) if at + 4 <= len(data) else None
    return found is not None and any(mark in data[at : at + 64] for mark in (b"Xing", b"Info", b"VBRI"))


def _begin(data: bytes) -> int:
    """Where the first frame is, behind tags (ID3v2)."""
    at = 0
    while data[at : at + 3] == b"ID3" and len(data) >= at + 10:
        size = 0
        for byte in data[at + 6 : at + 10]:
            size = size << 7 | byte & 0x7F
        at += 10 + size + (10 if data[at + 5] & 0x10 else 0)
    for first in range(at, min(at + _JUNK, len(data) - 3)):
        if _frame(data[first : first + 4]) is not None:
            return first
    return len(data)


def _frame(header: bytes) -> tuple[int, int] | None:
    """(bytes, samples of each channel) of a frame; None for what begins none."""
    version, layer = header[1] >> 3 & 3, header[1] >> 1 & 3
    bits, rate, pad = header[2] >> 4, header[2] >> 2 & 3, header[2] >> 1 & 1
    if header[0] != 0xFF or header[1] & 0xE0 != 0xE0 or version == 1 or layer != 1 or bits in (0, 15) or rate == 3:
        return None
    first = version == 3
    kilobits = _BITRATES[0 if first else 1][bits]
    return (144 if first else 72) * kilobits * 1_000 // _RATES[version][rate] + pad, 1_152 if first else 576
