"""No text, no document and no near copy in two splits, of whatever task; the same files every time."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipelines import kept_rows, rated_texts
from pipelines.rated_texts import FILES, SCHEMA, SHARES, Rated, prepare
from ray_lora.errors import DataError


def invented(count: int = 400, seed: int = 0) -> list[Rated]:
    """Texts in documents of up to eight, with equal and nearly equal ones in other documents and domains."""
    chance = random.Random(seed)
    texts: list[Rated] = []
    for domain in FILES:
        for number in range(count):
            text = " ".join(chance.choices([f"w{n}" for n in range(300)], k=chance.randint(3, 12)))
            document = f"{domain}/{number}" if domain in ("movies", "tweets") else f"{domain}/{number // 8}"
            texts.append(Rated(domain, document, text, round(chance.uniform(-4, 4), 2)))
    for row in chance.sample(texts, 60):
        elsewhere = chance.choice(texts)
        same = row.text.upper().replace(" ", "  ")
        texts.append(Rated(elsewhere.domain, elsewhere.document, same, row.rating))
        texts.append(Rated(elsewhere.domain, elsewhere.document, f"{row.text}!", row.rating))
        texts.append(Rated(elsewhere.domain, elsewhere.document, f"Really, {row.text}", row.rating))
    return texts


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> list[Rated]:
    texts = invented()
    monkeypatch.setattr(rated_texts, "read_archive", lambda: iter(texts))
    return texts


def rows(path: Path) -> list[dict[str, object]]:
    table = pq.read_table(path)
    assert table.schema.equals(SCHEMA)
    return table.to_pylist()


def plain(text: str) -> str:
    return " ".join(text.lower().split())


def assert_no_leak(out: Path, source: Sequence[Rated]) -> None:
    """Over all files of all folders: what is in one split is in no other, by text, words and document."""
    documents: dict[str, set[str]] = {}
    for row in source:
        documents.setdefault(plain(row.text), set()).add(row.document)
    seen: dict[str, set[str]] = {}
    for file in out.glob("*/*.parquet"):
        for row in rows(file):
            text = plain(str(row["text"]))
            words = " ".join(sorted(set(re.findall(r"\w+", text)) - {"really"}))
            kept = [document for document in documents[text] if len(documents[text]) == 1]
            for key in (text, words or text, *kept):
                seen.setdefault(key, set()).add(file.stem.split("-")[0])
    assert len(seen) > 1000
    assert not [key for key, splits in seen.items() if len(splits) > 1]


def test_nothing_is_in_two_splits(source: list[Rated], tmp_path: Path) -> None:
    prepare(tmp_path)
    assert_no_leak(tmp_path, source)


def test_duplicates_and_the_neutral_band_are_dropped_and_said(
    source: list[Rated], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(tmp_path)
    said = capsys.readouterr().out
    distinct = {plain(row.text): row for row in reversed(source)}
    for domain in FILES:
        texts = [row for split in SHARES for row in rows(tmp_path / domain / f"{split}.parquet")]
        expected = [row for row in distinct.values() if row.domain == domain and abs(row.rating) > 0.5]
        assert sorted(str(row["text"]) for row in texts) == sorted(row.text for row in expected)
        assert all(row["label"] == ("positive" if float(str(row["rating"])) > 0 else "negative") for row in texts)
        kept = sum(row.domain == domain for row in distinct.values())
        duplicates = sum(row.domain == domain for row in source) - kept
        assert f"{domain}: {duplicates} duplicates dropped; {kept - len(expected)} neutral texts not in" in said


def test_the_domains_task_and_the_quick_files_are_balanced(
    source: list[Rated], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rated_texts, "QUICK", {"train": 64, "validation": 32})
    counted = prepare(tmp_path)
    for split in SHARES:
        domains = Counter(row["label"] for row in rows(tmp_path / f"domains/{split}.parquet"))
        assert sorted(domains) == sorted(FILES)
        assert len(set(domains.values())) == 1
    for folder in [*FILES, "domains"]:
        for name, split, number in [("train-64", "train", 64), ("validation-32", "validation", 32)]:
            quick = rows(tmp_path / folder / f"{name}.parquet")
            labels = Counter(str(row["label"]) for row in quick)
            assert sum(labels.values()) == number
            assert len(set(labels.values())) == 1
            whole = rows(tmp_path / folder / f"{split}.parquet")
            assert all(row in whole for row in quick)
            assert labels == {label: counted[f"{folder}/{name}.parquet/{label}"] for label in labels}


def test_the_same_files_every_time_and_a_second_run_makes_none(
    source: list[Rated], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prepare(tmp_path / "a")
    assert prepare(tmp_path / "b") == first
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.*"))
    assert len(files) == 5 * 5 + 1
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in files)

    damaged = tmp_path / "b/movies/test.parquet"
    damaged.write_bytes(b"")
    prepare(tmp_path / "b")
    assert damaged.read_bytes() == (tmp_path / "a/movies/test.parquet").read_bytes()

    monkeypatch.setattr(rated_texts, "_make", None)
    assert prepare(tmp_path / "a") == first
    monkeypatch.setattr(rated_texts, "NEUTRAL", 0.8)  # another rule: the files are not what is asked for
    with pytest.raises(TypeError):
        prepare(tmp_path / "a")


def test_alike_finds_what_comparing_all_pairs_finds() -> None:
    chance = random.Random(0)
    texts = [" ".join(chance.choices("abcdefghij", k=chance.randint(1, 9))) for _ in range(150)]
    words = [set(text.split()) for text in texts]
    expected = {
        (one, other)
        for one in range(150)
        for other in range(one + 1, 150)
        if len(words[one] & words[other]) >= 0.7 * len(words[one] | words[other]) - 1e-9
    }
    assert len(expected) > 100
    assert set(kept_rows.alike([text.replace(" ", ", ") for text in texts])) == expected


@pytest.mark.network
def test_the_real_texts(tmp_path: Path) -> None:
    try:
        source = list(rated_texts.read_archive())
    except DataError as error:
        pytest.skip(str(error))
    assert Counter(row.domain for row in source) == {
        "movies": 10605,
        "newspapers": 5190,
        "products": 3708,
        "tweets": 4200,
    }
    counted = prepare(tmp_path)
    assert_no_leak(tmp_path, source)
    for folder, labels in [(folder, ("negative", "positive")) for folder in FILES] + [("domains", tuple(FILES))]:
        for label in labels:
            assert counted[f"{folder}/train-1024.parquet/{label}"] == 1024 // len(labels)
            assert counted[f"{folder}/validation-512.parquet/{label}"] == 512 // len(labels)
