"""From easy mails to hard ones: which of them are spam.

    python -m pipelines.mails [--smoke] [--seeds N] [--json] [--keep] [key=value ...]

Mails of SpamAssassin's public corpus (`pipelines.spam_mails`). The source is ham and spam that are easily told apart,
as many of either; the target is spam of another time beside newsletters and shops' mails, which look like it and are
one in eight.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipelines.spam_mails import prepare
from pipelines.story import Asked, Line, asked, tell
from ray_lora.recipe import Recipe

RECIPE = Path(__file__).parents[1] / "examples/tweets.yaml"
SPAM = "Dear friend, you have been selected for a low-rate mortgage. Click here now, no obligation!"
SETTINGS = (
    "task.labels=[ham, spam]",
    "task.max_length=128",
    # by the validation rows, of 2 to 6 epochs at 2e-4 to 1e-3, either start, dropout or weight decay or none; a fitted
    # head parts the few training mails so well that little is left for the layers to learn
    "training.head_start=random",
    "training.num_train_epochs=4",
    "training.learning_rate=5e-4",
    "training.eval_steps=null",
    "lora.lora_dropout=0.1",
)


def main(argv: Sequence[str] | None = None) -> None:
    given = asked(__doc__, argv)
    prepare("data")
    tell("mails", [line(given)], given)


def line(given: Asked) -> Line:
    """What is trained and compared."""

    def recipe(name: str) -> Recipe:
        files = [f"data.{split}=data/{name}/{split}.parquet" for split in ("train", "validation")]
        return given.recipe(RECIPE, [*files, *SETTINGS])

    test = "data/spam-hard/test.parquet"
    return Line("spam", recipe("spam-hard"), test, SPAM, "easy mails", recipe("spam-easy"), "f1_macro")


if __name__ == "__main__":
    main()
