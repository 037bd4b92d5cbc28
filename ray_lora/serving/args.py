"""What an endpoint is started with. Also what `serve run serve_apps.endpoint:build_app key=value` takes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ray_lora.recipe import Spec

LogRequests = Literal["none", "errors", "all"]


class AppArgs(Spec):
    """One endpoint: a store, its base and its limits."""

    store: str = "./store"  # a folder, s3://bucket/path, gs://bucket/path, or mlflow
    tracking_uri: str | None = None  # MLflow, for store=mlflow (null: MLFLOW_TRACKING_URI) and for results of trials
    base: str | None = None  # a packaged base, a hub id or a folder; null: the one that the store's adapters name
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str | None = None  # null: cuda where there is one, else cpu
    threads: int = Field(default=1, ge=1)  # that compute, in each replica

    host: str = "127.0.0.1"
    keys: str | None = None  # a YAML file of API keys; more may be in RAY_LORA_API_KEYS
    insecure: bool = False  # allow a host beyond this machine without keys
    port: int = Field(default=8000, ge=0, le=65535)
    log_requests: LogRequests = "none"  # of which requests a replica writes a line of JSON
    metrics_port: int | None = Field(default=None, ge=1, le=65535)  # where Ray is started here; null: a free one
    num_replicas: int = Field(default=1, ge=1)
    num_cpus: float = Field(default=1, ge=0)
    num_gpus: float = Field(default=0, ge=0)

    slots: int = Field(default=32, ge=1)  # adapters in the engine at once
    max_rank: int = Field(default=64, ge=1)
    embeddings: bool = False  # whether Embedding layers may hold adapters
    ram_bytes: int = Field(default=1 << 30, ge=0)  # of adapters kept in RAM beside the slots
    results: str | None = None  # a folder for what each version answered; null: one of this store, beside the cache
    fresh_s: float | None = Field(default=None, ge=0)  # a ref is asked for again after this; null: folders 0, else 2

    max_batch_rows: int = Field(default=32, ge=1)
    max_inputs: int = Field(default=256, ge=1)  # in one request
    max_body_bytes: int = Field(default=8 << 20, ge=1)
    max_waiting: int = Field(default=1024, ge=1)  # rows, of all adapters
    max_waiting_per_adapter: int = Field(default=512, ge=1)
    deadline_s: float = Field(default=30, gt=0)  # from arrival to answer

    @property
    def freshness_s(self) -> float:
        """`fresh_s`, or its default for this store."""
        if self.fresh_s is not None:
            return self.fresh_s
        return 2.0 if self.store == "mlflow" or ("://" in self.store and not self.store.startswith("file://")) else 0.0
