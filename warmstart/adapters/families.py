"""Configurations of a chosen size for the families of decoders in transformers, whatever each calls its fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from warmstart.errors import InputError

SMALL = {  # about 3 M weights in the blocks of gpt2 and llama; embedding and head come on top
    "width": 256, "inner": 704, "positions": 256, "head": 64, "rank": 32, "heads": 4, "experts": 4, "groups": 2,
    "layers": 4, "least": 1,
}  # fmt: skip
SHOWN = ("gpt2", "llama", "qwen3", "gemma2", "mistral", "gpt_neox", "mamba")  # in messages
NAMES = {  # fields of a configuration by what they count, in all families
    "vocabulary": "vocab_size vocab_size_per_layer_input",
    "width": "hidden_size d_model n_embd embedding_size word_embed_proj_dim attention_hidden_size dim",
    "inner": "intermediate_size n_inner decoder_ffn_dim ffn_dim moe_intermediate_size dff dim_ff block_ff_dim "
    "shared_expert_intermediate_size shared_intermediate_size ffn_hidden_size encoder_ffn_dim",
    "positions": "max_position_embeddings n_positions max_sequence_length max_seq_len n_ctx max_target_positions",
    "head": "head_dim kv_channels mamba_d_head mamba_head_dim qk_nope_head_dim v_head_dim attention_head_dim "
    "linear_key_head_dim linear_value_head_dim linear_head_dim",
    "rank": "qk_rope_head_dim index_head_dim kv_lora_rank q_lora_rank mamba_d_state state_size ssm_state_size "
    "rotary_dim",
    "heads": "num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads",
    "experts": "num_experts num_local_experts n_routed_experts moe_num_experts",
    "groups": "num_key_value_heads num_kv_heads num_experts_per_tok top_k num_experts_per_token moe_topk moe_k "
    "linear_num_key_heads linear_num_value_heads linear_num_heads moe_top_k",
    "layers": "num_hidden_layers n_layer n_layers num_layers decoder_layers num_blocks encoder_layers",
    "least": "n_shared_experts num_nextn_predict_layers first_k_dense_replace n_group topk_group num_shared_experts",
}
PERIODIC = "bailing_hybrid jamba kimi_linear lfm3 qwen3_5_text qwen3_5_moe_text qwen3_next qwen4_exp_text"
PERIODIC += " recurrent_gemma"  # one layer in several is of another kind: few layers would have none
GRANITE = {"logits_scaling": 8.0, "embedding_multiplier": 12.0, "residual_multiplier": 0.22}
LEFT_OUT = object()


def small_fields(arch: str, sizes: Mapping[str, int]) -> dict[str, Any]:
    """Return the fields of a configuration of ``transformers`` that make a model of chosen sizes.

    Parameters
    ----------
    arch : str
        ``model_type`` of a decoder.
    sizes : mapping
        Those of `SMALL` and ``vocabulary``.

    Raises
    ------
    InputError
        ``transformers`` has no decoder of this name.

    Examples
    --------
    >>> small_fields("gpt2", SMALL | {"vocabulary": 8192})
    {'vocab_size': 8192, 'n_embd': 256, 'n_positions': 256, 'n_head': 4, 'n_layer': 4}
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if arch not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise InputError(f"arch: expected a decoder of transformers, such as {', '.join(SHOWN)}, got {arch!r}")
    default = configuration(arch)
    computed = {name for name, value in vars(type(default)).items() if isinstance(value, property) and not value.fset}
    own = default.to_dict().keys()
    known = {name: sizes[size] for size, names in NAMES.items() for name in names.split()}
    fields: dict[str, Any] = {
        n: size for n, size in known.items() if n in own | default.attribute_map.keys() - computed
    }
    fields = {default.attribute_map.get(name, name): size for name, size in fields.items()}
    if "is_decoder" in own:
        fields["is_decoder"] = True
    if "qk_rope_head_dim" in own:  # latent attention: a key for each head, positions turn a part of it
        fields |= {"head_dim": sizes["rank"], "num_key_value_heads": sizes["heads"]}
    fields |= _changes(arch, sizes)
    return {name: value for name, value in fields.items() if value is not LEFT_OUT}


def configuration(arch: str, **fields: Any) -> Any:
    """Return the configuration of a family with some fields, or say why there is none."""
    from transformers import AutoConfig

    try:
        return AutoConfig.for_model(arch, **fields)
    except Exception as error:  # whatever the code of a family raises
        raise InputError(f"config: {arch} refuses it: {error}; change its fields") from error


def _changes(arch: str, sizes: Mapping[str, int]) -> dict[str, Any]:
    """Return what a family needs besides, or in place of the sizes."""
    heads = 2 * sizes["width"] // sizes["head"]  # of state spaces, whose inner width is twice that of the stream
    pairs = sizes["layers"] // 2  # of two kinds of layers
    granite = dict.fromkeys(("granite", "granitemoe", "granitemoeshared"), GRANITE)
    special: dict[str, dict[str, Any]] = {
        "gpt2": {"n_inner": LEFT_OUT},  # four times the width
        "bamba": {"mamba_n_heads": heads, "attn_layer_indices": [1]},
        "granitemoehybrid": {"mamba_n_heads": heads, "layer_types": ["mamba", "attention"] * pairs},
        "falcon_h1": {"mamba_n_heads": heads, "mamba_d_ssm": 2 * sizes["width"]},
        "gemma3n_text": {"num_kv_shared_layers": 0, "hidden_size_per_layer_input": 8},
        "gemma4_text": {"hidden_size_per_layer_input": 8},
        "gemma4_unified_text": {"num_kv_shared_layers": 0},
        "dots3_note_text": {"num_key_value_heads": sizes["heads"]},
        "zamba2": {"layer_types": ["mamba", "hybrid"] * pairs},
        "mamba2": {"num_heads": heads},
        "gpt_neo": {
            "attention_types": [[["global", "local"], pairs]],
            "attention_layers": ["global", "local"] * pairs,
        },
        "zaya": {"num_experts_per_tok": 1},
        "lfm2_moe": {"layer_types": ["conv", "full_attention"] * pairs},
        "prophetnet": {"num_hidden_layers": LEFT_OUT, "num_encoder_layers": 2, "num_decoder_layers": 2},
    }
    periodic = {"num_hidden_layers": max(8, sizes["layers"])} if arch in PERIODIC.split() else {}
    return periodic | granite.get(arch, {}) | special.get(arch, {})
