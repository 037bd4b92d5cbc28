"""What an adapter of tweets' sentiment changes in its base, and what each of its layers is worth.

    python -m pipelines.explain [--smoke] [--seeds N] [--json] [key=value ...]

The best of the adapters is explained on held-out rows and on one text: `explained` says which layer it changed most,
how many layers could go each by itself and at once, how well its scores are calibrated, and which words of the text
decided. The page and its plots stand in `<output_dir>/explained`; `served` is the answer to the text.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from pipelines.one_adapter import TEST, TEXT, adapted, answer_of, told
from pipelines.story import Line, asked, console, few, step, table
from ray_lora.explain import explain

ROWS = 200  # that score the adapter without each of its layers
WORDS = 5


def main(argv: Sequence[str] | None = None) -> None:
    given = asked(__doc__, argv)
    one = adapted(given)
    line: Line = one["line"]
    ref = one["entry"].ref
    step(f"explain: {ref}")
    page = Path(line.recipe.output_dir) / "explained"
    [adapter] = explain(
        [ref], line.recipe.store, data=str(few(Path(TEST), given.most or ROWS)), inputs=[TEXT],
        base=line.recipe.base.model, tracking_uri=line.recipe.tracking.uri, output=str(page),
    )["adapters"]  # fmt: skip
    explained = short(adapter)
    result = told("explain", line, one["found"] | {"explained": explained}, answer_of(line, ref))
    console.print(table([result]))
    console.print(report(explained))
    console.print(f"{page / 'explain.html'} has all of it")
    if given.json:
        print(json.dumps(result), flush=True)


def short(adapter: Any) -> dict[str, Any]:
    """The figures that one looks at first."""
    most = max(adapter["layers"], key=lambda layer: layer["relative"])
    off, largest = adapter["switched_off"], adapter["switched_off"]["largest"]
    [words] = adapter["attributions"]
    values = list(zip(words["tokens"], words["adapter"]["values"], strict=True))
    return {
        "layers": len(adapter["layers"]),
        "most_changed": {"layer": most["layer"], "of_the_weight": most["relative"]},
        "metric": off["metric"],
        "score": off["full"]["value"],
        "without_any": off["bare"]["score"]["value"],
        "could_go": len(off["could_go"]),
        "could_go_at_once": 0 if largest is None else len(largest["layers"]),
        "calibration_error": adapter["reliability"]["ece"],
        "answered": words["target"],
        "words": sorted(values, key=lambda pair: -abs(pair[1]))[:WORDS],
    }


def report(explained: dict[str, Any]) -> Table:
    """The figures as people read them."""
    shown = Table("what", "", show_header=False)
    most = explained["most_changed"]
    lines = {
        "layers changed": str(explained["layers"]),
        "changed most": f"{most['layer']}, by {most['of_the_weight']:.1%} of its weight",
        explained["metric"]: f"{explained['score']:.4f}, {explained['without_any']:.4f} without any change",
        "could go": f"{explained['could_go']} each by itself, {explained['could_go_at_once']} at once",
        "expected calibration error": f"{explained['calibration_error']:.4f}",
        f"{TEXT!r} is {explained['answered']} for": ", ".join(f"{word} {by:+.3f}" for word, by in explained["words"]),
    }
    for what, said in lines.items():
        shown.add_row(what, said)
    return shown


if __name__ == "__main__":
    main()
