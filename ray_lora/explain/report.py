"""What is known of adapters as files: a page that opens without a network, the plots, and JSON.

    write(told, Path("explained"))       # ["explained/explain.html", "explained/explain.json", ...]

It knows the object that `explain` gives, no tensors.
"""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray_lora.atomic import write_atomic
from ray_lora.explain.plots import plots
from ray_lora.recipe import Json

_PAGE = Path(__file__).parent / "page.html"


def write(told: Mapping[str, Any], folder: Path) -> list[str]:
    """Write `explain.html`, `explain.json` and a PNG a plot into a folder, replacing what is there of these."""
    files, drawn = [], []
    for adapter in told["adapters"]:
        mine = {}
        for name, figure in plots(adapter).items():
            stream = io.BytesIO()
            figure.savefig(stream, format="png", dpi=110)
            path = folder / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', adapter['ref'])}_{name}.png"
            write_atomic(path, stream.getvalue())
            files.append(str(path))
            mine[name] = base64.b64encode(stream.getvalue()).decode()
        drawn.append(mine)
    texts = {"explain.html": page(told, drawn), "explain.json": json.dumps({**told, "files": files}, indent=1)}
    for name, text in texts.items():
        write_atomic(folder / name, text)
    return [*(str(folder / name) for name in texts), *files]


def page(told: Mapping[str, Any], drawn: list[dict[str, str]]) -> str:
    """The page: everything is in it, and nothing is fetched.

    Args:
        drawn: of each adapter its plots, PNGs in base64, by name.
    """
    import jinja2

    made = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    made.filters["shade"] = shade
    text: str = made.from_string(_PAGE.read_text(encoding="utf-8")).render(
        told=told, adapters=list(zip(told["adapters"], drawn, strict=True)), likely=likely
    )
    return text


def shade(value: float, most: float) -> str:
    """A colour for a token's value: red for what speaks for the class, blue against it."""
    share = min(1.0, abs(value) / most) if most else 0.0
    red, blue = (255, 0) if value >= 0 else (0, 255)
    return f"rgba({red}, 0, {blue}, {0.6 * share:.2f})"


def likely(answer: Json) -> str:
    """An answer on one line."""
    if isinstance(answer, dict) and "label" in answer and "score" in answer:
        return f"{answer['label']} {answer['score']:.3f}"
    if isinstance(answer, list):
        return ", ".join(map(likely, answer))
    return str(answer)
