"""Tiny random bases of transformers' model types: small numbers for the fields that their configs share.

What a type needs beside the common numbers stands in `OVERRIDES`. It knows nothing of adapters.

    save_tiny("gemma2", "text", folder, seed=0)      # two layers of 32, 60 words; every layer matters
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

Kind = Literal["text", "image"]

VOCABULARY = 60
SIDE = 32  # pixels
AUTO: dict[Kind, str] = {
    "text": "AutoModelForSequenceClassification",
    "image": "AutoModelForImageClassification",
}

# names that configs have for the same few numbers; a config gets those that it knows
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "emb_dim", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff", "d_inner", "hidden_dim", "ffn_hidden_size"), 64),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 64),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), 64),
    "num_key_value_heads": 2,
    "head_dim": 8,
    "embedding_size": 16,
    "sliding_window": 8,
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok",), 2),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 32),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "v_head_dim"), 8),
    **dict.fromkeys(("qk_rope_head_dim",), 4),
    "image_size": SIDE,
    "patch_size": 8,
    "embed_dim": 32,
    "drop_path_rate": 0.0,
}
OVERRIDES: dict[str, dict[str, Any]] = {}


def tiny_config(model_type: str) -> Any:
    """A small config of this type; what the type's own class refuses is raised as it comes."""
    from transformers import CONFIG_MAPPING

    factory = CONFIG_MAPPING[model_type]
    fields = factory().to_dict()
    small = {name: value for name, value in SMALL.items() if fields.get(name) is not None}
    small["pad_token_id"] = _padding(fields.get("pad_token_id"))
    for name in ("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"):
        if isinstance(fields.get(name), int) and fields[name] >= VOCABULARY:
            small[name] = 2
    return factory(**small | OVERRIDES.get(model_type, {}))


def _padding(own: Any) -> int:
    """The type's own padding id where the small vocabulary has it: some count positions from it."""
    return own if isinstance(own, int) and 0 <= own < 5 else 0


def save_tiny(model_type: str, kind: Kind, folder: Path, seed: int = 0) -> Any:
    """Save a base of this type whose weights are random and large enough that every layer matters; its config."""
    from transformers import AutoModel

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        backbone = AutoModel.from_config(tiny_config(model_type)).eval()
        for name, parameter in backbone.named_parameters():
            if parameter.dim() > 1:
                parameter.data.normal_(0, _fan_in(parameter) ** -0.5)
            elif "bias" in name:
                parameter.data.normal_(0, 0.1)
        if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in backbone.modules()):
            _settle_batch_norm(backbone, kind)
    backbone.save_pretrained(folder)
    return backbone.config


def _fan_in(parameter: torch.Tensor) -> int:
    """Numbers that one output is a sum of; experts' weights lie in stacks of matrices."""
    return max(parameter.shape[1:]) if parameter.dim() == 3 else parameter[0].numel()


def _settle_batch_norm(backbone: nn.Module, kind: Kind) -> None:
    """Running statistics of some batch, so that eval mode is far from train mode's start."""
    if kind == "text":
        return
    backbone.train()
    with torch.no_grad():
        for _ in range(3):
            backbone(pixel_values=torch.randn(8, 3, SIDE, SIDE) * 2 + 1)
    backbone.eval()
