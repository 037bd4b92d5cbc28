"""Adapters that write texts, over HTTP at a live endpoint: plain PEFT's greedy tokens, OpenAI's and Hugging Face's
clients as they are, clients that go away, limits."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from huggingface_hub import InferenceClient, constants
from huggingface_hub.errors import GenerationError

from ray_lora.serving.args import AppArgs
from ray_lora.serving.cluster.start import start_endpoint
from ray_lora.serving.gate import OverloadedError
from ray_lora.serving.http.routes import create_app
from tests.unit.http_server import serving
from tests.unit.writing_world import Alone, make_adapter, make_base

PROMPTS = [
    "the capital of Peru is",
    "who",
    "a river . a lake . the old city of Chad is a new city , who says yes , what is the lake , where is the river",
    "says no",
]
HELLO = [{"role": "system", "content": "says yes"}, {"role": "user", "content": "what is the capital of Mali"}]
NAMES = ("a", "b", "c", "base")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("writing")
    base = make_base(root / "base")
    for seed, name in enumerate("abc"):
        make_adapter(base, root / "store" / name, seed=seed, rank=2 + seed)
    return root


@pytest.fixture(scope="module")
def alone(world: Path) -> dict[str, Alone]:
    return {name: Alone(world / "base", None if name == "base" else world / "store" / name) for name in NAMES}


@pytest.fixture(scope="module")
def address(world: Path) -> Iterator[str]:
    with serving(world, prompt_tokens=7, writing_rows=8, slots=3) as address:
        yield address


@pytest.fixture
def client(address: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none needed", max_retries=0) as client:
        yield client


def test_a_mixed_batch_has_the_tokens_of_each_adapter_alone(client: openai.OpenAI, alone: dict[str, Alone]) -> None:
    """More requests than rows, prompts read in pieces, some streamed, some given up."""

    def ask(number: int) -> str | None:
        name, prompt = NAMES[number % 4], PROMPTS[number // 4 % 4]
        told: dict[str, Any] = {"model": name, "prompt": prompt, "max_tokens": 4 + number % 9, "temperature": 0}
        if number % 3 == 0:
            return client.completions.create(**told).choices[0].text
        text = ""
        for at, event in enumerate(stream := client.completions.create(**told, stream=True)):
            text += event.choices[0].text
            if number % 7 == 5 and at == 1:
                stream.close()
                return None
        return text

    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(ask, range(48)))
    assert found.count(None) < 8
    for number, text in enumerate(found):
        expected = alone[NAMES[number % 4]].text(PROMPTS[number // 4 % 4], 4 + number % 9)
        assert text in (None, expected), number
    assert len({*found}) > 16


def test_openai_completions(client: openai.OpenAI, alone: dict[str, Alone], world: Path) -> None:
    answer = client.completions.create(
        model="a", prompt=PROMPTS[:2], max_tokens=5, temperature=0, logprobs=3, user="u", extra_body={"top_k": 0}
    )
    assert [choice.text for choice in answer.choices] == [alone["a"].text(prompt, 5) for prompt in PROMPTS[:2]]
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (6, 10)
    told = answer.choices[0].logprobs
    assert told is not None
    assert told.token_logprobs == [max(best.values()) for best in told.top_logprobs or []]
    assert "".join(told.tokens or []).replace("[UNK]", "") == answer.choices[0].text
    assert [choice.finish_reason for choice in answer.choices] == ["length", "length"]
    extra = answer.model_extra or {}
    assert extra["version"] == 1
    assert answer.system_fingerprint is not None
    assert answer.system_fingerprint.endswith(extra["sha256"][:12])
    drawn = [
        client.completions.create(model="a", prompt="who", n=3, seed=seed, temperature=2, max_tokens=8).choices
        for seed in (1, 1, 2)
    ]
    texts = [[choice.text for choice in choices] for choices in drawn]
    assert texts[0] == texts[1] != texts[2]
    assert len(set(texts[0])) == 3
    same = client.completions.create(model="a", prompt="who", n=3, temperature=0, max_tokens=8)
    assert [choice.text for choice in same.choices] == [alone["a"].text("who", 8)] * 3
    assert same.usage is not None
    assert same.usage.completion_tokens == 24


def test_openai_chats_and_streams(client: openai.OpenAI, alone: dict[str, Alone]) -> None:
    expected = alone["b"].chat(HELLO, 7)
    told: dict[str, Any] = {"model": "b", "messages": HELLO, "max_completion_tokens": 7, "temperature": 0}
    whole = client.chat.completions.create(**told, logprobs=True, top_logprobs=2)
    assert whole.choices[0].message.content == expected
    assert whole.choices[0].message.role == "assistant"
    logprobs = whole.choices[0].logprobs
    assert logprobs is not None
    assert [len(one.top_logprobs) for one in logprobs.content or []] == [2] * 7
    events = list(client.chat.completions.create(**told, stream=True, stream_options={"include_usage": True}))
    assert "".join(event.choices[0].delta.content or "" for event in events[:-1]) == expected
    assert events[0].choices[0].delta.role == "assistant"
    assert [event.choices[0].finish_reason for event in events[:-1]] == [None] * (len(events) - 2) + ["length"]
    assert events[-1].choices == []
    assert events[-1].usage == whole.usage
    marks = {(event.id, event.system_fingerprint, *sorted((event.model_extra or {}).items())) for event in events}
    assert len(marks) == 1
    assert whole.model_extra is not None
    assert (events[0].model_extra or {})["sha256"] == whole.model_extra["sha256"]
    parts = [{"role": "user", "content": [{"type": "text", "text": "who "}, {"type": "text", "text": "says"}]}]
    same = [{"role": "user", "content": "who says"}]
    asked: dict[str, Any] = {"model": "b", "max_tokens": 4, "temperature": 0}
    found = client.chat.completions.create(messages=parts, **asked).choices[0].message.content  # type: ignore[arg-type]
    assert found == alone["b"].chat(same, 4)


def test_a_text_that_stops_an_answer_is_found_across_tokens(client: openai.OpenAI, alone: dict[str, Alone]) -> None:
    text = alone["a"].text(PROMPTS[0], 12)
    stop = text[10:19]
    asked: dict[str, Any] = {"model": "a", "prompt": PROMPTS[0], "max_tokens": 12, "temperature": 0, "stop": [stop]}
    answer = client.completions.create(**asked)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == (text[: text.index(stop)], "stop")
    assert answer.usage is not None
    assert answer.usage.completion_tokens < 12
    events = list(client.completions.create(**asked, stream=True))
    assert "".join(event.choices[0].text for event in events) == text[: text.index(stop)]
    assert events[-1].choices[0].finish_reason == "stop"
    ended = client.completions.create(model="base", prompt=PROMPTS[0], max_tokens=12, temperature=0)
    assert (ended.choices[0].text, ended.choices[0].finish_reason) == (alone["base"].text(PROMPTS[0], 12), "stop")


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ({"temperature": 2.5}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"n": 17}, "n 17"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"logprobs": 21}, "logprobs"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"seed": 0.5}, "seed"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"best_of": 2}, "best_of"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "empty list"),
        ({"prompt": "the " * 70}, "64 at most"),
        ({"model": None}, "no adapter"),
    ],
)
def test_what_is_wrong_is_refused_by_name(address: str, told: dict[str, Any], why: str) -> None:
    response = httpx.post(f"{address}/v1/completions", json={"model": "a", "prompt": "who", **told}, timeout=None)
    error = response.json()["error"]
    assert response.status_code == 400, response.text
    assert set(error) == {"message", "type", "param", "code"}
    assert why in error["message"]


def test_a_chat_that_is_wrong_is_refused(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "a", "max_tokens": 2}
    for messages, why in [
        ([], "no messages"),
        ([*HELLO, {"role": "assistant", "content": "yes"}], "the last message"),
        ([{"role": "tool", "content": "a"}], "role"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}], "list of parts"),
    ]:
        with pytest.raises(openai.BadRequestError, match=why):
            client.chat.completions.create(messages=messages, **asked)  # type: ignore[arg-type]
    for more, why in [
        ({"max_completion_tokens": 2}, "two names"),
        ({"top_logprobs": 2}, "logprobs: true"),
        ({"tools": [], "tool_choice": "none"}, "tool"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
    ]:
        with pytest.raises(openai.BadRequestError, match=why):
            client.chat.completions.create(messages=HELLO, **asked, **more)  # type: ignore[call-overload]
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(messages=HELLO, model="nobody")  # type: ignore[arg-type]


def test_hugging_face_s_client(address: str, alone: dict[str, Alone], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # its client asks nobody while this is set
    client = InferenceClient(model=f"{address}/models/c")
    expected = alone["c"].text("who", 6)
    assert client.text_generation("who", max_new_tokens=6) == expected
    assert client.text_generation("who", max_new_tokens=6, return_full_text=True, do_sample=False) == f"who{expected}"
    whole = client.text_generation("who", max_new_tokens=6, details=True, top_n_tokens=2)
    assert whole.details is not None
    assert (whole.details.finish_reason, whole.details.generated_tokens) == ("length", 6)
    best: Any = (whole.details.top_tokens or [])[0]  # which the client leaves as they came
    assert whole.details.tokens[0].logprob == max(one["logprob"] for one in best)
    assert "".join(client.text_generation("who", max_new_tokens=6, stream=True)) == expected
    events = list(client.text_generation("who", max_new_tokens=6, stream=True, details=True))
    assert events[-1].generated_text == expected
    assert events[-1].details is not None
    assert events[-1].details.finish_reason == "length"
    drawn = client.text_generation("who", max_new_tokens=6, temperature=1.5, seed=3, stop=["zzz"])
    assert drawn == client.text_generation("who", max_new_tokens=6, temperature=1.5, seed=3)
    both = httpx.post(
        f"{address}/models/c", json={"inputs": ["who", "a"], "parameters": {"max_new_tokens": 3}}, timeout=None
    )
    assert [one["generated_text"] for one in both.json()] == [alone["c"].text(text, 3) for text in ("who", "a")]
    assert both.headers["x-adapter"] == "c@1"
    for parameters in ({"typical_p": 0.5}, {"do_sample": False, "top_k": 3}, {"best_of": 2}, {"details": "yes"}):
        body = {"inputs": "who", "parameters": parameters}
        assert httpx.post(f"{address}/models/c", json=body, timeout=None).status_code == 400, parameters
    chat = InferenceClient(base_url=f"{address}/v1").chat_completion(HELLO, model="c", max_tokens=5, temperature=0)
    assert chat.choices[0].message.content == alone["c"].chat(HELLO, 5)


def test_a_client_that_goes_away_frees_its_rows(address: str) -> None:
    async def main() -> None:
        async with httpx.AsyncClient(base_url=address, timeout=None) as client:
            before = (await client.get("/v1/status")).json()["writing"]["tokens"]
            told = {"model": "a", "prompt": ["says"] * 4, "max_tokens": 60, "temperature": 2, "n": 2, "stop": "zzz"}
            gone = [asyncio.create_task(client.post("/v1/completions", json=told | {"seed": at})) for at in range(4)]
            async with client.stream("POST", "/v1/completions", json=told | {"stream": True}) as stream:
                async for line in stream.aiter_lines():
                    if line.startswith("data"):
                        break
            for task in gone:
                task.cancel()
            await asyncio.gather(*gone, return_exceptions=True)
            while True:
                status = (await client.get("/v1/status")).json()
                busy = status["answers_written"], status["answers_waiting"], status["rows_inside"]
                if busy == (0, 0, 0) and not any(one["leases"] for one in status["residents"]):
                    break
            assert status["writing"]["tokens"] - before < 5 * 8 * 60

    asyncio.run(main())


@pytest.mark.parametrize("stream", [False, True])
def test_the_step_in_which_a_client_goes_away_is_its_last(world: Path, stream: bool) -> None:
    async def main() -> None:
        folders = {name: str(world / name) for name in ("store", "base", "results")}
        endpoint, loop = start_endpoint(AppArgs(**folders, dtype="float32", slots=2)), asyncio.get_running_loop()
        app, gone, go_on, taken = create_app(endpoint), asyncio.Event(), threading.Event(), [0]
        told = {"model": "a", "prompt": PROMPTS[0], "max_tokens": 12, "temperature": 0, "stream": stream}
        bodies = [json.dumps(told | {"stop": ["zzz"]}).encode()]

        async def receive() -> dict[str, Any]:
            if bodies:
                return {"type": "http.request", "body": bodies.pop()}
            await gone.wait()
            return {"type": "http.disconnect"}

        async def leave() -> None:
            gone.set()
            for _ in range(50):  # of the event loop's turns, in which it hears of it
                await asyncio.sleep(0)
            go_on.set()

        decoder = await asyncio.wrap_future(endpoint.machine.thread.submit(endpoint.machine.decoder, 1000, 7))
        real = decoder.step

        def step(only: Any = None) -> Any:
            taken[0] += 1
            if taken[0] == 4:
                asyncio.run_coroutine_threadsafe(leave(), loop)
                go_on.wait()
            return real(only)

        decoder.step = step  # type: ignore[method-assign]
        endpoint.speaker.writer._turns._steps = decoder
        scope = {"type": "http", "method": "POST", "path": "/v1/completions", "query_string": b"", "root_path": ""}
        headers = [(b"content-type", b"application/json")]
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        await app(scope | {"headers": headers, "state": {}}, receive, send)
        await asyncio.wrap_future(endpoint.machine.thread.submit(int))
        assert taken == [4]
        assert (decoder.rows, decoder.kept, endpoint.speaker.writer.running, endpoint.gate.inside) == ([], 0, 0, 0)
        assert not any(resident.leases for resident in endpoint.cache.residents())
        assert sent[0]["status"] == (200 if stream else 499)
        await endpoint.close()

    asyncio.run(main())


def test_limits_are_said_before_an_answer_and_within_one(world: Path) -> None:
    async def main() -> None:
        folders = {name: str(world / name) for name in ("store", "base", "results")}
        args = AppArgs(**folders, dtype="float32", slots=2, max_waiting_per_adapter=3, max_inputs=9)
        endpoint, loop = start_endpoint(args), asyncio.get_running_loop()
        writer, go_on, steps_left = endpoint.speaker.writer, threading.Event(), [10**9]
        transport = httpx.ASGITransport(create_app(endpoint), raise_app_exceptions=False)
        told: dict[str, Any] = {"model": "a", "prompt": PROMPTS[0], "temperature": 0, "max_tokens": 2}
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=None) as client:
            assert (await client.post("/v1/completions", json=told)).status_code == 200
            with endpoint.gate.enter("a", 3):
                refused = await client.post("/v1/completions", json=told)
                assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
            many = await client.post("/v1/completions", json=told | {"prompt": ["who"] * 10})
            assert many.status_code == 413
            steps = writer._turns._steps
            assert steps is not None
            real = steps.step

            def fail() -> None:
                for stream in list(writer._streams):
                    stream.fail(OverloadedError("late"))
                go_on.set()

            def held(only: Any = None) -> Any:
                steps_left[0] -= 1
                if steps_left[0] == 0:
                    loop.call_soon_threadsafe(fail)
                if steps_left[0] <= 0:
                    go_on.wait()
                return real(only)

            steps.step = held  # type: ignore[method-assign]
            steps_left[0] = 4
            poured = await client.post("/v1/completions", json=told | {"max_tokens": 9, "stream": True})
            events = [line[6:] for line in poured.text.splitlines() if line]
            assert (poured.status_code, len(events) > 1) == (200, True)
            assert json.loads(events[-1])["error"]["code"] == "overloaded"
            go_on.clear()
            steps_left[0] = 4
            asked = {"inputs": PROMPTS[0], "stream": True, "parameters": {"max_new_tokens": 9}}
            hub = await client.post("/models/a", json=asked)
            assert json.loads(hub.text.splitlines()[-2][6:]) == {"error": "late", "error_type": "generation"}
            for limit, why in [("deadline_s", "no token within"), ("writing_s", "did not end within")]:
                go_on.clear()
                endpoint.args = args.model_copy(update={limit: 0.2})
                for stream in (False, True):
                    late = await client.post("/v1/completions", json=told | {"stream": stream})
                    assert (late.status_code, late.headers["retry-after"]) == (503, "1")
                    assert why in late.json()["error"]["message"]
                go_on.set()
            assert (endpoint.gate.inside, writer.running, writer._streams) == (0, 0, set())
        await endpoint.close()

    asyncio.run(main())


def test_a_key_s_own_limits(world: Path, tmp_path: Path) -> None:
    """One key may have three answers in the making, another little time; a third has no limit."""
    few, short, free = ({"x-api-key": key} for key in ("few", "short", "free"))
    (tmp_path / "keys").write_text("- {key: few, writing_answers: 3}\n- {key: short, writing_s: 0.2}\n- {key: free}\n")

    async def main() -> None:
        folders = {name: str(world / name) for name in ("store", "base", "results")}
        endpoint = start_endpoint(AppArgs(**folders, dtype="float32", slots=2, keys=str(tmp_path / "keys")))
        limits, writer = endpoint.speaker.limits, endpoint.speaker.writer
        transport = httpx.ASGITransport(create_app(endpoint), raise_app_exceptions=False)
        told: dict[str, Any] = {"model": "a", "prompt": PROMPTS[0], "temperature": 0, "max_tokens": 4}
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=None) as client:

            async def ask(headers: Any, **more: Any) -> httpx.Response:
                return await client.post("/v1/completions", json=told | more, headers=headers)

            assert (await ask(few, n=5)).status_code == 200  # who has none in the making gets any number
            steps: Any = writer._turns._steps
            real, go_on = steps.step, threading.Event()

            def held(only: Any = None) -> Any:
                go_on.wait()
                return real(only)

            steps.step = held
            waiting = asyncio.create_task(ask(few, n=2))
            while not limits.inside_of["few"]:
                await asyncio.sleep(0)
            chat = {"model": "a", "messages": HELLO, "n": 2}
            hub = {"inputs": ["who", "who"], "parameters": {"max_new_tokens": 2}}
            for route, body in [
                ("/v1/completions", told | {"n": 2}),
                ("/v1/chat/completions", chat),
                ("/models/a", hub),
            ]:
                refused = await client.post(route, json=body, headers=few)
                assert (refused.status_code, refused.headers["retry-after"]) == (429, "1"), route
                assert refused.json()["error"]["code"] == "rate_limited"
                assert "limit 3" in refused.json()["error"]["message"]
            others = [asyncio.create_task(ask(headers)) for headers in (few, free, free)]
            late = await ask(short)
            assert (late.status_code, late.json()["error"]["code"]) == (503, "overloaded")
            assert "within 0.2 s" in late.json()["error"]["message"]
            assert limits.inside_of == {"few": 3, "free": 2}
            go_on.set()
            assert [(await task).status_code for task in (waiting, *others)] == [200] * 4
            assert (limits.inside_of, endpoint.gate.inside, writer.running) == ({}, 0, 0)
        await endpoint.close()

    asyncio.run(main())


def test_a_client_of_hugging_face_s_hears_of_an_answer_that_was_given_up() -> None:
    from huggingface_hub.inference._common import _format_text_generation_stream_output

    with pytest.raises(GenerationError, match="late"):
        _format_text_generation_stream_output('data: {"error": "late", "error_type": "generation"}', False)
