"""Low-rank changes of one base combined into one, layer by layer, under PEFT's names (`combination_type`).

    how = combination("cat", [0.5, 0.5], parents=2)
    merged = merge_layers([first, second], how)     # layer -> LowRank whose alpha/r is 1

PEFT's `add_weighted_adapter` (0.21) says what each name means:

- `cat`: A's and B's laid side by side, so that the change is exactly the weighted sum; the rank is the sum of ranks.
- `svd`: the best approximation of that sum at a rank (Eckart and Young, 1936).
- `linear`: A's and B's are summed up each for itself, with the root of the weight. That is NOT the sum of the changes,
  as it pairs every A with every B.
- `ties` (Yadav et al. 2023, arXiv 2306.01708): the smallest values go, then those of the rarer sign, then the mean.
- `dare_linear`, `dare_ties` (Yu et al. 2024, arXiv 2311.03099): values go at random, the rest grows by as much.
- `magnitude_prune`: the smallest values go, then the sum.

Without `_svd` these work on A and B, which needs equal ranks; with it on the change itself, which is then cut to a
rank. A layer that a parent lacks is no change of it. It knows pairs, no cards and no heads.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import get_args

import torch
from torch import Tensor

from ray_lora.adapters.card import Combination, Method
from ray_lora.adapters.peft_folder import LowRank
from ray_lora.errors import AdapterError, RecipeError, did_you_mean

METHODS: tuple[Method, ...] = get_args(Method)
_DENSITY = 0.5

Scaled = tuple[LowRank, float]  # a pair and its alpha/r


def combination(
    method: str,
    weights: Sequence[float] | None = None,
    *,
    parents: int,
    rank: int | None = None,
    density: float | None = None,
    seed: int = 0,
) -> Combination:
    """A checked `Combination`.

    Args:
        weights: None: alike, and 1 in all; 1 each for the methods of TIES, which take a mean.
        density: None: a half, where the method drops values.

    Raises:
        RecipeError: a value is wrong, or the method does not take it.
    """
    known = next((name for name in METHODS if name == method), None)
    if known is None:
        raise RecipeError(f"method {method!r} is not one of {', '.join(METHODS)}{did_you_mean(method, METHODS)}")
    if parents < 2:
        raise RecipeError(f"{parents} adapter is nothing to merge; name at least two")
    if weights is None:
        weights = [1.0 if "ties" in known else 1 / parents] * parents
    if len(weights) != parents:
        raise RecipeError(f"{len(weights)} weights were given for {parents} adapters; give one for each")
    if not all(math.isfinite(weight) for weight in weights) or not any(weights):
        told = ", ".join(map(str, weights))
        raise RecipeError(f"weights {told} must be finite numbers that are not all 0")
    if rank is not None and (not known.endswith("svd") or rank < 1):
        raise RecipeError(f"rank {rank} was given; a rank is at least 1, and goes with the methods that end in svd")
    drops = known.startswith(("ties", "dare", "magnitude"))
    if density is not None and (not drops or not 0 < density <= 1):
        raise RecipeError(
            f"density {density} was given; it is above 0 and at most 1, and goes with ties, dare and magnitude_prune"
        )
    kept = density if density is not None or not drops else _DENSITY
    return Combination(method=known, weights=tuple(map(float, weights)), rank=rank, density=kept, seed=seed)


def merge_layers(parents: Sequence[Mapping[str, Scaled]], how: Combination) -> dict[str, LowRank]:
    """The combined pair of every layer that a parent has; its alpha/r is 1.

    Args:
        parents: of each its layers, as pairs with their alpha/r.

    Raises:
        AdapterError: pairs of one layer have shapes that the method cannot combine.
    """
    found = {}
    with torch.random.fork_rng(devices=[]), torch.no_grad():  # PEFT draws from torch's own generator
        torch.manual_seed(how.seed)
        for name in sorted({name for layers in parents for name in layers}):
            mine = [
                (*layers[name], weight) for layers, weight in zip(parents, how.weights, strict=True) if name in layers
            ]
            _check(name, [pair for pair, _, _ in mine], how)
            found[name] = _layer(mine, how)
    return found


def _check(name: str, pairs: Sequence[LowRank], how: Combination) -> None:
    shapes = {(tuple(pair.A.shape[1:]), pair.B.shape[0], tuple(pair.B.shape[2:]), pair.embedding) for pair in pairs}
    if len(shapes) > 1:
        raise AdapterError(f"layer {name!r} has pairs of different sizes; adapters are merged that share one base")
    ranks = sorted({pair.rank for pair in pairs})
    if len(ranks) > 1 and not how.method.endswith("svd") and how.method != "cat":
        told = ", ".join(map(str, ranks))
        other = "svd" if how.method == "linear" else f"{how.method}_svd"
        raise AdapterError(
            f"layer {name!r} has ranks {told}, and {how.method} combines A's and B's of one rank; use cat, which is "
            f"exact, or {other}"
        )


def _layer(mine: Sequence[tuple[LowRank, float, float]], how: Combination) -> LowRank:
    """One layer's pair from (pair, alpha/r, weight) of each parent that has it."""
    first = mine[0][0]
    if how.method in ("cat", "svd"):
        a = torch.cat([pair.A * (weight * scaling) for pair, scaling, weight in mine])
        b = torch.cat([pair.B for pair, _, _ in mine], 1)
        whole = LowRank(a.contiguous(), b.contiguous(), first.embedding)
        return whole if how.method == "cat" else _cut(*_factors(whole), _rank(mine, how), first)
    weights = [weight for _, _, weight in mine]
    if how.method.endswith("_svd"):
        changes = [dense(pair, scaling) for pair, scaling, _ in mine]
        u, s, v = torch.linalg.svd(_combined(changes, weights, how).double(), full_matrices=False)
        return _cut(u, s, v, _rank(mine, how), first)
    told = [weight * scaling for _, scaling, weight in mine]
    roots = [math.sqrt(abs(one)) for one in told]
    signed = [math.copysign(root, one) for root, one in zip(roots, told, strict=True)]
    a = _combined([pair.A for pair, _, _ in mine], signed, how)
    b = _combined([pair.B for pair, _, _ in mine], roots, how)
    return LowRank(a.contiguous(), b.contiguous(), first.embedding)


def dense(pair: LowRank, scaling: float) -> Tensor:
    """alpha/r B A, [out, in * kernel]; of an Embedding [width, vocabulary]."""
    return scaling * pair.B.flatten(1) @ pair.A.flatten(1)


def _factors(pair: LowRank) -> tuple[Tensor, Tensor, Tensor]:
    """The singular value decomposition of B A, by QR of both: [out, rank], [rank], [rank, in], float64."""
    q_b, r_b = torch.linalg.qr(pair.B.flatten(1).double())
    q_a, r_a = torch.linalg.qr(pair.A.flatten(1).double().T)
    u, s, v = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    return q_b @ u, s, v @ q_a.T


def singular_values(pair: LowRank, scaling: float) -> Tensor:
    """Of alpha/r B A, largest first, [min(rank, in, out)] float64; the product is never formed."""
    return abs(scaling) * _factors(pair)[1]


def _rank(mine: Sequence[tuple[LowRank, float, float]], how: Combination) -> int:
    return how.rank or max(pair.rank for pair, _, _ in mine)


def _cut(u: Tensor, s: Tensor, v: Tensor, rank: int, like: LowRank) -> LowRank:
    """The largest singular values, which PEFT puts into B."""
    rank = min(rank, len(s))
    a = v[:rank].to(like.A.dtype).reshape(rank, *like.A.shape[1:])
    b = (u[:, :rank] * s[:rank]).to(like.B.dtype).reshape(like.B.shape[0], rank, *like.B.shape[2:])
    return LowRank(a.contiguous(), b.contiguous(), like.embedding)


def _combined(tensors: list[Tensor], weights: Sequence[float], how: Combination) -> Tensor:
    """Tensors of one shape by PEFT's own functions (`peft.utils.merge_utils`)."""
    from peft.utils import merge_utils

    kind, told = how.method.removesuffix("_svd"), torch.tensor(weights)
    if kind == "linear":
        return merge_utils.task_arithmetic(tensors, told)
    assert how.density is not None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The density")  # at 1 nothing is dropped, as was asked for
        function = getattr(merge_utils, kind)
        combined: Tensor = function(tensors, told, how.density)
    return combined
