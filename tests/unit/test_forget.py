"""A person is deleted with all versions and traces, and nobody else loses a byte; old versions expire."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import ViewType

from ray_lora.adapters.adapter import Adapter
from ray_lora.cli import main as ray_lora
from ray_lora.data.history import History
from ray_lora.errors import AdapterError, AdapterNotFoundError, DataError, RecipeError
from ray_lora.recipe import Recipe
from ray_lora.running import people_forget
from ray_lora.running.claims import claimed
from ray_lora.running.forgotten import TRAIN, Forgotten
from ray_lora.running.people_forget import EndpointAwayError, forget_person
from ray_lora.serving.http.sent_rows import keep
from ray_lora.serving.trials.results import forget_lines
from ray_lora.store import Store, open_store, steer
from ray_lora.store.expire import expire
from ray_lora.store.people import group_name, person_name
from ray_lora.tasks import task_of
from ray_lora.tracking import Tracker
from tests.mlflow_world import MLFLOW_WARNINGS, database
from tests.unit.http_server import serving
from tests.unit.serving_world import card, make_adapter, make_base
from tests.unit.test_store import PEFT_WARNINGS, adapter, cache, place_of, store

__all__ = ["cache", "store"]  # fixtures
pytestmark = [pytest.mark.filterwarnings(known) for known in (*MLFLOW_WARNINGS, *PEFT_WARNINGS)]
ANN, BOB = person_name("shops", "Ann/7"), person_name("shops", "bob")


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def filled(store: Store) -> Store:
    """Ann has three versions, one of them removed, Bob two."""
    for seed, name in enumerate((ANN, BOB, ANN, BOB, ANN)):
        store.put(adapter(seed), name, aliases=("champion",))
    store.remove(f"{ANN}@1")
    store.point(ANN, steer.split({2: 50, 3: 50}))
    store.put(adapter(9), group_name("shops", "north"))
    return store


# -------------------------------------------------------------------- stores


def test_a_name_goes_with_all_its_versions_and_no_other(store: Store, tmp_path: Path, cache: Path) -> None:
    filled(store)
    for ref in (f"{ANN}@3", BOB):  # so that there are copies on this machine, where the store is elsewhere
        store.load(ref)
    before = {entry.ref: entry.sha256 for entry in store.list(BOB)}
    place = place_of(store, tmp_path)
    files = tree(place / BOB) if place.exists() else {}
    told = store.forget(ANN)
    assert any(f"{ANN}, 2 versions" in place.removed for place in told), told
    for opened in (store, type(store)(store.tracking_uri) if store.uri == "mlflow" else store):  # type: ignore[attr-defined,call-arg]
        for ref in (ANN, f"{ANN}@3", f"{ANN}@champion"):
            with pytest.raises(AdapterNotFoundError):
                opened.resolve(ref)
        assert {entry.ref: entry.sha256 for entry in opened.list() if entry.name == BOB} == before
        assert {entry.name for entry in opened.list()} == {BOB, "shops.group.north"}
        assert opened.load(BOB)[1].sha256 == adapter(3).sha256
    if place.exists():
        assert tree(place / BOB) == files
    left = [str(path) for path in tmp_path.rglob("*") if ANN in str(path) and path.name != "mlflow.db"]
    assert left == []
    assert adapter(4).sha256 not in {path.name for path in (cache / "adapters").glob("*")}
    assert not [place for place in store.forget(ANN) if place.removed]  # nothing is left to do
    assert store.put(adapter(7), ANN).sha256 == adapter(7).sha256  # and who comes back is new


def test_mlflow_keeps_no_run_and_no_artifact_of_it(tmp_path: Path) -> None:
    uri = database(tmp_path)
    store = filled(open_store("mlflow", uri))
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(ANN)
    assert experiment is not None
    others = {run.info.run_id for run in client.search_runs([client.get_experiment_by_name(BOB).experiment_id])}  # type: ignore[union-attr]
    assert len(list((tmp_path / "mlartifacts" / ANN).rglob("*.safetensors"))) == 3  # the removed version's too
    (place,) = [place for place in store.forget(ANN) if place.where.startswith("runs")]
    assert place.removed == f"experiment {ANN}, 3 runs"
    assert f"mlflow gc --experiment-ids {experiment.experiment_id}" in place.stays
    runs = client.search_runs([experiment.experiment_id], run_view_type=ViewType.ALL)
    assert {(run.info.run_name, run.info.lifecycle_stage) for run in runs} == {("forgotten", "deleted")}
    assert not list((tmp_path / "mlartifacts" / ANN).rglob("*.safetensors"))
    assert {run.info.run_id for run in client.search_runs([client.get_experiment_by_name(BOB).experiment_id])} == others  # type: ignore[union-attr]
    assert {model.name for model in client.search_registered_models()} == {BOB, "shops.group.north"}


def test_what_mlflow_cannot_delete_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

    def refuses(*_: Any, **__: Any) -> None:
        raise NotImplementedError

    store = filled(open_store("mlflow", database(tmp_path)))
    monkeypatch.setattr(LocalArtifactRepository, "delete_artifacts", refuses)
    (place,) = [place for place in store.forget(ANN) if place.where.startswith("runs")]
    assert "artifacts of 3 runs in" in place.stays


def test_a_list_of_one_name_is_of_that_name(store: Store) -> None:
    filled(store)
    assert [entry.ref for entry in store.list(ANN)] == [f"{ANN}@2", f"{ANN}@3"]
    assert store.list("nobody") == []


def test_a_deletion_that_was_killed_is_finished_by_the_same_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = filled(open_store(str(tmp_path / "store")))
    real = shutil.rmtree

    def dies(path: Any, *given: Any, **more: Any) -> None:
        if "gone" in str(path):
            raise OSError("killed")
        real(path, *given, **more)

    monkeypatch.setattr(shutil, "rmtree", dies)
    with pytest.raises(AdapterError, match="killed"):
        store.forget(ANN)
    assert ANN not in store.names()  # nobody is answered by half of it
    assert list((tmp_path / "store").glob(f".gone-{ANN}"))
    monkeypatch.undo()
    open_store(str(tmp_path / "store")).forget(ANN)
    assert not [path for path in (tmp_path / "store").rglob("*") if ANN in str(path)]


def test_a_link_goes_and_what_it_leads_to_stays(tmp_path: Path) -> None:
    store = filled(open_store(str(tmp_path / "store")))
    (tmp_path / "store" / "alias").symlink_to(tmp_path / "store" / BOB)
    store.forget("alias")
    assert [entry.name for entry in store.list(BOB)] == [BOB, BOB]
    assert "alias" not in store.names()


# -------------------------------------------------------------------- old versions


def test_old_versions_go_but_for_those_that_something_needs(store: Store) -> None:
    for seed in range(6):
        store.put(adapter(seed), ANN)
        store.put(adapter(10 + seed), BOB) if seed < 2 else None
    store.alias(ANN, "champion", 2)
    store.point(ANN, steer.shadow(1))
    assert store.crowded(2) == [ANN]
    assert expire(store, 2) == [f"{ANN}@3", f"{ANN}@4"]
    assert [entry.version for entry in store.list(ANN)] == [1, 2, 5, 6]
    assert [entry.version for entry in store.list(BOB)] == [1, 2]
    assert expire(store, 1, BOB) == [f"{BOB}@1"]
    assert store.put(adapter(8), ANN).version == 7  # no number is used again
    with pytest.raises(RecipeError, match="keep is 0"):
        expire(store, 0)


def test_what_a_bare_name_means_stays_though_newer_ones_are_broken(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    for seed in range(3):
        store.put(adapter(seed), ANN)
    (tmp_path / "store" / ANN / "3" / "adapter_model.safetensors").write_bytes(b"torn")
    fresh = open_store(str(tmp_path / "store"))
    assert expire(fresh, 1) == [f"{ANN}@1"]
    assert fresh.resolve(ANN).version == 2


def test_only_names_with_more_versions_are_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray_lora.store.local import LocalFiles

    store, seen = filled(open_store(str(tmp_path / "store"))), list[str]()
    store.put(adapter(8), BOB)
    scan, read = LocalFiles.scan, LocalFiles.read
    monkeypatch.setattr(LocalFiles, "scan", lambda self, name: [seen.append(name), scan(self, name)][1])
    monkeypatch.setattr(LocalFiles, "read", lambda self, name, *more: [seen.append(name), read(self, name, *more)][1])
    assert expire(store, 2) == [f"{BOB}@1"]
    assert set(seen) == {BOB}


def test_the_command_expires(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    filled(open_store(str(tmp_path / "store")))
    assert ray_lora(["adapters", "expire", BOB, "--keep", "1", "--store", str(tmp_path / "store"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"removed": [f"{BOB}@1"]}


# -------------------------------------------------------------------- a run


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base/, and one/, two/ and three/, adapters of it."""
    root = tmp_path_factory.mktemp("forget")
    make_base(root / "base")
    for seed, name in enumerate(("one", "two", "three")):
        card(make_adapter(root / "base", root / name, seed=seed), root / "base", ["no", "yes"])
    return root


def line(who: str, at: int) -> dict[str, Any]:
    return {"text": f"{who} {at}", "label": "yes", "who": who, "city": "north", "at": at}


@pytest.fixture
def recipe(base: Path, tmp_path: Path) -> Recipe:
    """A run that has ended, as `PersonalTrainer` and `PersonalUpdates` leave it: Ann gained, Bob did, Cyd did not."""
    people = ("Ann/7", "bob", "cyd")
    rows = [line(who, at) for who in people for at in range(3)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "more.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[2:5]))
    tracking = {"uri": database(tmp_path)}
    told = {
        "name": "shops", "base": {"model": str(base / "base")}, "task": {"labels": ["no", "yes"], "max_length": 16},
        "data": {"train": str(tmp_path / "rows.jsonl")}, "personal": {"key": "who", "group": "city", "order": "at"},
        "store": str(tmp_path / "store"), "output_dir": str(tmp_path / "runs"), "tracking": tracking,
    }  # fmt: skip
    recipe = Recipe.parse(told)
    store = open_store(recipe.store)
    for name, folder in ((ANN, "one"), (ANN, "two"), (BOB, "three"), (group_name("shops", "north"), "one")):
        store.put(Adapter.load(base / folder), name, aliases=("champion",))
    for who in ("Ann/7", "bob"):
        keep(tmp_path / "sent" / "shops", [{"text": "a day", "label": "yes", "person": who}] * 2)
    ann, bob = sorted((tmp_path / "sent" / "shops").glob("*.jsonl"), key=lambda path: "Ann" not in path.read_text())
    keep(tmp_path / "sent" / "shops", [{"text": "a night", "label": "yes", "person": "Ann/7"}])  # nobody has learnt it
    with claimed(recipe, "personal", recipe.model_dump_json()) as output:
        table = [
            f"{who},north,3,{person_name('shops', who)}@1,gains,1,0.5,0.4,0.1,0.2\n" for who in ("Ann/7", "bob", "cyd")
        ]
        head = "person,group,rows,answers,why,epoch,loss before,loss after,accuracy before,accuracy after\n"
        (output / "people.csv").write_text(head + "".join(table))
        kept = [json.dumps({"name": who, "rows": 3, "adapter": None}) + "\n" for who in people]
        (output / "people-000000.jsonl").write_text("".join(kept))
        logged = [
            {"kind": "files", "files": [str(tmp_path / "more.jsonl")], "at": 1.0},
            {"kind": "sent", "files": [str(ann)], "at": 2.0},
            {"kind": "sent", "files": [str(ann), str(bob)], "at": 3.0},
        ]
        (output / "updates.jsonl").write_text("".join(json.dumps(told) + "\n" for told in logged))
        (output / "gains.png").write_bytes(b"with everybody")
        tracker = Tracker(recipe.tracking.uri, "shops", record=output / "mlflow.jsonl")
        tracker.open_parent(str(output), recipe, {})
        tracker.log_artifact(output / "people.csv")
        tracker.finish_parent("FINISHED")
        tracker.close()
    return recipe


def places(found: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {place["where"]: (place["removed"], place["stays"]) for place in found["places"]}


def texts(root: Path) -> dict[str, bytes]:
    """All files that a person's key or name is in, but for those that the user gave and MLflow's database."""
    given = ("rows.jsonl", "more.jsonl", "mlflow.db")
    return {
        name: data
        for name, data in tree(root).items()
        if Path(name).name not in given and (b"Ann/7" in data or ANN.encode() in data or ANN in name)
    }


def test_a_person_goes_from_every_place_of_a_run(recipe: Recipe, tmp_path: Path) -> None:
    output = tmp_path / "runs" / "shops"
    before = {**tree(tmp_path / "store" / BOB), **tree(tmp_path / "store" / "shops.group.north")}
    assert texts(tmp_path)
    told = places(forget_person(recipe, "Ann/7"))
    assert texts(tmp_path) == {}
    assert told[f"store {recipe.store}"] == (f"{ANN}, 2 versions", "")
    assert told[f"sent rows in {tmp_path / 'sent' / 'shops'}"] == ("3 rows of 2 files", "")
    assert told[f"run {output}"][0] == "2 lines, and in the figure"
    assert told["MLflow, the run's table and figure"][0]
    assert "3 rows: take them out yourself" in told[f"data.train ({recipe.data.train})"][1]
    assert "1 rows: take them out yourself" in told[str(tmp_path / "more.jsonl")][1]
    assert "learnt from everybody's rows" in told["adapter shops.group.north"][1]
    assert "--endpoint URL" in told["endpoints"][1]
    assert {**tree(tmp_path / "store" / BOB), **tree(tmp_path / "store" / "shops.group.north")} == before
    assert (output / "people.csv").read_text().splitlines()[1:] == [
        f"bob,north,3,{BOB}@1,gains,1,0.5,0.4,0.1,0.2",
        "cyd,north,3,shops.person.cyd@1,gains,1,0.5,0.4,0.1,0.2",
    ]
    assert [json.loads(told)["name"] for told in (output / "people-000000.jsonl").read_text().splitlines()] == [
        "bob",
        "cyd",
    ]
    assert (output / "gains.png").read_bytes()[:4] == b"\x89PNG"
    (log,) = [json.loads(told) for told in (output / "updates.jsonl").read_text().splitlines() if '"sent"' in told]
    assert [json.loads(row)["person"] for row in Path(log["files"][0]).read_text().splitlines()] == ["bob", "bob"]
    client = MlflowClient(recipe.tracking.uri)
    (run,) = client.search_runs([client.get_experiment_by_name("shops").experiment_id])  # type: ignore[union-attr]
    kept = client.download_artifacts(run.info.run_id, "people.csv", str(tmp_path))
    assert [told["person"] for told in csv.DictReader(Path(kept).read_text().splitlines())] == ["bob", "cyd"]
    assert not (output / "forgetting.json").exists()


def test_nobody_learns_from_rows_that_the_user_s_files_still_have(recipe: Recipe, tmp_path: Path) -> None:
    forget_person(recipe, "Ann/7")
    forgotten = Forgotten(tmp_path / "runs" / "shops")
    history = History(recipe.data, task_of(recipe.task).columns, recipe.personal)
    assert history.add(recipe.data.train or (), forgotten.among([TRAIN])) == ["bob", "cyd"]
    more = [str(tmp_path / "more.jsonl")]
    assert history.add(more, forgotten.among(more)) == ["bob"]
    assert history.add(str(tmp_path / "more.jsonl"), forgotten.among(["another"])) == ["Ann/7", "bob"]  # new rows are
    for name in ("rows.jsonl", "more.jsonl"):
        others = [row for row in (tmp_path / name).read_text().splitlines() if "Ann/7" not in row]
        (tmp_path / name).write_text("\n".join(others))
    with pytest.raises(DataError, match=r"nobody is called 'Ann/7' here; keys are words of the column who"):
        forget_person(recipe, "Ann/7")
    assert not (tmp_path / "runs" / "shops" / "forgotten.json").exists()  # no hash is needed any more


def test_a_deletion_of_a_run_that_was_killed_is_ended_by_the_same_command(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before each of its steps."""
    steps = ["_sent", "_table", "_mlflow", "_given"]
    for step in steps:
        with monkeypatch.context() as broken:

            def dies(self: Any, *_: Any) -> Any:
                raise KeyboardInterrupt

            broken.setattr(people_forget._Deletion, step, dies)
            with pytest.raises(KeyboardInterrupt):
                forget_person(recipe, "Ann/7")
        with pytest.raises(RecipeError, match=r"deletion of 'Ann/7' was cut short; end it first: .*--forget 'Ann/7'"):
            forget_person(recipe, "bob")
        with pytest.raises(RecipeError, match="was cut short"):
            Forgotten(tmp_path / "runs" / "shops").check()
    forget_person(recipe, "Ann/7")
    assert texts(tmp_path) == {}
    Forgotten(tmp_path / "runs" / "shops").check()
    assert open_store(recipe.store).resolve(BOB).version == 1


def test_what_cannot_be_deleted_is_refused_before_anything_goes(recipe: Recipe, tmp_path: Path) -> None:
    before = tree(tmp_path / "store")
    with pytest.raises(DataError, match="nobody is called 'ann/7'"):
        forget_person(recipe, "ann/7")
    with pytest.raises(RecipeError, match="has no people yet; run the same command without --forget first"):
        forget_person(recipe.override({"name": "others"}), "Ann/7")
    away = recipe.override({"store": str(tmp_path / "away")})
    deletion = people_forget._Deletion(away, "Ann/7", ANN, tmp_path / "runs" / "shops")
    with pytest.raises(AdapterNotFoundError, match="is it mounted"):
        deletion.check()
    with pytest.raises(EndpointAwayError, match="nothing was deleted"):
        forget_person(recipe, "Ann/7", "http://127.0.0.1:9")
    assert tree(tmp_path / "store") == before


# -------------------------------------------------------------------- a live endpoint


def test_a_live_endpoint_falls_back_and_holds_nothing(
    recipe: Recipe, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import httpx

    (tmp_path / "recipe.yaml").write_text(recipe.model_dump_json())
    (tmp_path / "keys.yaml").write_text(json.dumps([{"key": "root", "admin": True}, {"key": "team"}]))
    shutil.copytree(base / "base", tmp_path / "base")
    command = ["personal", str(tmp_path / "recipe.yaml"), "--forget", "Ann/7", "--json"]
    options = {"rows": str(tmp_path / "sent"), "keys": str(tmp_path / "keys.yaml"), "max_rank": 4}
    with serving(tmp_path, **options) as address, httpx.Client(base_url=address, timeout=None) as client:
        client.headers["authorization"] = "Bearer root"

        def ask(person: str) -> dict[str, Any]:
            body = {"model": "shops", "person": person, "group": "north", "inputs": "a good day"}
            said = client.post("/v1/predict", json=body)
            assert said.status_code == 200, said.text
            return {**said.json(), "id": said.headers["x-request-id"]}

        def resident() -> set[str]:
            return {told["adapter"] for told in client.get("/v1/status").json()["residents"]}

        mine, bobs = ask("Ann/7"), ask("bob")
        assert (mine["served_by"], mine["version"]) == ("person", 2)
        assert client.post("/v1/feedback", json={"id": mine["id"], "value": True}).status_code == 200
        client.post("/v1/predict", json={"model": f"{ANN}@1", "inputs": "a good day"})
        still = client.post("/v1/forget", json={"model": "shops", "person": "Ann/7"})
        assert (still.status_code, "the store still has" in still.text) == (400, True)
        assert (ask("Ann/7")["served_by"], {f"{ANN}@1"} <= resident()) == ("person", True)
        assert ray_lora([*command, "--endpoint", address]) == 2  # no key: refused, and the deletion waits for its end
        assert ask("Ann/7")["served_by"] == "group"  # though its memory is full of it
        monkeypatch.setenv(people_forget.KEY, "root")
        assert ray_lora([*command, "--endpoint", address]) == 0
        (told,) = [
            place
            for place in json.loads(capsys.readouterr().out.splitlines()[-1])["places"]
            if address in place["where"]
        ]
        assert "1 replicas" in told["where"]
        assert "2 adapters, 0 prompts, 3 answers, 3 rows" in told["removed"], told
        assert not [ref for ref in resident() if ref.startswith(ANN)]
        after = ask("Ann/7")
        assert (after["served_by"], after["model"]) == ("group", "shops.group.north")
        for ref in (ANN, f"{ANN}@2", f"{ANN}@sha256:{mine['sha256']}"):
            gone = client.post("/v1/predict", json={"model": ref, "inputs": "a good day"})
            assert gone.status_code == 404, gone.text
        assert client.post("/v1/feedback", json={"id": mine["id"], "value": True}).status_code == 404
        again = ask("bob")
        assert {key: again[key] for key in again if key != "id"} == {key: bobs[key] for key in bobs if key != "id"}
        refused = client.post(
            "/v1/forget", json={"model": "shops", "person": "x"}, headers={"x-api-key": "team", "authorization": ""}
        )
        assert refused.status_code == 403
    assert texts(tmp_path) == {}


def test_lines_of_a_name_go_while_others_are_appended(tmp_path: Path) -> None:
    told = [{"name": name, "version": 1, "value": True} for name in (ANN, BOB, ANN)]
    path, ids = tmp_path / "a.feedback.jsonl", tmp_path / "a.ids"
    path.write_text("".join(json.dumps(one) + "\n" for one in told))
    ids.write_text(f"r1\t{ANN}\t1\tdefault\t\nr2\t{BOB}\t1\tdefault\t\n")
    with path.open("a") as file:
        assert forget_lines(tmp_path, ANN) == 3
        file.write(json.dumps(told[1]) + "\n")
    assert [line for line in path.read_text().splitlines() if line] == [json.dumps(told[1])] * 2
    assert [line for line in ids.read_text().splitlines() if line] == [f"r2\t{BOB}\t1\tdefault\t"]
