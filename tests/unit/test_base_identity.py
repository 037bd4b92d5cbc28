"""An adapter is answered on its own base or not at all, wherever it is asked: by fingerprint, else by name."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from ray_lora.adapters.adapter import Adapter, Card
from ray_lora.adapters.peft_folder import CONFIG
from ray_lora.bases import identity
from ray_lora.bases.identity import at_revision, means, not_its_base, place
from ray_lora.bases.load import fingerprint, load_base
from ray_lora.cli import main
from ray_lora.engine import AdapterEngine
from ray_lora.errors import BaseModelError
from ray_lora.inference.stored import evaluate_ref, predict_ref
from ray_lora.pyfunc import AdapterModel
from ray_lora.recipe import BaseSpec
from ray_lora.serving.args import AppArgs
from ray_lora.serving.cluster.start import start_endpoint
from ray_lora.serving.http.routes import create_app
from ray_lora.store import open_store
from tests.unit.serving_world import make_adapter, make_base, peft_probabilities

TEXT = "a lovely day"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """right/ and other/ are bases of one shape, folder/ an adapter that plain PEFT trained on right/."""
    root = tmp_path_factory.mktemp("identity")
    make_base(root / "right", 0)
    make_base(root / "other", 1)
    make_adapter(root / "right", root / "folder", seed=2, labels=3)
    return root


@pytest.fixture
def world(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place of one's own: bases at their paths, a copy of the adapter, an empty store."""
    shutil.copytree(made / "folder", tmp_path / "folder")
    monkeypatch.chdir(tmp_path)
    return made


def ray_lora(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, Any]:
    """(exit code, the last line's object or what standard error says)."""
    code = main([*map(str, arguments), "--store", "s"] + (["--json"] if "serve" not in arguments else []))
    told = capsys.readouterr()
    return code, json.loads(told.out.splitlines()[-1]) if code == 0 else told.err


def named(base: str | None, **fields: Any) -> None:
    path = Path("folder") / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": base, **fields}))


def scores(answer: list[dict[str, Any]]) -> list[float]:
    return [item["score"] for item in sorted(answer, key=lambda item: item["label"])]


# -------------------------------------------------------------------- the case itself


def test_an_imported_folder_keeps_its_base(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = Adapter.load(Path("folder")).sha256
    code, imported = ray_lora(capsys, "adapters", "import", "folder", "one")
    assert (code, imported["base"], imported["sha256"]) == (0, str(world / "right"), before)
    top = ("--input", TEXT, "--parameters", '{"top_k": 3}')
    code, told = ray_lora(capsys, "predict", "one", *top)
    (expected,) = peft_probabilities(world / "right", Path("folder"), [TEXT])
    assert scores(told["predictions"][0]) == pytest.approx(expected, abs=1e-3)
    code, why = ray_lora(capsys, "predict", "one", *top, "--base", world / "other")
    assert code == 2
    assert f"was trained on base {str(world / 'right')!r}; given is {str(world / 'other')!r}" in why
    assert f"ray-lora adapters import FOLDER NAME --base {world / 'other'} --rebase" in why
    assert ray_lora(capsys, "adapters", "export", "one", "out")[0] == 0
    assert json.loads(Path("out", CONFIG).read_text())["base_model_name_or_path"] == str(world / "right")


@pytest.mark.parametrize("way", ["evaluate", "pyfunc", "engine", "predict"])
def test_another_base_of_the_same_shape_is_refused_everywhere(world: Path, way: str) -> None:
    open_store("s").put(Adapter.load(Path("folder")), "one")
    other = str(world / "other")
    Path("rows.jsonl").write_text('{"text": "good day", "label": "LABEL_0"}\n')
    ways = {
        "evaluate": lambda: evaluate_ref("one", "rows.jsonl", "s", base=other),
        "predict": lambda: predict_ref("one", [TEXT], "s", base=other),
        "pyfunc": lambda: AdapterModel(Path("folder"), other),
        "engine": lambda: AdapterEngine(load_base(BaseSpec(model=other)), slots=1, max_rank=4).load(
            Adapter.load(Path("folder"))
        ),
    }
    with pytest.raises(BaseModelError, match=r"was trained on base .*right'; given is .*other'.*--rebase"):
        ways[way]()


@pytest.mark.parametrize("base", [None, ""])
def test_a_folder_that_names_no_base_is_refused_until_it_is_said(
    world: Path, capsys: pytest.CaptureFixture[str], base: str | None
) -> None:
    named(base)
    assert ray_lora(capsys, "adapters", "import", "folder", "one")[0] == 0
    for more in ((), ("--base", world / "right")):
        code, why = ray_lora(capsys, "predict", "one", "--input", TEXT, *more)
        assert code == 2
        assert "does not name its base" in why
        assert "ray-lora adapters import FOLDER NAME --base" in why
    code, said = ray_lora(capsys, "adapters", "import", "folder", "one", "--base", world / "right")
    assert (code, said["base"]) == (0, str(world / "right"))
    assert said["base_fingerprint"] == fingerprint(world / "right")
    assert ray_lora(capsys, "predict", "one", "--input", TEXT)[0] == 0


# -------------------------------------------------------------------- neighbours: spellings, copies, quantised names


def test_other_spellings_of_one_path_are_one_base(world: Path) -> None:
    Path("link").symlink_to(world / "right")
    shutil.copytree(world / "right", "near")
    adapter = Adapter.load(Path("folder"))
    open_store("s").put(adapter, "one")
    for spelling in (f"{world}/right/", "link", f"{world}/other/../right", "near"):  # the last: the same weights
        assert predict_ref("one", [TEXT], "s", base=spelling)["predictions"]
    named("./near/")
    open_store("s").put(Adapter.load(Path("folder")), "two")
    assert predict_ref("two", [TEXT], "s", base=str(Path("near").absolute()))["predictions"]
    assert predict_ref("two", [TEXT], "s")["predictions"]


def test_names_mean_one_base_whatever_their_case_or_spelling(tmp_path: Path) -> None:
    assert place("Org/Model") == place("org/model") != place("org/model2")
    assert place("/no/where/") == place("/no/there/../where")
    assert place("org/model") != place("/org/model")
    snapshot = tmp_path / "models--Org--Model" / "snapshots" / "abc123"
    snapshot.mkdir(parents=True)
    assert means("org/model", str(snapshot), snapshot)
    assert means(str(snapshot), "Org/Model", snapshot)
    assert not means("org/other", "Org/Model", snapshot)
    assert not means("minilm", "Org/Model", snapshot)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "v1").write_text("abc123")
    (snapshot.parent.parent / "refs" / "v2").write_text("def456")
    told = {revision: at_revision(snapshot, revision) for revision in (None, "main", "abc123", "v1", "v2", "v3")}
    assert told == {None: True, "main": True, "abc123": True, "v1": True, "v2": False, "v3": False}
    assert at_revision(tmp_path, "v2")  # a folder of one's own has no revisions


def test_a_packaged_base_is_the_folder_that_plain_peft_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "cached", lambda name: tmp_path)
    assert means(str(tmp_path), "minilm")
    assert means("minilm", str(tmp_path))
    monkeypatch.setattr(identity, "cached", lambda name: None)
    assert not means(str(tmp_path), "minilm")
    assert means("minilm", "minilm")


@pytest.mark.parametrize("name", ["unsloth/llama-3-8b-bnb-4bit", "TheBloke/x-GPTQ", "org/model-AWQ", "org/model-8bit"])
def test_a_quantised_base_is_refused_by_name(world: Path, name: str) -> None:
    named(name)
    with pytest.raises(BaseModelError, match=f"{name}', whose name says that its weights are quantised.*--rebase"):
        AdapterModel(Path("folder"), str(world / "right"))
    assert "quantised" not in not_its_base("x", "org/model", "minilm")


def test_the_revision_is_kept_and_another_is_refused(world: Path) -> None:
    named(str(world / "right"), revision="v2")
    adapter = Adapter.load(Path("folder"))
    assert adapter.card.base_revision == "v2"
    adapter.save(Path("again"))
    assert json.loads(Path("again", CONFIG).read_text())["revision"] == "v2"
    assert Adapter.load(Path("again")).card.base_revision == "v2"
    snapshot = Path("models--org--model", "snapshots", "abc")
    shutil.copytree(world / "right", snapshot)
    base = replace(load_base(BaseSpec(model=str(snapshot))), id="org/model")
    engine = AdapterEngine(base, slots=1, max_rank=4)
    of_hub = replace(adapter, card=Card(base="Org/Model", base_revision="v2"))
    with pytest.raises(BaseModelError, match="trained on base 'Org/Model' at revision 'v2'"):
        engine.load(of_hub)
    engine.load(replace(adapter, card=Card(base="Org/Model", base_revision="abc")))
    engine.close()


def test_a_fingerprint_goes_before_a_name(world: Path) -> None:
    adapter = Adapter.load(Path("folder"))
    right, other = fingerprint(world / "right"), fingerprint(world / "other")
    engine = AdapterEngine(load_base(BaseSpec(model=str(world / "right"))), slots=1, max_rank=4)
    engine.evict(engine.load(replace(adapter, card=Card(base="moved away", base_fingerprint=right))))
    with pytest.raises(BaseModelError, match="trained on base"):
        engine.load(replace(adapter, card=Card(base=str(world / "right"), base_fingerprint=other)))
    engine.close()


# -------------------------------------------------------------------- import: a claim is a word


def test_a_claim_about_the_base_needs_a_word(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    take = ("adapters", "import", "folder", "one", "--base")
    code, why = ray_lora(capsys, *take, world / "other")
    assert (code, "--rebase" in why, "was trained on base" in why) == (2, True, True)
    assert ray_lora(capsys, *take, world / "right")[0] == 0
    code, said = ray_lora(capsys, *take, world / "other", "--rebase")
    assert (code, said["ref"], said["base"]) == (0, "one@2", str(world / "other"))
    code, told = ray_lora(capsys, "predict", "one@2", "--input", TEXT, "--parameters", '{"top_k": 3}')
    (expected,) = peft_probabilities(world / "other", Path("folder"), [TEXT])
    assert scores(told["predictions"][0]) == pytest.approx(expected, abs=1e-3)
    assert "give --base too" in ray_lora(capsys, "adapters", "import", "folder", "one", "--rebase")[1]
    ray_lora(capsys, "adapters", "export", "one@2", "out")
    assert json.loads(Path("out", CONFIG).read_text())["base_model_name_or_path"] == str(world / "other")


@pytest.mark.parametrize(
    ("task", "labels", "length"),
    [
        (("text-classification",), ["LABEL_0", "LABEL_1", "LABEL_2"], None),
        (("text-classification", "labels=[a, b, c]"), ["a", "b", "c"], None),
        (("task.labels=[c,b,a]", "task.max_length=24"), ["c", "b", "a"], 24),
        (('{"labels": ["x", "y", "z"], "max_length": 16}',), ["x", "y", "z"], 16),
    ],
)
def test_an_import_says_the_task(
    world: Path, capsys: pytest.CaptureFixture[str], task: tuple[str, ...], labels: list[str], length: int | None
) -> None:
    options = [part for text in task for part in ("--task", text)]
    code, said = ray_lora(capsys, "adapters", "import", "folder", "one", *options)
    assert code == 0, said
    assert said["task"] == {"type": "text-classification", "labels": labels, "max_length": length}
    code, told = ray_lora(capsys, "predict", "one", "--input", TEXT, "--parameters", '{"top_k": 3}')
    (expected,) = peft_probabilities(world / "right", Path("folder"), [TEXT])
    by_label = {item["label"]: item["score"] for item in told["predictions"][0]}
    assert [by_label[label] for label in labels] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("task", "why"),
    [
        (("text-clasification",), "did you mean 'text-classification'"),
        (("labels=[a, b]",), "names 2 labels, its head has 3"),
        (("labels=[a, a, b]",), "different words"),
        (("{",), "cannot be read"),
        (("labels=[",), "cannot be read"),
        (("lables=[a, b, c]",), "lables"),
    ],
)
def test_a_task_that_does_not_fit_is_refused_at_the_import(
    world: Path, capsys: pytest.CaptureFixture[str], task: tuple[str, ...], why: str
) -> None:
    options = [part for text in task for part in ("--task", text)]
    code, said = ray_lora(capsys, "adapters", "import", "folder", "one", "--base", world / "right", *options)
    assert code == 2
    assert why in said
    assert not open_store("s").list()


# -------------------------------------------------------------------- the endpoint


def test_the_endpoint_answers_on_the_named_base_alone(world: Path) -> None:
    store = open_store("s")
    adapter = Adapter.load(Path("folder"))
    shutil.copytree(world / "right", "copy")
    Path("link").symlink_to(world / "right")
    cards = {
        "own": adapter.card,
        "linked": Card(base=str(Path("link").absolute())),
        "copied": Card(base=str(Path("copy").absolute())),
        "unnamed": Card(),
        "foreign": Card(base="org/other-model"),
        "quantised": Card(base="unsloth/x-bnb-4bit"),
        "other": Card(base=str(world / "other")),
        "gone": Card(base="/no/where"),
    }
    for name, card in cards.items():
        store.put(replace(adapter, card=card), name)
    args = {"store": "s", "base": str(world / "right"), "dtype": "float32", "max_rank": 4, "slots": 8}
    (expected,) = peft_probabilities(world / "right", Path("folder"), [TEXT])

    async def run() -> None:
        endpoint = start_endpoint(AppArgs.model_validate(args | {"results": str(Path("results").absolute())}))
        transport = httpx.ASGITransport(create_app(endpoint), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=None) as client:
            listed = {item["id"]: item for item in (await client.get("/v1/models")).json()["data"]}
            for name in cards:
                body = {"model": name, "inputs": [TEXT], "parameters": {"top_k": 3}}
                answer = await client.post("/v1/predict", json=body)
                good = name in ("own", "linked", "copied")
                assert answer.status_code == (200 if good else 400), (name, answer.text)
                assert listed[name]["served"] is good
                if good:
                    assert scores(answer.json()["predictions"][0]) == pytest.approx(expected, abs=1e-4)
                else:
                    message = answer.json()["error"]["message"]
                    assert "ray-lora adapters import FOLDER NAME --base" in message
                    assert (
                        "does not name its base" in message
                        if name == "unnamed"
                        else Path(str(cards[name].base)).name in message
                    )
        await endpoint.close()

    asyncio.run(run())


def test_a_base_whose_files_were_written_anew_is_another_base(tmp_path: Path) -> None:
    """In the same process, under the same path."""
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"one")
    first = fingerprint(folder)
    (folder / "model.safetensors").write_bytes(b"two")
    assert fingerprint(folder) == hashlib.sha256(b"two").hexdigest() != first
