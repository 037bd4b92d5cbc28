"""A base: a frozen pretrained model and what is known of it. It knows no files, no adapters and no tasks.

base.backbone                                              # eval mode, no parameter requires a gradient
base.plain(HeadSpec("AutoModelForSequenceClassification", 3))     # the class that would answer without this library
base.batch(base.examples([5, 9]))                          # two plausible rows as the backbone's inputs
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ray_lora.bases import examples, transformers_base
from ray_lora.bases.built import Built, plain_of
from ray_lora.bases.padding import pad
from ray_lora.bases.plain import HeadSpec
from ray_lora.bases.speech import frames_of
from ray_lora.errors import AdapterError
from ray_lora.recipe import QuantisedDtype


@dataclass(frozen=True)
class Base:
    """A loaded base.

    Attributes:
        id: the name, hub id, folder, file or builder it was asked for by.
        folder: the folder or GGUF file it was read from; `Path()` for that of a builder by name.
        backbone: the model without a task head.
        processor: its tokenizer or image processor, or None.
        config: transformers' config, or the facts that a builder gives.
        fingerprint: sha256 over its weights, whatever float they are held in; another one where they are quantised.
        prefix: the attribute under which task classes hold the backbone ("bert").
        built: what its builder gave, on the meta device; None for a transformers model.
        quantised: "int8" or "nf4"; None of a base of floats. All else is then in `dtype`, and products too.
        origin: the fingerprint of its float weights, where it is quantised.
    """

    id: str
    folder: Path
    backbone: nn.Module
    processor: Any
    config: Any
    fingerprint: str
    prefix: str
    dtype: torch.dtype
    device: torch.device
    built: Built | None = None
    quantised: QuantisedDtype | None = None
    origin: str | None = None

    def plain(self, spec: HeadSpec) -> nn.Module:
        """The plain class with such a head, on the meta device, in eval mode; the backbone is its attribute `prefix`.

        Raises:
            AdapterError: there is no such class, or it does not know this base.
        """
        if self.built is not None:
            return plain_of(self.built, spec, "meta")
        model = transformers_base.plain(self.config, spec)
        if not hasattr(model, self.prefix):
            raise AdapterError(
                f"{type(model).__name__} does not hold its backbone as {self.prefix!r}, so PEFT's names differ"
            )
        return model

    def fresh(self, spec: HeadSpec) -> nn.Module | None:
        """The plain class whose head has memory and values as the class initialises it, from torch's own generator;
        the backbone stays on the meta device. None where transformers' rule says how a head starts.

        Raises:
            AdapterError: as `plain`.
        """
        return None if self.built is None else plain_of(self.built, spec, "cpu")

    @property
    def labels(self) -> tuple[str, ...] | None:
        """The names of the outputs that its own head was trained on (id2label); None where the config has none."""
        return transformers_base.label_names(self.config)

    def own_outputs(self, architecture: str) -> int | None:
        """How many outputs the head of this class has where it is the base's own: frozen, shared by all adapters, and
        no part of any. None where each adapter has a head of this class."""
        if self.built is not None:
            return self.built.own_heads.get(architecture)
        return transformers_base.own_outputs(self.config, architecture)

    def outputs(self, architecture: str) -> int | None:
        """How many outputs an adapter's head of this class has on this base; None where that is the adapter's."""
        return None if self.built is None else self.built.outputs.get(architecture)

    def trained(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
        """Tensors of a head that the base's own files hold, of those asked for by the plain class's names: the ones
        that `from_pretrained` would give the class, so those of equal shape."""
        if self.built is not None or not self.folder.is_dir():
            return {}
        inside = self.backbone.state_dict().keys()  # a file without a head names the backbone's own tensors so
        wanted = {name: shape for name, shape in shapes.items() if name not in inside}
        if any(name.startswith("decode_head.") for name in wanted):  # SegFormer's
            return transformers_base.read_segmenter(self.folder, wanted)
        files = {transformers_base.in_files(self.config, name): name for name in wanted}
        found = transformers_base.stored_tensors(self.folder, {file: wanted[name] for file, name in files.items()})
        return {files[file]: tensor for file, tensor in found.items()}

    def unpacked(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
        """Tensors of the base's own language model's head that a GGUF file holds, by the plain class's names; none of a
        base that is no such file."""
        if self.built is not None or not transformers_base.is_gguf(self.folder):
            return {}
        if self.device.type == "meta":
            return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
        return transformers_base.gguf_tensors(self.folder, shapes)

    def examples(self, sizes: Sequence[int], seed: int = 0) -> list[dict[str, Tensor]]:
        """Plausible inputs, one row each and without the axis of rows.

        Args:
            sizes: tokens of each row; only their number counts where all rows have one size.

        Raises:
            BaseModelError: the base takes neither texts nor images, and its builder gives no examples.
        """
        if self.built is not None:
            return self.built.examples(sizes, seed)
        return examples.draw(self.backbone, self.config, self.processor, sizes, seed)

    def batch(self, rows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Rows as `examples` gives them, as the backbone's inputs, each [rows, ...]; tokens and samples are padded."""
        if "input_values" in rows[0]:
            return {name: pad_sequence([row[name] for row in rows], batch_first=True) for name in rows[0]}
        batch = {}
        if "input_ids" in rows[0]:
            batch = pad([row["input_ids"].tolist() for row in rows], self._tokenizer())
        if "decoder_input_ids" in rows[0]:
            end = SimpleNamespace(pad_token_id=self.config.pad_token_id)
            written = pad([row["decoder_input_ids"].tolist() for row in rows], end)
            batch = {f"decoder_{name}": tensor for name, tensor in written.items()}
        others = [name for name in rows[0] if name not in ("input_ids", "attention_mask", "decoder_input_ids")]
        return batch | {name: torch.stack([row[name] for row in rows]) for name in others}

    def output_mask(self, inputs: Mapping[str, Tensor]) -> Tensor | None:
        """Which positions of the backbone's outputs are a row's own and no padding, [rows, positions] of 0 and 1; None
        where the inputs do not say, or all are.

        Args:
            inputs: as `batch` gives them.
        """
        mask = inputs.get("attention_mask", inputs.get("decoder_attention_mask"))
        if mask is None or "input_values" not in inputs:
            return mask
        frames = [frames_of(count, self.config.conv_kernel, self.config.conv_stride) for count in mask.sum(1).tolist()]
        return (torch.arange(max(frames)) < torch.tensor(frames)[:, None]).long()

    def _tokenizer(self) -> Any:
        """What pads texts: the tokenizer, else what the config says of padding."""
        if hasattr(self.processor, "padding_side"):
            return self.processor
        text = self.config.get_text_config() if hasattr(self.config, "get_text_config") else self.config
        return SimpleNamespace(padding_side="right", pad_token_id=getattr(text, "pad_token_id", None))
