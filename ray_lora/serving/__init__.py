"""The live endpoint: many adapters of a store answering on one shared base behind Ray Serve.

http -> endpoint -> registry (refs -> entries), gate (limits), cache (slots, leases), batcher -> engine.

Only `replica`, `app`, `ingress` and `ray_metrics` know Ray. Only `http`, `faults`, `limits`, `page` and `seen` know
HTTP.
"""

from ray_lora.serving.app import build_app, run
from ray_lora.serving.args import AppArgs

__all__ = ["AppArgs", "build_app", "run"]
