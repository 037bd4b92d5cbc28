"""One rival of `benchmarks.generation`, in an environment of its own: a load as JSON in, tokens a second as JSON out.

Imports nothing of this project.
"""

from __future__ import annotations

import atexit
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

Run = Callable[[list[list[int]], list[int]], int]  # tokens written; 0 where it cannot be asked so


def main() -> None:
    told = json.load(sys.stdin)
    os.environ |= {"OMP_NUM_THREADS": str(told["threads"]), "VLLM_CPU_KVCACHE_SPACE": "2", "HF_HUB_OFFLINE": "1"}
    os.environ |= {"VLLM_LOGGING_STREAM": "ext://sys.stderr", "RAYON_NUM_THREADS": str(told["threads"])}
    sides = {"vllm": vllm, "mistralrs": mistralrs}
    sides |= {f"llama.cpp-{dtype}": partial(llama_cpp, dtype) for dtype in ("f32", "q8_0", "q4_0")}
    run = sides[sys.argv[1]](told)
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
    """Float32, an adapter a request. Its calls hold their caller, so all streams are opened and then read."""
    from mistralrs import ChatCompletionRequest, LoraAdapter, ModelDType, Runner, Which
    from tokenizers import Tokenizer

    adapters = [LoraAdapter(str(at), f"{told['folder']}/{at}") for at in range(16)]
    which: Any = Which.Lora(older(told["base"]), adapters=adapters, dtype=ModelDType.F32, max_adapters=16)
    runner: Any = Runner(which=which, max_seqs=16, prefix_cache_n=0)
    tokenizer = Tokenizer.from_file(f"{told['base']}/tokenizer.json")

    def stream(ids: list[int], owner: int) -> Any:
        asked = ChatCompletionRequest(
            messages=tokenizer.decode(ids),
            model="default",
            max_tokens=told["new"],
            temperature=0.0,
            ignore_eos=True,
            stream=True,
            adapter=str(owner) if owner >= 0 else None,
        )
        return runner.send_chat_completion_request(asked)

    def run(ids: list[list[int]], owners: list[int]) -> int:
        streams = [stream(one, owner) for one, owner in zip(ids, owners, strict=True)]
        return sum([chunk.usage for chunk in one if chunk.usage][-1].completion_tokens for one in streams)

    return run


def llama_cpp(dtype: str, told: dict[str, Any]) -> Run:
    """Its server, with all adapters and a slot for each of 16 requests; a request names its adapter (`lora`). Beside
    the Python lie `llama-server`, `llama-quantize` and `llama.cpp`, the folder of its sources, which convert."""
    tools, folder = Path(sys.executable).parent, Path(tempfile.mkdtemp())

    def call(*command: object) -> None:
        subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)

    def convert(script: str, *words: object) -> None:
        call(sys.executable, tools / "llama.cpp" / script, *words)

    model = folder / "base.gguf"
    kind = "f32" if dtype == "q4_0" else dtype
    convert("convert_hf_to_gguf.py", told["base"], "--outtype", kind, "--outfile", model)
    if dtype == "q4_0":
        call(tools / "llama-quantize", model, model := folder / "q4_0.gguf", "Q4_0")
    adapters: list[object] = []
    for at in range(16):
        own = Path(told["folder"]) / str(at)
        out = own / "adapter.gguf"
        if not out.exists():
            convert("convert_lora_to_gguf.py", own, "--base", told["base"], "--outtype", "f32", "--outfile", out)
        adapters += ["--lora", out]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [tools / "llama-server", "-m", model, *adapters, "--lora-init-without-apply", "-np", 16, "-c", 16 * 512]
    command += ["-t", told["threads"], "-tb", told["threads"], "--host", "127.0.0.1", "--port", port]
    log = (folder / "log").open("w")
    server = subprocess.Popen([str(part) for part in command], stdout=log, stderr=log)
    atexit.register(server.kill)

    def ask(path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"content-type": "application/json"}
        return json.load(
            urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, headers))
        )

    while True:
        try:
            ask("/health")
            break
        except OSError:
            if server.poll() is not None:
                raise RuntimeError(f"llama-server ended: {(folder / 'log').read_text()[-300:]}") from None
            time.sleep(0.2)

    def one(ids: list[int], owner: int) -> int:
        lora = [{"id": owner, "scale": 1.0}] if owner >= 0 else []
        body = {"prompt": ids, "n_predict": told["new"], "temperature": 0, "ignore_eos": True, "cache_prompt": False}
        return int(ask("/completion", body | {"lora": lora})["tokens_predicted"])

    def run(ids: list[list[int]], owners: list[int]) -> int:
        with ThreadPoolExecutor(len(ids)) as threads:
            return sum(threads.map(one, ids, owners))

    return run


def older(base: str) -> str:
    """A folder with the base as readers of older configurations know it: `rope_theta` by itself."""
    folder = Path(tempfile.mkdtemp())
    for path in Path(base).iterdir():
        if path.name != "config.json":
            (folder / path.name).symlink_to(path)
    config = json.loads((Path(base) / "config.json").read_text())
    config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


if __name__ == "__main__":
    main()
