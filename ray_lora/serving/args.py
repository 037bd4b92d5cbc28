"""What an endpoint is started with. Also what `serve run serve_apps.endpoint:build_app key=value` takes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from ray_lora.recipe import Dtype, Spec

LogRequests = Literal["none", "errors", "all"]


class Autoscaling(Spec):
    """Bounds of a deployment's replicas; Serve moves between them with the load."""

    min_replicas: int = Field(default=1, ge=1)
    max_replicas: int = Field(ge=1)


class BaseArgs(Spec):
    """One of several bases. What is null here is as the endpoint has it."""

    model: str  # a packaged base, a hub id or a folder
    dtype: Dtype | None = None
    device: str | None = None
    num_replicas: int | None = Field(default=None, ge=1)
    autoscaling: Autoscaling | None = None
    num_cpus: float | None = Field(default=None, ge=0)
    num_gpus: float | None = Field(default=None, ge=0)
    slots: int | None = Field(default=None, ge=1)


class AppArgs(Spec):
    """One endpoint: a store, its bases and its limits."""

    store: str = "./store"  # a folder, s3://bucket/path, gs://bucket/path, or mlflow
    tracking_uri: str | None = None  # MLflow, for store=mlflow (null: MLFLOW_TRACKING_URI) and for results of trials
    base: str | None = None  # the only one: a packaged base, a hub id or a folder
    bases: tuple[BaseArgs, ...] = ()  # or several, the first takes HTTP; neither: all that the store's adapters name
    dtype: Dtype = "auto"
    device: str | None = None  # null: cuda where there is one, else cpu
    threads: int = Field(default=1, ge=1)  # that compute, in each replica

    host: str = "127.0.0.1"
    keys: str | None = None  # a YAML file of API keys; more may be in RAY_LORA_API_KEYS
    insecure: bool = False  # allow a host beyond this machine, and any name of it, without keys
    hosts: tuple[str, ...] = ()  # names that Host and Origin may have beside this machine's own; see http/guard.py
    port: int = Field(default=8000, ge=0, le=65535)
    log_requests: LogRequests = "none"  # of which requests a replica writes a line of JSON
    metrics_port: int | None = Field(default=None, ge=1, le=65535)  # where Ray is started here; null: a free one
    num_replicas: int = Field(default=1, ge=1)  # of each base
    autoscaling: Autoscaling | None = None  # in place of num_replicas
    num_cpus: float = Field(default=1, ge=0)  # of a replica
    num_gpus: float = Field(default=0, ge=0)

    slots: int = Field(default=32, ge=1)  # adapters in the engine at once
    max_rank: int = Field(default=64, ge=1)
    embeddings: bool = False  # whether Embedding layers may hold adapters
    ram_bytes: int = Field(default=1 << 30, ge=0)  # of adapters kept in RAM beside the slots
    results: str | None = None  # a folder for what each version answered; null: one of this store, beside the cache
    rows: str | None = None  # a folder where /v1/rows keeps what people's adapters are to learn from; null: nowhere
    fresh_s: float | None = Field(default=None, ge=0)  # a ref is asked for again after this; null: folders 0, else 2

    max_batch_rows: int = Field(default=32, ge=1)
    max_inputs: int = Field(default=256, ge=1)  # in one request, for all adapters that it names
    max_adapters: int = Field(default=16, ge=1)  # that one request may name
    max_body_bytes: int = Field(default=8 << 20, ge=1)
    max_sound_bytes: int = Field(default=25 << 20, ge=1)  # of a body of /v1/audio/transcriptions, as OpenAI has it
    max_text_chars: int = Field(default=1 << 19, ge=1)  # of all texts of one request: half a million take a second
    body_s: float = Field(default=15, gt=0)  # from a request's head to its body's end
    max_waiting: int = Field(default=1024, ge=1)  # rows, of all adapters
    max_waiting_per_adapter: int = Field(default=512, ge=1)
    deadline_s: float = Field(default=30, gt=0)  # from arrival to answer, or to the first token of one that is written

    writing_rows: int = Field(default=32, ge=1)  # answers that are written token by token at once
    writing_tokens: int = Field(default=32_768, ge=2)  # of their prompts and of the room for them, all together
    prompt_tokens: int = Field(default=256, ge=1)  # of prompts that are read in one step
    prefix_bytes: int = Field(default=128 << 20, ge=0)  # kept of prompts, for those that begin alike; 0: nothing
    writing_s: float = Field(default=600, gt=0)  # from arrival to an answer's last token

    @field_validator("hosts", mode="before")
    @classmethod
    def _listed(cls, hosts: object) -> object:
        """`hosts=a.example,b.example` is how `serve run` and the command line say it."""
        return [name.strip() for name in hosts.split(",") if name.strip()] if isinstance(hosts, str) else hosts

    @field_validator("bases", mode="before")
    @classmethod
    def _by_name(cls, bases: object) -> object:
        """`bases=minilm,smollm2` is how `serve run` and the command line say it."""
        return [{"model": model} for model in bases.split(",")] if isinstance(bases, str) else bases

    @model_validator(mode="after")
    def _one_way(self) -> AppArgs:
        models = [base.model for base in self.bases]
        if self.base is not None and models:
            raise ValueError("give base for one base or bases for several, not both")
        if len(set(models)) < len(models):
            raise ValueError(f"bases names a base twice: {', '.join(models)}")
        return self

    def alone(self, base: BaseArgs) -> AppArgs:
        """The arguments of one base's replicas."""
        own = {key: value for key, value in base if key != "model" and value is not None}
        return self.model_copy(update={**own, "base": base.model, "bases": ()})

    @property
    def freshness_s(self) -> float:
        """`fresh_s`, or its default for this store."""
        if self.fresh_s is not None:
            return self.fresh_s
        return 2.0 if self.store == "mlflow" or ("://" in self.store and not self.store.startswith("file://")) else 0.0
