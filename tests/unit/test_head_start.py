"""Heads of a pack's jobs that begin fitted on the frozen base: made once, the same for whoever asks, and only asked for
where a job begins."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from ray_lora.adapters.peft_folder import PREFIX
from ray_lora.engine import LoneHead
from ray_lora.recipe import LoraSpec, TrainingSpec
from ray_lora.training import head_start
from ray_lora.training.head_start import SHARE, say_start
from ray_lora.training.job import Job
from ray_lora.training.pack import Pack
from ray_lora.training.shards import Group, Splits
from tests.unit.bases import save_base
from tests.unit.packs import (
    LABELS,
    ROWS,
    WatchedPack,
    assert_packed_is_alone,
    assert_same,
    make_job,
    make_pack,
    tensors_of,
)
from tests.unit.test_pack import Meeting


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base("bert", tmp_path_factory.mktemp("bases") / "bert")


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of each time the base was asked for what heads read."""
    asked: list[int] = []
    keep = head_start.keep

    def counted(engine: object, task: object, rows: list[object], **options: object) -> object:
        asked.append(len(rows))
        return keep(engine, task, rows, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(head_start, "keep", counted)
    return asked


def fitted(name: str, labels: int = 3, **training: object) -> Job:
    return make_job(name, labels, **({"head_start": "fitted"} | training))


def head_of(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if "classifier" in name}


def loss_at_the_start(pack: Pack, name: str) -> float:
    member = pack.members[name]
    rows = [member.splits.train.rows[row] for row in sorted(member.splits.train.rows)]
    ((_, outputs),) = pack.engine.forward(member.task.collate(rows), torch.full((len(rows),), member.slot))
    losses, terms = member.task.loss(outputs, rows)
    return float((losses.sum() / terms.sum()).detach())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_fitted_head_begins_below_a_random_one(folder: Path, dtype: torch.dtype) -> None:
    pack = make_pack(folder, dtype)
    pack.join(make_job("random", 3, head_start="random"))
    pack.join(fitted("fitted"))
    assert loss_at_the_start(pack, "fitted") < loss_at_the_start(pack, "random") - 0.02
    random, start = (tensors_of(pack, name) for name in ("random", "fitted"))
    assert {name for name in start if not torch.equal(start[name], random[name])} == set(head_of(start))


def test_its_last_layer_is_a_share_of_the_best(folder: Path) -> None:
    pack = make_pack(folder)
    pack.join(fitted("fitted"))
    start = head_of(tensors_of(pack, "fitted"))
    head = LoneHead(pack.engine.base, pack.members["fitted"].task.head)
    head.set({name.removeprefix(PREFIX): tensor / SHARE for name, tensor in start.items()})
    task = pack.members["fitted"].task
    kept = head_start.keep(pack.engine, task, ROWS[3])
    with torch.no_grad():
        for part in kept:
            guess = head(part.hidden, part.inputs).logits.argmax(1)
            assert (guess == torch.tensor(task.targets(part.features))).double().mean() > 0.8  # type: ignore[attr-defined]


def test_jobs_of_the_same_rows_and_task_share_one_fit(folder: Path, fits: list[int]) -> None:
    pack = make_pack(folder)
    for seed, name in enumerate(("one", "two", "three")):
        pack.join(fitted(name, seed=seed, learning_rate=10.0 ** -(seed + 2)))
    assert len(fits) == 2  # rows that it is fitted on, rows that choose
    one, two, three = (head_of(tensors_of(pack, name)) for name in ("one", "two", "three"))
    assert_same(one, two, 0)
    assert_same(one, three, 0)
    pack.join(fitted("other", 2))
    assert len(fits) == 4
    assert pack.seconds["head_start"] > 0


def test_packed_equals_alone(folder: Path) -> None:
    jobs = [fitted("three", max_steps=5), fitted("two", 2, max_steps=4, seed=1)]
    pack = make_pack(folder)
    pack.join(make_job("neighbour", 2, LoraSpec(r=2), max_steps=3))
    assert_packed_is_alone(folder, pack, jobs, 1e-9)


def test_a_random_start_is_what_it_always_was(folder: Path, fits: list[int]) -> None:
    pack, plain = make_pack(folder), make_pack(folder)
    slot = pack.join(make_job("random", 3, head_start="random", seed=5))
    bare = plain.engine.init(LoraSpec(), pack.members["random"].task.head, 5, pack.members["random"].task.peft_type)
    assert_same(pack.engine.read(slot), plain.engine.read(bare), 0)
    assert fits == []


def test_auto_asks_validation_rows(folder: Path, fits: list[int]) -> None:
    pack = make_pack(folder)
    whole = pack.data["3"]
    pack.data = {"3": Splits(whole.train), "validated": whole}
    blind = make_job("blind", 3, head_start="auto")
    pack.join(blind)
    assert fits == []
    assert "no validation rows" in say_start(blind, pack.data["3"])[0]
    job = fitted("validated", head_start="auto")
    seeing = Job("validated", "validated", job.task, job.lora, job.training)
    pack.join(seeing)
    assert len(fits) == 2
    assert say_start(seeing, whole) == []


def test_a_fit_without_validation_rows_holds_some_of_its_own_out(folder: Path, fits: list[int]) -> None:
    pack = make_pack(folder)
    pack.data = {"3": Splits(pack.data["3"].train)}
    pack.join(fitted("blind"))
    assert sum(fits) == len(ROWS[3])
    assert min(fits) == pytest.approx(len(ROWS[3]) / 5, abs=1)


def test_a_job_that_goes_on_is_not_fitted_again(folder: Path, tmp_path: Path, fits: list[int]) -> None:
    job = fitted("job", max_steps=6, save_steps=2)
    first = make_pack(folder, output=tmp_path)
    first.join(job)
    whole = make_pack(folder)
    whole.join(job)
    for _ in range(3):
        first.step()
    asked = len(fits)
    later = make_pack(folder, output=tmp_path)
    later.join(job, tmp_path / "job" / "state")
    assert len(fits) == asked
    for pack in (whole, later):
        while pack.members:
            pack.step()
    assert_same(later.left["job"], whole.left["job"], 1e-9)
    empty = make_pack(folder)
    empty.join(job, tmp_path / "nothing" / "state")
    assert len(fits) == asked + 2


@pytest.mark.parametrize("world", [2, 3])
def test_workers_on_shards_fit_the_head_of_one(folder: Path, world: int) -> None:
    def work(group: Group) -> dict[str, Tensor]:
        pack = make_pack(folder, group=group)
        pack.join(fitted("fitted"))
        return head_of(tensors_of(pack, "fitted"))

    alone = work(Group())
    results = Meeting(world).run(work)
    for tensors in results:
        assert_same(tensors, results[0], 0)
        assert_same(tensors, alone, 1e-4)


def test_a_head_that_does_better_than_any_fit_is_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a base's own head may."""
    pack = make_pack(folder)
    pack.join(fitted("best"))
    best = {name.removeprefix(PREFIX): x for name, x in head_of(tensors_of(pack, "best")).items()}
    made: list[WatchedPack] = []

    def begun(self: LoneHead, *arguments: object) -> None:
        begin(self, *arguments)  # type: ignore[arg-type]
        self.set({name: tensor / SHARE for name, tensor in best.items()})

    begin = LoneHead.__init__
    monkeypatch.setattr(LoneHead, "__init__", begun)
    monkeypatch.setattr("ray_lora.inference.head_alone.STRENGTHS", (1e6, 1000.0))
    other = make_pack(folder)
    made.append(other)
    other.join(make_job("auto", 3, head_start="auto"))
    other.join(make_job("random", 3, head_start="random"))
    assert_same(tensors_of(other, "auto"), tensors_of(other, "random"), 0)


def test_what_a_recipe_may_say() -> None:
    assert TrainingSpec().head_start == "auto"
    with pytest.raises(ValueError, match="head_start"):
        TrainingSpec(head_start="warm")  # type: ignore[arg-type]
    assert LABELS[3].labels is not None
