"""From a Whisper that knows English to adapters that write Italian and Spanish, served together on it.

    python -m pipelines.speech [--smoke] [--seeds N] [--json] [--keep] [key=value ...]

The base is Whisper tiny.en with a window of six seconds. The speech is Asterisk's telephone prompts, a download whose
terms are said before it (`pipelines.prompts`). Before stands the bare base, and no adapter has a head of its own, so
what stands as head only is the output layer trained alone. Words are compared in lower case and without punctuation.
What is compared with takes far longer than the adapters do: every weight of Spanish is trained by one seed, at the rate
that Italian's validation rows chose, and its output layer is not trained alone.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path

from transformers.utils import logging

from pipelines.prompts import VOICES, prepare
from pipelines.story import Asked, Line, asked, tell
from ray_lora.data.read import read

RECIPE = Path(__file__).parents[1] / "examples/speech.yaml"
RATES = (5e-5, 1e-4)  # of training every weight; 1e-5 learns too little in these epochs


def main(argv: Sequence[str] | None = None) -> None:
    given = asked(__doc__, argv)
    logging.disable_progress_bar()
    prepare("data")
    tell("speech", [line(given, language) for language in VOICES], given)


def line(given: Asked, language: str) -> Line:
    """What is trained for a language and compared."""
    rows = Path("data") / f"prompts-{language}"
    files = [f"data.{split}={rows}/{split}.parquet" for split in ("train", "validation")]
    test = str(rows / "test.parquet")
    sound = base64.b64encode(read(test).to_pylist()[0]["audio"]).decode()
    recipe, whole = given.recipe(RECIPE, files), language == "it"
    return Line(
        rows.name, recipe, test, sound, "the English base",
        full_rates=RATES if whole else RATES[-1:], full_seeds=None if whole else 1, head_alone=whole,
    )  # fmt: skip


if __name__ == "__main__":
    main()
