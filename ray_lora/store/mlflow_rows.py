"""What the rows of an MLflow registry say: the adapters among its versions, and what their names point to.

It knows tags and pages; `mlflow_store.py` is the store.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ray_lora.errors import AdapterError
from ray_lora.store.known import TAG, TRAFFIC, Known, unpack
from ray_lora.store.left_out import LeftOut
from ray_lora.store.refs import is_name
from ray_lora.store.store import Entry
from ray_lora.store.traffic import Traffic, parse_traffic

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import RegisteredModel

PAGE = 1000  # rows that MLflow gives at once


def known_of(model: RegisteredModel, versions: dict[int, Entry]) -> Known:
    """What a registered model says; AdapterError when its tag for traffic is spoilt."""
    aliases = {alias: int(version) for alias, version in model.aliases.items()}
    tag = model.tags.get(TRAFFIC)
    return Known(versions, aliases, parse_traffic(tag, f"{model.name}: tag {TRAFFIC!r}") if tag else Traffic())


def read_entries(client: MlflowClient, where: str, left_out: LeftOut) -> dict[str, dict[int, Entry]]:
    """The adapters among the registry's versions."""
    found: dict[str, dict[int, Entry]] = {}
    condition = f"{where} and tags.`{TAG}` LIKE '%'" if where else f"tags.`{TAG}` LIKE '%'"
    token = None
    while True:
        page = client.search_model_versions(condition, max_results=PAGE, page_token=token)
        for version in page:
            number = int(version.version)
            try:
                if not is_name(version.name):
                    raise AdapterError(f"{version.name!r} cannot name an adapter")
                found.setdefault(version.name, {})[number] = unpack(version.name, number, version.tags[TAG])
            except (AdapterError, KeyError) as error:
                left_out(error)
        if not (token := page.token):
            return found
