"""What every task must keep: by itself, in the company of others, in and out of PEFT, after a kill, with wrong rows.

@pytest.mark.parametrize("check", CHECKS)
def test_it_keeps_the_rules(check, tmp_path):
    check(Case(spec, rows, perfect, open, plain, targets, head, wrong), tmp_path)

No check knows what a task predicts. `check_task` is the part that needs no plain class.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.conformance.answers import check_mixed, check_peft_in, check_peft_out
from tests.conformance.case import Case
from tests.conformance.files import check_rows_in_files, check_wrong_rows
from tests.conformance.packs import check_packed, check_resumed
from tests.conformance.people import check_people
from tests.conformance.rules import check_task


def check_rules(case: Case, tmp_path: Path) -> None:
    """What a task keeps by itself."""
    engine = case.engine(slots=1)
    check_task(case.task, case.rows, engine, case.perfect, tmp_path, case.close)
    engine.close()


CHECKS: tuple[Callable[[Case, Path], None], ...] = (
    check_rules,
    check_packed,
    check_people,
    check_mixed,
    check_peft_in,
    check_peft_out,
    check_resumed,
    check_wrong_rows,
    check_rows_in_files,
)

__all__ = ["CHECKS", "Case", "check_task"]
