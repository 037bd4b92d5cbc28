"""Who was forgotten, for as long as files that a run reads still have such people's rows; and a deletion in the making.

    forgotten = Forgotten(folder)
    forgotten.note("alice", [TRAIN, "new/2026-11-28.parquet"])
    find_people(...), leaving out whom forgotten.among([TRAIN]) names

A key itself is kept only while its deletion goes on (`forgetting.json`); afterwards its salted hash, which says of a
key that is there whether it is meant, and not who was. It knows keys and names of files, no rows.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from ray_lora.errors import RecipeError
from ray_lora.recipe import Json

TRAIN = "data.train"  # stands for the recipe's own files, wherever they lie


class Forgotten:
    """See the module.

    Args:
        folder: the run's.
    """

    def __init__(self, folder: Path) -> None:
        self._file, self._marker = folder / "forgotten.json", folder / "forgetting.json"
        told = json.loads(self._file.read_text()) if self._file.exists() else {}
        self._salt: str = told.get("salt") or secrets.token_hex(16)
        self._people: dict[str, list[str]] = told.get("people", {})

    def among(self, files: Collection[str]) -> Callable[[str], bool]:
        """Whether a key is of somebody whose rows in some of these files are nobody's any more."""
        marks = {mark for mark, held in self._people.items() if not set(held).isdisjoint(files)}
        return lambda key: bool(marks) and self._mark(key) in marks

    def note(self, key: str, files: Sequence[str]) -> None:
        """Leave somebody's rows in these files out from now on; where there are none, nothing is kept."""
        mark = self._mark(key)
        others = {held: told for held, told in self._people.items() if held != mark}
        self._people = others | ({mark: list(files)} if files else {})
        if self._people:
            _write(self._file, {"salt": self._salt, "people": self._people})
        else:
            self._file.unlink(missing_ok=True)

    @property
    def begun(self) -> bool:
        """Whether a deletion was begun and has not ended."""
        return self._begun() is not None

    def begin(self, key: str) -> None:
        """A deletion goes on until `end`.

        Raises:
            RecipeError: that of somebody else was cut short.
        """
        had = self._begun()
        if had is not None and had != key:
            raise self._cut_short(had)
        _write(self._marker, {"person": key})

    def end(self) -> None:
        """All of it is done."""
        self._marker.unlink(missing_ok=True)

    def check(self) -> None:
        """RecipeError where a deletion was cut short."""
        had = self._begun()
        if had is not None:
            raise self._cut_short(had)

    def _begun(self) -> str | None:
        return str(json.loads(self._marker.read_text())["person"]) if self._marker.exists() else None

    def _cut_short(self, key: str) -> RecipeError:
        return RecipeError(
            f"the deletion of {key!r} was cut short; end it first: ray-lora personal RECIPE --forget {key!r}"
        )

    def _mark(self, key: str) -> str:
        return hashlib.sha256(f"{self._salt}|{key}".encode("utf-8", "surrogatepass")).hexdigest()


def _write(file: Path, told: dict[str, Json] | dict[str, Any]) -> None:
    fresh = file.with_suffix(".tmp")
    fresh.write_text(json.dumps(told))
    fresh.replace(file)
