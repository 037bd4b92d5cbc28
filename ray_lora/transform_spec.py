"""One transform of a recipe's `augmentation`: which options it has is said by its name.

    TransformSpec.model_validate({"name": "horizontal_flip", "p": 0.5})    # a HorizontalFlip

It knows where transforms are found (`augmentation/table.py`), not what they do.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, TypeVar, cast

from pydantic import Field, GetJsonSchemaHandler, ModelWrapValidatorHandler, model_validator
from pydantic.json_schema import JsonSchemaValue

from ray_lora.errors import did_you_mean
from ray_lora.task_spec import Spec

# What rows must have that a transform may change them: a picture, its colours, a sound, tokens, labels that stay right
# whichever order the tokens are in, a token that hides another one.
Needs = Literal["pictures", "colours", "sounds", "tokens", "order", "mask"]
View = TypeVar("View")


class TransformSpec(Spec):
    """What is done to a training row: the base of each transform's own options.

    Attributes:
        needs: what a row must have.
        library: the library that does it, which is an extra; None where there is nothing to install.
        name: which transform; p: the chance that a row gets it.
    """

    needs: ClassVar[frozenset[Needs]]
    library: ClassVar[str | None] = None
    name: str
    p: float = Field(default=1.0, ge=0, le=1)

    @abstractmethod
    def alter(self, view: Any, draw: Any) -> Any:
        """The view that is trained on in the place of this one.

        Args:
            view: what the task shows of a row, a `tasks.augmented.View`.
            draw: numpy's Generator, of this row, epoch and place among the transforms alone.
        """

    def __call__(self, view: View, draw: Any) -> View:
        """The view, altered with the chance `p`; the very one that was given where it is not."""
        return cast(View, self.alter(view, draw)) if draw.random() < self.p else view

    @model_validator(mode="wrap")
    @classmethod
    def _by_name(cls, value: Any, handler: ModelWrapValidatorHandler[TransformSpec]) -> TransformSpec:
        if not isinstance(value, Mapping):
            return handler(value)
        chosen = _named(value.get("name")) if cls is TransformSpec else cls
        for key in value:
            if key not in chosen.model_fields:
                name, known = chosen.model_fields["name"].default, list(chosen.model_fields)
                has = ", ".join(key for key in known if key != "name")
                raise ValueError(f"{name} has no {key!r}{did_you_mean(str(key), known)}; it has {has}")
        return handler(value) if chosen is cls else chosen.model_validate(value)

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        if cls is not TransformSpec:
            return handler(core_schema)
        from ray_lora.augmentation.table import TRANSFORMS, transform_class

        classes = [transform_class(name) for name in TRANSFORMS]
        schemas = [handler.resolve_ref_schema(handler(one.__pydantic_core_schema__)) for one in classes]
        return {"oneOf": [schema | {"required": ["name"]} for schema in schemas]}


def said(transform: TransformSpec) -> str:
    """A transform and its options for reading: `"color_jitter p 1.0, brightness 0.2"`."""
    options = transform.model_dump(mode="json", exclude={"name"})
    return " ".join([transform.name, ", ".join(f"{key} {value}" for key, value in options.items())])


def _named(name: Any) -> type[TransformSpec]:
    from ray_lora.augmentation.table import TRANSFORMS, transform_class

    if name not in TRANSFORMS:
        given = "a transform has no name" if name is None else f"{name!r} is not a transform"
        raise ValueError(f"{given}{did_you_mean(str(name), TRANSFORMS)}; there are {', '.join(TRANSFORMS)}")
    return cast("type[TransformSpec]", transform_class(name))
