"""The share of answers that are the wanted text, compared as a normalisation's name says.

    exact_match(["The Lima."], ["lima"], "squad")      # 1.0

It knows texts, no tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ray_lora.tasks.generation_options import Normalisation
from ray_lora.tasks.speech.wording import normalised


def exact_match(answers: Sequence[str | None], references: Sequence[str], normalisation: Normalisation) -> float:
    """From 0 to 1; of no answers 0.

    Args:
        answers: None where there is none that could match.
        normalisation: `squad`: without case, punctuation, articles and more than one blank, by torchmetrics' SQuAD
            (Rajpurkar et al., arXiv 1606.05250); `lower`: without case and punctuation; `none`: but for white space,
            of which one blank is left.
    """
    pairs = [(answer, said) for answer, said in zip(answers, references, strict=True) if answer is not None]
    if not pairs:
        return 0.0
    if normalisation == "squad":
        return _squad(pairs) / len(answers)
    return sum(normalised(one, normalisation) == normalised(said, normalisation) for one, said in pairs) / len(answers)


def _squad(pairs: Sequence[tuple[str, str]]) -> float:
    """How many match."""
    from torchmetrics.functional.text import squad

    given, wanted = [], []
    for row, (answer, said) in enumerate(pairs):
        given.append({"prediction_text": answer, "id": str(row)})
        answers: Any = {"text": [said], "answer_start": [0]}
        wanted.append({"answers": answers, "id": str(row)})
    return float(squad(given, wanted)["exact_match"]) / 100 * len(pairs)
