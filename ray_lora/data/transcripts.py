"""Transcripts that lie beside sounds: a text file of the same name each, or LibriSpeech's `*.trans.txt`, which names
those of its folder.

    found = transcripts_of(place, ["a.wav", "b.flac"], ["a.txt", "b.txt"])    # ("a.txt", "b.txt")
    read_transcripts(place, ["a.wav"], found)                                 # ["what is said in it"]

It knows names and texts; it decodes no sound.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from ray_lora.data.places import Place
from ray_lora.errors import DataError

_END = ".txt"
_TOGETHER = ".trans.txt"  # a line each: the sound's name without its end, a blank, the words


def is_transcript(name: str) -> bool:
    """Whether a file may hold transcripts, by its name."""
    return name.lower().endswith(_END)


def transcripts_of(folder: Place, sounds: Sequence[str], texts: Sequence[str]) -> tuple[str, ...]:
    """The text files of a folder that hold its sounds' transcripts, in order.

    Args:
        texts: all text files of the folder.

    Raises:
        DataError: a sound has none, or a text file no sound; two sounds have one name.
    """
    stems = {_stem(name): name for name in sounds}
    if len(stems) < len(sounds):
        twice = next(name for name in sounds if stems[_stem(name)] != name)
        raise DataError(
            f"sounds {folder.below(twice).name!r} and {stems[_stem(twice)]!r} have one name, and so one transcript; "
            "rename one"
        )
    together = [name for name in texts if name.lower().endswith(_TOGETHER)]
    if together:
        return tuple(sorted(together))
    alone = {name[: -len(_END)]: name for name in texts}
    if missing := [name for stem, name in stems.items() if stem not in alone]:
        raise DataError(
            f"sound {folder.below(missing[0]).name!r} has no transcript; write {_stem(missing[0]) + _END!r} beside it, "
            "or name all sounds and texts in a metadata.csv"
        )
    if odd := [name for stem, name in alone.items() if stem not in stems]:
        raise DataError(f"{folder.below(odd[0]).name!r} is the transcript of no sound beside it; take it out")
    return tuple(sorted(alone.values()))


def read_transcripts(folder: Place, sounds: Sequence[str], transcripts: Sequence[str]) -> list[str]:
    """What is said in each of some sounds of a folder.

    Args:
        transcripts: `transcripts_of` all of them.

    Raises:
        DataError: a file cannot be read or is no UTF-8; a sound has no line in it, or two.
    """
    if not any(name.lower().endswith(_TOGETHER) for name in transcripts):
        alone = {name[: -len(_END)]: name for name in transcripts}
        return [_text(folder.below(alone[_stem(name)])).strip() for name in sounds]
    said: dict[str, str] = {}
    for name in transcripts:
        for number, line in enumerate(_text(folder.below(name)).splitlines(), 1):
            stem, _, words = line.strip().partition(" ")
            if stem in said:
                raise DataError(f"{folder.below(name).name!r}, line {number}: {stem!r} has a line already; keep one")
            if stem:
                said[stem] = words.strip()
    if missing := [name for name in sounds if _stem(name) not in said]:
        raise DataError(
            f"sound {folder.below(missing[0]).name!r} has no line in {', '.join(transcripts)}; add "
            f"'{_stem(missing[0])} WORDS', or take it out"
        )
    return [said[_stem(name)] for name in sounds]


def _stem(name: str) -> str:
    return name.rpartition(".")[0]


def _text(place: Place) -> str:
    try:
        with place.open() as file:
            content: bytes = file.read()
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"transcript {place.name!r} is not UTF-8; write it as UTF-8") from None
    except (OSError, pa.ArrowException, ValueError) as error:
        raise DataError(f"transcript {place.name!r} cannot be read: {place.why(error)}") from None
