"""What the bare base and a trained adapter go on with after the first validation rows' prompts, for people: a page of
HTML, with the other pages and pictures of a job.

It knows rows and texts, no files. A fault of it stops nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import islice

from ray_lora.engine import AdapterEngine
from ray_lora.inference.continued import Ask, Continuing, Text, continued
from ray_lora.tasks import scoring_of
from ray_lora.training.member import Member

_ROWS = 4  # prompts of each job
_MOST = 32  # tokens of each answer, where the task does not say

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sample:
    """A prompt, what follows it in its row, and what was written: by the bare base and by the adapter. None: what
    followed was no number."""

    prompt: str
    reference: str
    before: str | None
    after: str | None


def samples_of(engine: AdapterEngine, members: Sequence[Member]) -> dict[str, list[Sample]]:
    """Some samples of each member whose rows can be gone on with, by job; those of all are written together."""
    asking = [member for member in members if isinstance(member.task, Continuing) and member.splits.validation]
    try:
        return _written(engine, asking)
    except Exception as error:  # as of figures; a base may be none that is read token by token
        names = ", ".join(member.job.name for member in asking)
        _logger.warning("no samples of %s were written: %s: %s", names, type(error).__name__, error)
        return {}


def _written(engine: AdapterEngine, members: Sequence[Member]) -> dict[str, list[Sample]]:
    openings = {member.job.name: _openings(member) for member in members}
    asks: dict[tuple[int, tuple[int, ...]], tuple[Member, Ask]] = {}  # the base's are the same for many members
    for member in members:
        task = member.task
        assert isinstance(task, Continuing)
        most = task.most(scoring_of(task)) or _MOST
        for ids, _ in openings[member.job.name]:
            for slot in (0, member.slot):
                asks.setdefault((slot, ids), (member, Ask(slot, ids, most, task.ends)))
    texts: dict[tuple[int, tuple[int, ...]], Text | None] = {}
    for head in dict.fromkeys(member.task.head for member in members):
        mine = {key: ask for key, (member, ask) in asks.items() if member.task.head == head}
        texts |= dict(zip(mine, continued(engine, head, list(mine.values())), strict=True))
    found = {}
    for member in members:
        task = member.task
        assert isinstance(task, Continuing)
        said = {key: None if text is None else task.said(text.tokens) for key, text in texts.items()}
        found[member.job.name] = [
            Sample(task.said(ids), task.said(rest), said[0, ids], said[member.slot, ids])
            for ids, rest in openings[member.job.name]
        ]
    return found


def _openings(member: Member) -> list[tuple[tuple[int, ...], list[int]]]:
    """The first validation rows' prompts, and what follows them."""
    assert member.splits.validation is not None
    assert isinstance(member.task, Continuing)
    parts = map(member.task.opening, islice(member.splits.validation.rows.values(), _ROWS))
    return [(tuple(ids), rest) for ids, rest in parts]


def page(samples: Sequence[Sample]) -> str:
    """The samples as a page of HTML."""
    lines = "\n".join(f"<tr>{''.join(map(_cell, _columns(sample)))}" for sample in samples)
    return _PAGE.format(lines=lines)


def _columns(sample: Sample) -> Sequence[str | None]:
    return sample.prompt, sample.reference, sample.before, sample.after


def _cell(text: str | None) -> str:
    return "<td><i>no number</i>" if text is None else f"<td>{escape(text)}"


_PAGE = """<!doctype html>
<meta charset="utf-8">
<title>Samples</title>
<style>
body {{ font: 15px/1.5 sans-serif; margin: 2em }}
td, th {{ padding: .2em 1em .6em 0; vertical-align: top; text-align: left; white-space: pre-wrap }}
</style>
<p>Validation rows: the likeliest token, and the next.
<table>
<tr><th>prompt<th>its row goes on<th>the bare base<th>the adapter
{lines}
</table>
"""
