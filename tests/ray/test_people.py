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

from ray_lora.errors import RecipeError
from ray_lora.recipe import Recipe
from ray_lora.running.people import PersonalTrainer
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
