"""Faults that no other file makes go wrong, and rules for the whole tree. `docs/faults.md` lists all faults."""

from __future__ import annotations

import ast
import asyncio
import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ray.train import ScalingConfig

import ray_lora
from ray_lora.adapters.adapter import Adapter
from ray_lora.adapters.card import Card
from ray_lora.adapters.peft_folder import CONFIG, WEIGHTS, LowRank
from ray_lora.atomic import expanded
from ray_lora.bases.fingerprint import fingerprint_of
from ray_lora.bases.identity import means
from ray_lora.bases.load import load_base
from ray_lora.data.files import find_files
from ray_lora.errors import AdapterError, BaseModelError, CapacityError, DataError, RecipeError
from ray_lora.recipe import BaseSpec, LoraSpec, Recipe, ScalingSpec
from ray_lora.running.packs import spread
from ray_lora.serving.http.form import parts
from ray_lora.store import open_store
from tests.unit.bases import save_base
from tests.unit.packs import make_job, make_pack

ROOT = Path(ray_lora.__file__).parent
TREE = {file.relative_to(ROOT).as_posix(): ast.parse(file.read_text()) for file in ROOT.rglob("*.py")}


def adapter(seed: int = 0) -> Adapter:
    draw = torch.Generator().manual_seed(seed)
    pair = LowRank(torch.randn(2, 4, generator=draw), torch.randn(4, 2, generator=draw))
    return Adapter(LoraSpec(r=2), {"x.query": pair}, {}, Card(base="tiny"))


# --------------------------------------------------------------------------------------------------------- recipes


OUT_OF_RANGE: list[tuple[str, Any]] = [
    ("lora.lora_alpha", 0),
    ("lora.lora_alpha", -1),
    ("lora.lora_alpha", float("nan")),
    ("lora.lora_alpha", float("inf")),
    ("lora.lora_dropout", 1.0),
    ("lora.lora_dropout", -0.1),
    ("lora.use_dora", True),
    ("lora.bias", "all"),
    ("lora.modules_to_save", ["classifier"]),
    ("base.trust_remote_code", True),
    ("base.model", "a\nb"),
    ("base.model", "x" * 5000),
    ("training.num_train_epochs", 0),
    ("training.max_steps", 0),
    ("training.eval_steps", 0),
    ("training.seed", -1),
    ("search.num_samples", 0),
    ("search.mode", "maximise"),
    ("scaling.num_workers", 0),
]


@pytest.mark.parametrize(("key", "value"), OUT_OF_RANGE, ids=[f"{key}={value!r}"[:40] for key, value in OUT_OF_RANGE])
def test_values_that_mean_nothing_are_named_by_their_key(key: str, value: Any) -> None:
    section, name = key.split(".")
    with pytest.raises(RecipeError, match=re.escape(key)):
        Recipe.parse({section: {name: value}})


def test_a_recipe_reads_no_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What looks like a variable stays what is written: no secret gets into a recipe, a record or a message."""
    monkeypatch.setenv("SECRET", "hush")
    (tmp_path / "r.yaml").write_text("store: ${SECRET}/a\ntracking: {experiment: $SECRET}\n")
    recipe = Recipe.load(tmp_path / "r.yaml")
    assert (recipe.store, recipe.tracking.experiment) == ("${SECRET}/a", "$SECRET")
    assert "hush" not in repr(recipe)


@pytest.mark.parametrize(
    "model",
    [
        "nobody/nothing-of-this-name",
        "~nobody-of-this-name/x",
        "nobody/" + "x" * 300,
        "minilmm",
        "/no/such/folder",
        "x" * 3000,
    ],
)
def test_a_base_that_is_not_there_is_said_in_a_sentence(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(BaseModelError) as caught:
        load_base(BaseSpec(model=model))
    assert len(str(caught.value)) < 800


def test_a_name_of_a_home_that_is_nobodys_is_another_base() -> None:
    """Adapters name their bases, and whoever made them names what they like."""
    assert not means("~nobody-of-this-name/x", "minilm")
    assert fingerprint_of("~nobody-of-this-name/x") is None
    assert expanded("~nobody-of-this-name/x") == Path("~nobody-of-this-name/x")


@pytest.mark.parametrize(("gpu", "said"), [(False, "asks for 3 workers, the cluster has 2 CPUs"), (True, "has 0 GPUs")])
def test_more_workers_than_the_cluster_has_are_refused_before_any_starts(
    gpu: bool, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 2.0})  # a cluster of its own would take a minute
    asked: Any = SimpleNamespace(recipe=SimpleNamespace(scaling=ScalingSpec()))
    with pytest.raises(RecipeError, match=said):
        spread(asked, ScalingConfig(num_workers=3, use_gpu=gpu), jobs=1)


# ------------------------------------------------------------------------------------------------------------ rows


@pytest.mark.parametrize("name", ["a.pkl", "a.pt", "a.npy", "a.tar", "a.csv.gz", "a.zip", "a.h5", "a.parquet.bin"])
def test_only_formats_of_a_list_are_rows(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(DataError, match="give a parquet"):
        find_files(str(tmp_path / name))


# -------------------------------------------------------------------------------------------- adapters and their files


def test_files_that_may_not_be_read_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests may be allowed to read everything."""
    adapter().save(tmp_path / "a")
    for file, method in ((WEIGHTS, "read_bytes"), (CONFIG, "read_text")):
        with monkeypatch.context() as patch:

            def refuse(self: Path, *given: Any, name: str = file, **more: Any) -> Any:
                raise PermissionError(errno.EACCES, "Permission denied", name)

            patch.setattr(Path, method, refuse)
            with pytest.raises(AdapterError, match=rf"{file}.*Permission denied"):
                Adapter.load(tmp_path / "a")


def test_a_store_keeps_the_files_of_an_adapter_and_no_others(tmp_path: Path) -> None:
    """Code, tokenizers, templates and pages beside an adapter are neither read nor kept: a tokenizer is the base's."""
    adapter().save(tmp_path / "a")
    (tmp_path / "a" / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": "evil.Tokenizer"}}')
    (tmp_path / "a" / "evil.py").write_text("raise SystemExit('it ran')")
    (tmp_path / "a" / "chat_template.jinja").write_text("{{ evil }}")
    (tmp_path / "a" / "README.md").write_text("<script>evil()</script>")
    store = open_store(str(tmp_path / "store"))
    store.put(Adapter.load(tmp_path / "a"), "tweets")
    _, folder = store.get("tweets")
    assert {file.name for file in folder.iterdir()} == {CONFIG, WEIGHTS, "ray_lora.json", "README.md"}
    assert "evil" not in "".join(file.read_text() for file in folder.iterdir() if file.name != WEIGHTS)


def test_many_adapters_are_read_with_few_handles(tmp_path: Path) -> None:
    """In a process that may open 64 files: an adapter's file is read and closed, not mapped."""
    for number in range(8):
        adapter(number).save(tmp_path / "store" / f"a{number}")
    code = """
import resource, sys
from ray_lora.adapters.adapter import Adapter
from ray_lora.store import open_store
import torch, peft, safetensors.torch
store = open_store(sys.argv[1])
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
held = [store.load(f"a{number % 8}")[1] for number in range(200)]
print(len({adapter.sha256 for adapter in held}))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "store")], capture_output=True, text=True, env=os.environ
    )
    assert done.stdout.split() == ["8"], done.stderr[-800:]


# -------------------------------------------------------------------------------------------------- disks that are full


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_a_checkpoint_that_cannot_be_written_leaves_the_last_one(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_base("bert", tmp_path / "bert")
    job = make_job("kept", max_steps=4)
    pack = make_pack(folder, slots=1, output=tmp_path / "out")
    pack.join(job)
    pack.step()
    pack.save(job.name)
    state = tmp_path / "out" / job.name / "state"
    before = {file.name: file.read_bytes() for file in state.iterdir()}

    def full(tensors: Any, path: Path, metadata: Any) -> None:
        path.write_bytes(b"the beginning")
        raise OSError(code, os.strerror(code))

    pack.step()
    with monkeypatch.context() as patch:
        patch.setattr("ray_lora.training.state.save_file", full)
        with pytest.raises(CapacityError, match=rf"step 2 cannot be written .*{os.strerror(code)}.*make room"):
            pack.save(job.name)
    assert {file.name: file.read_bytes() for file in state.iterdir()} == before
    pack.save(job.name)
    assert {file.name for file in state.iterdir()} == before.keys()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EXDEV, errno.EPERM])
def test_a_store_that_cannot_be_written_or_renamed_in_stays_as_it_was(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(str(tmp_path / "store"))
    store.put(adapter(1), "tweets")

    def refuse(self: Path, target: Path) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", refuse)
        with pytest.raises(AdapterError, match=f"cannot be written.*{os.strerror(code)}"):
            store.put(adapter(2), "tweets")
    assert [entry.ref for entry in store.list()] == ["tweets@1"]
    assert sorted(file.name for file in (tmp_path / "store").iterdir()) == ["tweets"]
    assert store.put(adapter(2), "tweets").sha256 == adapter(2).sha256


# ------------------------------------------------------------------------------------------------------------- requests


def test_a_form_of_many_fields_is_refused() -> None:
    part = b'--x\r\ncontent-disposition: form-data; name="user"\r\n\r\na\r\n'
    with pytest.raises(DataError, match="cannot be read"):
        asyncio.run(parts(part * 1000 + b"--x--\r\n", "multipart/form-data; boundary=x", 8))


# --------------------------------------------------------------------------------------------- rules of the whole tree


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


BANNED = {"eval", "exec", "os.system", "os.popen", "yaml.unsafe_load", "yaml.full_load", "marshal.loads", "shelve.open"}
PICKLES = {  # of our own making, between our own processes or for a hash
    "bases/own_files.py": "weights_only",
    "running/encoding.py": "what our own tasks read of a block, between Ray's processes",
    "data/encoder.py": "a processor's content, for a hash",
}


def test_nothing_from_outside_is_run_unpickled_or_unpacked() -> None:
    seen = set()
    for path, tree in TREE.items():
        for name, call in calls(tree):
            words = {keyword.arg: keyword.value for keyword in call.keywords}
            assert name not in BANNED, (path, name)
            assert not name.endswith((".extractall", ".unpack_archive")), (path, name)
            assert "shell" not in words, (path, name)
            remote = words.get("trust_remote_code")
            assert remote is None or (isinstance(remote, ast.Constant) and remote.value is False), (path, name)
            if name == "torch.load":
                assert ast.unparse(words["weights_only"]) == "True", path
            if name.startswith(("pickle.", "cloudpickle.", "joblib.")) or name == "torch.load":
                seen.add(path)
            if name in ("np.load", "numpy.load"):
                assert ast.unparse(words["allow_pickle"]) == "False", path
    assert seen <= PICKLES.keys()


def test_the_check_for_banned_calls_can_fail() -> None:
    found = dict(calls(ast.parse("subprocess.run('x', shell=True); eval(x); tar.extractall()")))
    assert found.keys() == {"subprocess.run", "eval", "tar.extractall"}
    assert [keyword.arg for keyword in found["subprocess.run"].keywords] == ["shell"]


def test_input_is_never_checked_by_assert_alone() -> None:
    """With PYTHONOPTIMIZE=1, which drops them, what is wrong is refused all the same."""
    code = """
import json, sys, pathlib
from ray_lora.recipe import Recipe
from ray_lora.errors import RayLoraError
from ray_lora.store.refs import check_name, parse_ref
assert False
for wrong in (lambda: Recipe.parse({"lora": {"r": 0}}), lambda: check_name("../a"), lambda: parse_ref("a/b"),
              lambda: Recipe.parse({"x": 1})):
    try:
        wrong()
    except RayLoraError:
        print("refused")
"""
    environment = {**os.environ, "PYTHONOPTIMIZE": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout.split() == ["refused"] * 4, done.stderr[-800:]


WALL_CLOCK = {  # dates that people read, times of files, and times that are shown
    "training/history.py",
    "running/progress.py",
    "running/coordinator.py",
    "running/people_updates.py",
    "running/large.py",
    "running/measuring.py",  # how long a process took to begin
    "store/verified.py",
    "store/cache.py",
    "tracking/journal.py",
    "serving/http/openai.py",
    "serving/http/routes.py",
    "serving/endpoint.py",
    "serving/trials/ab_runs.py",
    "serving/trials/results.py",
}


def test_no_deadline_hangs_on_the_wall_clock() -> None:
    """A clock that jumps ends no request and no wait: `time.time` is a date."""
    used = {path for path, tree in TREE.items() if any(name == "time.time" for name, _ in calls(tree))}
    assert used <= WALL_CLOCK
    for path in ("serving/gate.py", "serving/batcher.py", "serving/names.py", "serving/registry.py"):
        assert path not in used


def test_temporary_files_are_private_and_in_no_fixed_place() -> None:
    for path, tree in TREE.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and path != "serving/cluster/draining.py":
                assert not node.value.startswith(("/tmp/", "/var/tmp/")), (path, node.value)
        assert not any(name.endswith("mktemp") for name, _ in calls(tree)), path


FLOORS = {"ray": (2, 56), "torch": (2, 6), "pyarrow": (14, 0, 1), "mlflow": (3, 11), "starlette": (1, 3, 1)}


def test_versions_with_known_holes_are_not_installed() -> None:
    """Ray's, Arrow's and MLflow's advisories; starlette's of forms and ranges."""
    from importlib.metadata import version

    for package, floor in FLOORS.items():
        held = tuple(int(part) for part in re.findall(r"\d+", version(package))[:3])
        assert held >= floor, (package, held)


def test_a_card_of_another_version_is_refused_by_the_key_that_is_not_known(tmp_path: Path) -> None:
    adapter().save(tmp_path / "a")
    told = json.loads((tmp_path / "a" / "ray_lora.json").read_text())
    (tmp_path / "a" / "ray_lora.json").write_text(json.dumps(told | {"soul": "old"}))
    with pytest.raises(AdapterError, match="soul"):
        Adapter.load(tmp_path / "a")
