"""A fresh MLflow database in no time: its tables are made once (seconds of migrations), then copied."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import lru_cache
from pathlib import Path

from ray_lora.store.mlflow_client import connect

# What MLflow itself warns of when it is imported; warnings are errors here.
MLFLOW_WARNINGS = (
    "ignore:The ``noload`` loader strategy:DeprecationWarning",  # its SQLAlchemy models
    "ignore:.*Any type hint is inferred as AnyType:UserWarning",  # mlflow.pyfunc's own classes
)


@lru_cache(maxsize=1)
def _template() -> Path:
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    connect(f"sqlite:///{folder}/mlflow.db")
    return folder / "mlflow.db"


def database(folder: Path) -> str:
    """The tracking URI of a new, empty database in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(_template(), folder / "mlflow.db")
    return f"sqlite:///{folder}/mlflow.db"
