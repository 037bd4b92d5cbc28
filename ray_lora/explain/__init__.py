"""What an adapter is and does: its layers' changes, what each is worth, who is like it, what its answers follow from.

    told = explain(["tweets@champion"], data="test.parquet", inputs=["what a lovely day"], output="explained/")

`change` measures layers, `switched_off` what the score loses without them, `likeness` finds adapters of the same
directions, `attribution` says what an answer follows from, `reliability` how sure answers are, `report` shows it.
"""

from ray_lora.explain.explained import explain

__all__ = ["explain"]
