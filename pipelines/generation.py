"""From a small chat model to adapters that write as the World Factbook does, and that answer in a few words.

    python -m pipelines.generation [--smoke] [--seeds N] [--json] [--keep] [key=value ...]

The base is SmolLM2-135M-Instruct. `factbook-entries` is scored by perplexity, `factbook-answers` by the share of greedy
answers that are the wanted ones; forty countries are in test rows alone. Before stands the bare base. No head trains
alone: the base's output layer is its table of embeddings, which every row reads too. Beside the table stands what the
base and each adapter make of plain English.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers.utils import logging

from pipelines.scores import Kept
from pipelines.story import Asked, Line, asked, tell
from pipelines.written_texts import TOLD, prepare
from ray_lora.recipe import Json
from ray_lora.tasks.generation_options import TextGenerationSpec

RECIPE = Path(__file__).parents[1] / "examples/generation.yaml"
FULL_RATE = 5e-5  # of training every weight: one, and by one seed, since it takes minutes
ENGLISH = Kept("data/written-english/test.parquet", TextGenerationSpec(rows="text", max_length=128), "plain English")
ANSWERS = ("task.rows=messages", "task.answer_tokens=20")
DIALOGUE = [
    {"role": "system", "content": TOLD},
    {"role": "user", "content": "Government type: constitutional monarchy. Capital - name: Strelsau; geographic "
     "coordinates: 50 05 N, 14 25 E.\nWhat is the capital of Ruritania?"},
]  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    given = asked(__doc__, argv)
    logging.disable_progress_bar()
    prepare("data")
    tell("generation", lines(given), given)


def lines(given: Asked) -> list[Line]:
    """What is trained and compared."""
    return [
        _line(given, "entries", "Tell me about the climate of Ruritania.\n", None, "training.num_train_epochs=2"),
        _line(given, "answers", DIALOGUE, "exact_match", *ANSWERS),
    ]


def _line(given: Asked, name: str, ask: Json, metric: str | None, *overrides: str) -> Line:
    rows = Path("data") / f"written-{name}"
    files = [f"data.{split}={rows}/{split}.parquet" for split in ("train", "validation")]
    return Line(
        f"factbook-{name}",
        given.recipe(RECIPE, [*files, *overrides]),
        str(rows / "test.parquet"),
        ask,
        "the bare base",
        metric=metric,
        full_rates=(FULL_RATE,),
        full_seeds=1,
        head_alone=False,
        kept=ENGLISH,
    )


if __name__ == "__main__":
    main()
