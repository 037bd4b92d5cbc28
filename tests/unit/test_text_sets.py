"""Words with labels, questions and mails: what is read of small files, and that no split holds what another does."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipelines import (
    brown_texts,
    factbook,
    factbook_questions,
    iob_texts,
    kept_rows,
    silver_texts,
    spam_mails,
    tagged_texts,
)
from pipelines.factbook import Country
from ray_lora.errors import DataError
from ray_lora.tasks.token_classification import TokenClassification, TokenClassificationSpec


def entry(name: str, capital: str, **fields: Any) -> dict[str, Any]:
    """A country's JSON, as the Factbook's package has it."""
    government = {
        "Country name": {
            "conventional short form": {"text": name},
            "conventional long form": {"text": f"Land of {name}"},
        },
        "Capital": {"name": {"text": capital}},
        "Government type": {"text": "republic; federal"},
    }
    return {"Introduction": {"Background": {"text": "  Old.\n\n It "}}, "Government": government, **fields}


def test_lines_of_words_and_labels_are_rows() -> None:
    text = "Empire\tB-facility\nBuilding\tI-facility\n&lt;\tO\n\t\n \tB-x\nTokyo\t名詞\t*\tI-LOC\n国\t*\tI-LOC\n\n"
    first, second = iob_texts.parse(text)
    assert first == {"tokens": ["Empire", "Building", "<"], "tags": ["B-facility", "I-facility", "O"]}
    assert second == {"tokens": ["Tokyo", "国"], "tags": ["B-LOC", "I-LOC"]}, "an I that continues nothing begins"
    with pytest.raises(DataError, match="line 2 is 'odd'"):
        list(iob_texts.parse("word\tO\nodd\n"))
    with pytest.raises(DataError, match=r"label 'place'.*must be O, B-x or I-x"):
        list(iob_texts.parse("word\tplace\n"))


def test_browns_tags_become_universal_ones() -> None:
    told = "\n\n\tThe/at County/nn-tl n't/* I'm/ppss+bem his/pp$ in/fw-in 1/2/cd her/pp$$ Atlanta's/np$ Don't/do* ./.\n"
    (row,) = brown_texts.parse(told)
    assert row["tokens"] == ["The", "County", "n't", "I'm", "his", "in", "1/2", "her", "Atlanta's", "Don't", "."]
    assert row["tags"] == ["DET", "NOUN", ".", "PRON", "DET", "X", "NUM", "PRON", "NOUN", "VERB", "."]
    with pytest.raises(DataError, match="'word' has the tag 'zz'"):
        list(brown_texts.parse("word/zz"))
    with pytest.raises(DataError, match="has the tag"):
        list(brown_texts.parse("word"))


def test_silver_labels_follow_their_rules_and_hide_them() -> None:
    places = {("Chad",), ("New", "Delhi"), ("Delhi",)}
    row = silver_texts.label(
        "President Idriss DEBY met KIM in New Delhi, Chad, on 3 May 2004 and NATO in 1999.", places
    )
    marked = {(word, tag) for word, tag in zip(row["tokens"], row["tags"], strict=True) if tag != "O"}
    assert marked == {
        ("Idriss", "B-person"), ("Deby", "I-person"), ("New", "B-geo-loc"), ("Delhi", "I-geo-loc"),
        ("Chad", "B-geo-loc"), ("3", "B-date"), ("May", "I-date"), ("2004", "I-date"), ("1999", "B-date"),
    }  # fmt: skip
    assert "NATO" in row["tokens"]
    assert set(silver_texts.label("It May rain on Hari Singh and ASEAN", places)["tags"]) == {"O"}


def test_a_country_is_read_with_its_fields(tmp_path: Path) -> None:
    for code, tree in {
        "bb": entry(
            "Beland (Belle)",
            "Betown (official); note - other",
            Economy={"GDP": {"text": "1 ++ 2", "note": {"text": "x"}}},
        ),
        "aa": entry("none", "Atown in Local (Other)"),
        "xx": {"Introduction": {"count": 3}},
    }.items():
        (tmp_path / "region").mkdir(exist_ok=True)
        (tmp_path / "region" / f"{code}.json").write_text(json.dumps(tree))
    aa, bb = factbook.countries_in(tmp_path)
    assert (aa.name, aa.capital, bb.name, bb.capital) == ("Land of none", "Atown", "Beland", "Betown")
    assert bb.sections["Economy"] == {"GDP": "1; 2", "GDP - note": "x"}
    assert bb.sections["Introduction"] == {"Background": "Old. It"}


def countries(count: int) -> list[Country]:
    """Countries whose sections hold every field of the questions, and others around them."""
    found = []
    for number in range(count):
        sections: dict[str, dict[str, str]] = {}
        for asked in factbook_questions.QUESTIONS.values():
            for field in asked:
                section, _, name = field.partition("/")
                around = {f"{name} {letter}": f"{letter} {number} " * 40 for letter in "xy"}
                sections.setdefault(section, {}).update({name: f"{name.lower()} {number} km (2015); more", **around})
        found.append(Country(f"c{number}", f"Land {number}", f"Town {number}", sections))
    return found


def test_answers_stand_where_they_are_said_to_and_countries_are_held_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(factbook, "read_countries", lambda: countries(100))
    factbook_questions.prepare(tmp_path)
    seen: dict[str, set[str]] = {}
    lengths, nowhere = [], 0
    for file in tmp_path.glob("questions-people/*.parquet"):
        rows = pq.read_table(file).to_pylist()
        for row in rows:
            spans = list(zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True))
            assert all(row["context"][begin:].startswith(text) for text, begin in spans)
            assert len(spans) <= 1
            nowhere += not spans
            lengths.append(len(row["context"]))
            number = re.search(r"Land (\d+)", row["question"])
            assert number is not None
            seen.setdefault(number[1], set()).add(file.stem)
    assert all(len(splits) == 1 for splits in seen.values())
    assert {split: sum(splits == {split} for splits in seen.values()) for split in factbook_questions.HELD} == {
        "test": 40, "validation": 20,
    }  # fmt: skip
    assert 0.1 < nowhere / len(lengths) < 0.3
    assert min(lengths) < 450
    assert max(lengths) > 1500
    with pytest.raises(DataError, match="row 0: 'b' does not stand at letter 0"):
        factbook_questions.check([{"question": "?", "context": "ab", "answers": {"text": ["b"], "answer_start": [0]}}])


def test_a_mail_is_what_its_reader_sees() -> None:
    html = "<html><head><title>no</title><style>p {}</style></head><body><p>Save&nbsp;70%</p><b>now</b></body></html>"
    plain = b"From: a@b.c\nSubject: hidden\n\nHello\n  there\n"
    assert spam_mails.text_of(plain) == "Hello there"
    mail = f"Subject: x\nContent-Type: text/html\nContent-Transfer-Encoding: quoted-printable\n\n{html}".encode()
    assert spam_mails.text_of(mail).replace("\xa0", " ").split() == ["Save", "70%", "now"]
    parts = (
        b"Content-Type: multipart/mixed; boundary=q\n\n--q\nContent-Type: text/plain\n\nRead\n--q\n"
        b"Content-Type: text/plain\nContent-Disposition: attachment; filename=a.txt\n\nsecret\n--q--\n"
    )
    assert spam_mails.text_of(parts) == "Read"


def test_copies_of_a_mail_are_in_one_split_and_in_the_target() -> None:
    mails = [
        spam_mails.Mail(name, " ".join(f"w{number}x{place}" for place in range(9)) + extra, label)
        for number in range(120)
        for name, label in (("spam-easy", "ham" if number % 3 else "spam"), ("spam-hard", "ham"))
        for extra in ("", " more")
        if name == "spam-easy" or number < 40
    ]
    files = spam_mails.files(mails)
    place: dict[str, set[str]] = {}
    for file, rows in files.items():
        for row in rows:
            place.setdefault(row["text"].removesuffix(" more"), set()).add(file)
    assert all(len(where) == 1 for where in place.values())
    assert sum(len(rows) for file, rows in files.items() if "hard" in file) == 80
    for split in spam_mails.SHARES:
        labels = [row["label"] for row in files[f"spam-easy/{split}.parquet"]]
        assert labels.count("ham") == labels.count("spam") > 0


def test_words_with_labels_are_written_whole_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {"tokens": [f"w{n}", f"v{n}", "again"][: 2 + (n % 7 > 0)], "tags": ["B-x", "O", "O"][: 2 + (n % 7 > 0)]}
        for n in range(200)
    ]
    made: Mapping[str, tuple[str, Any]] = {"tweets": ("sha", lambda: tagged_texts._by_text([*rows, *rows]))}
    monkeypatch.setattr(tagged_texts, "SETS", made)
    tagged_texts.prepare(tmp_path, ["tweets"])
    tables = {file.stem: pq.read_table(file) for file in (tmp_path / "tagged-tweets").glob("*.parquet")}
    texts = [tuple(row["tokens"]) for table in tables.values() for row in table.to_pylist()]
    assert len(texts) == len(set(texts)) == 200
    for table in tables.values():
        assert not list(TokenClassification.check(TokenClassificationSpec(labels=("O", "B-x")), table))
    monkeypatch.setattr(kept_rows, "write", None)  # a second run makes nothing
    tagged_texts.prepare(tmp_path, ["tweets"])
    with pytest.raises(DataError, match="row 0 has 1 tokens and 2 tags"):
        tagged_texts.check([{"tokens": ["a"], "tags": ["O", "O"]}])
    with pytest.raises(DataError, match="empty or holds a blank"):
        tagged_texts.check([{"tokens": ["a b"], "tags": ["O"]}])


@pytest.mark.network
def test_the_real_sets(tmp_path: Path) -> None:
    try:
        tweets, japanese = iob_texts.read_tweets(), iob_texts.read_japanese()
        sources = factbook.read_countries(), brown_texts.read_genre("news")
    except DataError as error:
        pytest.skip(str(error))
    assert [len(rows) for rows in (tweets, japanese, *sources)] == [2394, 500, 230, 4623]
    tagged_texts.prepare(tmp_path)
    factbook_questions.prepare(tmp_path)
    assert len(list(tmp_path.glob("*/*.parquet"))) == 7 * 3
