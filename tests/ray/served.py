"""An endpoint on a Ray of its own behind HAProxy, as a process: `python -m tests.ray.served ARGUMENTS_AS_JSON`.

It prints its address, and `deployed` after each line of new arguments that it read and deployed. Where the lines end it
ends as `ray-lora serve` does.
"""

from __future__ import annotations

import sys

from ray_lora.serving import AppArgs, build_app, run
from ray_lora.serving.cluster.draining import drain


def main() -> None:
    args = AppArgs.model_validate_json(sys.argv[1])
    print(run(args, block=False), flush=True)
    from ray import serve

    for line in sys.stdin:
        serve.run(build_app(AppArgs.model_validate_json(line)), name="ray_lora", route_prefix="/")
        print("deployed", flush=True)
    drain(args.deadline_s)
    serve.shutdown()


if __name__ == "__main__":
    main()
