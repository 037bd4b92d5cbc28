"""What encodes rows, under a name that another tokenizer, other options and other code do not have.

    encoder = Encoder.of(spec, base.processor, columns)
    encoder.key, encoder.about                       # "5f0c...", "text-classification with BertTokenizerFast"

It knows tasks and processors as values; it encodes nothing.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import ray_lora.tasks
from ray_lora.recipe import TaskSpec
from ray_lora.tasks import Task, build_task

_PACKAGES = ("transformers", "tokenizers", "numpy", "pillow", "soundfile", "torch")  # on which encoded rows depend
# of a fast tokenizer: what is in its backend, where its files lie, and what a call leaves behind
_ASIDE = {"_tokenizer", "_vocab", "_merges", "name_or_path", "vocab_file", "files_loaded", "init_kwargs", "init_inputs"}
_ASIDE |= {"deprecation_warnings", "_in_target_context_manager", "verbose"}
_FOREIGN = ("builtins", "abc", "typing", "enum", "transformers", "tokenizers", "torch", "numpy", "PIL")


@dataclass(frozen=True)
class Encoder:
    """A task's options on a base's processor, and which column of the data is which of the task's.

    Attributes:
        key: of all that encoded rows follow from, rows apart.
    """

    spec: TaskSpec
    processor: Any
    columns: Mapping[str, str]
    key: str = field(default="")

    @classmethod
    def of(cls, spec: TaskSpec, processor: Any, columns: Mapping[str, str]) -> Encoder:
        """The encoder with its key."""
        return cls(spec, processor, dict(columns), _key(build_task(spec, processor), processor, columns))

    @property
    def about(self) -> str:
        """What it is, for people."""
        return f"{self.spec.type} with {type(self.processor).__name__}"

    @cached_property
    def task(self) -> Task:
        """The task, built where it is needed."""
        return build_task(self.spec, self.processor)


def _key(task: Task, processor: Any, columns: Mapping[str, str]) -> str:
    digest = hashlib.sha256()
    options = task.spec.model_dump(mode="json")
    digest.update(json.dumps([options, sorted(columns.items()), _versions()], sort_keys=True).encode())
    digest.update(code_of(type(task), type(processor)).encode())
    digest.update(pickle.dumps(_settled(processor)))
    return digest.hexdigest()[:32]


def code_of(*kinds: type) -> str:
    """A hash of the code by which rows of these classes are read and encoded."""
    digest = hashlib.sha256()
    for source in sorted({*_own(), *(path for kind in kinds for path in _sources(kind))}):
        digest.update(source.read_bytes())
    return digest.hexdigest()


def _settled(processor: Any) -> Any:
    """What a processor follows from; what a base has told it of its positions and token types included."""
    if hasattr(processor, "feature_extractor") and hasattr(processor, "tokenizer"):  # of sounds
        heard = [processor.feature_extractor.to_dict(), vars(processor).get("speech")]
        return _settled(processor.tokenizer), json.dumps(heard, sort_keys=True, default=repr)
    if not hasattr(processor, "backend_tokenizer"):
        return processor
    backend = copy.deepcopy(processor.backend_tokenizer)
    backend.no_truncation()
    backend.no_padding()
    told = {name: value for name, value in vars(processor).items() if name not in _ASIDE}
    return backend.to_str(), json.dumps(told, sort_keys=True, default=_said)


def _said(value: Any) -> str:
    """What a value of a tokenizer is, where JSON cannot say it: a special token's text and how it is matched."""
    return repr(value) if type(value).__name__ == "AddedToken" else type(value).__qualname__


def _versions() -> list[str]:
    found = []
    for package in _PACKAGES:
        try:
            found.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            found.append(f"no {package}")
    return found


def _own() -> Iterator[Path]:
    """Where this package says how rows are read and encoded."""
    for room in ("tasks", "data", "bases"):
        yield from (Path(ray_lora.tasks.__file__).parents[1] / room).rglob("*.py")


def _sources(kind: type) -> Iterator[Path]:
    """The files of a class and of those it is made of, where no package's version stands for them."""
    for one in kind.__mro__:
        if one.__module__.partition(".")[0] not in _FOREIGN:
            try:
                yield Path(inspect.getfile(one))
            except (TypeError, OSError):  # made in a session; it has no file
                continue
