"""Plausible inputs of a transformers model: random tokens, pixels or samples of the sizes that it takes.

draw(backbone, config, tokenizer, [5, 9])      # [{"input_ids": [5], "attention_mask": [5]}, {... [9]}]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ray_lora.bases.speech import samples_of
from ray_lora.errors import BaseModelError

_PIXELS = 64  # height and width where neither processor nor config says one
_LETTERS = 128  # ASCII
_SPECIAL = ("pad", "bos", "eos", "cls", "sep", "unk", "mask")


def draw(backbone: nn.Module, config: Any, processor: Any, sizes: Sequence[int], seed: int) -> list[dict[str, Tensor]]:
    """One row for each size, without the axis of rows.

    Raises:
        BaseModelError: the model takes neither token ids, pixels, samples nor Whisper's spectrograms.
    """
    takes = getattr(backbone, "main_input_name", "input_ids")
    generator = torch.Generator().manual_seed(seed)
    if takes == "pixel_values":
        seen = getattr(config, "vision_config", config)  # of two towers the one that takes pictures
        shape = (int(getattr(seen, "num_channels", 3)), *_picture(seen, processor))
        return [{"pixel_values": torch.randn(shape, generator=generator)} for _ in sizes]
    if takes == "input_features" and config.model_type == "whisper":
        return _heard(config, sizes, generator)
    if takes == "input_values" and config.model_type == "wav2vec2":
        return _sounds(config, sizes, generator)
    if takes != "input_ids":
        raise BaseModelError(
            f"base {config.model_type!r} takes {takes}, of which no examples can be drawn; "
            "only bases that take input_ids or pixel_values, Whisper and Wav2Vec2 have them"
        )
    words, end = _words(config.get_text_config(), processor), _end(config)
    rows = []
    for size in sizes:
        ids = words[torch.randint(len(words), (size,), generator=generator)]
        if end is not None:
            ids[-1] = end
        rows.append({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    return rows


def _heard(config: Any, sizes: Sequence[int], generator: torch.Generator) -> list[dict[str, Tensor]]:
    """Spectrograms of a whole window, and as many tokens of a text as each size says."""
    shape = (config.num_mel_bins, 2 * config.max_source_positions)
    rows = []
    for size in sizes:
        tokens = torch.randint(int(config.vocab_size), (size,), generator=generator)
        rows.append({"input_features": torch.randn(shape, generator=generator), "decoder_input_ids": tokens})
    return rows


def _sounds(config: Any, sizes: Sequence[int], generator: torch.Generator) -> list[dict[str, Tensor]]:
    """Samples of as many frames as each size says, and some that make none more."""
    rows = []
    for size in sizes:
        samples = samples_of(size, config.conv_kernel, config.conv_stride) + config.conv_stride[0] - 1
        row = {"input_values": torch.randn(samples, generator=generator)}
        if config.feat_extract_norm == "layer":  # a base of the other kind is not told of padding
            row["attention_mask"] = torch.ones(samples, dtype=torch.long)
        rows.append(row)
    return rows


def _end(config: Any) -> int | None:
    """The token that ends a row, where the class looks for it: an encoder and decoder's."""
    end = getattr(config, "eos_token_id", None) if getattr(config, "is_encoder_decoder", False) else None
    return end if isinstance(end, int) else None


def _words(config: Any, tokenizer: Any) -> Tensor:
    """The token ids that are not special."""
    special = set(getattr(tokenizer, "all_special_ids", None) or ())
    for name in _SPECIAL:
        ids = getattr(config, f"{name}_token_id", None)
        special.update(ids if isinstance(ids, list) else [ids])
    size = getattr(config, "vocab_size", None) or _LETTERS  # CANINE reads letters, which it does not count
    ordinary = torch.ones(int(size), dtype=torch.bool)
    ordinary[[i for i in special if isinstance(i, int) and 0 <= i < len(ordinary)]] = False
    return ordinary.nonzero().flatten()


def _picture(config: Any, processor: Any) -> tuple[int, int]:
    """Height and width of a picture."""
    crop = getattr(processor, "crop_size", None) if getattr(processor, "do_center_crop", False) else None
    sizes = [crop, getattr(processor, "size", None), getattr(config, "image_size", None)]
    return next((size for size in map(_height_width, sizes) if size is not None), (_PIXELS, _PIXELS))


def _height_width(size: Any) -> tuple[int, int] | None:
    """A size as processors and configs write it: a number, two, or a mapping with height and width or an edge."""
    if isinstance(size, int):
        return size, size
    if isinstance(size, (list, tuple)) and len(size) == 2:
        return int(size[0]), int(size[1])
    named = {name: getattr(size, name, None) for name in ("height", "width", "shortest_edge")} | (
        dict(size) if isinstance(size, dict) else {}
    )
    if named["height"] and named["width"]:
        return int(named["height"]), int(named["width"])
    edge = named["shortest_edge"]
    return (int(edge), int(edge)) if edge else None
