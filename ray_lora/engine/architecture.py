"""What a class does only with longer rows than a probe can afford, read from its config. Knows no tensors."""

from __future__ import annotations

from typing import Any

_REFUSED = {
    "big_bird": (
        "attention_type",
        "block_sparse",
        "its class changes its attention for good when it meets a short row; set attention_type to original_full in "
        "the base's config.json",
    )
}
_BY_LENGTH = {"dynamic", "longrope"}  # rotary frequencies that follow from the longest row of a pass


def refuses(config: Any) -> str | None:
    """Why this base cannot be used with adapters, or None."""
    name, value, why = _REFUSED.get(getattr(config, "model_type", ""), ("", "", ""))
    return why if name and getattr(config, name, None) == value else None


def has_windows(config: Any) -> bool:
    """Whether tokens of some layer see a part of their row only."""
    text = _text(config)
    layers = getattr(text, "layer_types", None)
    if layers:
        return any(kind != "full_attention" for kind in layers)
    return getattr(text, "sliding_window", None) is not None and getattr(text, "use_sliding_window", True)


def own_lengths(config: Any) -> str | None:
    """Why rows of different lengths share no pass, or None: something follows from the longest of them."""
    rope = getattr(_text(config), "rope_parameters", None) or getattr(_text(config), "rope_scaling", None) or {}
    kinds = [rope, *(value for value in rope.values() if isinstance(value, dict))]
    found = {str(kind.get("rope_type") or kind.get("type")) for kind in kinds} & _BY_LENGTH
    return f"its rotary positions ({', '.join(sorted(found))}) follow from the longest row" if found else None


def _text(config: Any) -> Any:
    return config.get_text_config() if hasattr(config, "get_text_config") else config
