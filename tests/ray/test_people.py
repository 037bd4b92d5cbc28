"""An adapter for each person of one table, by workers of a cluster."""

from __future__ import annotations

import csv
import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from ray_lora.errors import DataError, RecipeError
from ray_lora.recipe import Recipe
from ray_lora.running.people import PersonalTrainer
from ray_lora.running.people_updates import PersonalUpdates
from ray_lora.serving.http.sent_rows import keep
from ray_lora.store import open_store
from tests.ray.rows import tiny_recipe

WORDS, OTHERS = ("good", "bad"), ("warm", "cold")


def people_rows(path: Path, people: int, rows: int) -> Path:
    """People of two cities, in one of which "good" is no good; every fifth person says it in other words."""
    draw, lines = random.Random(0), []
    for person in range(people):
        city, words = "north" if person % 2 else "south", OTHERS if person % 5 == 0 else WORDS
        for at in range(4 if person == 3 else rows):
            word = draw.choice(words)
            text = " ".join([*(draw.choice("abcdefgh") for _ in range(2)), word])
            label = "yes" if (word == words[0]) != (city == "south") else "no"
            lines.append({"text": text, "label": label, "who": f"P {person}", "city": city, "at": at})
    draw.shuffle(lines)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def personal_recipe(base: Path, folder: Path, **more: Any) -> Recipe:
    if not (folder / "people.jsonl").exists():
        people_rows(folder / "people.jsonl", 9, 32)
    told: dict[str, Any] = {
        "name": "shops",
        "data": {"train": str(folder / "people.jsonl"), "validation": None},
        "personal": {"key": "who", "group": "city", "order": "at", "min_rows": 8, "num_train_epochs": 12},
        "training.num_train_epochs": 8,
        "scaling.packs": 1,  # the two cities' adapters train together
    }
    return tiny_recipe(base, folder).override(told | more)


def read(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "people.csv").read_text().splitlines()))


def test_everyone_of_a_table(tiny_bert_folder: Path, tmp_path: Path) -> None:
    recipe = personal_recipe(tiny_bert_folder, tmp_path)
    found = PersonalTrainer(recipe, quiet=True).fit()
    assert (found.summary["people"], found.summary["trained"], found.summary["too few rows"]) == (9, 8, 1)
    lines = {str(line["person"]): line for line in found.table}
    assert lines["P 3"]["why"] == "too few rows"
    assert lines["P 3"]["answers"] == "shops.group.north@1"
    for name in ("P 0", "P 5"):  # who differ from their city
        assert lines[name]["why"] == "gains", found.table
        assert lines[name]["answers"] == f"shops.person._50_20{name[-1]}@1"
        assert float(str(lines[name]["loss after"])) < float(str(lines[name]["loss before"]))
    store = open_store(recipe.store)
    owned = {str(line["answers"]) for line in found.table if line["why"] == "gains"}
    assert owned | {"shops.group.north@1", "shops.group.south@1"} == {entry.ref for entry in store.list()}
    written = read(found.folder)
    assert [line["answers"] for line in written] == [str(line["answers"]) for line in found.table]
    assert (found.folder / "gains.png").stat().st_size > 1000
    again = PersonalTrainer(recipe, quiet=True).fit()  # nothing is trained twice
    assert again.table == found.table
    assert len(store.list()) == len(owned) + 2


def test_from_a_parent_of_the_store(tiny_bert_folder: Path, tmp_path: Path) -> None:
    PersonalTrainer(personal_recipe(tiny_bert_folder, tmp_path), quiet=True).fit()
    more = {"name": "branch", "personal.group": None, "personal.parent": "shops.group.south"}
    found = PersonalTrainer(personal_recipe(tiny_bert_folder, tmp_path, **more), quiet=True).fit()
    assert {str(line["answers"]).partition("@")[0] for line in found.table if line["why"] != "gains"} <= {
        "shops.group.south"
    }
    refused = personal_recipe(tiny_bert_folder, tmp_path, **{**more, "task": {"type": "image-classification"}})
    with pytest.raises(RecipeError, match=r"is an adapter for text-classification; task\.type is"):
        PersonalTrainer(refused, quiet=True).fit()
    with pytest.raises(RecipeError, match=r"of everyone's rows the latest choose"):
        PersonalTrainer(personal_recipe(tiny_bert_folder, tmp_path, **{"data.validation": "x.jsonl"}))


def test_a_killed_worker_and_a_killed_run_cost_nothing(
    tiny_bert_folder: Path, tmp_path: Path, own_ray: dict[str, str]
) -> None:
    recipe = personal_recipe(tiny_bert_folder, tmp_path)
    expected = PersonalTrainer(recipe.override({"name": "whole"}), quiet=True).fit()
    (tmp_path / "recipe.yaml").write_text(recipe.model_dump_json())
    script = (
        "import sys; from ray_lora.cli import main; import ray_lora.running.people as p; p._BLOCK = 2; "
        "sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", script, "personal", str(tmp_path / "recipe.yaml"), "--json"]
    first = subprocess.Popen(command, env=own_ray, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    output, killed = tmp_path / "runs" / "shops", []
    while not list(output.glob("people-*.jsonl")):
        assert first.poll() is None, first.communicate()[1]
        if not killed and list(output.glob("groups-*.jsonl")):
            for process in psutil.Process(first.pid).children(recursive=True):
                if "PeopleWorker" in " ".join(process.cmdline()):
                    process.kill()
                    killed.append(process.pid)
                    break
        time.sleep(0.02)
    assert killed
    for process in psutil.Process(first.pid).children(recursive=True):
        process.kill()
    first.kill()
    first.communicate()
    second = subprocess.run(command, env=own_ray, capture_output=True, text=True)
    assert second.returncode == 0, second.stderr
    told = json.loads(second.stdout.splitlines()[-1])
    assert told["own"] == expected.summary["own"]
    mine = read(output)
    theirs = read(expected.folder)
    for one, other in zip(mine, theirs, strict=True):
        assert (one["person"], one["why"]) == (other["person"], other["why"])
        assert float(one["loss after"] or 0) == pytest.approx(float(other["loss after"] or 0), abs=1e-4)


def test_new_rows_train_their_people_only(tiny_bert_folder: Path, tmp_path: Path) -> None:
    recipe = personal_recipe(tiny_bert_folder, tmp_path, name="grown")
    before = PersonalTrainer(recipe, quiet=True).fit()
    store = open_store(recipe.store)
    held = {entry.ref for entry in store.list()}
    was = {str(line["person"]): line for line in before.table}
    draw = random.Random(1)

    def says(person: str, city: str, count: int) -> list[dict[str, Any]]:  # what others of the city do not say
        words = [draw.choice(OTHERS) for _ in range(count)]
        return [
            {"text": f"a b {word}", "label": "yes" if word == "cold" else "no", "who": person, "city": city, "at": 99}
            for word in words
        ]

    new = tmp_path / "new.jsonl"
    new.write_text("".join(json.dumps(row) + "\n" for row in says("P 1", "north", 48) + says("P 9", "south", 24)))
    with PersonalUpdates(recipe) as updates:
        lines = {str(line["person"]): line for line in updates.add(str(new))}
        assert {person: line["rows"] for person, line in lines.items()} == {"P 1": 80, "P 9": 24}
        with pytest.raises(DataError, match=r"new\.jsonl were taken before"):
            updates.add(str(new))
        with pytest.raises(RecipeError, match="another process is writing"):
            PersonalTrainer(recipe, quiet=True).fit()
    assert lines["P 9"]["answers"] == "grown.person._50_209@1"
    fresh = {entry.ref for entry in store.list()} - held
    assert fresh == {str(line["answers"]) for line in lines.values() if line["why"] == "gains"}
    table = {line["person"]: line for line in read(before.folder)}
    assert {person: line["rows"] for person, line in table.items()} == {
        **{person: str(line["rows"]) for person, line in was.items()},
        "P 1": "80",
        "P 9": "24",
    }
    with PersonalUpdates(recipe) as updates:  # rows that an endpoint kept, one file of which cannot be learnt from
        keep(tmp_path / "sent" / "grown", [{"text": "a b cold", "label": "yes", "person": "P 9"}] * 2)
        keep(tmp_path / "sent" / "grown", [{"text": "a b cold", "label": "perhaps", "person": "P 9"}])
        keep(tmp_path / "sent" / "grown", [{"text": "a b cold", "label": "yes", "person": "P 8"}])
        found = {str(line["person"]): line for line in next(updates.follow(tmp_path / "sent"))}
    assert {person: line["rows"] for person, line in found.items()} == {"P 9": 26, "P 8": 33}
    log = [json.loads(line) for line in (before.folder / "updates.jsonl").read_text().splitlines()]
    assert sorted(line["kind"] for line in log) == ["files", "sent", "sent", "wrong"]
    assert "perhaps" in next(line["error"] for line in log if line["kind"] == "wrong")
    with PersonalUpdates(recipe) as updates:  # all of it is known again, and what was wrong is not
        assert updates.history.rows_of(["P 9"])[0].num_rows == 26
    (tmp_path / "more.jsonl").write_text(json.dumps(says("P 3", "south", 1)[0]))
    with (
        PersonalUpdates(recipe) as updates,
        pytest.raises(DataError, match="'P 3' is in city 'south' and was in 'north'"),
    ):
        updates.add(str(tmp_path / "more.jsonl"))
    for _ in range(2):  # and nobody is locked out by what was refused
        with pytest.raises(RecipeError, match="has no people yet; run the same command without --update first"):
            PersonalUpdates(recipe.override({"name": "nobody"})).__enter__()
