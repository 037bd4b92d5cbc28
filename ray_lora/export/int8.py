"""A graph whose base has weights of 8 bits, by ONNX Runtime's dynamic quantisation; adapters and heads stay float.

    quantise_file(Path("graph.onnx"))

Only products with a constant weight and tables of embeddings are quantised, so nothing that is an input of the graph.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

_KINDS = ["MatMul", "Gather"]


def quantise_file(graph: Path) -> None:
    """Put the int8 graph in the float one's place."""
    small = graph.with_suffix(".int8")
    quantise(graph, small)
    small.replace(graph)


def quantise(graph: Path, path: Path) -> None:
    """Write the graph with int8 weights, a scale for each output channel; activations are quantised as they come.

    Weights have 7 of the 8 bits: processors without VNNI add pairs of products in 16 bits, which 8 overflow.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)  # it recommends a preparation that is for graphs with convolutions
    try:
        quantize_dynamic(
            _laid(onnx.load(graph)),
            path,
            op_types_to_quantize=_KINDS,
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
            extra_options={"MatMulConstBOnly": True},
        )
    finally:
        logger.setLevel(level)


def _laid(model: Any) -> Any:
    """The model with each constant that is only turned before a product as a constant of its own: an output layer that
    is the table of tokens too would otherwise be made float again, whole, for every token."""
    from onnx import numpy_helper

    graph = model.graph
    constants = {one.name: one for one in graph.initializer}
    turned = [node for node in graph.node if node.op_type == "Transpose" and node.input[0] in constants]
    for node in turned:
        order = next(list(part.ints) for part in node.attribute if part.name == "perm")
        values = numpy_helper.to_array(constants[node.input[0]]).transpose(order)
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values), node.output[0]))
        graph.node.remove(node)
    return model
