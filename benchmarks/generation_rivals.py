"""One rival of `benchmarks.generation`, in an environment of its own: a load as JSON in, tokens a second as JSON out.

Imports nothing of this project.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

Run = Callable[[list[list[int]], list[int]], int]  # tokens written; 0 where it cannot be asked so


def main() -> None:
    told = json.load(sys.stdin)
    os.environ |= {"OMP_NUM_THREADS": str(told["threads"]), "VLLM_CPU_KVCACHE_SPACE": "2", "HF_HUB_OFFLINE": "1"}
    run = {"vllm": vllm, "mistralrs": mistralrs}[sys.argv[1]](told)
    found = {}
    for name, (ids, owners) in told["loads"].items():
        times, tokens = [], 0
        for at in range(told["rounds"] + 1):
            began = time.perf_counter()
            tokens = run(ids, owners)
            if not tokens:
                break
            if at:
                times.append(time.perf_counter() - began)
        if times:
            found[name] = tokens / statistics.median(times)
    print(json.dumps(found))


def vllm(told: dict[str, Any]) -> Run:
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    model: Any = LLM(told["base"], dtype="float32", enable_lora=True, max_loras=16, max_lora_rank=8, max_model_len=512)
    asked: Any = SamplingParams(temperature=0, max_tokens=told["new"], ignore_eos=True)

    def run(ids: list[list[int]], owners: list[int]) -> int:
        adapters = [LoRARequest(str(at), at + 1, f"{told['folder']}/{at}") if at >= 0 else None for at in owners]
        prompts = [{"prompt_token_ids": one} for one in ids]
        found = model.generate(prompts, asked, lora_request=adapters, use_tqdm=False)
        return sum(len(one.outputs[0].token_ids) for one in found)

    return run


def mistralrs(told: dict[str, Any]) -> Run:
    """The base only: it has no adapter a request."""
    from concurrent.futures import ThreadPoolExecutor

    from mistralrs import CompletionRequest, Runner, Which
    from tokenizers import Tokenizer

    runner: Any = Runner(which=Which.Plain(model_id=told["base"]), max_seqs=16)
    tokenizer = Tokenizer.from_file(f"{told['base']}/tokenizer.json")

    def one(ids: list[int]) -> int:
        asked = CompletionRequest(
            model="default", prompt=tokenizer.decode(ids), max_tokens=told["new"], temperature=0.0
        )
        return int(runner.send_completion_request(asked).usage.completion_tokens)

    def run(ids: list[list[int]], owners: list[int]) -> int:
        if any(owner >= 0 for owner in owners):
            return 0
        with ThreadPoolExecutor(len(ids)) as pool:
            return sum(pool.map(one, ids))

    return run


if __name__ == "__main__":
    main()
