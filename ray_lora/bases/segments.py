"""Which of two texts a token is of: how many kinds of such token types a base tells apart.

    tell_segments(tokenizer, BertModel(config), config)
    tokenizer.segments                             # 2; None where it is not known what the class makes of them

It knows modules and tokenizers, no files and no tasks.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


def segments_of(backbone: nn.Module, config: Any) -> int | None:
    """Kinds of token types: 0 where the class takes none, 1 where it has one for all tokens.

    None where it takes them, but its config has no table of them (XLNet; GPT-2, which takes them for words): that rows
    of one text need none is known of BERT's kind only.
    """
    if "token_type_ids" not in inspect.signature(backbone.forward).parameters:
        return 0
    kinds = getattr(config, "type_vocab_size", None)
    return kinds if isinstance(kinds, int) else None


def tell_segments(tokenizer: Any, backbone: nn.Module, config: Any) -> None:
    """Tell a tokenizer of its base's token types, as `segments`. What has no `pad_token_id` is left alone."""
    if hasattr(tokenizer, "pad_token_id"):
        tokenizer.segments = segments_of(backbone, config)


def tells_apart(tokenizer: Any) -> bool | None:
    """Whether rows of two texts have token types on this tokenizer's base; None where it is not known."""
    if "token_type_ids" not in getattr(tokenizer, "model_input_names", ()):
        return False
    segments: int | None = getattr(tokenizer, "segments", None)
    return None if segments is None else segments > 1
