"""Transcripts are compared by a normalisation that has a name, and their errors are shown."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

from ray_lora.errors import RecipeError
from ray_lora.tasks.speech import wording
from ray_lora.tasks.speech.wording import NORMALISATIONS, marked, normalised, page, score


@pytest.mark.parametrize(
    ("text", "name", "due"),
    [
        ("  The\n cat,  sat. ", "none", "The cat, sat."),
        ("  The\n cat,  sat. ", "lower", "the cat sat"),
        ("Don’t touch 'this' — l'una, 3.5€!", "lower", "don't touch this l'una 3 5"),
        ("PERCHE\u0301 no?", "lower", "perché no"),
        ("हिन्दी में।", "lower", "हिन्दी में"),  # its vowels are marks
        ("Ciao, è già l'una! [noise]", "whisper-basic", "ciao è già l una"),
        ("Mr. Smith won't pay twenty-one", "whisper-english", "mister smith will not pay 21"),
        ("the colour", "whisper-english", "the colour"),
    ],
)
def test_a_normalisation_does_what_its_name_says(text: str, name: str, due: str) -> None:
    assert normalised(text, name) == due
    assert normalised(due, name) == due  # it is the same before and after


def test_spellings_are_those_of_the_table_that_is_given() -> None:
    assert normalised("The colour", "whisper-english", {"colour": "color"}) == "the color"
    assert score(["color"], ["Colour."], "whisper-english", {"colour": "color"})["wer"] == 0


def test_an_unknown_normalisation_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"'lowr' is not a normalisation; did you mean 'lower'\?; there are none, "):
        normalised("a", "lowr")


def test_rates_are_of_all_references_together() -> None:
    answers, references = ["a b x", "", "d"], ["A b c.", "e f", "d"]
    assert score(answers, references, "lower") == {"wer": 3 / 6, "cer": 4 / 9}
    assert score(answers, references, "none")["wer"] == 4 / 6
    assert all(score(references, references, name) == {"wer": 0, "cer": 0} for name in NORMALISATIONS)


def test_what_is_answered_where_nothing_was_said_is_too_much() -> None:
    assert score(["a b", "c"], ["...", "c"], "lower") == {"wer": 2.0, "cer": 3.0}
    assert score(["a b"], ["..."], "lower")["wer"] == 2
    assert score([""], [""], "none") == {"wer": 0, "cer": 0}


@pytest.mark.parametrize(
    ("answer", "reference", "text", "errors"),
    [
        ("the cat sat", "the cat sat", "the cat sat", 0),
        ("the hat sat", "the cat sat", "the [-cat-]{+hat+} sat", 1),
        ("the cat", "the cat sat down", "the cat [-sat down-]", 2),
        ("oh the cat", "the cat", "{+oh+} the cat", 1),
        ("", "the cat", "[-the cat-]", 2),
        ("the cat", "", "{+the cat+}", 2),
        ("", "", "", 0),
    ],
)
def test_errors_are_marked(answer: str, reference: str, text: str, errors: int) -> None:
    found = marked(answer, reference)
    assert (found.text, found.errors, found.words) == (text, errors, len(reference.split()))


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)


def test_html_holds_what_was_heard_as_text_alone() -> None:
    found = marked("a <script>x</script> & b", "a <b>y</b> & b")
    tags = _Tags()
    tags.feed(found.html)
    assert tags.tags == ["del", "ins"]
    assert "&lt;script&gt;" in found.html


def test_a_page_begins_with_the_worst() -> None:
    html = page(["Good.", "a <i> c"], ["good", "a b d"], "none")
    assert html.index("<td>0<td>1 of 1") < html.index("<td>1<td>2 of 3")
    assert "word error rate 0.7500" in html
    assert "<i>" not in html
    assert "word error rate 0.5000" in page(["Good.", "a <i> c"], ["good", "a b d"], "lower")


def test_without_jiwer_the_line_that_installs_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wording, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"pip install 'ray_lora\[speech\]'"):
        score(["a"], ["a"], "none")


def test_a_page_of_many_rows_shows_the_worst() -> None:
    html = page(["a"] * 501 + ["x"], ["a"] * 502, "none")
    assert "The worst 500 of 502 rows" in html
    assert html.count("<tr><td>") == 500
    assert html.index("<td>501<td>1 of 1") < html.index("<td>0<td>0 of 1")
