"""The live endpoint: many adapters of a store answering on one shared base behind Ray Serve.

http -> endpoint -> registry (refs -> entries), gate (limits), cache (slots, leases), batcher -> machine (the engine).

Only `cluster/` and `metrics/ray_sink` know Ray. Only `http/`, `metrics/seen` and `cluster/identity` know HTTP.
"""

from ray_lora.serving.args import AppArgs
from ray_lora.serving.cluster.app import build_app, run

__all__ = ["AppArgs", "build_app", "run"]
