"""Transcripts beside what was said: normalised by name, scored by jiwer, and shown with their errors marked.

    score(["the cat sat"], ["The cat sat."], "lower")     # {"wer": 0.0, "cer": 0.0}
    marked("the hat sat", "the cat sat").text             # "the [-cat-]{+hat+} sat"

A normalisation's name is said with every score, since a rate without one says little. It knows texts, no sounds.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from html import escape
from importlib.util import find_spec
from types import MappingProxyType
from typing import Literal

from ray_lora.errors import RecipeError, did_you_mean

Normalisation = Literal["none", "lower", "whisper-basic", "whisper-english"]
NORMALISATIONS: tuple[Normalisation, ...] = ("none", "lower", "whisper-basic", "whisper-english")
_MOST_SHOWN = 500  # rows on a page
_APOSTROPHES = str.maketrans("’ʼ＇", "'''")


def normalised(text: str, name: str, spelling: Mapping[str, str] = MappingProxyType({})) -> str:
    """A text as it is compared.

    Args:
        name: `none`: as it is, but for white space, of which one blank is left; `lower`: without case and punctuation,
            but for apostrophes inside of words; `whisper-basic` and `whisper-english`: as OpenAI's Whisper was
            measured, by transformers' normalisers of these names.
        spelling: for `whisper-english`, British spellings and their American ones; Whisper's own table lies beside its
            tokenizer (`english_spelling_normalizer`), and without it both stay apart.

    Raises:
        RecipeError: no normalisation has this name.
    """
    if name == "lower":
        text = _lower(text)
    elif name == "whisper-basic":
        text = _basic()(text)
    elif name == "whisper-english":
        text = _english(tuple(spelling.items()))(text)
    elif name != "none":
        raise RecipeError(
            f"{name!r} is not a normalisation{did_you_mean(name, NORMALISATIONS)}; there are "
            f"{', '.join(NORMALISATIONS)}"
        )
    return " ".join(text.split())


def score(
    answers: Sequence[str],
    references: Sequence[str],
    normalisation: str,
    spelling: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, float]:
    """`wer` and `cer`: words, and characters with blanks, that are wrong, missing or too many, over those of all
    references together, by jiwer.

    Where nothing was said, what was answered counts as too many; if nothing was said in any row, the rates are the
    number of what was answered.

    Raises:
        RecipeError: no normalisation has this name, or jiwer is not installed.
    """
    check_installed()
    import jiwer

    said = [normalised(text, normalisation, spelling) for text in references]
    heard = [normalised(text, normalisation, spelling) for text in answers]
    return {"wer": float(jiwer.wer(said, heard)), "cer": float(jiwer.cer(said, heard))}


@dataclass(frozen=True)
class Marked:
    """A transcript beside what was said, word by word.

    Attributes:
        text: what is missing in [- -], what is too much in {+ +}, what is wrong in both; as `wdiff` has it.
        html: the same as <del> and <ins>, everything else escaped.
        errors: how many words are wrong, missing or too many; words: how many were said.
    """

    text: str
    html: str
    errors: int
    words: int


def marked(answer: str, reference: str) -> Marked:
    """The words of an answer, those that differ from what was said marked.

    Args:
        answer, reference: as they are to be compared; `normalised` first, so that what is marked is what was counted.

    Raises:
        RecipeError: jiwer is not installed.
    """
    check_installed()
    import jiwer

    found = jiwer.process_words(reference, answer)
    [alignments], [said], [heard] = found.alignments, found.references, found.hypotheses
    texts, pages = [], []
    for part in alignments:
        gone = " ".join(said[part.ref_start_idx : part.ref_end_idx])
        come = " ".join(heard[part.hyp_start_idx : part.hyp_end_idx])
        if part.type == "equal":
            texts.append(come)
            pages.append(escape(come))
            continue
        texts.append((f"[-{gone}-]" if gone else "") + (f"{{+{come}+}}" if come else ""))
        pages.append((f"<del>{escape(gone)}</del>" if gone else "") + (f"<ins>{escape(come)}</ins>" if come else ""))
    errors = found.substitutions + found.deletions + found.insertions
    return Marked(" ".join(texts), " ".join(pages), errors, len(said))


def page(answers: Sequence[str], references: Sequence[str], normalisation: str) -> str:
    """An HTML page of the rows with most errors for their length, each with its errors marked.

    Raises:
        RecipeError: as `score`.
    """
    rates = score(answers, references, normalisation)
    rows = [
        (row, marked(normalised(answer, normalisation), normalised(said, normalisation)))
        for row, (answer, said) in enumerate(zip(answers, references, strict=True))
    ]
    rows.sort(key=lambda one: (-one[1].errors / max(1, one[1].words), one[0]))
    lines = "\n".join(f"<tr><td>{row}<td>{one.errors} of {one.words}<td>{one.html}" for row, one in rows[:_MOST_SHOWN])
    shown = f"{len(rows)} rows" if len(rows) <= _MOST_SHOWN else f"The worst {_MOST_SHOWN} of {len(rows)} rows"
    return _PAGE.format(shown=shown, name=escape(normalisation), lines=lines, **rates)


_PAGE = """<!doctype html>
<meta charset="utf-8">
<title>Transcripts</title>
<style>
body {{ font: 15px/1.5 sans-serif; margin: 2em }}
td {{ padding: .2em 1em .2em 0; vertical-align: top }}
del {{ background: #fdd }}
ins {{ background: #dfd; text-decoration: none }}
</style>
<p>{shown}, all compared as <b>{name}</b>: word error rate {wer:.4f}, character error rate {cer:.4f}.
<del>Said</del> and not heard, <ins>heard</ins> and not said.
<table>
<tr><th>row<th>wrong<th>words
{lines}
</table>
"""


def check_installed() -> None:
    """RecipeError unless what scores wordings is installed."""
    if find_spec("jiwer") is None:
        raise RecipeError("transcripts are scored by jiwer, which is not installed: pip install 'ray_lora[speech]'")


def _lower(text: str) -> str:
    """Every sign but letters, their marks, digits, and apostrophes between two of these, is a blank."""
    plain = unicodedata.normalize("NFC", text.lower()).translate(_APOSTROPHES)
    kept = [unicodedata.category(one)[0] in "LMN" for one in plain]
    inside = [one == "'" and 0 < at < len(plain) - 1 and kept[at - 1] and kept[at + 1] for at, one in enumerate(plain)]
    return "".join(one if keep or within else " " for one, keep, within in zip(plain, kept, inside, strict=True))


@lru_cache(maxsize=1)
def _basic() -> Callable[[str], str]:
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer

    found: Callable[[str], str] = BasicTextNormalizer()
    return found


@lru_cache(maxsize=4)
def _english(spelling: tuple[tuple[str, str], ...]) -> Callable[[str], str]:
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    found: Callable[[str], str] = EnglishTextNormalizer(dict(spelling))
    return found
