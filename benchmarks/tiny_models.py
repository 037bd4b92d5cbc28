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
_WINDOWS = {"layer_types": ["sliding_attention", "full_attention"]}
_ROPE = {"rope_type": "default", "rope_theta": 1e4}
_SLIDING = _WINDOWS | {"use_sliding_window": True, "sliding_window": 8}
_LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads"), 2),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 8),
}
_LATENT = {"num_key_value_heads": 4, "num_experts_per_tok": 2, "head_dim": 4, "n_group": 1, "topk_group": 1}
_MAMBA = {"mamba_d_state": 4, "mamba_dt_rank": 4, "num_hidden_layers": 3, "num_key_value_heads": 4}
_PART = {
    **dict.fromkeys(("hidden_size", "projection_dim", "vision_output_dim"), 32),
    **{"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "head_dim": 8},
    **{"num_key_value_heads": 2, "vocab_size": VOCABULARY, "max_position_embeddings": 64},
    **{"image_size": SIDE, "patch_size": 8, "sliding_window": 8, "pad_token_id": 0},
}
_SEEN: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
_SEEN |= {"image_size": SIDE, "patch_size": 8}
_READ = {name: value for name, value in _PART.items() if name not in ("image_size", "patch_size")}
_TWO_TOWERS = {
    "text_config": _SEEN | {"vocab_size": VOCABULARY, "max_position_embeddings": 64, "pad_token_id": 0},
    "vision_config": _SEEN,
}
_READ_AND_SEEN = {"text_config": _PART, "vision_config": _SEEN}
_STAGES = {"depths": [1, 1, 1], "hidden_sizes": [8, 16, 24], "num_encoder_blocks": 3}
_PYRAMID = _STAGES | {"num_attention_heads": [1, 2, 2], "sequence_reduction_ratios": [4, 2, 1], "sr_ratios": [4, 2, 1]}
_PYRAMID |= {"patch_sizes": [7, 3, 3], "strides": [4, 2, 2], "mlp_ratios": [2, 2, 2]}
_SHIFTED = {"embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4, "patch_size": 2}

OVERRIDES: dict[str, dict[str, Any]] = {
    # texts: windows shorter than the rows, relative positions, other kinds of layers
    **dict.fromkeys(("gemma2", "gemma3_text", "gpt_oss", "exaone4", "olmo3"), _WINDOWS),
    **dict.fromkeys(("qwen2", "qwen3", "qwen2_moe", "smollm3"), _SLIDING),
    "ministral": _WINDOWS | {"head_dim": 8},
    "ministral3": {"sliding_window": 8},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    **dict.fromkeys(("axk1", "axk2", "deepseek_v2", "deepseek_v3", "minicpm3"), _LATENT),
    **dict.fromkeys(("qwen3_next", "qwen3_5_text"), _LINEAR),
    **dict.fromkeys(("zamba", "zamba2"), _MAMBA | {"layers_block_type": ["linear_attention", "hybrid", "hybrid"]}),
    **dict.fromkeys(("modernbert", "modernbert-decoder"), _WINDOWS | {"local_attention": 8}),
    "big_bird": {"block_size": 2, "num_random_blocks": 1},
    "canine": {"local_transformer_stride": 8, "num_hash_buckets": 64},
    "cohere_compass_text": _WINDOWS | {"rope_parameters": dict.fromkeys(_WINDOWS["layer_types"], _ROPE)},
    "deberta": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "max_relative_positions": 8},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 4}
    | {"share_att_key": True, "norm_rel_ebd": "layer_norm", "conv_kernel_size": 3},
    "esm": {"vocab_size": VOCABULARY, "mask_token_id": 4, "pad_token_id": 1, "token_dropout": True},
    "esmc": {"num_key_value_heads": 4},
    "funnel": {"block_sizes": [1, 1], "block_repeats": [1, 1], "num_decoder_layers": 1, "d_head": 8}
    | {"architectures": ["FunnelBaseModel"]},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 8},
    "gptj": {"rotary_dim": 4},
    "jamba": _MAMBA | {"num_hidden_layers": 2, "attn_layer_period": 2, "attn_layer_offset": 1},
    "layoutlmv3": {"coordinate_size": 6, "shape_size": 4, "input_size": SIDE, "visual_embed": False},
    "lilt": {"hidden_size": 48, "channel_shrink_ratio": 2},
    "longformer": {"attention_window": [4, 4]},
    "mobilebert": {"embedding_size": 16, "intra_bottleneck_size": 16, "num_feedforward_networks": 2},
    "mistral4": {"num_key_value_heads": 4, "head_dim": 12, "n_group": 1, "topk_group": 1},
    "nemotron": {"num_key_value_heads": 2, "head_dim": 8},
    "nystromformer": {"conv_kernel_size": 5},
    "perceiver": {"d_latents": 32, "num_latents": 8, "num_self_attends_per_block": 2}
    | {"num_self_attention_heads": 4, "num_cross_attention_heads": 4},
    "reformer": {"axial_pos_embds_dim": [16, 16], "axial_pos_shape": [8, 8], "attn_layers": ["local", "lsh"]}
    | {"local_attn_chunk_length": 4, "lsh_attn_chunk_length": 4, "num_buckets": 2, "hash_seed": 0}
    | {"feed_forward_size": 64, "attention_head_size": 8},
    "squeezebert": {"embedding_size": 32},
    "t5": {"decoder_start_token_id": 0},
    "mt5": {"decoder_start_token_id": 0},
    "umt5": {"decoder_start_token_id": 0},
    "xmod": {"default_language": "en_XX", "languages": ["en_XX"]},
    # texts and images in one config
    **dict.fromkeys(("clip", "metaclip_2", "siglip", "siglip2"), _TWO_TOWERS),
    **dict.fromkeys(("gemma3", "modernvbert", "ultravbert"), _READ_AND_SEEN),
    "qwen3_5": {"text_config": _PART | _LINEAR, "vision_config": {"hidden_size": 32, "depth": 1, "num_heads": 4}},
    "t5gemma": {"encoder": _READ, "decoder": _READ},
    "t5gemma2": {"encoder": {"text_config": _READ, "vision_config": _SEEN}, "decoder": _READ},
    # images
    "bit": _STAGES | {"embedding_size": 8, "num_groups": 4, "hidden_sizes": [16, 32, 32]},
    **dict.fromkeys(("convnext", "convnextv2"), _STAGES | {"patch_size": 4, "num_stages": 3}),
    "cvt": {"embed_dim": [8, 16, 24], "num_heads": [1, 2, 2], "depth": [1, 2, 3], "mlp_ratio": [2.0, 2.0, 2.0]},
    "dinat": {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "dilations": [[1], [1]], "kernel_size": 3},
    **dict.fromkeys(("swin", "swinv2", "donut-swin"), _SHIFTED),
    "efficientnet": {"width_coefficient": 0.5, "depth_coefficient": 0.3, "hidden_dim": 640},
    "focalnet": {"embed_dim": 16, "hidden_sizes": [16, 32], "depths": [1, 1], "focal_levels": [2, 2]}
    | {"focal_windows": [3, 3], "patch_size": 4},
    "hgnet_v2": {"depths": [1, 1], "hidden_sizes": [32, 32], "embedding_size": 8, "stem_channels": [3, 8, 16]}
    | {"stage_in_channels": [16, 32], "stage_mid_channels": [8, 8], "stage_out_channels": [32, 32]}
    | {"stage_num_blocks": [1, 1], "stage_downsample": [False, True], "stage_downsample_strides": [2, 2]}
    | {"stage_light_block": [False, True], "stage_kernel_size": [3, 3], "stage_numb_of_layers": [2, 2]},
    "hiera": {"embed_dim": 8, "image_size": [SIDE, SIDE], "depths": [1, 1], "num_heads": [1, 2], "num_query_pool": 1}
    | {"patch_size": [3, 3], "patch_stride": [2, 2], "patch_padding": [1, 1], "masked_unit_size": [4, 4]}
    | {"masked_unit_attention": [True, False]},
    "levit": {"hidden_sizes": [16, 24, 32], "num_attention_heads": [2, 2, 2], "depths": [1, 1, 1], "key_dim": [4, 4, 4]}
    | {"patch_size": 16, "image_size": 64},
    "mobilenet_v1": {"depth_multiplier": 0.25, "tf_padding": False},
    # at 0.02 its answers are too small to be moved by an adapter
    "mobilenet_v2": {"depth_multiplier": 0.25, "tf_padding": False, "initializer_range": 0.1},
    "mobilevit": {"patch_size": 2, "image_size": 64, "hidden_sizes": [16, 16, 16]}
    | {"neck_hidden_sizes": [8, 8, 16, 16, 16, 16, 32]},
    "mobilevitv2": {"patch_size": 2, "image_size": 64, "width_multiplier": 0.25, "n_attn_blocks": [1, 1, 1]},
    "poolformer": _STAGES | {"patch_sizes": [7, 3, 3], "strides": [4, 2, 2], "padding": [2, 1, 1]},
    "pvt": _PYRAMID | {"patch_sizes": [4, 2, 2]},
    "segformer": _PYRAMID,
    "pvt_v2": _PYRAMID | {"image_size": SIDE},
    "regnet": {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 1], "groups_width": 8},
    "resnet": {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 1]},
    "swiftformer": {"depths": [1, 1, 1, 1], "embed_dims": [8, 16, 16, 24]},
    "textnet": {"stem_out_channels": 8, "hidden_sizes": [8, 8, 16], "image_size": [SIDE, SIDE]}
    | {"conv_layer_kernel_sizes": [[[3, 3], [1, 3]], [[3, 1], [3, 3]]], "conv_layer_strides": [[1, 2], [2, 1]]},
}


def tiny_config(model_type: str) -> Any:
    """A small config of this type; what the type's own class refuses is raised as it comes."""
    from transformers import CONFIG_MAPPING

    factory = CONFIG_MAPPING[model_type]
    fields = factory().to_dict()
    small = {name: value for name, value in SMALL.items() if isinstance(fields.get(name), type(value))}
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
            elif float(parameter.abs().max()) < 0.01:  # scales of layers that would begin as nothing
                parameter.data.uniform_(0.5, 1)
        if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in backbone.modules()):
            _settle_batch_norm(backbone, side_of(backbone.config) if kind == "image" else 0)
    backbone.save_pretrained(folder)
    return backbone.config


def _fan_in(parameter: torch.Tensor) -> int:
    """Numbers that one output is a sum of; experts' weights lie in stacks of matrices."""
    return max(parameter.shape[1:]) if parameter.dim() == 3 else parameter[0].numel()


def side_of(config: Any) -> int:
    """Pixels of a picture's side."""
    side = getattr(config, "image_size", SIDE)
    return side if isinstance(side, int) else SIDE


def _settle_batch_norm(backbone: nn.Module, side: int) -> None:
    """Running statistics of some batch, so that eval mode is far from train mode's start."""
    if not side:
        return
    backbone.train()
    with torch.no_grad():
        for _ in range(3):
            backbone(pixel_values=torch.randn(8, 3, side, side) * 2 + 1)
    backbone.eval()
