"""Commands that use stored adapters: evaluate, predict, serve."""

from __future__ import annotations

import json
import signal
import threading
from pathlib import Path
from typing import Annotated, Any

import typer

from ray_lora.cli.output import (
    BaseOption,
    ColumnOption,
    JsonFlag,
    StoreOption,
    TrackingOption,
    answering,
    scores,
    table,
)
from ray_lora.cli.results import answered, comparison
from ray_lora.errors import RecipeError, did_you_mean
from ray_lora.recipe import Json
from ray_lora.uncollected import uncollected

Ref = Annotated[str, typer.Argument(metavar="REF", help="name, name@alias or name@3", show_default=False)]


def evaluate(
    refs: Annotated[
        list[str], typer.Argument(metavar="REF...", help="name, name@alias or name@3; several are compared.")
    ],
    data: Annotated[
        list[str],
        typer.Option("--data", help="A parquet, csv or jsonl file, a folder or a glob; again for more."),
    ],
    by: Annotated[
        str | None, typer.Option("--by", metavar="COLUMN", help="Score the rows of each of its values too.")
    ] = None,
    column: ColumnOption = None,
    store: StoreOption = "./store",
    base: BaseOption = None,
    tracking_uri: TrackingOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Score an adapter on rows, or compare several on the same rows."""
    with answering(as_json) as say:
        columns = columns_of(column)
        if len(refs) > 1 or by is not None or len(data) > 1:
            with uncollected():
                from ray_lora.inference.comparing import compare

            result = compare(refs, data, store, columns, by=by, base=base, tracking_uri=tracking_uri)
            say(result, *comparison(result))
            return
        with uncollected():
            from ray_lora.inference.stored import evaluate_ref

        result = evaluate_ref(refs[0], data[0], store, columns, base=base, tracking_uri=tracking_uri)
        say(result, f"{result['ref']} on {result['rows']} rows of {data[0]}: {scores(result['metrics'])}")


def predict(
    ref: Annotated[
        str | None, typer.Argument(metavar="[REF]", help="name, name@alias or name@3.", show_default=False)
    ] = None,
    more: Annotated[
        list[str] | None, typer.Argument(metavar="[TEXT]...", help="More inputs.", show_default=False)
    ] = None,
    value: Annotated[
        list[str] | None,
        typer.Option("--input", help="A text, an image file, a row as JSON; again for more.", show_default=False),
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
    data: Annotated[
        list[str] | None,
        typer.Option("--data", help="Answer all rows of a file, a folder or a glob, with Ray Data; again for more."),
    ] = None,
    adapter_column: Annotated[
        str | None, typer.Option("--adapter-column", help="With --data: the column that names each row's adapter.")
    ] = None,
    output: Annotated[
        str | None, typer.Option("--output", help="With --data: the folder of answers; the same command goes on.")
    ] = None,
    format: Annotated[str, typer.Option("--format", help="With --data: parquet or jsonl.")] = "parquet",
    column: Annotated[
        list[str] | None,
        typer.Option("--column", metavar="NAME=NAME", help="With --data: the task's column = the files' column."),
    ] = None,
    prefix: Annotated[str, typer.Option("--prefix", help="With --data: of the new columns' names.")] = "",
    max_errors: Annotated[
        int | None, typer.Option("--max-errors", help="With --data: rows that may have errors; else 1 %, at least 100.")
    ] = None,
    slots: Annotated[int, typer.Option("--slots", help="With --data: adapters in the engine at once.")] = 32,
    workers: Annotated[
        int | None, typer.Option("--workers", help="With --data: actors at most; else one for each CPU.")
    ] = None,
    gpu: Annotated[bool, typer.Option("--gpu", help="With --data: each actor has a GPU.")] = False,
    store: StoreOption = "./store",
    base: BaseOption = None,
    tracking_uri: TrackingOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Answer inputs with one adapter, or all rows of files, each with the adapter that it names."""
    with answering(as_json) as say:
        options = _object(parameters) if parameters else None
        if data:
            if value or more or input_file:
                raise RecipeError("--data answers files; leave the other inputs out")
            from ray_lora.running.answer_plan import asked_for
            from ray_lora.running.answers import answer_files

            wanted = asked_for(
                data, output, ref, adapter_column, store=store, base=base, columns=columns_of(column),
                parameters=options, prefix=prefix, format=format, tracking_uri=tracking_uri,
            )  # fmt: skip
            result = answer_files(wanted, workers=workers, gpu=gpu, slots=slots, max_errors=max_errors)
            say(result, *answered(result))
            return
        if adapter_column or output or column:
            raise RecipeError("--adapter-column, --output and --column go with --data; give --data PATH too")
        if ref is None:
            raise RecipeError("no adapter is named; give its ref, or --data with --adapter-column")
        inputs: list[Json] = [*(value or []), *(more or [])]
        if input_file is not None:
            from ray_lora.inference.stored import file_inputs

            inputs += file_inputs(ref, str(input_file), store, tracking_uri=tracking_uri)
        if not inputs:
            raise RecipeError("there is no input; give --input TEXT or --input-file rows.jsonl")
        with uncollected():
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
    _stop_serving(args.deadline_s)


def _stop_serving(within_s: float) -> None:
    import ray
    from ray import serve

    from ray_lora.serving.cluster.draining import drain

    drain(within_s)
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


def columns_of(given: list[str] | None) -> dict[str, str]:
    """What `--column` says: the task's column -> the file's column."""
    return dict(_pair(text, "--column text=review") for text in given or [])


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
