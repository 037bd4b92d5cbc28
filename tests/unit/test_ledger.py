"""The oracle of tests/ray/test_never_wrong.py: what it must allow, and what it must not."""

from __future__ import annotations

import pytest

from tests.ray import ledger
from tests.ray.ledger import CARD, CONFIG, WEIGHTS, Away, Content, Held, Ledger, Outcome


def content(sha256: str, carded: bool) -> Content:
    files = {CONFIG: b"{}", WEIGHTS: sha256.encode()} | ({CARD: sha256.encode()} if carded else {})
    return Content(files, sha256, ("yes", "no"), ((0.5, 0.5),))


def test_while_the_store_is_away_what_was_meant_before_the_newest_had_settled_may_be_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    older, old, new = content("older", carded=True), content("old", carded=True), content("new", carded=False)
    book = Ledger({tuple(one.files.get(part) for part in ledger.PARTS): one for one in (older, old, new)})
    clock = iter(range(100, 200))
    monkeypatch.setattr(ledger.time, "monotonic", lambda: float(next(clock)))
    newest = {2: Held(new.files, 101.9, at_once=True)}
    for versions in (
        {1: Held(older.files, 90.0)},
        {1: Held(older.files, 90.0)} | newest,
        {1: Held(old.files, 103.0)} | newest,
    ):
        with book.becoming("tweets", versions, {}):
            pass
    assert book.allowed("tweets", 120.0, 121.0) == {Outcome(200, 2, "new")}
    book.aways.append(Away(going=105.5, gone=105.6, coming=130.0, back=131.0))
    known = {Outcome(200, 1, "older"), Outcome(200, 1, "old"), Outcome(200, 2, "new"), Outcome(503)}
    assert book.allowed("tweets", 120.0, 121.0) == known
    assert book.allowed("tweets", 140.0, 141.0) == {Outcome(200, 2, "new")}
