"""`ray-lora adapters split|shadow|promote|rollback|ab|route`: which version answers a bare name, and how they did."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ray_lora.cli.output import JsonFlag, StoreOption, TrackingOption, answering, table
from ray_lora.errors import AdapterNotFoundError, RecipeError
from ray_lora.recipe import Json

Name = Annotated[str, typer.Argument(metavar="NAME", help="The adapter's name.", show_default=False)]
Version = Annotated[str, typer.Argument(metavar="VERSION", help="A version or an alias.", show_default=False)]
IfVersion = Annotated[
    int | None, typer.Option("--if-version", min=1, help="Only where the bare name, without a split, means this one.")
]
Off = Annotated[bool, typer.Option("--off", help="End it.")]


def split(
    name: Name,
    weights: Annotated[
        list[str] | None,
        typer.Argument(metavar="[VERSION=WEIGHT]...", help="For example 3=90 4=10.", show_default=False),
    ] = None,
    off: Off = False,
    store: StoreOption = "./store",
    tracking_uri: TrackingOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Spread the requests for a name over versions by weights."""
    with answering(as_json) as say:
        if off == bool(weights):
            raise RecipeError("give VERSION=WEIGHT for each version, for example 3=90 4=10, or --off to end the split")
        opened = _open(store, tracking_uri)
        chosen: dict[int, float] = {}
        for text in weights or []:
            version, weight = _weight(opened, name, text)
            if version in chosen:
                raise RecipeError(f"{text!r} gives {name}@{version} a second weight; give it one")
            chosen[version] = weight
        from ray_lora.store import steer

        _say_pointers(say, opened.point(name, steer.split(chosen)))


def shadow(
    name: Name,
    version: Annotated[
        str | None, typer.Argument(metavar="[VERSION]", help="A version or an alias.", show_default=False)
    ] = None,
    share: Annotated[float, typer.Option("--share", help="Of the requests that are copied; more than 0, to 1.")] = 1.0,
    off: Off = False,
    store: StoreOption = "./store",
    tracking_uri: TrackingOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Copy the requests for a name to a version whose answers are only recorded."""
    with answering(as_json) as say:
        if off == (version is not None):
            raise RecipeError("give the version that is to answer copies of the requests, or --off to end that")
        opened = _open(store, tracking_uri)
        from ray_lora.store import steer

        number = None if version is None else _number(opened, name, version)
        _say_pointers(say, opened.point(name, steer.shadow(number, 1.0 if off else share)))


def promote(
    name: Name,
    version: Version,
    if_version: IfVersion = None,
    store: StoreOption = "./store",
    tracking_uri: TrackingOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Make a version the champion and end the split."""
    with answering(as_json) as say:
        opened = _open(store, tracking_uri)
        from ray_lora.store import steer
        from ray_lora.store.expected import expecting

        change = steer.promote(_number(opened, name, version))
        _say_pointers(say, opened.point(name, change if if_version is None else expecting(if_version, change)))


def rollback(
    name: Name, store: StoreOption = "./store", tracking_uri: TrackingOption = None, as_json: JsonFlag = False
) -> None:
    """Make that version the champion again which answered before the last promotion; ends the split."""
    with answering(as_json) as say:
        from ray_lora.store import steer

        _say_pointers(say, _open(store, tracking_uri).point(name, steer.rollback))


def ab(
    name: Name,
    results: Annotated[
        str | None, typer.Option("--results", help="The endpoint's folder for results, where it was given one.")
    ] = None,
    store: StoreOption = "./store",
    tracking_uri: TrackingOption = None,
    as_json: JsonFlag = False,
) -> None:
    """How the versions of a name did in its last trial, and whether they differ."""
    with answering(as_json) as say:
        from ray_lora.serving.trials.compare import compare, read_results
        from ray_lora.serving.trials.places import results_folder

        folder = results_folder(store, _open(store, tracking_uri), results)
        found = compare(read_results(folder), name)
        if not found["versions"]:
            raise AdapterNotFoundError(
                f"there are no results of {name!r} in {str(folder)!r}; ask the endpoint first (it writes them every "
                "5 s), or give --results with the folder that it was started with"
            )
        rows = [[_few(row[column]) for column in _COLUMNS] for row in found["versions"]]
        since = f"trial of {name} since {found['began']}" if found["began"] else f"{name} was never on trial"
        say(found, since, table(_COLUMNS, rows), *(_test(test) for test in found["tests"]))


def route(
    name: Name,
    gateway: Annotated[str, typer.Option("--gateway", help="The Gateway that the route belongs to.")],
    service: Annotated[str, typer.Option("--service", help="The endpoint's Service.")] = "ray-lora-serve-svc",
    port: Annotated[int, typer.Option("--port", help="The Service's port.")] = 8000,
    path: Annotated[str, typer.Option("--path", help="What the paths of requests begin with.")] = "/v1/",
    host: Annotated[list[str] | None, typer.Option("--host", help="A host that is asked for; else any.")] = None,
    namespace: Annotated[str | None, typer.Option("--namespace", help="Of the route.")] = None,
    store: StoreOption = "./store",
    tracking_uri: TrackingOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Print a name's split as a weighted route of a Kubernetes gateway (an HTTPRoute, in YAML)."""
    with answering(as_json) as say:
        import yaml

        from ray_lora.serving.cluster.gateway import http_route, shares

        entry = _open(store, tracking_uri).resolve(name)
        if entry.name != name:
            raise RecipeError(f"{name!r} names one version; give the bare name {entry.name!r}, whose split it is")
        weights = shares(entry.traffic.split or {entry.version: 1})
        made = http_route(
            name,
            weights,
            gateway=gateway,
            service=service,
            port=port,
            path=path,
            hosts=tuple(host or ()),
            namespace=namespace,
        )
        lines = [] if entry.traffic.shadow is None else [_NO_SHADOW.format(entry.traffic.shadow)]
        say({"route": made}, *lines, yaml.safe_dump(made, sort_keys=False, width=1000).rstrip())


_NO_SHADOW = "# version {} is a shadow of the bare name, which this route never asks for: it gets no copies"
_COLUMNS = ["version", "variant", "requests", "errors", "dropped", "mean_ms", "p50_ms", "p95_ms", "labels"]
_COLUMNS += ["feedback", "feedback_mean"]


def _few(value: Json) -> Json:
    """Counts of labels on one line, the most frequent ones."""
    if not isinstance(value, dict):
        return value
    shown = ", ".join(f"{label} {count}" for label, count in list(value.items())[:4])
    return shown + (", …" if len(value) > 4 else "")


def _test(test: Json) -> str:
    first, other = test["versions"]
    said = "too few values" if test["p_value"] is None else f"p = {test['p_value']:.3g}"
    return f"{test['metric']}, version {other} against {first}: {said} ({test['test']})"


def _say_pointers(say: Any, held: Any) -> None:
    """What a name points to now: for people the lines that say something."""
    traffic = held.traffic
    result: dict[str, Json] = {
        "name": held.name,
        "champion": held.champion,
        "split": {str(version): weight for version, weight in traffic.split.items()},
        "shadow": traffic.shadow,
        "share": traffic.share if traffic.shadow is not None else None,
        "previous": list(traffic.previous),
    }
    total = sum(traffic.split.values())
    shares = ", ".join(f"{weight / total:.1%} to version {version}" for version, weight in traffic.split.items())
    lines = [f"{held.name}: {shares}" if shares else f"{held.name}: all to version {held.champion}"]
    if traffic.shadow is not None:
        lines.append(f"{traffic.share:.0%} of the requests are copied to version {traffic.shadow}")
    say(result, *lines)


def _weight(store: Any, name: str, text: str) -> tuple[int, float]:
    version, equals, weight = text.partition("=")
    try:
        if not equals:
            raise ValueError
        return _number(store, name, version), float(weight)
    except ValueError:
        raise RecipeError(f"{text!r} is not VERSION=WEIGHT; write for example 3=90 4=10") from None


def _number(store: Any, name: str, version: str) -> int:
    return int(store.resolve(f"{name}@{version}").version)


def _open(store: str, tracking_uri: str | None) -> Any:
    from ray_lora.store import open_store

    return open_store(store, tracking_uri)
