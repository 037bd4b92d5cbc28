"""From a stored adapter to folders that answer without torch: tweets' sentiment, beside PyTorch.

    python -m pipelines.export [--smoke] [--seeds N] [--json] [key=value ...]

The best of the adapters is written three times: as inputs of its base's graph, in the graph's weights (merged), and as
inputs of a graph of 8 bits. Each folder's own runner answers the held-out rows; `exports` has how large it is, how far
its outputs are from PyTorch's, the score of its answers, and milliseconds of one row beside PyTorch's, one thread each.
`served` is what the first folder's runner answers. A smoke run writes the first folder alone.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from rich.table import Table

from pipelines.one_adapter import METRIC, TEST, TEXT, adapted, told
from pipelines.story import SMOKE_ROWS, Line, asked, console, few, step, table
from ray_lora.export.edge.runner import Bundle
from ray_lora.export.exporting import export_refs
from ray_lora.recipe import Json

KINDS: Mapping[str, Mapping[str, Any]] = {"inputs": {}, "merged": {"merge": True}, "8 bits": {"int8": True}}
AT_ONCE = 16  # rows of one run of a graph


def main(argv: Sequence[str] | None = None) -> None:
    given = asked(__doc__, argv)
    one = adapted(given)
    line: Line = one["line"]
    test = few(Path(TEST), SMOKE_ROWS) if given.smoke else Path(TEST)
    exports: list[dict[str, Any]] = []
    answer: Json = None
    for kind, options in list(KINDS.items())[: 1 if given.smoke else None]:
        step(f"export: {one['entry'].ref} as a graph ({kind})")
        folder = Path(line.recipe.output_dir) / "exported" / f"{one['entry'].sha256[:8]}-{kind.replace(' ', '-')}"
        shutil.rmtree(folder, ignore_errors=True)  # what it costs is measured again
        card = export_refs(
            [one["entry"].ref], folder, data=str(test), store=line.recipe.store, base=line.recipe.base.model,
            tracking_uri=line.recipe.tracking.uri, **options,
        )  # fmt: skip
        bundle = Bundle(folder)
        exports.append(exported(kind, card, bundle, one, test))
        answer = answer or bundle.answer([TEXT], [one["entry"].name])[0]
    result = told("export", line, one["found"] | {"exports": exports}, answer)
    console.print(table([result]))
    console.print(costs(exports, one["found"]["after"]))
    if given.json:
        print(json.dumps(result), flush=True)


def exported(kind: str, card: dict[str, Any], bundle: Bundle, one: dict[str, Any], test: Path) -> dict[str, Any]:
    """What a folder costs, and what its runner's answers to the held-out rows score."""
    figures = card["figures"]["int8" if card["int8"] else "float"]
    texts = pq.read_table(test).column("text").to_pylist()
    answers: list[Json] = []
    for at in range(0, len(texts), AT_ONCE):
        some = texts[at : at + AT_ONCE]
        answers += bundle.answer(some, [one["entry"].name] * len(some))
    return {
        "kind": kind, "bytes": figures["bytes"], "largest": figures["parity"]["largest"],
        "same": figures["parity"]["same"], "score": one["task"].score(answers, one["rows"])[METRIC],
        "onnx_ms": figures["onnx_ms"], "pytorch_ms": figures["pytorch_ms"], "swap_ms": figures.get("swap_ms"),
    }  # fmt: skip


def costs(exports: Sequence[dict[str, Any]], scores: Sequence[float]) -> Table:
    """The folders as people read them."""
    shown = Table("graph", "MB", "largest difference", "answered alike", METRIC, "ms a row", "PyTorch, ms", "swap, ms")
    for one in exports:
        swap = "-" if one["swap_ms"] is None else f"{one['swap_ms']:.1f}"
        shown.add_row(
            one["kind"], f"{one['bytes'] / 1e6:.1f}", f"{one['largest']:.0e}", f"{one['same']:.1%}",
            f"{one['score']:.4f}", f"{one['onnx_ms']:.1f}", f"{one['pytorch_ms']:.1f}", swap,
        )  # fmt: skip
    shown.caption = f"{METRIC} in PyTorch, of each seed: {', '.join(f'{score:.4f}' for score in scores)}"
    return shown


if __name__ == "__main__":
    main()
