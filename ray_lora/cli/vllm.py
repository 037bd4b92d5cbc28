"""`ray-lora adapters vllm`: the adapters that write texts, handed to Ray's own app for language models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
import yaml

from ray_lora.cli.output import JsonFlag, StoreOption, TrackingOption, answering, table
from ray_lora.errors import RecipeError
from ray_lora.recipe import BaseSpec


def vllm(
    place: Annotated[str, typer.Argument(metavar="PLACE", help="Where they are copied to: s3://bucket/path")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A new YAML file for `serve deploy`.")],
    base: Annotated[str, typer.Option("--base", help="Their base: a packaged base, a hub id or a folder.")],
    source: Annotated[
        str | None, typer.Option("--source", help="Where vLLM finds the base, if not under that name.")
    ] = None,
    ref: Annotated[list[str] | None, typer.Option("--ref", help="Only these; may be given again.")] = None,
    accelerator: Annotated[str | None, typer.Option("--accelerator", help="Ray's name of the GPU, such as L4.")] = None,
    store: StoreOption = "./store",
    tracking_uri: TrackingOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Copy adapters that write texts to a bucket, and write how Ray's own app for language models serves them."""
    with answering(as_json) as say:
        if file.exists():
            raise RecipeError(f"{str(file)!r} exists; give another file, or remove it first")
        from ray_lora.bases.load import describe_base
        from ray_lora.serving.vllm import hand_over
        from ray_lora.store import open_store

        found = describe_base(BaseSpec(model=base))
        handed = hand_over(open_store(store, tracking_uri), found, place, source, ref or (), accelerator)
        file.write_text(yaml.safe_dump(handed.config, sort_keys=False))
        rows = [[entry.ref, name, "handed over"] for name, entry in handed.models.items()]
        rows += [[left, "", why] for left, why in handed.left.items()]
        told = {"file": str(file), "models": {n: e.ref for n, e in handed.models.items()}, "left": handed.left}
        say(told, table(["adapter", "model", ""], rows), f"serve deploy {file}")
