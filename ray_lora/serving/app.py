"""Start an endpoint on Ray Serve: `build_app` is for `serve run` and `serve deploy`, `run` for scripts and the CLI."""

import ipaddress
import os
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from ray_lora.errors import RecipeError
from ray_lora.serving import ingress
from ray_lora.serving.args import AppArgs
from ray_lora.serving.bases import choose_base
from ray_lora.serving.keys import Keys
from ray_lora.serving.places import absolute
from ray_lora.store import open_store

if TYPE_CHECKING:
    from ray.serve import Application


def build_app(args: AppArgs) -> "Application":  # Serve reads this annotation: it must be the class, not its name
    """The Serve application of an endpoint.

    Raises:
        RecipeError, BaseModelError: before anything starts, when the base is not clear.
    """
    from ray import serve

    from ray_lora.serving.replica import Replica

    args = _settled(args)
    threads = str(args.threads)
    deployment: serve.Deployment = serve.deployment(name="Endpoint")(Replica).options(
        num_replicas=args.num_replicas,
        max_ongoing_requests=2 * args.max_waiting + 64,  # the endpoint's own gate says no first, and says why
        graceful_shutdown_timeout_s=args.deadline_s + 5,
        health_check_period_s=5,
        ray_actor_options={
            "num_cpus": args.num_cpus,
            "num_gpus": args.num_gpus,
            "runtime_env": {
                "env_vars": {"OMP_NUM_THREADS": threads, "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0"}
            },
        },
    )
    return deployment.bind(args)


def run(args: AppArgs, block: bool = True) -> str:
    """Start Ray (or join the cluster that `RAY_ADDRESS` names), serve, and return the endpoint's address.

    With `block` it returns after an interrupt, having shut Serve down. `port=0` takes a free one.

    Raises:
        RecipeError, BaseModelError: the store and the base do not make an endpoint; nothing was started.
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
        ingress.prepare()
    import ray
    from ray import serve

    from ray_lora.serving.ray_metrics import pages

    if started:
        ray.init(
            address=os.environ.get("RAY_ADDRESS"),
            include_dashboard=False,
            log_to_driver=False,
            _metrics_export_port=args.metrics_port,
        )
    ingress.quiet()  # importing and starting set Ray's levels again
    if not serve.status().proxies:  # else the address is that of the Serve that runs
        _check_port(args)
    port = args.port or ingress.free_port()
    serve.start(
        proxy_location="HeadOnly",
        http_options={"host": args.host, "port": port},
        logging_config={"enable_access_log": False, "log_level": "WARNING"},
    )
    serve.run(build_app(app_args), name="ray_lora", route_prefix="/")
    address = f"http://{args.host}:{port}"
    if block:
        print(f"serving {args.store} at {address} (a page to try it on: /, API: /docs); Ctrl-C ends it", flush=True)  # noqa: T201
        print(f"metrics for Prometheus at {', '.join(pages())}", flush=True)  # noqa: T201
        _wait()
        serve.shutdown()  # type: ignore[no-untyped-call,unused-ignore]
        if started:
            ray.shutdown()
    return address


def _check_host(args: AppArgs) -> None:
    """Nobody opens an endpoint to the network without keys by accident."""
    here = args.host == "localhost" or (_is_address(args.host) and ipaddress.ip_address(args.host).is_loopback)
    if not here and not args.insecure and not Keys.load(args.keys):
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


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _initialized() -> bool:
    import ray

    return bool(ray.is_initialized())


def _settled(args: AppArgs) -> AppArgs:
    """The arguments with folders made absolute and the base decided: a replica runs in another folder, maybe later."""
    base = choose_base(args, open_store(args.store, args.tracking_uri))
    base = absolute(base) if Path(base).expanduser().is_dir() else base
    return args.model_copy(
        update={
            "store": absolute(args.store),
            "base": base,
            "keys": args.keys and absolute(args.keys),
            "results": args.results and absolute(args.results),
        }
    )


def _wait() -> None:
    done = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: done.set())
    done.wait()
