"""The engine: many adapters on one frozen base, one forward and one backward for rows of any of them.

    from ray_lora.engine import AdapterEngine, HeadSpec

`kernels` holds the formula, `layers` where it is hooked in, `dropout` what it leaves out, `heads` the per-slot heads,
`lone_head` one by itself, `routing` the rows of a pass, `buffers` the numbers of all slots, `targets` what fits where,
`packed` the frozen layers' weights as products read them, `engine` the slots, `optim` the optimizer that steps all of
them.
"""

from ray_lora.uncollected import uncollected

with uncollected():  # of all rooms this one brings transformers
    from ray_lora.bases.plain import HeadSpec
    from ray_lora.engine.dropout import draw_of, draw_of_window
    from ray_lora.engine.engine import AdapterEngine
    from ray_lora.engine.lone_head import LoneHead, last_layer
    from ray_lora.engine.optim import SlotOptimizer
    from ray_lora.engine.routing import take_rows, tensors_in

__all__ = [
    "AdapterEngine",
    "HeadSpec",
    "LoneHead",
    "SlotOptimizer",
    "draw_of",
    "draw_of_window",
    "last_layer",
    "take_rows",
    "tensors_in",
]
