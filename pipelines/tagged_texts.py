"""Words with labels, as parquet with splits that do not leak: entities and parts of speech, each with its source.

    python -m pipelines.tagged_texts [--out data]

    data/tagged-tweets/     English tweets, entities by people, ten types
    data/tagged-factbook/   the Factbook, **silver** labels by rules: what an adapter for tweets is compared with
    data/tagged-japanese/   Japanese news, entities by people
    data/tagged-news/  data/tagged-adventure/     the Brown corpus, parts of speech by people, two genres

    {"tokens": ["Ada", "Lovelace", "lived", "in", "London"], "tags": ["B-person", "I-person", "O", "O", "B-geo-loc"]}

Each holds train, validation and test. A split is of documents (countries, files of Brown), and of sentences that share
most of their words, where no document is known. Where the rows come from and what may be done with them stands in
`iob_texts`, `silver_texts` and `brown_texts`; nothing of them is shipped.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from pipelines import brown_texts, factbook, iob_texts, silver_texts
from pipelines.kept_rows import by_group, digest, keep, mixed, split_texts
from ray_lora.errors import DataError

Row = dict[str, list[str]]
SHARES = {"train": 0.6, "validation": 0.15, "test": 0.25}
SIZES = {"train": 1400, "validation": 400, "test": 600}  # at most


def tweets() -> dict[str, list[Row]]:
    """Rows by split; near copies are in one split."""
    return _by_text(iob_texts.read_tweets())


def japanese() -> dict[str, list[Row]]:
    """Rows by split."""
    return _by_text(iob_texts.read_japanese())


def silver() -> dict[str, list[Row]]:
    """Rows by split of countries: all that hold an entity, and a quarter of those that hold none."""
    found = silver_texts.read_silver(factbook.read_countries())
    kept = [(code, row) for code, row in found if set(row["tags"]) != {"O"} or digest(_text(row))[0] < "4"]
    return _by_document(kept)


def brown(genre: str) -> dict[str, list[Row]]:
    """Rows by split of documents."""
    return _by_document(brown_texts.read_genre(genre))


SETS: dict[str, tuple[str, Callable[[], dict[str, list[Row]]]]] = {
    "tweets": (iob_texts.TWEETS.sha256, tweets),
    "factbook": (factbook.SOURCE.sha256, silver),
    "japanese": (iob_texts.JAPANESE.sha256, japanese),
    "news": (brown_texts.SOURCE.sha256, partial(brown, "news")),
    "adventure": (brown_texts.SOURCE.sha256, partial(brown, "adventure")),
}


def prepare(out: str | Path = "data", names: Sequence[str] = tuple(SETS)) -> None:
    """Make the files of these sets that are missing or of another making.

    Raises:
        DataError: an archive cannot be had, or holds what it should not.
    """
    for name in names:
        source, make = SETS[name]
        making = {"source": source, "shares": SHARES, "sizes": SIZES, "form": 1}
        keep(out, f"tagged-{name}", making, partial(_files, name, make))


def check(rows: Sequence[Row]) -> None:
    """DataError unless every row has words, none of them empty, and a tag for each."""
    for number, row in enumerate(rows):
        if not row["tokens"] or len(row["tokens"]) != len(row["tags"]):
            raise DataError(f"row {number} has {len(row['tokens'])} tokens and {len(row['tags'])} tags")
        if any(not token or token.split() != [token] for token in row["tokens"]):
            raise DataError(f"row {number} has a token that is empty or holds a blank: {row['tokens']}")


def _files(name: str, make: Callable[[], dict[str, list[Row]]]) -> dict[str, list[Row]]:
    splits = make()
    for rows in splits.values():
        check(rows)
    return {f"tagged-{name}/{split}.parquet": rows[: SIZES[split]] for split, rows in splits.items()}


def _by_text(rows: Sequence[Row]) -> dict[str, list[Row]]:
    distinct = {_text(row): row for row in reversed(rows)}
    kept = mixed(list(distinct.values()), _text)
    chosen = split_texts([_text(row) for row in kept], SHARES)
    return {split: [row for row, at in zip(kept, chosen, strict=True) if at == split] for split in SHARES}


def _by_document(rows: Sequence[tuple[str, Row]]) -> dict[str, list[Row]]:
    distinct = {_text(row): (document, row) for document, row in reversed(rows)}
    kept = mixed(list(distinct.values()), lambda pair: _text(pair[1]))
    chosen = by_group([document for document, _ in kept], SHARES)
    return {split: [row for (_, row), at in zip(kept, chosen, strict=True) if at == split] for split in SHARES}


def _text(row: Row) -> str:
    return " ".join(row["tokens"]).casefold()


if __name__ == "__main__":
    options = argparse.ArgumentParser(description="Prepare the words with labels")
    options.add_argument("--out", default="data", help="folder to write to")
    prepare(options.parse_args().out)
