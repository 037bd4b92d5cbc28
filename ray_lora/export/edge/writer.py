"""Writes what this folder's graphs say, token by token: python runner.py --adapter NAME INPUT...

Bundle(".").answer(["The capital of Peru is"], ["facts"])    # the likeliest token, and the next
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
        self.graphs = {
            name: onnxruntime.InferenceSession(str(self.folder / f"{name}.onnx"), options, ["CPUExecutionProvider"])
            for name in self.card["graphs"]
        }
        self.asked = {name: {one.name for one in graph.get_inputs()} for name, graph in self.graphs.items()}
        self.rows = runpy.run_path(str(self.folder / "rows.py"))["Rows"](self.folder, self.card)
        self.read = functools.partial(runpy.run_path(str(self.folder / "arrays.py"))["read"], self.folder, self.card)
        self.adapter = functools.cache(self.read)  # once: facts and arrays of one answer are of one file

    def answer(self, inputs: list[Any], names: list[str]) -> list[Any]:
        """Of each input what the adapter writes."""
        return [self.one(value, name) for value, name in zip(inputs, names, strict=True)]

    def one(self, value: Any, name: str) -> Any:
        feed, row = self.rows.encode(value, facts := self.adapter(name)[0])
        return self.rows.decode(self.write(feed, row, name), row, facts)

    def write(self, feed: dict[str, Any], row: dict[str, Any], name: str) -> list[int]:
        """The likeliest token and the next, without the one that ends them; SystemExit where they are no numbers."""
        written: list[int] = []
        facts, fresh, state = self.adapter(name)[0], row["tokens"], self.begin(feed, name)
        while len(written) < row["most"]:
            logits, state = self.step(fresh, state)
            if not np.isfinite(logits).all():
                raise SystemExit("the graph's outputs are no numbers, so nothing can be written")
            logits[facts["never"] if written else facts["never"] + facts["never_first"]] = -np.inf
            fresh = [int(logits.argmax())]
            if fresh[0] in facts["ends"]:
                break
            written += fresh
        return written

    def begin(self, feed: dict[str, Any], name: str) -> dict[str, Any]:
        """What a step is given beside tokens: the adapter, nothing that is kept, and what was heard."""
        nothing = np.zeros((1, self.card["heads"], 0, self.card["width"]), np.float32)
        mine = {key: array[None] for key, array in self.adapter(name)[1].items()} | {"slots": np.zeros(1, np.int64)}
        return dict.fromkeys(self.card["kept"], nothing) | mine | (self.run("encoder", feed | mine) if feed else {})

    def step(self, tokens: list[int], state: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """The logits of what follows a row's new tokens, [vocabulary], and the state after them."""
        found = self.run("graph", state | {"tokens": np.array([tokens])})
        return found.pop("logits")[0], state | {name.replace("next", "kept", 1): value for name, value in found.items()}

    def run(self, graph: str, feed: dict[str, Any]) -> dict[str, Any]:
        asked = {name: feed[name] for name in self.asked[graph]}
        return dict(zip(self.card["graphs"][graph], self.graphs[graph].run(None, asked), strict=True))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adapter", required=True)
    parser.add_argument("input", nargs="+", help="a text, a file, or a row as JSON")
    asked = parser.parse_args()
    given = [json.loads(text) if text.startswith("{") else text for text in asked.input]
    print(*map(json.dumps, Bundle(Path(__file__).parent).answer(given, [asked.adapter] * len(given))), sep="\n")
