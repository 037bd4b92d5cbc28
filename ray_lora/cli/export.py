"""`ray-lora export`: stored adapters as a folder that runs without torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from ray_lora.cli.output import BaseOption, ColumnOption, JsonFlag, StoreOption, TrackingOption, answering, table
from ray_lora.cli.use import columns_of
from ray_lora.errors import RecipeError
from ray_lora.recipe import Json

if TYPE_CHECKING:
    from ray_lora.export.exporting import Format

_FORMATS = ("onnx", "executorch")


def export(
    refs: Annotated[
        list[str],
        typer.Argument(metavar="REF...", help="name, name@alias or name@3; several of one base and one task share."),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", help="A new folder; else NAME-onnx.", show_default=False)
    ] = None,
    format: Annotated[str, typer.Option("--format", help="onnx or executorch.")] = "onnx",
    merge: Annotated[bool, typer.Option("--merge", help="The adapter goes into the weights.")] = False,
    int8: Annotated[bool, typer.Option("--int8", help="The base's weights have 8 bits.")] = False,
    data: Annotated[
        str | None, typer.Option("--data", help="Rows to compare with PyTorch on: a file, a folder or a glob.")
    ] = None,
    column: ColumnOption = None,
    store: StoreOption = "./store",
    base: BaseOption = None,
    tracking_uri: TrackingOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Write adapters as a graph with a runner, for machines without torch; or one as a program for phones."""
    with answering(as_json) as say:
        if format not in _FORMATS:
            raise RecipeError(f"--format {format!r} is not known; give one of {', '.join(_FORMATS)}")
        folder = output or Path(f"{refs[0].partition('@')[0]}-{format}")
        from ray_lora.export.exporting import export_refs

        card = export_refs(
            refs, folder, merge=merge, int8=int8, format=cast("Format", format), data=data, columns=columns_of(column),
            store=store, base=base, tracking_uri=tracking_uri,
        )  # fmt: skip
        rows: list[list[Json]] = [
            [
                kind,
                found["bytes"],
                f"{found['parity']['largest']:.1e}",
                f"{found['parity']['same']:.1%}",
                found[f"{format}_ms"],
                found["pytorch_ms"],
                found.get("swap_ms"),
            ]
            for kind, found in card["figures"].items()
            if kind in ("float", "int8")
        ]
        head = ["graph", "bytes", "difference", "same answers", f"{format} ms", "pytorch ms", "swap ms"]
        sizes = [[name, size] for name, size in card["figures"]["adapter_bytes"].items()]
        said = f"{', '.join(refs)} in {folder}; {card['figures']['float']['parity']['rows']} rows were compared"
        adapters = [table(["adapter", "bytes"], sizes)] if sizes else []  # none where one is in the weights
        say({"folder": str(folder), **card}, table(head, rows), *adapters, said)
