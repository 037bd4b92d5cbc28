"""Tokens a second of answers written token by token: ours, PEFT's `generate(adapter_names=...)`, the bare base, others.

    python -m benchmarks.generation [--threads 2] [--rounds 3] [--streams 1 4 16] [--equal 1000] [--adapters 16]
        [--parts speed first equal] [--rival vllm=PATH/bin/python] [--rival mistralrs=PATH/bin/python]
        [--rival llama.cpp-f32=PATH/bin/python] [--rival llama.cpp-q8_0=...] [--rival llama.cpp-q4_0=...]

SmolLM2-135M-Instruct, 16 adapters (or as many as are asked for) of rank 8 on all linear layers as plain PEFT writes
them with a random B, prompts of 16 to 128 tokens of the licence's text, greedy, 64 new tokens, no end. Streams begin
together, their adapters in turn (`16`), all of one (`1`), or the base alone (`base`). All sides get the same prompts in
one run, in turn (rivals after them); tokens a second are medians over rounds. Ours is the writer of the endpoint with
its decoder. `first token` is of a 64-token prompt that joins 8 running streams. `equal` compares greedy tokens with
PEFT's of each adapter alone, batch 1, float32, while rows join and leave. A rival runs in the environment of the Python
that is named; `not_run` says which did not, and why.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.machine import RESULTS, write
from ray_lora.adapters.adapter import Adapter
from ray_lora.bases.load import load_base, locate
from ray_lora.bases.plain import HeadSpec
from ray_lora.engine import AdapterEngine
from ray_lora.inference.decoder import Decoder
from ray_lora.inference.sampling import Sampling
from ray_lora.recipe import BaseSpec
from ray_lora.serving.writing.streams import Ask
from ray_lora.serving.writing.writer import Writer

BASE, HEAD, RANK, NEW = "smollm2", "AutoModelForCausalLM", 8, 64
DTYPES, PARTS = ("float32", "bfloat16"), ("speed", "first", "equal")
ROOT = Path(__file__).parents[1]
NOT_RUN = {
    "llama.cpp-f32": "not asked for; --rival llama.cpp-f32=PATH",
    "llama.cpp-q8_0": "not asked for; --rival llama.cpp-q8_0=PATH",
    "llama.cpp-q4_0": "not asked for; --rival llama.cpp-q4_0=PATH",
    "mistralrs": "not asked for; --rival mistralrs=PATH",
    "vllm": "not asked for; --rival vllm=PATH",
}
Load = tuple[list[list[int]], list[int]]  # prompts, and of each its adapter's number; -1: the base
Side = Callable[[Load], float]  # seconds
# What computes, of every side: each thread that does has a team of threads of its own, and where two teams share the
# cores each is woken by the system in every product.
COMPUTE = ThreadPoolExecutor(1)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS, help="others stay as they are in the file")
    options.add_argument("--adapters", type=int, default=16)
    options.add_argument("--streams", type=int, nargs="+", default=[1, 4, 16])
    options.add_argument("--equal", type=int, default=1000)
    options.add_argument("--firsts", type=int, default=40)
    options.add_argument("--name", default="generation", help="of the result file")
    options.add_argument("--rival", action="append", default=[], metavar="NAME=PYTHON")
    asked = options.parse_args()
    torch.set_num_threads(asked.threads)
    told: dict[str, Any] = {
        "what": __doc__,
        "adapters": asked.adapters,
        "threads": asked.threads,
        "rounds": asked.rounds,
    }
    with tempfile.TemporaryDirectory() as place:
        folder = COMPUTE.submit(write_adapters, Path(place), asked.adapters).result()
        ours = {dtype: Ours(folder, dtype) for dtype in DTYPES}
        theirs = Peft(folder)
        if "speed" in asked.parts:
            told |= speeds(asked, folder, ours, theirs)
        if "first" in asked.parts:
            told["first_token_ms"] = {dtype: side.firsts(asked.firsts) for dtype, side in ours.items()}
        if "equal" in asked.parts:
            told["equal"] = compare(ours["float32"], theirs, asked.equal)
    print(json.dumps(told, indent=2))
    path = RESULTS / f"{asked.name}.json"
    known = json.loads(path.read_text()) if path.exists() and set(asked.parts) != set(PARTS) else {}
    known.pop("machine", None)
    print(write(asked.name, known | told))


def speeds(asked: argparse.Namespace, folder: Path, ours: Mapping[str, Ours], theirs: Peft) -> dict[str, Any]:
    """Tokens a second of every side, their ratios, and who was not asked."""
    loads = {
        f"{streams} streams, {who}": load(streams, who)
        for streams in asked.streams
        for who in ("base", "1", str(asked.adapters))
        if streams > 1 or who in ("base", "1")
    }
    sides: dict[str, Side] = {"peft float32": theirs.seconds}
    sides |= {f"ours {dtype}": side.seconds for dtype, side in ours.items()}
    speed = {name: measure(sides, one, asked.rounds) for name, one in loads.items()}
    not_run = dict(NOT_RUN)
    for name, python in (told.split("=", 1) for told in asked.rival):
        try:
            found = rival(name, python, folder, loads, asked.rounds, asked.threads)
            speed = {one: told | ({name: found[one]} if one in found else {}) for one, told in speed.items()}
            del not_run[name]
        except RuntimeError as error:
            not_run[name] = str(error)
    return {"tokens_per_second": speed, "ratios": ratios(speed), "not_run": not_run}


def load(streams: int, who: str) -> Load:
    return prompts(streams, seed=streams), [-1 if who == "base" else at % int(who) for at in range(streams)]


def prompts(count: int, seed: int, length: int | None = None) -> list[list[int]]:
    """Pieces of the licence, of 16 to 128 tokens."""
    ids = AutoTokenizer.from_pretrained(locate(BASE))((ROOT / "LICENSE").read_text())["input_ids"]
    dice, found = random.Random(seed), []
    for _ in range(count):
        size = length or dice.randrange(16, 129)
        at = dice.randrange(len(ids) - size)
        found.append(ids[at : at + size])
    return found


def write_adapters(folder: Path, count: int) -> Path:
    config = LoraConfig(task_type="CAUSAL_LM", r=RANK, lora_alpha=16, target_modules="all-linear")
    model: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(locate(BASE), dtype=torch.float32), config)
    for number in range(count):
        draw = torch.Generator().manual_seed(number)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data.normal_(0, 0.02, generator=draw)
        model.save_pretrained(folder / str(number))
    return folder


def measure(sides: dict[str, Side], one: Load, rounds: int) -> dict[str, float]:
    """Tokens a second of each side, after a round that warms up."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for at in range(rounds + 1):
        for name, side in sides.items():
            seconds = side(one)
            if at:
                times[name].append(seconds)
    return {name: len(one[0]) * NEW / statistics.median(told) for name, told in times.items()}


def ratios(speed: dict[str, dict[str, float]]) -> dict[str, float]:
    found = {}
    for load_, told in speed.items():
        best = max(value for name, value in told.items() if name.startswith("ours"))
        for name, value in told.items():
            if not name.startswith("ours"):
                found[f"{load_}: ours float32 / {name}"] = told["ours float32"] / value
                found[f"{load_}: best of ours / {name}"] = best / value
        bare = speed[load_.partition(",")[0] + ", base"]
        for name in ("ours float32", "ours bfloat16"):
            found[f"{load_}: {name} / base only"] = told[name] / bare[name]
    return found


# -------------------------------------------------------------------- sides


class Peft:
    """What PEFT's documentation has for batches of several adapters: padded on the left, `adapter_names` by row."""

    def __init__(self, folder: Path) -> None:
        self.pad, self.model = COMPUTE.submit(self._load, folder).result()

    def _load(self, folder: Path) -> tuple[int, Any]:
        model: Any = AutoModelForCausalLM.from_pretrained(locate(BASE), dtype=torch.float32)
        model = PeftModel.from_pretrained(model, folder / "0", adapter_name="0")
        for number in range(1, len(list(folder.iterdir()))):
            model.load_adapter(folder / str(number), adapter_name=str(number))
        return model.config.pad_token_id or 0, model.eval()

    def seconds(self, one: Load) -> float:
        ids, owners = one
        names = ["__base__" if owner < 0 else str(owner) for owner in owners]
        began = time.perf_counter()
        COMPUTE.submit(self.generate, ids, NEW, adapter_names=names).result()
        return time.perf_counter() - began

    def alone(self, ids: Sequence[int], number: int, new: int) -> list[int]:
        """Greedy tokens with one adapter active."""
        self.model.set_adapter(str(number))
        return self.generate([list(ids)], new)[0]

    def likeliest(self, ids: Sequence[int], number: int, answer: Sequence[int]) -> list[int]:
        """The token that is likeliest after the prompt and each beginning of an answer, by one pass over both: the
        greedy answer is the one whose own tokens these are."""
        self.model.set_adapter(str(number))
        with torch.inference_mode():
            logits = self.model(torch.tensor([[*ids, *answer[:-1]]]), logits_to_keep=len(answer)).logits
        told: list[int] = logits[0].argmax(-1).tolist()
        return told

    def generate(self, ids: Sequence[Sequence[int]], new: int, **names: Any) -> list[list[int]]:
        longest = max(map(len, ids))
        padded = torch.tensor([[self.pad] * (longest - len(one)) + list(one) for one in ids])
        mask = torch.tensor([[0] * (longest - len(one)) + [1] * len(one) for one in ids])
        with torch.inference_mode():
            found = self.model.generate(
                input_ids=padded,
                attention_mask=mask,
                do_sample=False,
                max_new_tokens=new,
                min_new_tokens=new,
                pad_token_id=self.pad,
                **names,
            )
        told: list[list[int]] = found[:, longest:].tolist()
        return told


class Ours:
    """The endpoint's writer over the engine's decoder, in one thread beside the event loop."""

    def __init__(self, folder: Path, dtype: Any) -> None:
        self.engine, self.slots = COMPUTE.submit(self._load, folder, dtype).result()
        self.words = self.engine.base.config.vocab_size

    def _load(self, folder: Path, dtype: Any) -> tuple[AdapterEngine, list[int]]:
        count = len(list(folder.iterdir()))
        engine = AdapterEngine(load_base(BaseSpec(model=BASE, dtype=dtype)), slots=count, max_rank=RANK)
        return engine, [engine.load(Adapter.load(folder / str(number))) for number in range(count)]

    def writer(self) -> Writer:
        return Writer(
            lambda: Decoder(self.engine, HeadSpec(HEAD, self.words), 32_768), COMPUTE, max(32, len(self.slots))
        )

    def ask(self, ids: Sequence[int], owner: int, new: int = NEW) -> Ask:
        return Ask(0 if owner < 0 else self.slots[owner], ids, Sampling(max_tokens=new), ())

    def seconds(self, one: Load) -> float:
        async def run() -> float:
            writer = self.writer()
            await said(writer, "warm", self.ask([5, 6], -1, 1))
            began = time.perf_counter()
            asks = [(str(owner), self.ask(ids, owner)) for ids, owner in zip(*one, strict=True)]
            await asyncio.gather(*(said(writer, key, ask) for key, ask in asks))
            return time.perf_counter() - began

        return asyncio.run(run())

    def firsts(self, count: int) -> dict[str, float]:
        """Milliseconds to the first token of 64-token prompts, of other adapters each, while 8 streams run."""
        times: list[float] = []

        async def run() -> None:
            writer, done = self.writer(), False

            async def stream(owner: int) -> None:
                while not done:
                    await said(writer, str(owner), self.ask(prompts(1, owner, 64)[0], owner))

            running = [asyncio.create_task(stream(owner)) for owner in range(8)]
            while writer.running < 8:
                await asyncio.sleep(0.01)
            for at, ids in enumerate(prompts(count, 99, 64)):
                began = time.perf_counter()
                async with writer.open("new", [self.ask(ids, 8 + at % 8)]) as joined:
                    await anext(joined)
                    times.append(1000 * (time.perf_counter() - began))
            done = True
            await asyncio.gather(*running)

        asyncio.run(run())
        times.sort()
        return {"p50": statistics.median(times), "p90": times[int(0.9 * (len(times) - 1))], "worst": times[-1]}

    def mixed(self, work: Sequence[tuple[list[int], int, int]]) -> list[list[int]]:
        """Greedy tokens of (prompt, adapter, tokens), 24 clients at a time; with every fifth another is given up."""

        async def run() -> list[list[int]]:
            found: list[list[int]] = [[] for _ in work]
            left = iter(enumerate(work))
            writer = self.writer()

            async def client() -> None:
                for at, (ids, owner, new) in left:
                    if at % 5 == 0:
                        async with writer.open(str(owner), [self.ask(ids, (owner + 1) % len(self.slots))]) as given_up:
                            await anext(given_up)
                    found[at] = await said(writer, str(owner), self.ask(ids, owner, new))

            await asyncio.gather(*(client() for _ in range(24)))
            return found

        return asyncio.run(run())


async def said(writer: Writer, key: str, ask: Ask) -> list[int]:
    async with writer.open(key, [ask]) as stream:
        return [written.token async for _, written in stream]


def compare(ours: Ours, theirs: Peft, count: int) -> dict[str, Any]:
    """How many of so many prompts have the tokens of their adapter alone; of the others the first. Every tenth is
    generated, the others are looked at in one pass."""
    dice = random.Random(11)
    work = [(ids, at % len(ours.slots), dice.randrange(8, 33)) for at, ids in enumerate(prompts(count, 11))]
    found, wrong = ours.mixed(work), []
    for at, (ids, owner, new) in enumerate(work):
        if at % 10 == 0:
            expected = COMPUTE.submit(theirs.alone, ids, owner, new).result()
        else:
            expected = COMPUTE.submit(theirs.likeliest, ids, owner, found[at]).result()
        if found[at] != expected or len(found[at]) != new:
            wrong.append({"prompt": at, "adapter": owner, "ours": found[at], "peft": expected})
        if at % 50 == 49:
            print(f"{at + 1} of {count} compared, {len(wrong)} differ", flush=True)
    return {"prompts": count, "tokens": sum(new for *_, new in work), "equal": count - len(wrong), "wrong": wrong[:3]}


def rival(name: str, python: str, folder: Path, loads: dict[str, Load], rounds: int, threads: int) -> dict[str, float]:
    """Tokens a second by load, as a process of another environment measures them; RuntimeError with its last words."""
    told = {"base": str(locate(BASE)), "folder": str(folder), "loads": loads, "new": NEW, "rounds": rounds}
    script = Path(__file__).with_name("generation_rivals.py")
    command = [python, str(script), name]
    done = subprocess.run(command, input=json.dumps(told | {"threads": threads}), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(" ".join(done.stderr.strip().splitlines()[-1:])[:500] or f"ended with {done.returncode}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    main()
