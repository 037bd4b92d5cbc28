"""Adapters that write texts, handed to Ray's own app for language models: what lies in the bucket, and how it is
told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.fs
import pytest
import yaml

from ray_lora import BaseSpec, Card, load_base
from ray_lora.adapters.adapter import Adapter
from ray_lora.cli import main
from ray_lora.engine import AdapterEngine
from ray_lora.errors import AdapterError, RecipeError
from ray_lora.recipe import LoraSpec
from ray_lora.serving import vllm
from ray_lora.serving.vllm import hand_over
from ray_lora.store import Store, open_store
from ray_lora.tasks import build_task
from ray_lora.tasks.generation_options import TextGenerationSpec
from ray_lora.tasks.text_classification import TextClassificationSpec
from tests.unit.writing_world import make_base


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`root` with base/ and store/: chat in two versions, of which the first is the champion; and others that vLLM
    cannot serve."""
    root = tmp_path_factory.mktemp("vllm")
    base = load_base(BaseSpec(model=str(make_base(root / "base")), dtype="float32"))
    engine, store = AdapterEngine(base, slots=1, max_rank=12), open_store(str(root / "store"))
    write = TextGenerationSpec()
    head = build_task(write, base.processor).head

    def put(name: str, **lora: Any) -> None:
        spec = LoraSpec(**({"r": 4, "target_modules": ("q_proj", "down_proj")} | lora))
        slot = engine.init(spec, head, seed=len(store.list()))
        card = Card(task=write, base=str(root / "base"), base_fingerprint=base.fingerprint)
        store.put(engine.export(slot, card), name)
        engine.evict(slot)

    put("chat")
    put("chat", r=12)
    store.alias("chat", "champion", 1)
    put("patterned", rank_pattern={"q_proj": 2})
    slot = engine.init(LoraSpec(r=2, target_modules=("q_proj",)), build_task(SORTS, base.processor).head, seed=0)
    store.put(engine.export(slot, Card(task=SORTS, base_fingerprint=base.fingerprint)), "sorted")
    engine.close()
    return root


SORTS = TextClassificationSpec(labels=("no", "yes"))


@pytest.fixture
def store(world: Path) -> Store:
    return open_store(str(world / "store"))


@pytest.fixture
def base(world: Path) -> Any:
    return load_base(BaseSpec(model=str(world / "base"), dtype="float32"))


def place(bucket: str, name: str) -> str:
    return f"s3://key:secret@rows/loras/{name}{bucket}"


def test_what_is_handed_over_is_what_lies_in_the_store(store: Store, base: Any, bucket: str, tmp_path: Path) -> None:
    where = place(bucket, "all")
    handed = hand_over(store, base, where, source="org/base", accelerator="L4")
    assert {name: entry.ref for name, entry in handed.models.items()} == {"base:chat@1": "chat@1"}
    assert handed.left.keys() == {"patterned@1", "sorted@1"}
    assert "rank_pattern" in handed.left["patterned@1"]
    assert "it does text-classification" in handed.left["sorted@1"]
    files, root = pyarrow.fs.FileSystem.from_uri(where)
    (tmp_path / "back").mkdir()
    pyarrow.fs.copy_files(f"{root}/chat@1", str(tmp_path / "back"), source_filesystem=files)
    assert Adapter.load(tmp_path / "back").sha256 == store.resolve("chat@1").sha256
    assert hand_over(store, base, where, source="org/base", accelerator="L4").config == handed.config  # once more
    assert "secret" not in yaml.safe_dump(handed.config)


def test_the_configuration_is_what_rays_app_takes(store: Store, base: Any, bucket: str) -> None:
    from ray.llm._internal.serve.core.configs.llm_config import LLMConfig
    from ray.serve.schema import ServeDeploySchema

    handed = hand_over(store, base, place(bucket, "both"), refs=["chat@1", "chat@2"])
    [application] = ServeDeploySchema.model_validate(handed.config).applications
    [told] = application.args["llm_configs"]
    config = LLMConfig.model_validate(told)
    assert config.model_id == "base"
    assert config.lora_config is not None
    assert config.lora_config.dynamic_lora_loading_path == "s3://rows/loras/both"
    assert config.engine_kwargs == {"enable_lora": True, "max_loras": 2, "max_lora_rank": 16}
    assert [*handed.models] == ["base:chat@1", "base:chat@2"]


def test_what_cannot_be_served_there_is_refused_by_name(
    store: Store, base: Any, bucket: str, tmp_path: Path, world: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vllm, "LAYERS", {"q_proj"})
        with pytest.raises(
            AdapterError, match=r"chat@2 cannot be handed over: it changes layers down_proj; vLLM adapts"
        ):
            hand_over(store, base, place(bucket, "none"), refs=["chat@2"])
    with pytest.raises(RecipeError, match="is no place where Ray's app looks"):
        hand_over(store, base, str(tmp_path))
    other = load_base(BaseSpec(model=str(make_base(tmp_path / "other", seed=1)), dtype="float32"))
    with pytest.raises(RecipeError, match=r"no adapter for this base that vLLM could serve \(chat@1: its base is"):
        hand_over(store, other, place(bucket, "none"))
    hand_over(store, base, place(bucket, "taken"), refs=["chat@1"])
    files, root = pyarrow.fs.FileSystem.from_uri(place(bucket, "taken"))
    card = f"{root}/chat@1/ray_lora.json"
    with files.open_output_stream(card) as file:
        file.write(b'{"sha256": "another"}')
    with pytest.raises(AdapterError, match="holds another adapter"):
        hand_over(store, base, place(bucket, "taken"), refs=["chat@1"])


def test_the_command_writes_a_new_file(
    world: Path, bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "llm.yaml"
    command = ["adapters", "vllm", place(bucket, "told"), str(file), "--base", str(world / "base")]
    command += ["--store", str(world / "store")]
    assert main(command) == 0
    assert "base:chat@1" in capsys.readouterr().out
    assert yaml.safe_load(file.read_text())["applications"][0]["import_path"] == "ray.serve.llm:build_openai_app"
    assert main(command) == 2
    assert "exists; give another file" in capsys.readouterr().err
