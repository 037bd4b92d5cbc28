"""Bases made smaller by what an adapter's gradients say of their layers, feed-forward rows and heads."""

from ray_lora.pruning.pruned import check_asked, check_base, prune_ref

__all__ = ["check_asked", "check_base", "prune_ref"]
