"""What a SASRec is: its sizes, and the items that it knows, in the order of its outputs.

SasRecConfig(items=("tea", "milk", "rye bread"), hidden_size=32)
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, StrictInt, StrictStr, field_validator, model_validator

from ray_lora.recipe import Spec


class SasRecConfig(Spec):
    """The file `config.json` of a base's folder.

    Attributes:
        items: the vocabulary: ids as the user's data has them, all whole numbers or all texts, each once.
        hidden_size, num_hidden_layers, num_attention_heads, intermediate_size: as transformers has them.
        max_position_embeddings: items of a history that are read; of a longer one the latest.
        dropout: of training every weight; answers, and adapters that train, have none.
    """

    model_type: Literal["sasrec"] = "sasrec"
    items: tuple[StrictInt, ...] | tuple[StrictStr, ...]
    hidden_size: int = Field(default=64, ge=1)
    num_hidden_layers: int = Field(default=2, ge=1)
    num_attention_heads: int = Field(default=2, ge=1)
    intermediate_size: int = Field(default=128, ge=1)
    max_position_embeddings: int = Field(default=50, ge=1)
    dropout: float = Field(default=0.2, ge=0, lt=1)
    initializer_range: float = Field(default=0.02, gt=0)

    @field_validator("items")
    @classmethod
    def _distinct(cls, items: tuple[int, ...] | tuple[str, ...]) -> tuple[int, ...] | tuple[str, ...]:
        if len(items) < 2 or len(set(items)) < len(items):
            raise ValueError("items must be at least two, and each of them once")
        return items

    @model_validator(mode="after")
    def _whole_heads(self) -> SasRecConfig:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} must be a multiple of num_attention_heads {self.num_attention_heads}"
            )
        return self

    @property
    def num_labels(self) -> int:
        """Outputs: one for each item."""
        return len(self.items)
