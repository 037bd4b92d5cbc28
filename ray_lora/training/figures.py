"""A task's pictures and pages of an evaluation, as PNG and HTML files. For people: a fault of theirs stops nothing."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from ray_lora.recipe import Json
from ray_lora.tasks import Features, Task
from ray_lora.training.member import Member
from ray_lora.training.sheet import write_sheet

FIGURES = "figures"  # in a job's folder
SAMPLES = "samples.html"

_logger = logging.getLogger(__name__)


def write_all(member: Member, folder: Path) -> None:
    """Draw what a member's task shows of its last answers, what it writes, and what augmentation made of some of its
    rows."""
    if member.answered is not None:
        write_figures(member.task, *member.answered, folder)
    if member.samples:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / SAMPLES).write_text(member.samples, encoding="utf-8")
    try:
        write_sheet(member, folder)
    except Exception as error:  # as of figures
        _logger.warning("the sheet of %s was not drawn: %s: %s", folder.parent.name, type(error).__name__, error)


def write_figures(task: Task, predictions: Sequence[Json], features: Sequence[Features], folder: Path) -> None:
    """Draw what the task shows of its predictions into `folder`, replacing what is there."""
    try:
        shutil.rmtree(folder, ignore_errors=True)
        for name, figure in task.figures(predictions, features).items():
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / re.sub(r"[^A-Za-z0-9_-]", "_", name)
            if isinstance(figure, str):
                path.with_suffix(".html").write_text(figure, encoding="utf-8")
            else:
                figure.savefig(path.with_suffix(".png"))
    except Exception as error:  # a task is anybody's code, and a font or a disk may be missing
        _logger.warning("the figures of %s were not drawn: %s: %s", folder.parent.name, type(error).__name__, error)
