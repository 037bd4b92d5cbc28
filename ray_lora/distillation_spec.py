"""What an adapter learns from a larger one: the recipe's `distillation`. It knows no teachers, only how they are named.

DistillationSpec(teacher="tweets-large@champion", temperature=2.0, weight=0.5)
"""

from __future__ import annotations

from pydantic import Field, model_validator

from ray_lora.task_spec import Spec


class DistillationSpec(Spec):
    """A row's loss is (1 - weight) times the task's, and weight times temperature² KL(teacher / temperature || student
    / temperature) (Hinton, Vinyals and Dean 2015, arXiv 1503.02531).

    Attributes:
        teacher: a ref in the store; or a folder (with a / in it) or hub id of a model with a trained head. null: none.
    """

    teacher: str | None = Field(default=None, min_length=1)
    temperature: float = Field(default=2.0, gt=0)
    weight: float = Field(default=0.5, ge=0, le=1)

    @model_validator(mode="after")
    def _taught(self) -> DistillationSpec:
        if self.teacher is None and self.model_fields_set - {"teacher"}:
            given = " and ".join(sorted(self.model_fields_set - {"teacher"}))
            raise ValueError(f"{given} without a teacher; set distillation.teacher to a ref in the store")
        return self

    @property
    def teaches(self) -> bool:
        """Whether a teacher has a part in the loss."""
        return self.teacher is not None and self.weight > 0


NO_TEACHER = DistillationSpec()
