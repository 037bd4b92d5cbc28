"""Where adapters live: a folder, a bucket, or the MLflow model registry. Knows nothing of engines, training or serving.

store = open_store("./store")                 # also s3://bucket/path, gs://bucket/path
store = open_store("mlflow", "http://127.0.0.1:5000")
entry = store.put(adapter, "tweets", aliases=["champion"])
entry, folder = store.get("tweets@champion")  # a local PEFT folder whose content hash was checked
store.point("tweets", steer.split({1: 90, 2: 10}))
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ray_lora.atomic import expanded
from ray_lora.bounds import public
from ray_lora.errors import AdapterError, RecipeError
from ray_lora.store import steer
from ray_lora.store.refs import CHAMPION, parse_ref
from ray_lora.store.store import BeingWrittenError, Entry, Store, StoreAwayError
from ray_lora.store.traffic import Traffic

if TYPE_CHECKING:
    from ray_lora.adapters.adapter import Adapter

__all__ = [
    "CHAMPION",
    "BeingWrittenError",
    "Entry",
    "Store",
    "StoreAwayError",
    "Traffic",
    "open_store",
    "parse_ref",
    "put_once",
    "steer",
]


def open_store(uri: str, tracking_uri: str | None = None) -> Store:
    """The store at a local folder, at `s3://` or `gs://`, or the registry of an MLflow server ("mlflow").

    `tracking_uri` is for "mlflow" only; None means MLflow's own setting (`MLFLOW_TRACKING_URI`).
    Nothing is created or contacted before the first use. RecipeError for an address that cannot be one.
    """
    if uri == "mlflow":
        from ray_lora.store.mlflow_store import MlflowStore

        return MlflowStore(tracking_uri)
    from ray_lora.store.folder import FolderStore

    if not uri:
        raise RecipeError("the store's address is empty; give a folder, s3://bucket/path, gs://bucket/path or mlflow")
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", uri)
    if scheme is None or scheme[1] == "file":
        from ray_lora.store.local import LocalFiles

        return FolderStore(LocalFiles(expanded(uri.removeprefix("file://"))), uri)
    from ray_lora.store.bucket import BucketFiles

    return FolderStore(BucketFiles.open(uri), public(uri))


def put_once(store: Store, adapter: Adapter, name: str, aliases: Sequence[str] = ()) -> Entry:
    """`store.put`, unless a version of the name has this content: then that one, with the aliases moved to it.

    So a command that is repeated after a kill makes no second version of the same adapter.
    """
    for entry in reversed(store.list(name)):
        if entry.sha256 == adapter.sha256 and _holds(store, entry):
            for alias in aliases:
                store.alias(name, alias, entry.version)
            return entry
    return store.put(adapter, name, aliases=aliases)


def _holds(store: Store, entry: Entry) -> bool:
    """Whether a version holds what its card claims."""
    try:
        return store.resolve(entry.ref).sha256 == entry.sha256
    except AdapterError:
        return False
