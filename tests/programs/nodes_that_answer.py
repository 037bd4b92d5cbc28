"""A program: files of rows answered on four nodes, of which two die while their actors answer.

python -m tests.programs.nodes_that_answer FOLDER       # with rows/ and store/; prints {"killed": 2, "rows": ...}
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from typing import Any

import psutil
import ray

from ray_lora.running.answer_plan import Asked
from ray_lora.running.answers import answer_files
from tests.programs.four_nodes import Nodes


def main(folder: Path) -> None:
    nodes = Nodes(folder)
    busy = ray.remote(Busy).options(num_cpus=1, resources={f"node:{ray.util.get_node_ip_address()}": 0.001}).remote()
    ray.get(busy.there.remote())
    output, ended = folder / "out", threading.Event()

    def watch() -> None:
        """Kill a node whose actor answers, whenever two more parts are there."""
        while not ended.wait(0.02) and len(nodes.killed) < 2:
            if len(list(output.glob("part-*"))) > 2 * len(nodes.killed):
                for number, (node, _) in enumerate(nodes.others):
                    if answers(node):
                        nodes.others.append(nodes.others.pop(number))
                        nodes.kill("answering")
                        break

    watcher = threading.Thread(target=watch)
    watcher.start()
    wanted = Asked([str(folder / "rows")], str(output), str(folder / "store"), adapter_column="customer")
    told = answer_files(wanted, most_rows=12, dtype="float32", quiet=True)
    ended.set()
    watcher.join()
    nodes.close()
    print(json.dumps({"killed": len(nodes.killed), **told}))


class Busy:
    """Has the first node's only processor, so that others answer."""

    def there(self) -> None:
        return None


def answers(node: Any) -> bool:
    """Whether an actor that answers runs on a node."""
    raylet = node.all_processes["raylet"][0].process.pid
    try:
        lines = [" ".join(child.cmdline()) for child in psutil.Process(raylet).children(recursive=True)]
    except psutil.Error:
        return False
    return any("MapWorker(MapBatches(Answering" in line for line in lines)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
