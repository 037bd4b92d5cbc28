"""What `ray-lora explain --keep` found of a version, beside it in its store: NAME/explained/VERSION.json.

    keep_report(store, report, entry)
    report_of(store, entry).layers[0].relative      # None: nothing is kept of this content

A report holds figures, names of layers and refs, and no rows: whoever may use an adapter may read it. It is of one
content, so that one of a version whose files were replaced is not shown. It knows no tensors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from ray_lora.errors import AdapterError, RecipeError
from ray_lora.recipe import Spec
from ray_lora.store.folder import FolderStore
from ray_lora.store.store import Entry, Store

_FOLDER = "explained"
_LARGEST = 4 * 2**20  # bytes; what is larger is none


class LayerReport(Spec):
    """One layer's change. `relative`: its norm, of the weight's; `lost`: what the score loses without it, where rows
    were given and the layer was switched off by itself."""

    layer: str
    rank: int
    relative: float | None
    effective_rank: float | None
    lost: float | None = None


class NearReport(Spec):
    """Another adapter, and how alike its directions are, from 0 to 1."""

    ref: str
    alike: float | None


class Report(Spec):
    """Of the content `sha256`. `score` with all changes and `bare` with none, by `metric` on `rows` rows, and `ece` the
    expected calibration error, where rows were given."""

    sha256: str
    layers: tuple[LayerReport, ...]
    nearest: tuple[NearReport, ...] = ()
    metric: str | None = None
    rows: int = 0
    score: float | None = None
    bare: float | None = None
    ece: float | None = None


def report_from(told: Mapping[str, Any]) -> Report:
    """Of one adapter of what `explain` gives."""
    off, sure = told["switched_off"], told["reliability"]
    alone = (
        {group["layers"][0]: group["drop"]["value"] for group in off["groups"] if len(group["layers"]) == 1}
        if off
        else {}
    )
    layers = [
        LayerReport(
            **{key: one[key] for key in ("layer", "rank", "relative", "effective_rank")}, lost=alone.get(one["layer"])
        )
        for one in told["layers"]
    ]
    figures = (
        {
            "metric": off["metric"],
            "rows": off["rows"],
            "score": off["full"]["value"],
            "bare": off["bare"]["score"]["value"],
        }
        if off
        else {}
    )
    nearest = [NearReport(ref=one["ref"], alike=one["likeness"]["value"]) for one in told["nearest"]["near"]]
    return Report(
        sha256=told["sha256"],
        layers=tuple(layers),
        nearest=tuple(nearest),
        ece=sure["ece"] if sure else None,
        **figures,
    )


def check_keeps(store: Store) -> None:
    """RecipeError unless a store keeps reports."""
    if not isinstance(store, FolderStore):
        raise RecipeError(
            "--keep keeps figures beside the adapter, in a folder or a bucket, and MLflow's registry has no place for "
            "them; leave it out, and --tracking-uri keeps the page in a run"
        )


def keep_report(store: Store, report: Report, entry: Entry) -> None:
    """Write it beside a version, in the place of an earlier one.

    Raises:
        RecipeError: the store keeps none.
    """
    check_keeps(store)
    assert isinstance(store, FolderStore)
    store.files.write(entry.name, _path(entry), report.model_dump_json(indent=1).encode())


def report_of(store: Store, entry: Entry) -> Report | None:
    """What is kept of this content.

    Raises:
        AdapterError: what is there is no report.
    """
    if not isinstance(store, FolderStore):
        return None
    try:
        data = store.files.read(entry.name, _path(entry), 0, _LARGEST + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise AdapterError(f"{entry.name}/{_path(entry)} cannot be read: {error}") from None
    try:
        if len(data) > _LARGEST:
            raise ValueError(f"it has more than {_LARGEST:,} bytes")
        report = Report.model_validate(json.loads(data))
    except (ValidationError, ValueError, RecursionError) as error:
        why = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise AdapterError(f"{entry.name}/{_path(entry)} is no report of `ray-lora explain --keep`: {why}") from None
    return report if report.sha256 == entry.sha256 else None


def _path(entry: Entry) -> str:
    return f"{_FOLDER}/{entry.version}.json"
