"""A base's fingerprint: sha256 over its weights, so that no adapter meets another base than its own."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

import torch
from torch import nn

from ray_lora.atomic import expanded


def fingerprint(path: Path) -> str:
    """sha256 over a folder's safetensors files in name order, or over a file; read anew when they have changed."""
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    return _of_files(tuple((file, _stamp(file)) for file in files))


def _stamp(file: Path) -> tuple[int, int, int, int]:
    """What changes with whatever is written to a file, or put in its place."""
    told = file.stat()
    return told.st_ino, told.st_size, told.st_mtime_ns, told.st_ctime_ns


@lru_cache(maxsize=32)
def _of_files(files: tuple[tuple[Path, tuple[int, int, int, int]], ...]) -> str:
    digest = hashlib.sha256()
    for file, _ in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def fingerprint_of(model: str) -> str | None:
    """The fingerprint of the folder or GGUF file that a base's name is on this machine; None where there is none."""
    path = expanded(model)
    try:
        held = path.is_file() if path.suffix == ".gguf" else (path / "config.json").is_file()
        return fingerprint(path.resolve()) if held and (path.is_file() or any(path.glob("*.safetensors"))) else None
    except OSError:
        return None


def module_fingerprint(module: nn.Module) -> str:
    """sha256 over the state dict: each tensor's name, dtype, shape and bytes, by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
