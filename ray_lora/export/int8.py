"""A graph whose base has weights of 8 bits, by ONNX Runtime's quantisation; what is an input of the graph stays float.

    quantise_file(Path("graph.onnx"))               # products and tables; activations are rounded as they come
    quantise_file(Path("graph.onnx"), feeds)        # convolutions too; activations within the ranges that rows had
    quantise_writing(Path("graph.onnx"))            # of what writes: both in blocks of 32

It knows files: no adapters and no tasks.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ray_lora.export.int8_blocks import quantise_blocks

_KINDS = ["MatMul", "Gather"]
_RANGED = ("Conv", "MatMul", "Gemm")


def quantise_file(graph: Path, feeds: Iterable[Mapping[str, Any]] | None = None) -> None:
    """Put the int8 graph in the float one's place.

    Args:
        feeds: what the graph is given of some rows, for its ranges; None: of a graph without convolutions.
    """
    small = graph.with_suffix(".int8")
    if feeds is None:
        quantise(graph, small)
    else:
        quantise_ranged(graph, small, feeds)
    small.replace(graph)


def quantise_writing(graph: Path) -> None:
    """Put a graph with a scale for each 32 weights, as `quantise_blocks` writes it, in the float one's place."""
    import onnx

    model = onnx.load(graph)
    _as_products(model)
    turned = _turn(model)
    with _quiet():
        quantise_blocks(model, turned, graph)


def quantise(graph: Path, path: Path) -> None:
    """Write the graph with int8 weights, a scale for each output channel; activations are quantised as they come.

    Weights have 7 of the 8 bits: processors without VNNI add pairs of products in 16 bits, which 8 overflow.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(graph)
    _turn(model)
    with _quiet():
        quantize_dynamic(
            model,
            path,
            op_types_to_quantize=_KINDS,
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
            extra_options={"MatMulConstBOnly": True},
        )


def quantise_ranged(graph: Path, path: Path, feeds: Iterable[Mapping[str, Any]]) -> None:
    """Write the graph with int8 convolutions and products, a scale for each output channel; what they are given is
    rounded to 8 bits between the least and the most that it was on these rows."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Rows(CalibrationDataReader):  # type: ignore[misc]
        left = iter(feeds)

        def get_next(self) -> Mapping[str, Any] | None:
            return next(self.left, None)

    model = onnx.load(graph)
    _turn(model)
    constants = {one.name for one in model.graph.initializer}
    with _quiet():
        quantize_static(
            model,
            path,
            Rows(),
            nodes_to_quantize=[
                node.name for node in model.graph.node if node.op_type in _RANGED and node.input[1] in constants
            ],
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the library says of each step; one of its modules gives everybody's log a handler as it is read."""
    logger = logging.getLogger()
    level, handlers = logger.level, list(logger.handlers)
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.handlers[:] = handlers


def _as_products(model: Any) -> None:
    """Write each `Gemm` that only turns its constant as what it is, so that `MatMulNBits` can take its place."""
    from onnx import helper

    graph = model.graph
    constants = {one.name for one in graph.initializer}
    for node in [node for node in graph.node if node.op_type == "Gemm"]:
        told = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        plain = told.get("alpha", 1.0) == 1.0 and not told.get("transA") and told.get("transB") == 1
        if len(node.input) > 2 or not plain or node.input[1] not in constants:
            continue
        turned, where = f"{node.output[0]}.turned", list(graph.node).index(node)
        graph.node.remove(node)
        graph.node.insert(where, helper.make_node("MatMul", [node.input[0], turned], list(node.output)))
        graph.node.insert(where, helper.make_node("Transpose", [node.input[1]], [turned], perm=[1, 0]))


def _turn(model: Any) -> dict[str, str]:
    """Give each constant that is only turned before a product as a constant of its own: an output layer that is the
    table of tokens too would otherwise be made float again, whole, for every token. Returns their names by the
    table's."""
    from onnx import numpy_helper

    graph, found = model.graph, {}
    constants = {one.name: one for one in graph.initializer}
    turned = [node for node in graph.node if node.op_type == "Transpose" and node.input[0] in constants]
    for node in turned:
        order = next(list(part.ints) for part in node.attribute if part.name == "perm")
        values = numpy_helper.to_array(constants[node.input[0]]).transpose(order)
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values), node.output[0]))
        graph.node.remove(node)
        found[node.input[0]] = node.output[0]
    return found
