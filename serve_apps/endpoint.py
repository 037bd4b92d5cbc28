"""One endpoint for the adapters of a store.

serve run serve_apps.endpoint:build_app store=./store base=minilm
serve deploy serve_apps/endpoint.yaml
"""

from ray_lora.serving.args import AppArgs
from ray_lora.serving.cluster.app import build_app

__all__ = ["AppArgs", "build_app"]
