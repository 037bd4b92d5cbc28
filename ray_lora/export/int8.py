"""A graph whose base has weights of 8 bits, by ONNX Runtime's dynamic quantisation; adapters and heads stay float.

    quantise(Path("graph.onnx"), Path("graph-int8.onnx"))

Only products with a constant weight and tables of embeddings are quantised, so nothing that is an input of the graph.
"""

from __future__ import annotations

import logging
from pathlib import Path

_KINDS = ["MatMul", "Gather"]


def quantise(graph: Path, path: Path) -> None:
    """Write the graph with int8 weights, a scale for each output channel; activations are quantised as they come.

    Weights have 7 of the 8 bits: processors without VNNI add pairs of products in 16 bits, which 8 overflow.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)  # it recommends a preparation that is for graphs with convolutions
    try:
        quantize_dynamic(
            graph,
            path,
            op_types_to_quantize=_KINDS,
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
            extra_options={"MatMulConstBOnly": True},
        )
    finally:
        logger.setLevel(level)
