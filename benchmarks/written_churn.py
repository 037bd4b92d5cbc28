"""10,000 generations of alternating adapters over one shared beginning: wrong texts, what is left over, memory.

    python -m benchmarks.written_churn [--generations 10000]

A tiny base, three adapters in two slots, 12 requests at a time, prompts that share 20 words, 1 to 3 answers each, about
a third given up after some tokens or at any moment; one name's alias moves and another is unloaded and loaded every 25
requests. Each text is compared with plain PEFT alone, by the content hash of what answered. Memory is the process's.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.machine import write
from tests.unit.writing_churn import World, churn, left_over


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--generations", type=int, default=10_000)
    asked = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = asyncio.run(measure(Path(folder), asked.generations))
    for name, value in result.items():
        print(name, value)
    print(write("written_churn", {"what": __doc__, **result}))
    if result["wrong"] or any(result["left_over"].values()):
        raise SystemExit(1)


async def measure(folder: Path, generations: int) -> dict[str, Any]:
    world = World(folder)
    endpoint, store = world.start(folder)
    began = time.perf_counter()
    told = await churn(endpoint, store, world, generations, max(1, generations // 10))
    seconds = time.perf_counter() - began
    left, written, cache = await left_over(endpoint), endpoint.speaker.writer.stats, endpoint.cache.stats
    await endpoint.close()
    settled = told.memory_mb[2:] or told.memory_mb  # the first fifth fills what is kept
    return {
        "generations": told.asked,
        "whole": told.whole,
        "given_up": told.given_up,
        "refused": told.refused,
        "wrong": len(told.wrong),
        "wrong_ones": told.wrong[:5],
        "left_over": left,
        "memory_mb": told.memory_mb,
        "memory_grown_mb": settled[-1] - settled[0],
        "seconds": seconds,
        "by_ref": dict(told.by_ref),
        "writing": asdict(written),
        "cache": asdict(cache),
    }


if __name__ == "__main__":
    main()
