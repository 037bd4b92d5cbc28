"""How many tokens a row may have: learned positions are a table, and a row that is longer has no place in it.

    limit(tokenizer, BertModel(config), config)
    tokenizer.positions                            # 512; None where positions are computed, not looked up

It knows modules and tokenizers, no files and no tasks.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

_TABLES = (  # modules that hold one vector a position, by the last part of their name
    "position_embeddings",
    "position_embedding",
    "char_position_embeddings",
    "embed_positions",
    "positions_embed",
    "wpe",
)
_NO_LIMIT = 10**9  # a tokenizer that knows no length says more


def positions_of(backbone: nn.Module, config: Any) -> int | None:
    """Tokens that the longest row may have; None where no table of positions limits them.

    RoBERTa's kind counts from behind its padding index, BART's from behind an offset: those places hold no token.
    """
    computed = getattr(backbone, "pos_encoding", None)  # CTRL's, a tensor without a module
    found = [len(computed)] if isinstance(computed, Tensor) else []
    for name, module in backbone.named_modules():
        table = getattr(module, "weight", None)
        if name.rpartition(".")[2] in _TABLES and isinstance(table, Tensor) and table.dim() == 2:
            padding = getattr(module, "padding_idx", None)
            unused = (0 if padding is None else padding + 1) + int(getattr(module, "offset", 0))
            found.append(len(table) - unused)
    if found and isinstance(named := getattr(config, "max_position_embeddings", None), int):
        found.append(named)
    return min(found, default=None)


def limit(tokenizer: Any, backbone: nn.Module, config: Any) -> None:
    """Tell a tokenizer of its base's positions: as `positions`, and as a `model_max_length` that is not above them.

    What has no `model_max_length`, such as an image processor, is left alone.
    """
    own = getattr(tokenizer, "model_max_length", None)
    if own is None:
        return
    tokenizer.positions = positions_of(backbone, config)
    most = tokenizer.positions
    if most is None and own >= _NO_LIMIT:
        most = getattr(config, "max_position_embeddings", None)
    if isinstance(most, int) and 0 < most < own:
        tokenizer.model_max_length = most
