"""Answers of a segmenter in the shape of Hugging Face's `image-segmentation` pipeline, by label:

    [{"score": 0.97, "label": "cat", "mask": "<PNG in base64, 255 where the cat is>"}]

in pixels of the caller's picture; or as one map, {"score", "map", "sure"}: PNGs of each pixel's class index and of its
probability times 255. It knows tensors of one picture and what a request may ask for.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ray_lora.recipe import Json
from ray_lora.tasks.segmentation.masks import Array, of_png, png
from ray_lora.tasks.segmentation.options import Options

_MOST = 1 << 24  # numbers at once, so that many labels of a large picture need no more memory than few


def answer(logits: Tensor, picture: Mapping[str, Any], labels: Sequence[str], options: Options) -> Json:
    """One picture's answer; one whose score is no number where its logits are none.

    Args:
        logits: [labels, height, width], of the network's input.
        picture: `extent`, its width and height, and `inside`, those that it takes of the input; `input`, its size.
    """
    finite = bool(logits.isfinite().all())
    best, sure = _pixels(within(logits, picture["inside"], picture["input"]), picture["extent"])
    if options.form == "map":
        score = float(sure.mean()) if finite else math.nan
        shares = np.rint(np.nan_to_num(sure) * 255).astype(np.uint8)
        return {"score": score, "map": encoded(best), "sure": encoded(shares)}
    if not finite:
        return [{"score": math.nan, "label": labels[0], "mask": encoded(np.zeros_like(best))}]
    found: list[Json] = []
    for index in np.unique(best).tolist():
        here = best == index
        score = float(sure[here].mean())
        if score >= options.threshold:
            found.append({"score": score, "label": labels[index], "mask": encoded(here.astype(np.uint8) * 255)})
    return found


def within(logits: Tensor, inside: Sequence[int], size: Sequence[int]) -> Tensor:
    """The part of the logits that is the picture and not the margin.

    Args:
        inside: width and height that the picture takes of the input. size: the input's height and width.
    """
    if (inside[1], inside[0]) == tuple(size):
        return logits
    if tuple(logits.shape[1:]) != tuple(size):  # a coarser grid, whose cells the picture's edge cuts
        logits = F.interpolate(logits[None], tuple(size), mode="bilinear", align_corners=False)[0]
    return logits[:, : inside[1], : inside[0]]


def _pixels(logits: Tensor, extent: Sequence[int]) -> tuple[Array, np.ndarray[Any, np.dtype[np.float32]]]:
    """Each pixel's label and its probability, [height, width], from logits scaled to the picture's size, as
    transformers' `post_process_semantic_segmentation` does it."""
    width, height = extent
    best = torch.full((height, width), -math.inf)
    index = torch.zeros((height, width), dtype=torch.uint8)
    total = torch.zeros((height, width))
    step = max(_MOST // (width * height), 1)
    for first in range(0, len(logits), step):
        part = F.interpolate(logits[None, first : first + step], (height, width), mode="bilinear", align_corners=False)
        part = part[0].float()
        top, where = part.max(0)
        higher = torch.maximum(best, top)
        total = total * (best - higher).exp() + (part - higher).exp().sum(0)
        index = torch.where(top > best, (where + first).to(torch.uint8), index)
        best = higher
    return index.numpy(), (1 / total).numpy()


def read_answer(answer: Any, labels: Sequence[str], extent: Sequence[int]) -> tuple[Array, Array]:
    """Each pixel's class index, and its probability times 255: of masks the score of its label.

    Args:
        extent: width and height of the picture.
    """
    if isinstance(answer, Mapping):
        return decoded(answer["map"]), decoded(answer["sure"])
    best, sure = (np.zeros((extent[1], extent[0]), np.uint8) for _ in range(2))
    for one in answer:
        here = decoded(one["mask"]) > 0
        best[here] = labels.index(one["label"])
        sure[here] = round(255 * one["score"]) if math.isfinite(one["score"]) else 0
    return best, sure


def encoded(values: Array) -> str:
    """A grey PNG in base64."""
    return base64.b64encode(png(values)).decode()


def decoded(text: str) -> Array:
    """What `encoded` wrote."""
    return of_png(base64.b64decode(text))
