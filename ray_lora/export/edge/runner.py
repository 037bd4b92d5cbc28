"""Answers rows with this folder's graph: python runner.py --adapter NAME INPUT...

Bundle(".").answer(["what a lovely day", "win a prize"], ["moods", "spam"])    # each row by its own adapter
"""

from __future__ import annotations

import argparse
import functools
import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime


class Bundle:
    def __init__(self, folder: str | Path, threads: int = 1) -> None:
        self.folder = Path(folder)
        self.card = json.loads((self.folder / "card.json").read_text())
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(str(self.folder / "graph.onnx"), options, ["CPUExecutionProvider"])
        self.rows = runpy.run_path(str(self.folder / "rows.py"))["Rows"](self.folder, self.card)
        self.files = runpy.run_path(str(self.folder / "arrays.py"))
        self.read = functools.partial(self.files["read"], self.folder, self.card)
        self.adapter = functools.cache(self.read)  # once: labels and arrays of one answer are of one file
        self.held: dict[tuple[str, ...], dict[str, Any]] = {}  # stacks of the adapters of the last run

    def answer(self, inputs: list[Any], names: list[str]) -> list[Any]:
        """Of each input what its adapter says."""
        if self.card.get("alone") and len(inputs) > 1:  # whose lengths must not meet in one run
            return [self.answer([value], [name])[0] for value, name in zip(inputs, names, strict=True)]
        facts = [self.adapter(name)[0] for name in names]
        rows = [self.rows.encode(value, told) for value, told in zip(inputs, facts, strict=True)]
        found = self.run([feed for feed, _ in rows], names)
        mine = [{key: values[at] for key, values in found.items()} for at in range(len(rows))]
        return [self.rows.decode(one, row[1], told) for one, row, told in zip(mine, rows, facts, strict=True)]

    def run(self, feeds: list[dict[str, Any]], names: list[str]) -> dict[str, Any]:
        """The graph's outputs, [rows, ...], of rows as rows.py encodes them."""
        outputs = self.card["outputs"]
        return dict(zip(outputs, self.session.run(outputs, self.given(feeds, names)), strict=True))

    def given(self, feeds: list[dict[str, Any]], names: list[str]) -> dict[str, Any]:
        """What the graph is given of rows, with their adapters."""
        stacked = self.files["stacked"]
        feed = {key: stacked([one[key] for one in feeds], self.card["padding"].get(key)) for key in feeds[0]}
        if not self.card["merged"]:
            kinds = tuple(dict.fromkeys(names))
            if kinds not in self.held:
                arrays = [self.adapter(name)[1] for name in kinds]
                self.held = {kinds: {key: stacked([one[key] for one in arrays]) for key in arrays[0]}}
            feed |= self.held[kinds] | {"slots": np.array([kinds.index(name) for name in names])}
        return feed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adapter", required=True)
    parser.add_argument("input", nargs="+", help="a text, a file, or a row as JSON")
    asked = parser.parse_args()
    given = [json.loads(text) if text.startswith("{") else text for text in asked.input]
    print(*map(json.dumps, Bundle(Path(__file__).parent).answer(given, [asked.adapter] * len(given))), sep="\n")
