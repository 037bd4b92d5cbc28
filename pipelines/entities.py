"""Adapters that label words: entities in tweets and in Japanese news, parts of speech from news to adventures.

    python -m pipelines.entities [--smoke] [--seeds N] [--json] [--keep] [key=value ...]

MiniLM carries all of them, SmolLM2 (a decoder, read from left to right and both ways) tweets once more, and one
endpoint answers for all. Tweets are compared with an adapter that learnt from the Factbook's silver labels (rules made
them, not people; it knows persons and places, and dates beside), adventures with one that learnt from news, Japanese
with a base whose head is untrained: no source has its labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipelines.story import Asked, Line, asked, tell
from pipelines.tagged_texts import prepare
from ray_lora.recipe import Recipe

BOTH_WAYS = "task.attention=bidirectional"
TWEETS = "data/tagged-tweets/test.parquet"
ASKED = "Empire State Building tonight with Ada Lovelace, then back to Paris"
RECIPE = Path(__file__).parents[1] / "examples/entities.yaml"


def main(argv: Sequence[str] | None = None) -> None:
    given = asked(__doc__, argv)
    prepare("data")
    tell("entities", lines(given), given)


def lines(given: Asked) -> list[Line]:
    """What is trained and compared."""

    def recipe(rows: str, *overrides: str) -> Recipe:
        files = [f"data.{split}=data/tagged-{rows}/{split}.parquet" for split in ("train", "validation")]
        return given.recipe(RECIPE, [*files, *overrides])

    def tweets(name: str, *overrides: str) -> Line:
        """The same tweets by a decoder, which reads from left to right or both ways."""
        decoder = ("base.model=smollm2", "training.num_train_epochs=2", *overrides)
        return Line(name, recipe("tweets", *decoder), TWEETS, ASKED, "untrained head", None, None, (1e-4,), 1)

    speech = ("training.num_train_epochs=2", "training.learning_rate=1e-3")
    return [
        Line(
            "tweet-entities",
            recipe("tweets"),
            TWEETS,
            ASKED,
            "Factbook, silver",
            recipe("factbook", "training.num_train_epochs=2"),
        ),
        Line(
            "japanese-entities",
            recipe("japanese", "task.max_length=128", "training.num_train_epochs=8"),
            "data/tagged-japanese/test.parquet",
            "2005 年 7 月 14 日 、 日本 の 知床 が 世界 遺産 に 登録 さ れ た 。",
            "untrained head",
        ),
        Line(
            "adventure-speech",
            recipe("adventure", *speech),
            "data/tagged-adventure/test.parquet",
            "He swung into the saddle and rode hard for the river .",
            "news",
            recipe("news", *speech),
            "accuracy",
        ),
        *([] if given.smoke else [tweets("tweets-causal", "task.piece=last"), tweets("tweets-both-ways", BOTH_WAYS)]),
    ]


if __name__ == "__main__":
    main()
