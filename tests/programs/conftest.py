"""Programs start a Ray of their own; what one leaves in this process ends with its file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module", autouse=True)
def end_ray() -> Iterator[None]:
    yield
    import ray

    ray.shutdown()
