"""An adapter that answers questions on countries that it never saw, from texts that may be long or hold no answer.

    python -m pipelines.questions [--smoke] [--seeds N] [--json] [--keep] [key=value ...]

It learns questions on capitals, governments, populations, currencies; it is compared with an adapter that learnt other
questions (areas, climates, mountains) on the same countries. Forty countries are in the test rows alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipelines.factbook_questions import prepare
from pipelines.story import Asked, Line, asked, tell

RECIPE = Path(__file__).parents[1] / "examples/questions.yaml"
CONTEXT = (
    "Country name - conventional short form: Ruritania. Government type: constitutional monarchy. Capital - name: "
    "Strelsau; geographic coordinates: 50 05 N, 14 25 E. Independence: 7 May 1893 (from Austria)."
)


def main(argv: Sequence[str] | None = None) -> None:
    given = asked(__doc__, argv)
    prepare("data")
    tell("questions", lines(given), given)


def lines(given: Asked) -> list[Line]:
    """What is trained and compared."""
    land = [f"data.{split}=data/questions-land/{split}.parquet" for split in ("train", "validation")]
    return [
        Line(
            "country-questions",
            given.recipe(RECIPE),
            "data/questions-people/test.parquet",
            {"question": "What is the capital of Ruritania?", "context": CONTEXT},
            "other questions",
            given.recipe(RECIPE, land),
        )
    ]


if __name__ == "__main__":
    main()
