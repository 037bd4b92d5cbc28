"""A file written at once: whoever reads meanwhile, and whoever comes after a kill, finds the old one or the new."""

from __future__ import annotations

import uuid
from pathlib import Path


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write a file and the folders above it.

    Raises:
        OSError: the disk is full or not to be written; what stood there stands.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{uuid.uuid4().hex}")  # several processes may write the same file
    try:
        fresh.write_bytes(content.encode() if isinstance(content, str) else content)
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
