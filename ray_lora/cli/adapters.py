"""`ray-lora adapters`: what a store holds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from ray_lora.cli.output import JsonFlag, StoreOption, TrackingOption, answering, new_group, scores, table
from ray_lora.cli.use import Ref
from ray_lora.errors import AdapterError, RecipeError
from ray_lora.recipe import Json

app = new_group("List, show, alias, import, export and remove the adapters of a store.")


@app.command("list")
def list_(
    name: Annotated[str | None, typer.Argument(help="Only this one's versions.", show_default=False)] = None,
    store: StoreOption = "./store",
    tracking_uri: TrackingOption = None,
    people: Annotated[bool, typer.Option("--people", help="With the adapters of single persons.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Every version of every adapter, but for single persons'."""
    with answering(as_json) as say:
        entries = _open(store, tracking_uri).list(name, people or name is not None)
        columns = ["name", "version", "aliases", "task", "base", "num_parameters", "bytes", "metrics"]
        rows = [[*map(_summary(entry).get, columns)] for entry in entries]
        text = table(columns, rows) if rows else f"the store {store!r} holds no adapters"
        say({"adapters": [_plain(entry) for entry in entries]}, text)


@app.command()
def show(
    ref: Ref, store: StoreOption = "./store", tracking_uri: TrackingOption = None, as_json: JsonFlag = False
) -> None:
    """What the store knows about one adapter."""
    with answering(as_json) as say:
        entry = _open(store, tracking_uri).resolve(ref)
        result = _plain(entry)
        say(result, table(["", entry.ref], [[key, str(value)] for key, value in result.items()]))


@app.command()
def alias(
    ref: Annotated[str, typer.Argument(metavar="REF", help="The version to point at: name@3", show_default=False)],
    alias: Annotated[str, typer.Argument(metavar="ALIAS", help="For example champion.", show_default=False)],
    remove: Annotated[bool, typer.Option("--remove", help="Take the alias away instead.")] = False,
    store: StoreOption = "./store",
    tracking_uri: TrackingOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Point an alias at a version, or take it away."""
    with answering(as_json) as say:
        opened = _open(store, tracking_uri)
        entry = opened.resolve(ref)
        opened.alias(entry.name, alias, None if remove else entry.version)
        done = f"{entry.name}@{alias} is gone" if remove else f"{entry.name}@{alias} is version {entry.version}"
        say({"name": entry.name, "alias": alias, "version": None if remove else entry.version}, done)


@app.command("import")
def import_(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A PEFT LoRA folder.", show_default=False)],
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Its name; the folder's when left out.", show_default=False)
    ] = None,
    alias: Annotated[list[str] | None, typer.Option("--alias", help="An alias of the new version.")] = None,
    base: Annotated[
        str | None, typer.Option("--base", help="Its base: the adapter is tried on it, and the card keeps it.")
    ] = None,
    rebase: Annotated[
        bool, typer.Option("--rebase", help="--base is right although the adapter names another base.")
    ] = False,
    task: Annotated[
        list[str] | None,
        typer.Option("--task", help="Its task: a type, KEY=VALUE (labels=[no,yes]) or JSON; may be given again."),
    ] = None,
    if_version: Annotated[
        int | None, typer.Option("--if-version", min=0, help="Only where this is the newest version; 0: none is there.")
    ] = None,
    store: StoreOption = "./store",
    tracking_uri: TrackingOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Copy a PEFT folder, ours or another saver's, into the store as a new version."""
    with answering(as_json) as say:
        if rebase and base is None:
            raise RecipeError("--rebase says that --base is right; give --base too")
        options = _task(task) if task else None
        from ray_lora.adapters.adapter import Adapter

        adapter = Adapter.load(folder)
        if base is not None or options is not None:
            from ray_lora.inference.adopt import adopt

            adapter = adopt(adapter, base=base, rebase=rebase, task=options)
        opened, called = _open(store, tracking_uri), name or folder.resolve().name
        if if_version is None:
            entry = opened.put(adapter, called, alias or [])
        else:
            from ray_lora.store.expected import put_expecting

            entry = put_expecting(opened, adapter, called, if_version)
            for one in alias or []:
                opened.alias(called, one, entry.version)
        say(_plain(entry), f"{entry.ref}: {entry.num_parameters:,} parameters, {entry.bytes:,} bytes")


@app.command()
def export(
    ref: Ref,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A new folder.", show_default=False)],
    store: StoreOption = "./store",
    tracking_uri: TrackingOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Copy an adapter out of the store as a PEFT folder that plain PEFT loads."""
    with answering(as_json) as say:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise AdapterError(f"{str(folder)!r} exists and is not empty; give another folder or remove it first")
        entry, held = _open(store, tracking_uri).get(ref)
        shutil.copytree(held, folder, dirs_exist_ok=True)
        say({"ref": entry.ref, "sha256": entry.sha256, "folder": str(folder)}, f"{entry.ref} is in {folder}")


@app.command()
def rm(
    ref: Ref, store: StoreOption = "./store", tracking_uri: TrackingOption = None, as_json: JsonFlag = False
) -> None:
    """Remove one version from the store."""
    with answering(as_json) as say:
        removed = _open(store, tracking_uri).remove(ref)
        say({"removed": removed}, f"{removed} is removed")


@app.command()
def expire(
    name: Annotated[str | None, typer.Argument(help="Only this one's versions.", show_default=False)] = None,
    keep: Annotated[int, typer.Option("--keep", min=1, help="Versions of each name that stay, the newest.")] = 3,
    store: StoreOption = "./store",
    tracking_uri: TrackingOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Remove old versions of every adapter, single persons' too; what an alias, a split or a shadow needs stays."""
    with answering(as_json) as say:
        from ray_lora.store.expire import expire

        removed = expire(_open(store, tracking_uri), keep, name)
        shown = ", ".join(removed[:8]) + (" and more" if len(removed) > 8 else "")
        say({"removed": removed}, f"{len(removed)} versions are removed" + (f": {shown}" if removed else ""))


def _open(store: str, tracking_uri: str | None) -> Any:
    from ray_lora.store import open_store

    return open_store(store, tracking_uri)


def _task(given: list[str]) -> dict[str, Json]:
    """A task's options from the words of --task, as a recipe's overrides write them."""
    import yaml

    options: dict[str, Json] = {}
    for text in given:
        key, equals, value = text.partition("=")
        try:
            if text.lstrip().startswith("{"):
                told = json.loads(text)
            elif equals:
                told = {key.strip().removeprefix("task."): yaml.safe_load(value)}
            else:
                told = {"type": text.strip()}
        except (json.JSONDecodeError, yaml.YAMLError) as error:
            raise RecipeError(f"--task {text!r} cannot be read: {' '.join(str(error).split())}") from None
        options |= told
    return options


def _summary(entry: Any) -> dict[str, Json]:
    """An entry for one line of a table."""
    return _plain(entry) | {
        "aliases": ", ".join(entry.aliases),
        "task": entry.task.type if entry.task else None,
        "metrics": scores(entry.metrics),
    }


def _plain(entry: Any) -> dict[str, Json]:
    """An entry as JSON."""
    return {
        "ref": entry.ref,
        "name": entry.name,
        "version": entry.version,
        "aliases": list(entry.aliases),
        "sha256": entry.sha256,
        "task": entry.task.model_dump(mode="json") if entry.task else None,
        "base": entry.base,
        "base_fingerprint": entry.base_fingerprint,
        **({"base_dtype": entry.base_dtype} if entry.base_dtype else {}),
        "metrics": entry.metrics,
        "num_parameters": entry.num_parameters,
        "bytes": entry.bytes,
    }
