"""Four kinds of text that people rated, as parquet with splits that do not leak.

    python -m pipelines.rated_texts [--out data]

From the vaderSentiment 2.5 source archive (Hutto and Gilbert 2014): texts with the mean of about twenty ratings from -4
to 4. It makes, and a second run reuses,

    data/<movies|newspapers|products|tweets>/{train,validation,test}.parquet     label: negative or positive
    data/domains/{train,validation,test}.parquet                                 label: which of the four; balanced
    data/*/train-1024.parquet  data/*/validation-512.parquet                     balanced parts of the same splits

    {"text": "Yay. Another good phone interview.", "label": "positive", "rating": 1.44}

A text's split is decided once for all five: sentences of one review or article, and texts that share most of their
words, go to the same split of whatever they appear in.
"""

from __future__ import annotations

import argparse
import html
import json
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from pipelines.kept_rows import ALIKE, balanced, by_group, digest, joined, sha256, write
from ray_lora.atomic import write_atomic
from ray_lora.bases.packaged import Archive, fetch_archive

SOURCE = Archive(
    "sdist", "vaderSentiment", "2.5", "b960c954831f5ca58afee61780cc04ed48e551b91e783bfcbfb2c18bb8081a84", 2
)
FILES = {
    "movies": "movieReviewSnippets",  # one sentence a review: the ids name no document
    "newspapers": "nytEditorialSnippets",  # ids are article_sentence
    "products": "amazonReviewSnippets",  # ids are review_sentence
    "tweets": "tweets",
}
NEUTRAL = 0.5  # a mean this near to zero is within three standard errors (0.17) of it: its sign is not sure. Dropped.
SHARES = {"train": 0.58, "validation": 0.27, "test": 0.15}  # validation holds 256 of the rarest label
QUICK = {"train": 1024, "validation": 512}
SCHEMA = pa.schema([("text", pa.string()), ("label", pa.string()), ("rating", pa.float64())])


@dataclass(frozen=True)
class Rated:
    """One text. `document` names the review, article or tweet it was taken from."""

    domain: str
    document: str
    text: str
    rating: float


def prepare(out: str | Path = "data") -> dict[str, int]:
    """Make the files that are missing or of another making, print what there is; rows by "domain/file/label".

    Raises:
        DataError: the archive cannot be had.
    """
    out = Path(out)
    record = out / "rated_texts.json"
    making = {"source": SOURCE.sha256, "neutral": NEUTRAL, "shares": SHARES, "quick": QUICK, "alike": ALIKE, "form": 1}
    known = json.loads(record.read_text()) if record.exists() else {}
    if known.get("making") != making or any(sha256(out / file) != sha for file, sha in known["sha256"].items()):
        known = {"making": making, **_make(out)}
        write_atomic(record, json.dumps(known, indent=1))
    _show(out, known["rows"], known["dropped"])
    return dict(known["rows"])


def _make(out: Path) -> dict[str, dict[str, int] | dict[str, str]]:
    texts = list(read_archive())
    kept = without_duplicates(texts)
    split = dict(zip(kept, splits(kept), strict=True))
    dropped = Counter(f"{row.domain}/duplicate" for row in texts)
    dropped.subtract(f"{row.domain}/duplicate" for row in kept)
    dropped.update(f"{row.domain}/neutral" for row in kept if sentiment(row) is None)
    rows: dict[str, int] = {}
    hashes: dict[str, str] = {}
    for folder in [*FILES, "domains"]:
        for name in SHARES:
            part = [row for row in kept if split[row] == name]
            if folder == "domains":
                table = balanced([(row, row.domain) for row in part], _label)
            else:
                table = [(row, label) for row in part if row.domain == folder and (label := sentiment(row))]
            files = {f"{folder}/{name}.parquet": table}
            if name in QUICK:
                files[f"{folder}/{name}-{QUICK[name]}.parquet"] = balanced(table, _label, QUICK[name])
            for file, labelled in files.items():
                hashes[file] = write(out / file, _table(labelled))
                rows.update({f"{file}/{k}": n for k, n in sorted(Counter(label for _, label in labelled).items())})
    return {"rows": rows, "dropped": dict(dropped), "sha256": hashes}


def read_archive() -> Iterator[Rated]:
    """All texts as they stand in the archive, HTML entities undone."""
    name = "hutto_ICWSM_2014"
    folder = fetch_archive(SOURCE, "vaderSentiment-2.5/additional_resources", (f"{name}.tar.gz",))
    with tarfile.open(folder / f"{name}.tar.gz") as tape:
        for domain, file in FILES.items():
            member = tape.extractfile(f"{name}/{file}_GroundTruth.txt")
            assert member is not None
            for line in member.read().decode("utf-8").split("\r\n"):
                if line.strip():
                    number, rating, text = line.split("\t")
                    document = f"{domain}/{number.split('_')[0]}"
                    yield Rated(domain, document, " ".join(html.unescape(text).split()), float(rating))


def normalised(text: str) -> str:
    """What must differ for two texts to be two: case and whitespace do not count."""
    return " ".join(text.casefold().split())


def without_duplicates(texts: Sequence[Rated]) -> list[Rated]:
    """The first of equal texts, over all domains, in an order that hangs on nothing but the texts."""
    first: dict[str, Rated] = {}
    for row in texts:
        first.setdefault(normalised(row.text), row)
    return sorted(first.values(), key=lambda row: digest(row.text))


def splits(texts: Sequence[Rated]) -> list[str]:
    """For each text its split: a hash of the name of its group."""
    return by_group(groups(texts), SHARES)


def groups(texts: Sequence[Rated]) -> list[str]:
    """For each text the name of its group: connected by a shared document or by sharing most of their words."""
    members = joined([text.text for text in texts], [text.document for text in texts])
    name: dict[int, str] = {}
    for text, member in zip(texts, members, strict=True):
        name[member] = min(name.get(member, text.document), text.document)
    return [name[member] for member in members]


def sentiment(row: Rated) -> str | None:
    """The label; None in the neutral band."""
    if abs(row.rating) <= NEUTRAL:
        return None
    return "positive" if row.rating > 0 else "negative"


def _label(row: tuple[Rated, str]) -> str:
    return row[1]


def _table(rows: Sequence[tuple[Rated, str]]) -> pa.Table:
    table = [{"text": row.text, "label": label, "rating": row.rating} for row, label in rows]
    return pa.Table.from_pylist(table, schema=SCHEMA)


def _show(out: Path, rows: dict[str, int], dropped: dict[str, int]) -> None:
    files = ["train", "validation", "test", *(f"{name}-{number}" for name, number in QUICK.items())]
    print(f"{'rows in ' + str(out):<24}" + "".join(f"{file:>16}" for file in files))
    for folder in [*FILES, "domains"]:
        labels = sorted({key.rsplit("/", 1)[1] for key in rows if key.startswith(f"{folder}/")})
        for label in labels:
            counts = "".join(f"{rows[f'{folder}/{file}.parquet/{label}']:>16,}" for file in files)
            print(f"{folder + ' ' + label:<24}{counts}")
    for domain in FILES:
        duplicate, neutral = (dropped.get(f"{domain}/{why}", 0) for why in ("duplicate", "neutral"))
        print(f"{domain}: {duplicate:,} duplicates dropped; {neutral:,} neutral texts not in its sentiment files")
    print(f"duplicate: the same text but for case and spaces; neutral: a mean rating within ±{NEUTRAL}, of unsure sign")


if __name__ == "__main__":
    options = argparse.ArgumentParser(description="Prepare the rated texts")
    options.add_argument("--out", default="data", help="folder to write to")
    prepare(options.parse_args().out)
