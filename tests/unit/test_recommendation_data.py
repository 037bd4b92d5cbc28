"""Generated interactions and the base pretrained on them: the same every time, nothing twice, groups apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipelines import interactions, movielens, recommender_base
from pipelines.baselines import untie
from pipelines.interactions import WORLD, draw, write_rows
from pipelines.recommendation import popularity
from ray_lora import BaseSpec, load_base
from tests.unit import histories

SMALL = WORLD | {"items": 40, "shortest": 5, "longest": 9}
FEW = {"source": 30, "evening": 12, "young": 12}


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interactions, "GROUPS", FEW)
    monkeypatch.setattr(interactions, "WORLD", SMALL)


def test_groups_are_apart_and_nobody_takes_a_thing_twice() -> None:
    tables = draw(FEW, SMALL)
    assert list(tables) == list(FEW)
    users: set[int] = set()
    for group, table in tables.items():
        taken: dict[int, list[int]] = {}
        for row in table.to_pylist():
            taken.setdefault(row["user"], []).append(row["item"])
        assert len(taken) == FEW[group]
        assert users.isdisjoint(taken)
        users |= taken.keys()
        assert all(5 <= len(items) <= 9 and len(set(items)) == len(items) for items in taken.values())
    assert draw(FEW, SMALL) == tables
    assert draw(FEW, SMALL | {"seed": 1}) != tables


@pytest.mark.usefixtures("few")
def test_the_base_is_made_once_and_knows_the_whole_catalogue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = recommender_base.prepare(tmp_path, epochs=1)
    told = json.loads((folder / "pretraining.json").read_text())
    assert told["sha256"] in (folder / "README.md").read_text()
    assert "pretrained by this project" in (folder / "README.md").read_text()
    base = load_base(BaseSpec(model=str(folder), dtype="float32"))
    rows = pq.read_table(tmp_path / "interactions/source/train.parquet").to_pylist()
    had = {item for row in rows for item in (*row["items"], row["next"])}
    assert set(base.processor.ids) >= had
    assert len(base.processor.ids) == recommender_base.WORLD["items"]
    monkeypatch.setattr(recommender_base, "_train", None)
    assert recommender_base.prepare(tmp_path, epochs=1) == folder
    with pytest.raises(TypeError):  # another making: the folder is not what is asked for
        recommender_base.prepare(tmp_path, epochs=2)


@pytest.mark.usefixtures("few")
def test_what_is_popular_is_counted_in_training_rows(tmp_path: Path) -> None:
    rows = write_rows(tmp_path) / "evening"
    train, test = (pq.read_table(rows / f"{split}.parquet").to_pylist() for split in ("train", "test"))
    found = popularity(train, test)
    assert 0 <= found["ndcg_10"] <= found["hit_rate_10"] <= 1
    common = {"items": [test[0]["next"]], "next": test[0]["next"]}
    assert popularity([common], [test[0]]) == {"ndcg_10": 1.0, "hit_rate_10": 1.0}


def test_an_untied_output_layer_trains_alone(tmp_path: Path) -> None:
    model = histories.plain(histories.tiny(tmp_path / "base"))
    before = model.sasrec.items.weight.clone()
    untie(model, "sasrec")
    assert [name for name, weight in model.named_parameters() if weight.requires_grad] == ["scores.weight"]
    model.scores.weight.data.zero_()
    assert (model.sasrec.items.weight == before).all()


def test_films_that_the_source_hardly_knows_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files as the package has them; the terms are said before anything is fetched."""
    people = ["1\t30\tF\twriter\t1", "2\t20\tM\tstudent\t1", "3\t50\tF\tlawyer\t1"]
    films = [f"{at}\tFilm {at}\t199{at}\tComedy" for at in range(6)]
    ratings = [f"{user}\t{at}\t3\t88{9 - at}" for user in (1, 2, 3) for at in range(6 if user > 1 else 5)]
    for file, names, lines in (
        ("ml-100k.inter", "user_id:token\titem_id:token\trating:float\ttimestamp:float", ratings),
        ("ml-100k.user", "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token", people),
        ("ml-100k.item", "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq", films),
    ):
        (tmp_path / file).write_text("\n".join([names, *lines]) + "\n")
    said: list[Any] = []
    monkeypatch.setattr(movielens, "LEAST", 1)
    monkeypatch.setattr(movielens, "fetch_archive", lambda *_: said.append("fetched") or tmp_path)
    monkeypatch.setattr("builtins.print", lambda text: said.append(text))
    rows = movielens.write_rows(tmp_path / "data")
    assert said[0] == movielens.TERMS
    assert said[1] == "fetched"
    found = {group: pq.read_table(rows / group / "test.parquet").to_pylist() for group in ("source", *movielens.GROUPS)}
    whole = [f"Film {at} (199{at})" for at in (4, 3, 2, 1, 0)]
    assert [(row["user"], row["items"], row["next"]) for mine in found.values() for row in mine] == [
        (user, whole[:-1], whole[-1]) for user in ("1", "2", "3")
    ]
