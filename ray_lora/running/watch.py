"""Who watches a run: what the coordinator knows goes to the live table and to the tracker, until the run has ended.

It decides nothing, and a coordinator that is gone is no fault of its own: the run says so.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import ray

from ray_lora.running.progress import Progress, describe
from ray_lora.running.records import Record
from ray_lora.training.figures import FIGURES
from ray_lora.training.history import read_history
from ray_lora.training.job import Job
from ray_lora.transform_spec import said

if TYPE_CHECKING:
    from ray_lora.tracking import Tracker

_ENDED: dict[str, Literal["FINISHED", "FAILED", "KILLED"]] = {
    "finished": "FINISHED",
    "failed": "FAILED",
    "stopped": "KILLED",
}
_POLL_S = 0.5


class Watch:
    """A thread that looks twice a second.

    Args:
        coordinator: the run's actor.
        jobs: the folder of the jobs' folders.
        identities: rows and digests of each job's splits, by the name of its data.

    Attributes:
        records: all jobs, as the last look found them.
    """

    def __init__(
        self,
        coordinator: Any,
        jobs: Path,
        tracker: Tracker,
        progress: Progress,
        identities: Mapping[str, Mapping[str, str]],
    ) -> None:
        self.records: list[Record] = []
        self._coordinator, self._jobs, self._tracker, self._progress = coordinator, jobs, tracker, progress
        self._identities = identities
        self._cursor = 0
        self._told: dict[str, str] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watcher", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def end(self) -> list[Record]:
        """Look once more, when the packs have written all they will; returns the records."""
        self._ended.set()
        self._thread.join()
        for record in self.records:
            if record.status == "stopped":  # its pack wrote its adapter after it was told of
                self._close(record, "KILLED")
        return self.records

    def _watch(self) -> None:
        while not self._ended.wait(_POLL_S):
            self._look()
        self._look()
        self._progress.close()

    def _look(self) -> None:
        try:
            records, logs, self._cursor = ray.get(self._coordinator.snapshot.remote(self._cursor))
        except ray.exceptions.RayError:
            return  # the coordinator is gone; the run says why
        self.records = records
        for record in records:
            told = self._told.get(record.job.name)
            if told is None or (told == "KILLED" and record.status in ("waiting", "running")):  # it may be resumed
                self._open(record)
        for line in logs:
            self._tracker.log(line["job"], line["step"], line["metrics"])
        for record in records:
            ended = _ENDED.get(record.status)
            if ended and self._told[record.job.name] == "RUNNING":
                self._told[record.job.name] = ended
                if ended == "KILLED":
                    self._tracker.finish_child(record.job.name, ended, dict(record.metrics))
                else:
                    self._close(record, ended)
        self._progress.show(records)

    def _open(self, record: Record) -> None:
        name = record.job.name
        self._told[name] = "RUNNING"
        told = {"ray_lora.config": json.dumps(record.config)}
        data = self._identities.get(record.job.data, {})
        named = describe(record.config) or name
        teacher = {key: value for key, value in data.items() if key.startswith("teacher.")}
        self._tracker.open_child(name, params(record.job) | teacher, told, named=named, data=data)
        for line in read_history(self._jobs / name):  # of a run that was killed
            self._tracker.log(name, line["step"], line["metrics"])

    def _close(self, record: Record, ended: Literal["FINISHED", "FAILED", "KILLED"]) -> None:
        """Tell the tracker how a job ended, with the adapter and the figures that it left."""
        folder = self._jobs / record.job.name
        adapter, figures = folder / "adapter", folder / FIGURES
        kept = adapter.is_dir() and record.status != "failed"
        self._tracker.finish_child(
            record.job.name,
            ended,
            dict(record.metrics),
            adapter if kept else None,
            figures if figures.is_dir() else None,
        )


def params(job: Job) -> dict[str, Any]:
    """A job's settings under PEFT's and Hugging Face's names."""
    return (
        job.lora.model_dump(mode="json")
        | job.training.model_dump(mode="json")
        | {"task": job.task.type, "data": job.data}
        | {f"distillation.{key}": value for key, value in _distillation(job).items()}
        | {f"origin.{key}": job.origin[key] for key in ("trial", "step") if job.origin is not None}
        | {f"augmentation.{number}": said(transform) for number, transform in enumerate(job.augmentation)}
    )


def _distillation(job: Job) -> dict[str, Any]:
    return job.distillation.model_dump(mode="json") if job.distillation.teacher is not None else {}
