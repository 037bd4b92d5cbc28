"""`ray-lora cache show|trim|clear`: the encoded rows that this machine keeps for later runs."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Annotated

import typer

from ray_lora.cli.output import JsonFlag, answering, new_group, table

app = new_group("The encoded rows that this machine keeps, so that later runs need not encode them again.")
_MB = 1e6


@app.command()
def show(as_json: JsonFlag = False) -> None:
    """What is kept, what was used last first."""
    with answering(as_json) as say:
        from ray_lora.data.row_cache import BOUND, RowCache, bound

        cache, most = RowCache(), bound()
        held = cache.held()
        total = sum(one.bytes for one in held)
        told = f"{cache.folder}: {total / _MB:,.1f} MB of at most {most / _MB:,.0f} ({BOUND})"
        rows = [
            [
                one.encoder,
                one.about,
                one.rows,
                round(one.bytes / _MB, 1),
                time.strftime("%F %T", time.localtime(one.used)),
            ]
            for one in held
        ]
        result = {"folder": str(cache.folder), "bytes": total, "bound": most, "encoders": [asdict(one) for one in held]}
        say(result, told, *([table(["encoder", "rows of", "rows", "MB", "last used"], rows)] if rows else []))


@app.command()
def trim(as_json: JsonFlag = False) -> None:
    """Remove what was not used for longest until the bound holds; runs make what they miss again."""
    with answering(as_json) as say:
        from ray_lora.data.row_cache import RowCache

        removed = RowCache().trim()
        say({"removed": removed}, f"removed {removed / _MB:,.1f} MB")


@app.command()
def clear(
    encoder: Annotated[
        str | None, typer.Argument(metavar="[ENCODER]", help="Only what this one made (its name may be cut).")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Remove all, or what one encoder made."""
    with answering(as_json) as say:
        from ray_lora.data.remembered import forget
        from ray_lora.data.row_cache import RowCache

        removed = RowCache().clear(encoder)
        if encoder is None:
            forget()
        say({"removed": removed}, f"removed {removed / _MB:,.1f} MB")
