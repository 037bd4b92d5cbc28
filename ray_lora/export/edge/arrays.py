"""Adapters' files, and arrays of several lengths as one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np


def read(folder: Path, card: dict[str, Any], name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Facts and arrays of an adapter's file; SystemExit where there is none, or it is another base's."""
    path = folder / "adapters" / f"{name}.safetensors"
    data = path.read_bytes() if path.exists() else b""
    told = json.loads(data[8 : (begin := 8 + int.from_bytes(data[:8], "little"))] or "null")
    facts = json.loads(told.pop("__metadata__")["adapter"]) if told else {}
    if facts.get("base_fingerprint") != card["base_fingerprint"]:
        raise SystemExit(f"{path} is no adapter of this graph's base; give one of those in adapters/")
    at = {key: (int(np.prod(one["shape"])), begin + one["data_offsets"][0]) for key, one in told.items()}
    return facts, {key: np.frombuffer(data, "<f4", *at[key]).reshape(told[key]["shape"]) for key in at}


def stacked(arrays: list[Any], value: int | None = 0) -> Any:
    """One array, [arrays, ...], of arrays that are filled up to the largest with a value; None: all have one shape."""
    if value is None or len(arrays) == 1:
        return arrays[0][None] if len(arrays) == 1 else np.stack(arrays)
    whole = np.full((len(arrays), *np.max([one.shape for one in arrays], axis=0)), value, arrays[0].dtype)
    for at, one in enumerate(arrays):
        whole[at][tuple(map(slice, one.shape))] = one
    return whole
