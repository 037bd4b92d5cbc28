"""A job's checkpoint is whole, says everything the job needs, and fits an engine of any size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ray_lora.errors import AdapterError, CapacityError
from ray_lora.recipe import LoraSpec
from tests.unit.bases import save_base
from tests.unit.packs import WatchedPack, assert_same, losses, make_job, make_pack, tensors_of, train_alone

JOB = make_job("kept", 3, LoraSpec(r=4, lora_dropout=0.2), max_steps=10, weight_decay=0.1, logging_steps=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base("bert", tmp_path_factory.mktemp("bases") / "bert")


def trained(folder: Path, output: Path, steps: int) -> WatchedPack:
    pack = make_pack(folder, slots=2, output=output)
    pack.join(JOB)
    for _ in range(steps):
        pack.step()
    pack.save(JOB.name)
    return pack


def test_a_job_goes_on_from_its_checkpoint_as_if_nothing_had_happened(folder: Path, tmp_path: Path) -> None:
    whole_losses, tensors = train_alone(folder, JOB)
    first = trained(folder, tmp_path, 6)
    pending = list(first.members[JOB.name].losses)
    second = make_pack(folder, slots=5, max_rows=3, output=tmp_path)
    second.join(make_job("neighbour", max_steps=20))
    second.join(JOB, tmp_path / JOB.name / "state")
    assert second.members[JOB.name].step == 6
    assert second.members[JOB.name].losses == pending  # not yet reported
    assert second.optimizer.rate(second.members[JOB.name].slot) == first.optimizer.rate(1)
    assert_same(tensors_of(second, JOB.name), tensors[6], 1e-12)
    reports = [report for _ in range(4) for report in second.step()]
    assert_same(second.left[JOB.name], tensors[10], 1e-12)
    assert losses(reports, JOB.name) == pytest.approx(whole_losses[-2:], abs=1e-12)


def test_a_checkpoint_taken_before_the_first_step_starts_at_the_beginning(folder: Path, tmp_path: Path) -> None:
    first = trained(folder, tmp_path, 0)
    second = make_pack(folder, output=tmp_path)
    second.join(JOB, tmp_path / JOB.name / "state")
    second.step()
    first.step()
    assert_same(tensors_of(second, JOB.name), tensors_of(first, JOB.name), 1e-12)


def test_a_job_saved_at_its_last_step_has_only_its_evaluation_left(folder: Path, tmp_path: Path) -> None:
    pack = trained(folder, tmp_path, 0)
    reports = [report for _ in range(10) for report in pack.step()]
    assert reports[-1].done
    again = make_pack(folder, output=tmp_path)
    again.join(JOB, tmp_path / JOB.name / "state")
    before = tensors_of(again, JOB.name)
    (report,) = again.step()
    assert report.done
    assert report.step == 10
    assert report.metrics == reports[-1].metrics
    assert_same(again.left[JOB.name], before, 0)


def test_no_checkpoint_starts_afresh(folder: Path, tmp_path: Path) -> None:
    pack = make_pack(folder)
    (tmp_path / "empty").mkdir()
    for state in (tmp_path / "nothing", tmp_path / "empty"):
        pack.join(JOB, state)
        assert pack.members[JOB.name].step == 0
        pack.leave(JOB.name)


def test_a_file_holds_what_is_trained_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    pack = trained(folder, tmp_path, 3)
    (file,) = (tmp_path / JOB.name / "state").iterdir()
    values = tensors_of(pack, JOB.name)
    with safe_open(file, "pt") as stored:
        assert json.loads(stored.metadata()["place"]).keys() == {"step", "done", "losses"}
        names = set(stored.keys())
    assert names == {f"{part}/{key}" for part in ("value", "exp_avg", "exp_avg_sq") for key in values}
    assert all(torch.equal(load_file(file)[f"value/{key}"], value) for key, value in values.items())


def test_a_checkpoint_replaces_the_last_one_whole(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = trained(folder, tmp_path, 2)
    (file,) = (tmp_path / JOB.name / "state").iterdir()
    before = file.read_bytes()
    pack.step()

    def torn(tensors: object, path: Path, metadata: object) -> None:
        Path(path).write_bytes(before[:100])
        raise OSError("no space left on device")

    monkeypatch.setattr("ray_lora.training.state.save_file", torn)
    with pytest.raises(CapacityError, match="no space left"):
        pack.save(JOB.name)
    assert file.read_bytes() == before
    monkeypatch.undo()
    pack.save(JOB.name)
    assert file.read_bytes() != before
    assert json.loads(safe_open(file, "pt").__enter__().metadata()["place"])["step"] == 3
    assert list(file.parent.iterdir()) == [file]


def test_what_is_not_this_jobs_checkpoint_is_refused_and_frees_its_slot(folder: Path, tmp_path: Path) -> None:
    trained(folder, tmp_path, 2)
    state = tmp_path / JOB.name / "state"
    pack = make_pack(folder, slots=1)
    for lora, labels in ((LoraSpec(r=3), 3), (LoraSpec(r=4, target_modules=("query",)), 3), (LoraSpec(r=4), 2)):
        with pytest.raises(AdapterError, match=r"is of another adapter: .*use another name"):
            pack.join(make_job(JOB.name, labels, lora, max_steps=10), state)
    (file,) = state.iterdir()
    whole = file.read_bytes()
    for cut in (0, 7, 100, len(whole) - 1):
        file.write_bytes(whole[:cut])
        with pytest.raises(AdapterError, match="is torn or no checkpoint"):
            pack.join(JOB, state)
    save_file({"x": torch.zeros(1)}, file)
    with pytest.raises(AdapterError, match="is torn or no checkpoint"):
        pack.join(JOB, state)
    assert pack.engine.free_slots == [1]
    assert pack.members == {}
    file.write_bytes(whole)
    pack.join(JOB, state)
    assert pack.members[JOB.name].step == 2
