"""Bases of transformers: a model class read from a folder or a GGUF file, its processor, and its plain task classes.

It finds no files: it is handed the folder or the file.
"""

from __future__ import annotations

import copy
import importlib.util
import re
import struct
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from ray_lora.bases import rt_detr
from ray_lora.bases.plain import HeadSpec
from ray_lora.errors import AdapterError, BaseModelError

_WRONG = (
    OSError,
    ValueError,
    LookupError,
    RuntimeError,
    struct.error,
    ImportError,  # a DETR's timm backbone, and what else asks for a package that is not installed
)  # what transformers raises for files it cannot use

# types of two towers, texts and pictures, of whose class for pictures one tower is the backbone: its attribute
_TOWERS = {"clip": "vision_model", "metaclip_2": "vision_model", "siglip": "vision_model"}
_ALL_STAGES = ("segformer",)  # whose head for segmentation reads the hidden states of every stage
_REFINES = ("rt_detr",)  # whose class tells labels inside the model
_WRITERS = ("whisper",)  # of classes with an encoder that write token by token
_SPELLERS = ("wav2vec2",)  # that say a letter a frame
_HEARERS = (*_WRITERS, *_SPELLERS)  # of classes that hear and have a tokenizer beside
_WRITES = "AutoModelForSpeechSeq2Seq"
_LETTERS = "AutoModelForCTC"
_COMPARED = {_WRITES: _WRITERS, _LETTERS: _SPELLERS, "AutoModelForSemanticSegmentation": _ALL_STAGES}

_LOADING = threading.RLock()
_OWN_HEADS = frozenset({"AutoModelForCausalLM", _WRITES, _LETTERS})  # whose output layer was trained with the base


def is_gguf(path: Path) -> bool:
    """Whether it is a GGUF file by its name."""
    return path.suffix == ".gguf"


@dataclass(frozen=True)
class Backbone:
    """The part of a model that its plain classes share: `config` is theirs, `prefix` its name in them."""

    module: Any
    config: Any
    prefix: str

    @classmethod
    def of(cls, model: Any) -> Backbone:
        """A model without a head; of two towers the one that sees; of a class that tells labels inside its model that
        model, which tells none."""
        if model.config.model_type in _REFINES:
            return cls(rt_detr.without_classes(model), model.config, "model")
        tower = _TOWERS.get(model.config.model_type)
        if tower is None:
            return cls(model, model.config, str(model.base_model_prefix))
        return cls(getattr(model, tower), model.config, tower)


def load_backbone(path: Path, model: str, dtype: torch.dtype, attention: str) -> Backbone:
    """The model without a head, read from a folder or GGUF file; BaseModelError when it cannot be."""
    try:
        with quiet():
            return Backbone.of(
                _telling(
                    _reader(_config(path)).from_pretrained(
                        *_place(path),
                        dtype=dtype,
                        attn_implementation=attention,
                        local_files_only=True,
                        use_safetensors=True,
                        **_within(path),
                    )
                )
            )
    except _WRONG as error:
        raise BaseModelError(f"base {model!r} cannot be loaded from {str(path)!r}: {error}") from None


def describe_backbone(path: Path, model: str) -> Backbone:
    """The same on the meta device."""
    try:
        with quiet():
            config = _config(path)
        with torch.device("meta"):
            return Backbone.of(_telling(_reader(config).from_config(config)))
    except _WRONG as error:
        raise BaseModelError(f"base {model!r} cannot be read from {str(path)!r}: {error}") from None


def _config(path: Path) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(*_place(path), local_files_only=True, **_within(path))


def _reader(config: Any) -> Any:
    """What reads a model of this config without its head, or with one that stands inside it."""
    from transformers import AutoModel, AutoModelForObjectDetection

    return AutoModelForObjectDetection if config.model_type in _REFINES else AutoModel


def in_files(config: Any, name: str) -> str:
    """What a tensor of a plain class's head is called in a base's files."""
    return rt_detr.in_files(name) if getattr(config, "model_type", None) in _REFINES else name


def _telling(model: Any) -> Any:
    """The model, which gives all hidden states where a head needs them, keeps no cache that nobody asked for, and
    writes into no states that are a layer's."""
    if model.config.model_type in _ALL_STAGES:
        model.config.output_hidden_states = True
    if model.config.model_type in _WRITERS:
        model.config.use_cache = False
    if model.config.model_type in _SPELLERS:  # whose encoder sets padding to zero in what it is given
        model.encoder.register_forward_pre_hook(_own_states, with_kwargs=True)
    return model


def _own_states(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Hidden states that may be written to: those of a layer with adapters may not."""
    return (given[0].clone(), *given[1:]), named


def load_processor(path: Path, pictures: bool = False, sounds: bool = False) -> Any:
    """The tokenizer or image processor of a folder or GGUF file, or what has a tokenizer and a feature extractor; None
    when it has neither.

    Args:
        pictures: the backbone takes pictures, so that a tokenizer beside its image processor is nothing to it.
        sounds: it takes sounds.
    """
    from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer

    if is_gguf(path):
        return _gguf_tokenizer(path)
    if sounds:
        return AutoProcessor.from_pretrained(path, local_files_only=True) if _has_processor(path) else None
    if pictures and (path / "preprocessor_config.json").exists():
        return AutoImageProcessor.from_pretrained(path, local_files_only=True)
    if (path / "tokenizer.json").exists() or (path / "tokenizer_config.json").exists():
        return AutoTokenizer.from_pretrained(path, local_files_only=True)
    if (path / "preprocessor_config.json").exists():
        return AutoImageProcessor.from_pretrained(path, local_files_only=True)
    return None


def _has_processor(path: Path) -> bool:
    """Whether a folder says how sounds are read and texts are written."""
    sounds = any((path / name).exists() for name in ("preprocessor_config.json", "processor_config.json"))
    return sounds and any((path / name).exists() for name in ("tokenizer.json", "vocab.json"))


def _gguf_tokenizer(path: Path) -> Any:
    from gguf import GGUFReader
    from transformers import AutoTokenizer

    if "tokenizer.ggml.tokens" not in GGUFReader(path).fields:
        return None
    return AutoTokenizer.from_pretrained(path.parent, local_files_only=True, **_within(path))


def label_names(config: Any) -> tuple[str, ...] | None:
    """The outputs' names in a config's `id2label`, by number; None where these are transformers' own LABEL_0, LABEL_1,
    … or are not one different word for each output."""
    told = getattr(config, "id2label", None)
    if not isinstance(told, Mapping) or len(told) < 2:
        return None
    try:
        by_number = {int(number): name for number, name in told.items()}
    except (TypeError, ValueError):
        return None
    names = [by_number.get(number) for number in range(len(told))]
    if not all(isinstance(name, str) and name.strip() for name in names) or len(set(names)) < len(names):
        return None
    own = all(re.fullmatch(r"LABEL_\d+", str(name)) for name in names)
    return None if own else tuple(map(str, names))


def stored_tensors(folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The tensors of these names and shapes in a folder's safetensors files, in float32."""
    whole = folder / "model.safetensors"  # transformers prefers it where shards lie beside it
    found = {}
    for path in [whole] if whole.exists() else sorted(folder.glob("model-*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in shapes.keys() & set(file.keys()):
                if tuple(file.get_slice(name).get_shape()) == shapes[name]:
                    found[name] = file.get_tensor(name).float()
    return found


def tell_vocabulary(tokenizer: Any, config: Any) -> None:
    """Tell a tokenizer how many tokens its base's own output layer tells apart, as `vocabulary`: a base may have rows
    that no token uses. What has no `pad_token_id` is left alone."""
    if hasattr(tokenizer, "pad_token_id"):
        tokenizer.vocabulary = getattr(config.get_text_config(), "vocab_size", None)


def gguf_tensors(path: Path, names: Collection[str]) -> dict[str, Tensor]:
    """Tensors of a GGUF file's language model, by their names in its class, in float32. A file without output numbers
    means those of its input."""
    from transformers import AutoModelForCausalLM

    with quiet():
        model = AutoModelForCausalLM.from_pretrained(
            path.parent, dtype=torch.float32, local_files_only=True, **_within(path)
        )
    output = model.get_output_embeddings()
    if output is not None and output.weight.is_meta:
        output.weight = model.get_input_embeddings().weight
    return {name: tensor for name, tensor in model.state_dict().items() if name in names and not tensor.is_meta}


def hears(config: Any) -> bool:
    """Whether it is of a kind that takes sounds."""
    return getattr(config, "model_type", None) in _HEARERS


def own_outputs(config: Any, architecture: str) -> int | None:
    """How many outputs a class has that answers by the base's own, frozen head: a token of its vocabulary each. None
    for a class whose head is an adapter's."""
    if architecture not in _OWN_HEADS:
        return None
    size = getattr(config.get_text_config(), "vocab_size", None)
    return size if isinstance(size, int) else None


def read_segmenter(folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """As `stored_tensors`, of a class whose files name its tensors otherwise than its modules are called: as its
    `from_pretrained` reads them, without what the files do not hold."""
    from transformers import AutoModelForSemanticSegmentation

    with quiet():
        model, told = AutoModelForSemanticSegmentation.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    missing = set(told["missing_keys"])
    return {
        name: tensor
        for name, tensor in model.state_dict().items()
        if name not in missing and shapes.get(name) == tuple(tensor.shape)
    }


def check_gguf(path: Path) -> None:
    """BaseModelError unless what reads GGUF files is installed."""
    if importlib.util.find_spec("gguf") is None:
        raise BaseModelError(
            f"base {str(path)!r} is a GGUF file, and the package that reads them is not installed: "
            "pip install 'ray_lora[gguf]'"
        )


def _place(path: Path) -> tuple[Path]:
    return (path.parent if is_gguf(path) else path,)


def _within(path: Path) -> dict[str, str]:
    return {"gguf_file": path.name} if is_gguf(path) else {}


@contextmanager
def quiet() -> Iterator[None]:
    """Keys of another head are left out on purpose; and no progress bars. One thread at a time: loudness is the whole
    process's, and so is transformers' switch for tied weights, which two that load at once would leave off for good."""
    from transformers.utils import logging

    with _LOADING:
        level = logging.get_verbosity()
        logging.disable_progress_bar()
        logging.set_verbosity_error()
        try:
            yield
        finally:
            logging.set_verbosity(level)


def plain(config: Any, spec: HeadSpec) -> nn.Module:
    """The plain class of a base's config without memory for its weights, in eval mode.

    Raises:
        AdapterError: transformers has no such class, or it does not know this base.
    """
    import transformers

    config = copy.deepcopy(config)
    config.num_labels = spec.num_labels
    if spec.attention == "bidirectional":
        config.is_causal = False
    text = config.get_text_config()
    if getattr(text, "pad_token_id", 0) is None:
        text.pad_token_id = -1  # no token at all; without one a decoder's class takes a single row at a time
    named = spec.architecture.startswith("AutoModelFor")  # the name may come from a file: it reaches nothing else
    factory = getattr(transformers, spec.architecture, None) if named else None
    if factory is None:
        raise AdapterError(
            f"transformers has no class {spec.architecture!r}; name a class such as AutoModelForSequenceClassification"
        )
    compared = _COMPARED.get(spec.architecture)
    if compared is not None and config.model_type not in compared:
        raise AdapterError(
            f"{spec.architecture} on {config.model_type!r} was not compared with its plain class and is not supported; "
            f"of transformers {', '.join(compared)} is"
        )
    try:
        with torch.device("meta"):
            if config.model_type in _REFINES and spec.architecture == "AutoModelForObjectDetection":
                backbone = Backbone.of(factory.from_config(config))
                return rt_detr.RtDetrForObjectDetection(config, backbone.module, spec.num_labels).eval()
            model: nn.Module = factory.from_config(config)
    except ValueError as error:
        raise AdapterError(f"{spec.architecture} does not know this base ({config.model_type}): {error}") from None
    return model.eval()
