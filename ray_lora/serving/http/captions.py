"""What was heard, in the formats that OpenAI's clients ask for: json, text, srt, vtt and verbose_json.

    srt([{"timestamp": [0.0, 2.5], "text": " Hi."}])    # "1\\n00:00:00,000 --> 00:00:02,500\\nHi.\\n"

Chunks are those of Hugging Face's pipeline. It knows no routes and no sounds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ray_lora.recipe import Json

Chunk = Mapping[str, Json]


def srt(chunks: Sequence[Chunk]) -> str:
    """SubRip's subtitles, numbered from 1; nothing of no chunks."""
    blocks = [
        f"{number}\n{_time(start, ',')} --> {_time(end, ',')}\n{_line(text)}\n"
        for number, (start, end, text) in enumerate(map(_parts, chunks), 1)
    ]
    return "\n".join(blocks)


def vtt(chunks: Sequence[Chunk]) -> str:
    """WebVTT's subtitles, in whose texts &, < and > are written as it asks."""
    blocks = ["WEBVTT\n"]
    for start, end, text in map(_parts, chunks):
        safe = _line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        blocks.append(f"{_time(start, '.')} --> {_time(end, '.')}\n{safe}\n")
    return "\n".join(blocks)


def verbose(
    text: str,
    chunks: Sequence[Chunk] | None,
    language: str | None,
    seconds: float,
    words: Sequence[Chunk] | None = None,
) -> dict[str, Json]:
    """OpenAI's verbose_json, without what is not known: tokens and probabilities.

    Args:
        chunks: of sentences, and words: of words; None of what is not asked for.
        seconds: how long the sound is.
    """
    found: dict[str, Json] = {
        "task": "transcribe",
        "language": language,
        "duration": round(seconds, 3),
        "text": text,
    }
    if chunks is not None:
        found["segments"] = [
            {"id": at, "start": start, "end": end, "text": said}
            for at, (start, end, said) in enumerate(map(_parts, chunks))
        ]
    if words is not None:
        found["words"] = [{"word": said.strip(), "start": start, "end": end} for start, end, said in map(_parts, words)]
    return found


def _parts(chunk: Chunk) -> tuple[float, float, str]:
    start, end = chunk["timestamp"]
    return float(start), float(end), str(chunk["text"])


def _time(seconds: float, point: str) -> str:
    """HH:MM:SS and milliseconds."""
    whole, milliseconds = divmod(round(seconds * 1000), 1000)
    minutes, seconds_left = divmod(whole, 60)
    return f"{minutes // 60:02}:{minutes % 60:02}:{seconds_left:02}{point}{milliseconds:03}"


def _line(text: str) -> str:
    """One line, which no blank line ends and in which no arrow stands for times."""
    return " ".join(text.split()).replace("-->", "->")
