"""Answers rows with this folder's program by ExecuTorch: python runner.py --adapter NAME INPUT...

Bundle(".").answer(["what a lovely day", "win a prize"])    # one after the other
"""

from __future__ import annotations

import argparse
import functools
import json
import runpy
from pathlib import Path
from typing import Any

import torch
from executorch.runtime import Runtime


class Bundle:
    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.card = json.loads((self.folder / "card.json").read_text())
        self.program = Runtime.get().load_program(self.folder / "graph.pte").load_method("forward")
        self.rows = runpy.run_path(str(self.folder / "rows.py"))["Rows"](self.folder, self.card)
        read = runpy.run_path(str(self.folder / "arrays.py"))["read"]
        self.adapter = functools.cache(functools.partial(read, self.folder, self.card))

    def answer(self, inputs: list[Any], names: list[str] | None = None) -> list[Any]:
        """Of each input what the adapter in the weights says."""
        found, facts = [], self.adapter(next(iter(self.card["adapters"])))[0]
        for value in inputs:
            feed, told = self.rows.encode(value, facts)
            outputs = {name: values[0] for name, values in self.run([feed]).items()}
            found.append(self.rows.decode(outputs, told, facts))
        return found

    def run(self, feeds: list[dict[str, Any]], names: list[str] | None = None) -> dict[str, Any]:
        """The program's outputs, [1, ...], of one row as rows.py encodes it."""
        (feed,) = feeds
        given = [torch.as_tensor(feed[name])[None].contiguous() for name in self.card["inputs"]]
        return {
            name: value.numpy() for name, value in zip(self.card["outputs"], self.program.execute(given), strict=True)
        }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adapter", help="is in the program already")
    parser.add_argument("input", nargs="+", help="a text, a file, or a row as JSON")
    asked = parser.parse_args()
    given = [json.loads(text) if text.startswith("{") else text for text in asked.input]
    print(*map(json.dumps, Bundle(Path(__file__).parent).answer(given)), sep="\n")
