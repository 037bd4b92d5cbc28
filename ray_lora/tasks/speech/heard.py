"""A sound as a base hears it: pieces of its window's length that overlap, and the one text that the pieces' texts make.

    cuts(200_000, window=96_000, overlap=16_000)      # [Cut(0, 96000, 0, 16000), Cut(64000, 160000, 16000, 16000), ...]

Where pieces overlap, what both wrote is found as transformers' pipeline finds it. It knows samples and tokens.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ray_lora.recipe import Json

_WARNS = "transformers.models.whisper.tokenization_whisper"


@dataclass(frozen=True)
class Cut:
    """A piece of a sound: samples from `start` up to `end`, of which `left` and `right` are the neighbours' too."""

    start: int
    end: int
    left: int
    right: int


def cuts(samples: int, window: int, overlap: int) -> list[Cut]:
    """The pieces of a sound, at least one, by the rule of transformers' pipeline.

    Args:
        samples: of the whole sound. window: of a piece, at most.
        overlap: at either end of a piece, fewer than half of the window.
    """
    if samples <= window:
        return [Cut(0, samples, 0, 0)]
    found = []
    for start in range(0, samples, window - 2 * overlap):
        end = min(start + window, samples)
        left, last = (overlap if start else 0), start + window >= samples
        if end - start > left:
            found.append(Cut(start, end, left, 0 if last else overlap))
        if last:
            break
    return found


def joined(
    tokenizer: Any,
    pieces: Sequence[tuple[Mapping[str, Any], Cut]],
    rate: int,
    precision: float,
    timestamps: bool | Literal["word"],
) -> dict[str, Json]:
    """The pipeline's answer: `text`, and with `timestamps` also `chunks`, each {"timestamp": [start, end], "text"}, of
    sentences or of words.

    A chunk that was not ended ends with the sound.

    Args:
        pieces: `tokens` that were written of each piece, in their order, and for words `times`, when each ends.
        rate: samples a second. precision: seconds from one timestamp to the next.
    """
    import numpy as np

    logging.getLogger(_WARNS).addFilter(_is_not_of_the_end)
    outputs: list[dict[str, Any]] = []
    for said, cut in pieces:
        output: dict[str, Any] = {"tokens": np.array([said["tokens"]], dtype=np.int64)}
        if timestamps == "word":
            output["token_timestamps"] = np.array([said["times"]])
        if len(pieces) > 1:
            output["stride"] = ((cut.end - cut.start) / rate, cut.left / rate, cut.right / rate)
        outputs.append(output)
    text, more = tokenizer._decode_asr(
        outputs, return_timestamps=timestamps or None, return_language=None, time_precision=precision
    )
    answer: dict[str, Json] = {"text": text}
    if timestamps:
        end = pieces[-1][1].end / rate
        answer["chunks"] = [_chunk(chunk, end) for chunk in more.get("chunks", ())]
    return answer


def _is_not_of_the_end(record: logging.LogRecord) -> bool:
    """A chunk without an end is given one here."""
    return "did not predict an ending timestamp" not in record.getMessage()


def _chunk(chunk: dict[str, Any], end: float) -> dict[str, Json]:
    begins, ends = chunk["timestamp"]
    begins = 0.0 if begins is None else float(begins)
    ends = max(begins, end) if ends is None or not math.isfinite(ends) else float(ends)
    return {"timestamp": [begins, round(ends, 2)], "text": chunk["text"]}
