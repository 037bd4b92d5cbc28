"""The table of other savers: each that needs no other PEFT is made anew and read; the page shows the result file."""

from __future__ import annotations

import json
from typing import Any

import pytest
from peft import __version__

from benchmarks import foreign_adapters, foreign_savers
from benchmarks.machine import RESULTS

SAVERS: dict[str, Any] = json.loads((RESULTS / "foreign_adapters.json").read_text())["savers"]


@pytest.mark.filterwarnings("ignore")  # of PEFT, transformers and torch, about what these savers do on purpose
@pytest.mark.parametrize("name", [*foreign_savers.SAVERS, f"PEFT {__version__}"])
def test_an_adapter_of_another_saver_is_read_as_peft_reads_it_or_refused(name: str) -> None:
    entry, shown = foreign_adapters.examine(name), SAVERS.get(name, {"outcome": "right"})
    assert entry["outcome"] == shown["outcome"], entry
    assert entry["outcome"] in ("right", "refused")
    if entry["outcome"] == "right":
        assert 0 < entry["difference"] <= 1e-5


def test_a_wrong_answer_is_called_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray_lora.engine.engine.layer_scaling", lambda *_: 1.0)
    assert foreign_adapters.examine("ms-swift")["outcome"] == "wrong"


def test_the_page_shows_the_result_file() -> None:
    shown = foreign_adapters.PAGE.read_text().split(foreign_adapters.MARKS[0])[1].split(foreign_adapters.MARKS[1])[0]
    assert shown.strip() == foreign_adapters.table(SAVERS).strip()
    assert list(SAVERS) == [*(f"PEFT {version}" for version in foreign_adapters.VERSIONS), *foreign_savers.SAVERS]
