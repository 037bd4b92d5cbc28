"""`ray-lora explain`: what adapters change, what their layers are worth, who is like them, what answers follow from."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from ray_lora.cli.output import BaseOption, ColumnOption, JsonFlag, StoreOption, answering, table
from ray_lora.cli.use import columns_of
from ray_lora.recipe import Json

_LAYERS, _TOKENS = 40, 12  # shown; --json has all


def explain(
    refs: Annotated[list[str], typer.Argument(metavar="REF...", help="name, name@alias or name@3.")],
    data: Annotated[
        list[str] | None, typer.Option("--data", help="Rows that score the adapter without each layer; again for more.")
    ] = None,
    value: Annotated[
        list[str] | None,
        typer.Option("--input", help="A text, an image file, a row as JSON, to be attributed; again for more."),
    ] = None,
    output: Annotated[str | None, typer.Option("--output", help="A folder for the page, the plots and JSON.")] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the figures in the store, for the endpoint's page; no input is kept.")
    ] = False,
    column: ColumnOption = None,
    store: StoreOption = "./store",
    base: BaseOption = None,
    tracking_uri: Annotated[
        str | None, typer.Option("--tracking-uri", help="An MLflow server that keeps the page and the plots in a run.")
    ] = None,
    experiment: Annotated[str, typer.Option("--experiment", help="MLflow's, of that run.")] = "explain",
    as_json: JsonFlag = False,
) -> None:
    """Say what adapters change, what each layer is worth, who is like them, and what answers follow from."""
    with answering(as_json) as say:
        columns = columns_of(column)
        from ray_lora.explain import explain as explain_refs

        with tempfile.TemporaryDirectory(prefix="ray-lora-") as temporary:
            folder = output or (temporary if tracking_uri else None)
            result = explain_refs(
                refs, store, data=data, inputs=value or [], columns=columns, base=base, tracking_uri=tracking_uri,
                output=folder, keep=keep,
            )  # fmt: skip
            if tracking_uri is not None and folder is not None:
                _log(result, Path(folder), tracking_uri, experiment)
        if output is None:
            result["files"] = []
        lines = [line for adapter in result["adapters"] for line in _shown(adapter)]
        say(result, *lines, f"written: {result['files'][0]}" if output else "--output FOLDER writes a page and plots")


def _log(result: dict[str, Any], folder: Path, uri: str, experiment: str) -> None:
    """One run with the page, the plots, the JSON and the main figures."""
    from ray_lora.tracking import Tracker

    refs = [adapter["ref"] for adapter in result["adapters"]]
    tracker = Tracker(uri, experiment)
    try:
        hashes = ",".join(adapter["sha256"] for adapter in result["adapters"])
        told = f"explain|{hashes}|{result['data']}|{result['rows']}"
        tracker.open_run(told, f"explain {', '.join(refs)}", {"refs": ",".join(refs), "data": result["data"] or ""}, {})
        for adapter in result["adapters"]:
            name = adapter["ref"].replace("@", ".")
            if adapter["reliability"]:
                tracker.log("", 0, {f"{name}.ece": adapter["reliability"]["ece"]})
            if adapter["switched_off"]:
                off = adapter["switched_off"]
                tracker.log("", 0, {f"{name}.{off['metric']}": off["full"]["value"]})
        for file in result["files"]:
            tracker.log_artifact(Path(file), "explain")
        tracker.finish_parent("FINISHED")
    finally:
        tracker.close()


def _shown(told: dict[str, Any]) -> Iterator[Any]:
    """One adapter, as people read it."""
    off = told["switched_off"]
    lost = {layer: group for group in off["groups"] for layer in group["layers"]} if off else {}
    yield f"{told['ref']}: {told['task'] or 'no task'} on {told['base']}, {told['parameters']:,} numbers"
    columns = ["layer", "rank", "change", "of the weight", "effective rank", "share"]
    rows: list[list[Json]] = []
    for layer in told["layers"][:_LAYERS]:
        row = [layer[key] for key in ("layer", "rank", "norm", "relative", "effective_rank", "share")]
        group = lost.get(layer["layer"])
        rows.append([*row, *((_interval(group["drop"]), _mark(group)) if group else ())])
    yield table([*columns, f"{off['metric']} lost without it", ""] if off else columns, rows)
    if len(told["layers"]) > _LAYERS:
        yield f"and {len(told['layers']) - _LAYERS:,} more layers; --json has all"
    if off:
        yield (
            f"{off['metric']} on {off['rows']:,} rows: {_interval(off['full'])} with all changes, "
            f"{off['bare']['score']['value']:.4f} with none"
        )
        yield f"{len(off['could_go'])} of {len(told['layers'])} layers could go, each by itself"
        if off["together"]:
            rows = [
                [part["name"], len(part["layers"]), part["score"]["value"], _interval(part["drop"]), _mark(part)]
                for part in off["together"]
            ]
            yield table(["of them", "layers", off["metric"], "lost", ""], rows)
    near = told["nearest"]
    if near["near"]:
        yield table(
            ["nearest adapters", "task", "alike", "reads", "writes", "by chance"],
            [
                [one["ref"], one["task"], *(one["likeness"][key] for key in ("value", "reads", "writes", "chance"))]
                for one in near["near"]
            ],
        )
    yield f"{near['read']} other adapters of this base were compared, {near['left']} were not read"
    if told["reliability"]:
        temperature = told["temperature"]
        yield (
            f"expected calibration error {told['reliability']['ece']:.4f}, temperature "
            f"{'none' if temperature is None else f'{temperature:.3g}'}"
        )
    for row in told["attributions"]:
        yield from _attribution(row)
    for part, why in told["left_out"].items():
        yield f"{part.replace('_', ' ')} left out: {why}"


def _attribution(row: dict[str, Any]) -> Iterator[Any]:
    ways = [row[side] for side in ("adapter", "base")]
    yield f"{row['input']}: {row['target']}"
    if row["tokens"] is not None:
        order = sorted(range(len(row["tokens"])), key=lambda place: -abs(ways[0]["values"][place]))[:_TOKENS]
        yield table(
            ["token", "the adapter", f"the base ({ways[1]['head']} head)"],
            [[row["tokens"][place], *(way["values"][place] for way in ways)] for place in order],
        )
    for side, way in zip(("adapter", "base"), ways, strict=True):
        yield (
            f"  {side}: output {way['output']:.4f}, at the baseline {way['baseline']:.4f}; the values lack "
            f"{way['gap']:.2g} of the difference ({way['steps']} steps)"
        )


def _mark(off: dict[str, Any]) -> str:
    return "could go" if off["could_go"] else ""


def _interval(told: dict[str, float]) -> str:
    return f"{told['value']:.4f} ({told['low']:.4f} to {told['high']:.4f})"
