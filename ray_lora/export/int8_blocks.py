"""A graph that writes, with a scale for each 32 weights of 8 bits, by ONNX Runtime's `MatMulNBits`.

    quantise_blocks(onnx.load("graph.onnx"), {}, Path("small.onnx"))

Language models have few numbers that are a hundred times all others in one product; rounded with those as one range,
nothing is left of the rest, and one token that differs makes another text. A scale for each 32 weights of an output
costs an eighth more and keeps them; a row's numbers have scales of their own as well. It knows files: no adapters and
no tasks.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

_BITS, _BLOCK = 8, 32
_LEVEL = 4  # of products: what they are given has 8 bits too, with a scale for each 32 numbers of a row
_LEAST = 2**16  # numbers of a table that is worth it
_MIDDLE = 2.0 ** (_BITS - 1)  # what 0 is stored as


def quantise_blocks(model: Any, turned: Mapping[str, str], path: Path) -> None:
    """Write a graph with weights of 8 bits.

    Args:
        model: is changed. turned: of each table that is an output layer too the constant which that multiplies with.
    """
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    logging.getLogger(MatMulNBitsQuantizer.__module__).setLevel(logging.ERROR)
    made = MatMulNBitsQuantizer(
        model,
        bits=_BITS,
        block_size=_BLOCK,
        is_symmetric=True,
        accuracy_level=_LEVEL,
        op_types_to_quantize=("MatMul",),
    )
    made.process()
    whole = made.model.model
    _look_up(whole, turned)
    onnx.save(whole, path)


def _look_up(model: Any, turned: Mapping[str, str]) -> None:
    """Read tables of tokens from blocks of 8 bits, a table that is an output layer too from that layer's."""
    from onnx import numpy_helper

    graph = model.graph
    constants = {one.name: one for one in graph.initializer}
    for node in [node for node in graph.node if node.op_type == "Gather"]:
        table = node.input[0]
        kept = constants.get(table)
        if kept is None or len(kept.dims) != 2 or kept.data_type != 1 or any(one.i for one in node.attribute):
            continue
        name = turned.get(table)
        if name is None or f"{name}_Q{_BITS}" not in constants:
            if np.prod(kept.dims) < _LEAST:
                continue
            name = table
            blocks, scales = _blocks(numpy_helper.to_array(kept))
            made = [(f"{name}_Q{_BITS}", blocks), (f"{name}_scales", scales)]
            graph.initializer.extend(numpy_helper.from_array(array, key) for key, array in made)
        _replace(graph, node, name, int(kept.dims[1]))
    used = {name for node in graph.node for name in node.input}
    for one in list(graph.initializer):
        if one.name not in used:
            graph.initializer.remove(one)


def _blocks(table: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """[rows, blocks, 32] uint8 and [rows, blocks], as `MatMulNBits` has an output's weights."""
    rows, width = table.shape
    whole = np.zeros((rows, -(-width // _BLOCK), _BLOCK), np.float32)
    whole.reshape(rows, -1)[:, :width] = table
    scales = np.abs(whole).max(-1) / (_MIDDLE - 1)
    steps = np.rint(whole / np.where(scales == 0, 1, scales)[..., None])
    return (steps + _MIDDLE).astype(np.uint8), scales.astype(np.float32)


def _replace(graph: Any, node: Any, name: str, width: int) -> None:
    """Rows of a table by rows of its blocks: (block - 128) * scale, without what fills the last block up."""
    from onnx import helper, numpy_helper

    own = node.output[0]

    def constant(what: str, value: Any) -> str:
        graph.initializer.append(numpy_helper.from_array(np.array(value), f"{own}.{what}"))
        return f"{own}.{what}"

    def at(what: str) -> str:
        return f"{own}.{what}"

    ids = node.input[1]
    made = [
        helper.make_node("Gather", [f"{name}_Q{_BITS}", ids], [at("blocks")]),
        helper.make_node("Gather", [f"{name}_scales", ids], [at("scales")]),
        helper.make_node("Cast", [at("blocks")], [at("float")], to=1),
        helper.make_node("Sub", [at("float"), constant("middle", np.float32(_MIDDLE))], [at("steps")]),
        helper.make_node("Unsqueeze", [at("scales"), constant("last", [-1])], [at("each")]),
        helper.make_node("Mul", [at("steps"), at("each")], [at("numbers")]),
        helper.make_node("Shape", [ids], [at("rows")]),
        helper.make_node("Concat", [at("rows"), constant("rest", [-1])], [at("shape")], axis=0),
        helper.make_node("Reshape", [at("numbers"), at("shape")], [at("filled")]),
        helper.make_node(
            "Slice",
            [at("filled"), constant("first", [0]), constant("width", [width]), constant("axis", [-1])],
            [own],
        ),
    ]
    where = list(graph.node).index(node)
    graph.node.remove(node)
    for number, one in enumerate(made):
        graph.node.insert(where + number, one)
