"""What a cluster's devices allow, asked before anything waits for them: Ray keeps for ever what it cannot place.

afforded(workers=1, use_gpu=False)        # 2, on a machine of two CPUs
"""

from __future__ import annotations

import ray

from ray_lora.errors import RecipeError


def afforded(workers: int, use_gpu: bool, packs: int | None = None, share: float = 1.0) -> int:
    """How many packs of so many workers the cluster's devices allow at a time.

    Args:
        packs: how many are asked for; None: as many as there can be.
        share: of a device that a worker takes.

    Raises:
        RecipeError: they are fewer than one, or than are asked for: the others would wait for ever.
    """
    kind = "GPU" if use_gpu else "CPU"
    devices = ray.cluster_resources().get(kind, 0 if use_gpu else 1)
    if devices < workers * share:
        raise RecipeError(
            f"scaling asks for {workers} workers, the cluster has {devices:g} {kind}s; lower scaling.num_workers"
            f"{' or set scaling.use_gpu: false' if use_gpu else ''}"
        )
    most = int(devices // (workers * share)) if share else max(int(devices // workers), packs or 1)
    if packs is not None and packs > most:
        raise RecipeError(
            f"scaling asks for {packs} packs of {workers} workers, the cluster has {devices:g} {kind}s; lower "
            "scaling.packs, or leave it out"
        )
    return most
