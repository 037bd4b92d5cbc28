"""Commands that use stored adapters: evaluate, predict, serve."""

from __future__ import annotations

import json
import signal
import threading
from pathlib import Path
from typing import Annotated, Any

import typer

from ray_lora.cli.output import BaseOption, JsonFlag, StoreOption, TrackingOption, answering, scores, table
from ray_lora.errors import RecipeError, did_you_mean
from ray_lora.recipe import Json

Ref = Annotated[str, typer.Argument(metavar="REF", help="name, name@alias or name@3", show_default=False)]


def evaluate(
    ref: Ref,
    data: Annotated[str, typer.Option("--data", help="A file, a folder or a glob in quotes.", show_default=False)],
    column: Annotated[
        list[str] | None, typer.Option("--column", metavar="NAME=NAME", help="The task's column = the file's column.")
    ] = None,
    store: StoreOption = "./store",
    base: BaseOption = None,
    tracking_uri: TrackingOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Score an adapter on the rows of files."""
    with answering(as_json) as say:
        columns = dict(_pair(text, "--column text=review") for text in column or [])
        from ray_lora.inference.stored import evaluate_ref

        result = evaluate_ref(ref, data, store, columns, base=base, tracking_uri=tracking_uri)
        say(result, f"{result['ref']} on {result['rows']} rows of {data}: {scores(result['metrics'])}")


def predict(
    ref: Ref,
    value: Annotated[
        list[str] | None,
        typer.Option("--input", help="A text, an image file, a row as JSON; again for more.", show_default=False),
    ] = None,
    more: Annotated[
        list[str] | None, typer.Argument(metavar="[TEXT]...", help="More of them.", show_default=False)
    ] = None,
    input_file: Annotated[
        Path | None,
        typer.Option(
            "--input-file",
            help="A jsonl file with an input on each line, or a csv or parquet file.",
            show_default=False,
        ),
    ] = None,
    parameters: Annotated[
        str | None, typer.Option("--parameters", help='Of the Hugging Face pipeline, as JSON: {"top_k": 2}')
    ] = None,
    store: StoreOption = "./store",
    base: BaseOption = None,
    tracking_uri: TrackingOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Answer inputs with one adapter."""
    with answering(as_json) as say:
        inputs: list[Json] = [*(value or []), *(more or [])]
        if input_file is not None:
            from ray_lora.inference.stored import file_inputs

            inputs += file_inputs(ref, str(input_file), store, tracking_uri=tracking_uri)
        if not inputs:
            raise RecipeError("there is no input; give --input TEXT or --input-file rows.jsonl")
        options = _object(parameters) if parameters else None
        from ray_lora.inference.stored import predict_ref

        result = predict_ref(ref, inputs, store, options, base=base, tracking_uri=tracking_uri)
        rows = [
            [_short(given), json.dumps(answer)] for given, answer in zip(inputs, result["predictions"], strict=True)
        ]
        say(result, table(["input", f"{result['ref']} says"], rows))


def serve(
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="More settings of the endpoint: slots=64", show_default=False),
    ] = None,
    store: StoreOption = "./store",
    base: BaseOption = None,
    host: Annotated[str, typer.Option("--host")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port")] = 8000,
    tracking_uri: TrackingOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Serve every adapter of a store behind one endpoint, until interrupted; --json says its address once it
    answers."""
    more = dict(_pair(text, "slots=64") for text in settings or [])
    args = _app_args({"store": store, "base": base, "host": host, "port": port, "tracking_uri": tracking_uri, **more})
    from ray_lora.serving.cluster.app import run

    if not as_json:
        run(args)
        return
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    with answering(as_json, keep_ray=True) as say:
        say({"address": run(args, block=False), "store": args.store})
    ended.wait()
    _stop_serving()


def _stop_serving() -> None:
    import ray
    from ray import serve

    serve.shutdown()  # type: ignore[no-untyped-call,unused-ignore]
    ray.shutdown()


def _app_args(options: dict[str, Any]) -> Any:
    from pydantic import ValidationError

    from ray_lora.serving.args import AppArgs

    for key in options:
        if key not in AppArgs.model_fields:
            raise RecipeError(f"{key!r} is not a setting of the endpoint{did_you_mean(key, AppArgs.model_fields)}")
    try:
        return AppArgs.model_validate(options)
    except ValidationError as error:
        problems = (
            f"{problem['loc'][0]}: {problem['msg']} (given: {problem['input']!r})" for problem in error.errors()
        )
        raise RecipeError("\n".join(problems)) from None


def _pair(text: str, sample: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise RecipeError(f"{text!r} is not KEY=VALUE; write for example {sample}")
    return key, value


def _object(text: str) -> dict[str, Json]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise RecipeError(f"--parameters is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise RecipeError(f'--parameters is {text}; give an object such as {{"top_k": 2}}')
    return value


def _short(value: Json) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:59] + "…"
