"""`python -m ray_lora.tracking RECORD`: send what a run's record still holds to MLflow."""

from __future__ import annotations

import sys
from pathlib import Path

from ray_lora.errors import RayLoraError
from ray_lora.tracking import send

if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m ray_lora.tracking RECORD")
    try:
        left = send(Path(sys.argv[1]))
    except RayLoraError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)
    sys.stdout.write(f"{left} records are still unsent\n" if left else "everything is in MLflow\n")
    sys.exit(1 if left else 0)
