"""The weights of an ONNX file, without the package onnx: of a graph's convolutions, in the order in which it runs them.

    convolutions(Path("net.onnx").read_bytes())     # [(weight, bias), ...], numpy arrays
    layers(Path("net.onnx").read_bytes(), ["Conv", "BatchNormalization"])     # [("Conv", (weight, bias)), ...]

An ONNX file is protobuf: fields of a number, a wire type and a value (protobuf.dev/programming-guides/encoding; field
numbers are those of onnx.proto). Only what is read here is understood; nothing in the file is run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ray_lora.errors import BaseModelError

_GRAPH = 7  # of ModelProto
_NODE, _INITIALIZER = 1, 5  # of GraphProto
_INPUT, _OPERATOR = 1, 4  # of NodeProto
_DIMS, _TYPE, _NAME, _RAW = 1, 2, 8, 9  # of TensorProto
_FLOAT = 1  # its data type

Array = np.ndarray[Any, np.dtype[np.float32]]


def convolutions(data: bytes) -> list[tuple[Array, Array]]:
    """Weight and bias of every convolution of a graph, in its order.

    Raises:
        BaseModelError: it is no ONNX file, or one of its convolutions has no float32 weight and bias in the file.
    """
    try:
        return [(weight, bias) for _, (weight, bias) in _weights(data, ("Conv",))]
    except (ValueError, LookupError, TypeError) as error:
        raise BaseModelError(
            f"no ONNX file whose convolutions have float32 weights and biases in it: {error}"
        ) from None


def layers(data: bytes, operators: Sequence[str]) -> list[tuple[str, tuple[Array, ...]]]:
    """Of every node with one of these operators, in the graph's order: which one, and its tensors in the file, in
    ONNX's order (of a `BatchNormalization` scale, bias, mean and variance).

    Raises:
        BaseModelError: it is no ONNX file, or one of these tensors is not in it in float32.
    """
    try:
        return _weights(data, operators)
    except (ValueError, LookupError, TypeError) as error:
        raise BaseModelError(f"no ONNX file whose {', '.join(operators)} have float32 numbers in it: {error}") from None


def _weights(data: bytes, operators: Sequence[str]) -> list[tuple[str, tuple[Array, ...]]]:
    (graph,) = _of(memoryview(data), _GRAPH)
    tensors = dict(_tensor(tensor) for tensor in _of(graph, _INITIALIZER))
    nodes = [(_word(node, _OPERATOR), _of(node, _INPUT)) for node in _of(graph, _NODE)]
    return [
        (operator, tuple(_floats(tensors[bytes(name).decode()]) for name in given[1:]))
        for operator, given in nodes
        if operator in operators
    ]


def _tensor(data: memoryview) -> tuple[str, tuple[int, list[int], memoryview]]:
    """Its name, and data type, shape and bytes."""
    fields = list(_fields(data))
    shape = [value for number, value in fields if number == _DIMS and isinstance(value, int)]
    kinds = [value for number, value in fields if number == _TYPE and isinstance(value, int)]
    return _word(data, _NAME), (kinds[0], shape, [*_of(data, _RAW), memoryview(b"")][0])


def _floats(tensor: tuple[int, list[int], memoryview]) -> Array:
    kind, shape, raw = tensor
    if kind != _FLOAT:
        raise ValueError(f"a weight is of data type {kind}, not float32")
    return np.frombuffer(raw, "<f4").reshape(shape).astype(np.float32)


def _word(data: memoryview, field: int) -> str:
    return bytes(_of(data, field)[0]).decode()


def _of(data: memoryview, field: int) -> list[memoryview]:
    return [value for number, value in _fields(data) if number == field and not isinstance(value, int)]


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Every field of a message: its number, and a whole number or the bytes of a text, a message or fixed numbers."""
    at = 0
    while at < len(data):
        key, at = _number(data, at)
        field, kind = key >> 3, key & 7
        if kind == 0:
            value, at = _number(data, at)
            yield field, value
            continue
        if kind not in (1, 2, 5):
            raise ValueError(f"wire type {kind} at byte {at}")
        size, at = _number(data, at) if kind == 2 else (8 if kind == 1 else 4, at)
        if at + size > len(data):
            raise ValueError(f"a field of {size} bytes at byte {at} of {len(data)}")
        yield field, data[at : at + size]
        at += size


def _number(data: memoryview, at: int) -> tuple[int, int]:
    """A whole number of up to 64 bits, seven in a byte, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError(f"a number of more than 64 bits before byte {at}")
