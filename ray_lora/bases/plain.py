"""What is asked of a base's plain class: the model that answers when an adapter is served without this library.

It is a name and a size, so that a task can ask for it without torch.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class HeadSpec:
    """Which plain class answers, and how many labels (outputs) its head has."""

    architecture: str  # "AutoModelForSequenceClassification"
    num_labels: int
