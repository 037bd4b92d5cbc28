"""`python -m ray_lora` is `ray-lora`."""

from ray_lora.cli import run

run()
