"""What is asked of a base's plain class: the model that answers when an adapter is served without this library.

It is a name and a size, so that a task can ask for it without torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ray_lora.task_spec import Attention


@dataclass(frozen=True)
class HeadSpec:
    """Which plain class answers, and how many labels (outputs) its head has.

    Attributes:
        architecture: "AutoModelForSequenceClassification".
        labels: the outputs' names in their order, where a fresh head may begin as a base's trained one whose outputs
            have names too; heads that differ in names alone are one kind of head.
        attention: what a token sees of its row: a decoder's class reads both ways as "bidirectional", which is
            `config.is_causal = False`; None as the class is.
        norms: whether the backbone's batch norms are an adapter's own too.
    """

    architecture: str
    num_labels: int
    labels: tuple[str, ...] = field(default=(), compare=False)
    attention: Attention | None = None
    norms: bool = False

    @property
    def kind(self) -> str:
        """What one engine's heads of a class are kept under."""
        return f"{self.architecture} with norms" if self.norms else self.architecture
