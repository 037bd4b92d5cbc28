"""Ray Train's trainer for one pack, without the processes and imports that a pack has no use for: each costs a
processor a second, or more, at every start. Train's controller imports this module, so it imports neither torch nor an
engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray.train import BackendConfig, RunConfig, ScalingConfig
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from ray_lora.uncollected import uncollected


def begin_worker(config: dict[str, Any]) -> None:
    """What each worker of a pack is handed: `run_worker`, whose module brings torch and transformers."""
    with uncollected():
        from ray_lora.running.worker import run_worker

    run_worker(config)


def pack_trainer(
    loop: Callable[[dict[str, Any]], None],
    config: Mapping[str, Any],
    scaling: ScalingConfig,
    run_config: RunConfig,
) -> DataParallelTrainer:
    """A trainer of `loop(config)` on the workers of one pack.

    Several workers, and GPUs, get torch's process group as `TorchTrainer` sets it up; one worker on CPUs needs none.
    """
    backend = BackendConfig()
    if scaling.use_gpu or scaling.num_workers != 1:
        from ray.train.torch import TorchConfig

        backend = TorchConfig(backend="nccl" if scaling.use_gpu else "gloo")
    return _PackTrainer(
        loop, train_loop_config=dict(config), backend_config=backend, scaling_config=scaling, run_config=run_config
    )


class _PackTrainer(DataParallelTrainer):
    def _create_default_callbacks(self) -> list[Any]:
        spared = {"DatasetsCallback"}  # a pack fetches its rows itself
        if len(ray.nodes()) == 1:
            spared.add("PlacementGroupCleanerCallback")  # what it would clean up dies with the node
        callbacks = super()._create_default_callbacks()
        return [callback for callback in callbacks if type(callback).__name__ not in spared]

    def _initialize_and_run_controller(self, **told: Any) -> Any:
        if type(told["scaling_policy"]) is FixedScalingPolicy and len(ray.nodes()) == 1:
            scaling: Any = self.scaling_config  # type checkers see the class of Train v1
            told["scaling_policy"] = _OneMachine(scaling)
        return super()._initialize_and_run_controller(**told)


class _OneMachine(FixedScalingPolicy):
    """Asks no autoscaler for more: this machine is all there is."""

    def after_controller_start(self, train_run_context: Any) -> None:
        pass

    def _maybe_send_resource_request(self) -> None:
        pass
