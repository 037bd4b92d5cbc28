"""Start an endpoint on Ray Serve: `build_app` is for `serve run` and `serve deploy`, `run` for scripts and the CLI."""

import os
import re
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_lora.allowed import environment
from ray_lora.atomic import expanded
from ray_lora.errors import RecipeError
from ray_lora.running.allocator import REPLICA_ENV
from ray_lora.running.local_ray import StartError, in_a_sentence
from ray_lora.serving.args import AppArgs
from ray_lora.serving.cluster import ingress
from ray_lora.serving.cluster.bases import choose_bases
from ray_lora.serving.cluster.draining import drain
from ray_lora.serving.http.guard import is_loopback
from ray_lora.serving.http.keys import Keys
from ray_lora.serving.trials.places import absolute
from ray_lora.store import StoreAwayError, open_store
from ray_lora.store.folder import FolderStore

if TYPE_CHECKING:
    from ray.serve import Application

_TRIES = 3  # of a minute each, for Serve's proxy to come up
_SLOW = 1024  # bodies that may be on their way at once; each has `body_s` seconds
# Replicas do not inherit it from Serve's start. `serving/metrics/seen.py` counts requests, and logs them where asked.
_LOGGING = {"enable_access_log": False, "log_level": "WARNING"}


def build_app(args: AppArgs) -> "Application":  # Serve reads this annotation: it must be the class, not its name
    """The Serve application of an endpoint: a deployment a base; the first one, `Endpoint`, takes HTTP.

    Raises:
        RecipeError, BaseModelError: before anything starts, when the bases are not clear.
    """
    from ray import serve

    from ray_lora.serving.cluster.replica import BaseReplica, Replica

    args = _settled(args)
    first, *more = args.bases
    others = {
        base.model: serve.deployment(name=f"Endpoint-{_word(base.model)}-{number}")(BaseReplica)
        .options(**_options(args.alone(base)))
        .bind(args.alone(base))
        for number, base in enumerate(more, start=2)
    }
    ingress_args = args.alone(first)
    return serve.deployment(name="Endpoint")(Replica).options(**_options(ingress_args)).bind(ingress_args, others)


def _options(args: AppArgs) -> dict[str, Any]:
    """What Serve is told of one base's deployment."""
    count: dict[str, Any] = {"num_replicas": args.num_replicas}
    if args.autoscaling is not None:  # a replica is busy when its batches are full
        bounds = args.autoscaling.model_dump()
        count = {"autoscaling_config": {**bounds, "target_ongoing_requests": args.max_batch_rows}}
    env = {"OMP_NUM_THREADS": str(args.threads), "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0"}
    return count | {
        "logging_config": _LOGGING,
        # the endpoint's own gate says no first, and says why; and who sends a body slowly takes nobody's place
        "max_ongoing_requests": 2 * args.max_waiting + 64 + _SLOW,
        "graceful_shutdown_timeout_s": args.deadline_s + 5,
        "health_check_period_s": 5,
        "ray_actor_options": {
            "num_cpus": args.num_cpus,
            "num_gpus": args.num_gpus,
            "runtime_env": {"env_vars": {**REPLICA_ENV, **env, **environment()}},
        },
    }


def _word(model: str) -> str:
    """A base's name, for a deployment's."""
    return re.sub(r"\W+", "_", Path(model).name) or "base"


def run(args: AppArgs, block: bool = True) -> str:
    """Start Ray (or join the cluster that `RAY_ADDRESS` names), serve, and return the endpoint's address.

    With `block` it returns after an interrupt, having shut Serve down. `port=0` takes a free one. Where Serve runs
    already, its address stays what it is.

    Raises:
        RecipeError: Serve runs already, at another port than the one asked for.
        RecipeError, BaseModelError: the store and the base do not make an endpoint; nothing was started.
        RecipeError: the port is somebody else's; nothing is served.
    """
    _check_host(args)
    app_args = _settled(args)
    ingress.quiet()
    started = "ray" not in sys.modules or not _initialized()
    if args.metrics_port and (not started or "RAY_ADDRESS" in os.environ):
        raise RecipeError(
            "metrics_port is for a Ray that starts here; this one runs: `ray start --metrics-export-port`"
        )
    if started:
        ingress.prepare(_crowded(app_args), alone=is_loopback(args.host))
    import ray
    from ray import serve

    from ray_lora.serving.metrics.ray_sink import pages

    if started:
        with in_a_sentence("the endpoint"):
            ray.init(
                address=os.environ.get("RAY_ADDRESS"),
                include_dashboard=False,
                log_to_driver=False,
                _metrics_export_port=args.metrics_port,
            )
    ingress.quiet()  # importing and starting set Ray's levels again
    try:
        if not serve.status().proxies:  # else the address is that of the Serve that runs
            _check_port(args)
        port = args.port or ingress.free_port()
        with in_a_sentence("the endpoint"):
            _start_serve(args.host, port)
            host, port = _bound(args, port)
            serve.run(build_app(app_args), name="ray_lora", route_prefix="/")
    except StartError:
        if started:
            ray.shutdown()
        raise
    address = f"http://{host}:{port}"
    if block:
        print(f"serving {args.store} at {address} (a page to try it on: /, API: /docs); Ctrl-C ends it", flush=True)  # noqa: T201
        print(f"metrics for Prometheus at {', '.join(pages())}", flush=True)  # noqa: T201
        _wait()
        drain(args.deadline_s)
        serve.shutdown()  # type: ignore[no-untyped-call,unused-ignore]
        if started:
            ray.shutdown()
    return address


def _start_serve(host: str, port: int) -> None:
    """Start Serve's proxy; a busy machine may take longer than Serve waits, and Serve goes on where it stood. It
    replaces a proxy that was not ready in time; whoever waited for that one is told that it never ran."""
    from ray import serve
    from ray.exceptions import RayActorError

    for left in reversed(range(_TRIES)):
        try:
            serve.start(proxy_location="HeadOnly", http_options={"host": host, "port": port}, logging_config=_LOGGING)
            return
        except (TimeoutError, RayActorError):
            if not left:
                raise


def _bound(args: AppArgs, port: int) -> tuple[str, int]:
    """Where Serve listens: a Serve that was started before keeps its own address, whatever it is asked for."""
    from ray.serve.context import _get_global_client

    client = _get_global_client()
    assert client is not None  # Serve was just started
    told = client.http_config
    if told.port != port and args.port and "port" in args.model_fields_set:
        raise RecipeError(
            f"port {port} is asked for, and this cluster's Serve listens on {told.port} already; leave port out, or "
            "shut that Serve down first (serve shutdown)"
        )
    return (args.host if told.port == port else told.host), told.port


def _crowded(args: AppArgs) -> bool:
    """Whether the store has more adapters now than a replica of the base that takes HTTP has slots."""
    slots = args.alone(args.bases[0]).slots
    try:
        return len(open_store(args.store, args.tracking_uri).names()) > slots
    except StoreAwayError:
        return True


def _check_host(args: AppArgs) -> None:
    """Nobody opens an endpoint to the network without keys by accident."""
    if not is_loopback(args.host) and not args.insecure and not Keys.load(args.keys):
        raise RecipeError(
            f"host {args.host!r} opens the endpoint to other machines and there are no API keys; set keys=FILE "
            "(or RAY_LORA_API_KEYS), or insecure=true if the network is yours alone"
        )


def _check_port(args: AppArgs) -> None:
    """Serve's proxy dies without a word when somebody else listens there."""
    try:
        if args.port:
            family = socket.AF_INET6 if ":" in args.host else socket.AF_INET
            socket.create_server((args.host, args.port), family=family).close()
    except OSError as error:
        raise RecipeError(
            f"port {args.port} of {args.host!r} cannot be used ({error.strerror}); give another, or 0 for a free one"
        ) from None


def _initialized() -> bool:
    import ray

    return bool(ray.is_initialized())


def _settled(args: AppArgs) -> AppArgs:
    """The arguments with folders made absolute and the bases decided: a replica runs in another folder, maybe later."""
    store = open_store(args.store, args.tracking_uri)
    bases = choose_bases(args, store)
    if isinstance(store, FolderStore):
        store.create()  # for a replica, a store that is not there is away
    found = {base.model: absolute(base.model) for base in bases if expanded(base.model).is_dir()}
    bases = tuple(base.model_copy(update={"model": found.get(base.model, base.model)}) for base in bases)
    return args.model_copy(
        update={
            "store": absolute(args.store),
            "base": None,
            "bases": bases,
            "keys": args.keys and absolute(args.keys),
            "results": args.results and absolute(args.results),
            "rows": args.rows and absolute(args.rows),
        }
    )


def _wait() -> None:
    done = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: done.set())
    done.wait()
