"""From arguments to a running endpoint: opens the store, chooses and loads the base. Knows nothing of Ray or HTTP."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch

from ray_lora.bases.load import load_base
from ray_lora.errors import RecipeError
from ray_lora.recipe import BaseSpec
from ray_lora.serving.args import AppArgs
from ray_lora.serving.cluster.bases import choose_bases
from ray_lora.serving.endpoint import Endpoint
from ray_lora.serving.machine import Machine, pick_device
from ray_lora.serving.trials.ab_runs import AbRuns
from ray_lora.store import Store, open_store
from ray_lora.store.folder import FolderStore
from ray_lora.store.mlflow_line import address


def start_endpoint(args: AppArgs) -> Endpoint:
    """Load the base and be ready for requests.

    Raises:
        RecipeError: no base is given and the store's adapters name none or several; MLflow's address cannot be one.
        BaseModelError: the base cannot be loaded.
    """
    torch.set_num_threads(args.threads)
    store = open_store(args.store, args.tracking_uri)
    if isinstance(store, FolderStore):
        store.expect()  # a replica that starts while its store is away must not say that names are unknown
    uri = getattr(store, "tracking_uri", None) or (args.tracking_uri and address(args.tracking_uri))
    bases = choose_bases(args, store)
    if len(bases) > 1:
        named = ", ".join(base.model for base in bases)
        raise RecipeError(f"one process holds one base, and these are several: {named}; give base=… or use build_app")
    args = args.alone(bases[0])
    thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
    machine = thread.submit(_machine, args, store, thread).result()
    endpoint = Endpoint(machine, store, args)
    if uri is not None:
        trials = AbRuns(endpoint.results.folder, uri, lambda name: store.resolve(name).traffic.began)
        endpoint.results.on_saved, endpoint.results.on_closed = trials.send, trials.close
    return endpoint


def _machine(args: AppArgs, store: Store, thread: ThreadPoolExecutor) -> Machine:
    """The base and its engine, made in the thread that computes.

    Each thread that computes has a team of threads of its own. Where two teams share the cores, the one at work is
    woken by the system in every product, which takes half as long again.
    """
    base = load_base(BaseSpec(model=str(args.base), dtype=args.dtype), pick_device(args.device))
    return Machine(base, store, slots=args.slots, max_rank=args.max_rank, embeddings=args.embeddings, thread=thread)
