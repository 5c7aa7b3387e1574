"""All families of decoders in the installed transformers, at toy size: does load_into start them as a bigram model?

    python tests/families.py            a table of all families
    python tests/families.py gemma2     some of them

A family is *right* if the log-probabilities of the loaded model, and of the model saved and loaded again, are those of
the formula, and if a gradient reaches every projection that starts at zero. *refused* gives the message of load_into;
the weights must then be what they were. *not built* says why no such decoder of text runs at this size; most of these
families also read pictures or sound, and the names of their text models end with ``_text``.
"""

import sys
import tempfile
import warnings

import numpy as np
import torch
from scipy.special import log_softmax
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging

from warmstart import load_into
from warmstart.adapters.parts import find_parts
from warmstart.counts import count_pairs
from warmstart.errors import InputError
from warmstart.spectral import factorise

V, D, RANK = 60, 64, 24
SIZES = [  # of the fields of a configuration, by their names in all families
    (V, "vocab_size"),
    (D, "hidden_size d_model n_embd embedding_size word_embed_proj_dim attention_hidden_size dim"),
    (96, "intermediate_size n_inner decoder_ffn_dim ffn_dim moe_intermediate_size dff dim_ff block_ff_dim"),
    (96, "shared_expert_intermediate_size shared_intermediate_size ffn_hidden_size encoder_ffn_dim"),
    (64, "max_position_embeddings n_positions max_sequence_length max_seq_len n_ctx max_target_positions"),
    (16, "head_dim kv_channels mamba_d_head mamba_head_dim qk_nope_head_dim v_head_dim attention_head_dim"),
    (16, "linear_key_head_dim linear_value_head_dim linear_head_dim"),
    (8, "qk_rope_head_dim index_head_dim kv_lora_rank q_lora_rank mamba_d_state state_size ssm_state_size rotary_dim"),
    (4, "num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads"),
    (4, "num_experts num_local_experts n_routed_experts moe_num_experts"),
    (2, "num_key_value_heads num_kv_heads num_experts_per_tok top_k num_experts_per_token moe_topk moe_k"),
    (2, "linear_num_key_heads linear_num_value_heads linear_num_heads moe_top_k"),
    (2, "num_hidden_layers n_layer n_layers num_layers decoder_layers num_blocks encoder_layers"),
    (1, "n_shared_experts num_nextn_predict_layers first_k_dense_replace n_group topk_group num_shared_experts"),
]
LAYERS = "bailing_hybrid jamba kimi_linear lfm3 qwen3_5_text qwen3_5_moe_text qwen3_next qwen4_exp_text recurrent_gemma"
ENDED = "camembert data2vec-text roberta roberta-prelayernorm xlm-roberta xlm-roberta-xl xmod cwm modernbert-decoder"
GRANITE = {"logits_scaling": 8.0, "embedding_multiplier": 12.0, "residual_multiplier": 0.22}
CHANGES = {  # what a family needs besides
    **{kind: {"num_hidden_layers": 8} for kind in LAYERS.split()},
    **{kind: {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0} for kind in ENDED.split()},
    **dict.fromkeys(("granite", "granitemoe", "granitemoeshared"), GRANITE),
    "bamba": {"mamba_n_heads": 8, "attn_layer_indices": [1]},
    "granitemoehybrid": {"mamba_n_heads": 8, "layer_types": ["mamba", "attention"]},
    "falcon_h1": {"mamba_n_heads": 8, "mamba_d_ssm": 128},
    "gemma3n_text": {"num_kv_shared_layers": 0, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": V},
    "gemma4_text": {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": V},
    "gemma4_unified_text": {"num_kv_shared_layers": 0},
    "dots3_note_text": {"num_key_value_heads": 4},
    "zamba2": {"layer_types": ["mamba", "hybrid"]},
    "mamba2": {"num_heads": 8},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "attention_layers": ["global", "local"]},
    "zaya": {"num_experts_per_tok": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "prophetnet": {"num_hidden_layers": "leave out", "num_encoder_layers": 2, "num_decoder_layers": 2},
}
TOKENS = (np.random.default_rng(0).zipf(1.4, 200_000).cumsum() % V).astype(np.int64)
FACTORS = factorise(count_pairs(TOKENS, V), RANK)


def toy(kind, **changes):
    """Return a model of a family with two layers and a width of 64."""
    default = AutoConfig.for_model(kind)
    fixed = {name for name, value in vars(type(default)).items() if isinstance(value, property) and value.fset is None}
    known = default.to_dict().keys() | default.attribute_map.keys() - fixed
    sizes = {name: size for size, names in SIZES for name in names.split() if name in known}
    tokens = {name: None for name in ("bos_token_id", "eos_token_id", "pad_token_id") if name in known}
    more = {"is_decoder": True} if "is_decoder" in known else {}
    if "qk_rope_head_dim" in known:  # latent attention: a key for each head, positions turn a part of it
        sizes |= {"head_dim": 8, "num_key_value_heads": 4}
    fields = sizes | tokens | more | CHANGES.get(kind, {}) | changes
    config = AutoConfig.for_model(kind, **{name: value for name, value in fields.items() if value != "leave out"})
    with torch.device("meta"):
        large = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    if large > 50_000_000:
        raise ValueError(f"it has {large:,} weights at toy size")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        model(torch.zeros(1, 3, dtype=torch.long))  # raises if the sizes do not fit each other
    return model


def log_probabilities(model, ids):
    """Return those after each token (n, V), read without learned positions."""
    positions = find_parts(model).positions
    with torch.no_grad():
        if positions:
            model.get_submodule(positions).weight.zero_()
        out = model(torch.as_tensor(ids).view(-1, 3))
    return out.logits.double().flatten(0, 1).log_softmax(-1).numpy()


def gap(model):
    """Return the largest difference to the formula over tokens whose factors `residual` does not clip."""
    norms = np.linalg.norm(FACTORS.A, axis=1)
    ids = np.flatnonzero(norms <= np.quantile(norms, 0.99))[:57]
    expected = log_softmax(FACTORS.A[ids].astype(float) @ FACTORS.B.T + FACTORS.log_prior, axis=1)
    return float(np.abs(log_probabilities(model, ids)[:, :V] - expected).max())


def without_gradient(model, report):
    """Return the parameters that start at zero and get no gradient from a text."""
    ids = torch.from_numpy(TOKENS[:480]).view(15, 32)
    logits = model.train()(ids).logits
    torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    parameters = dict(model.named_parameters())
    model.eval()
    zero = [name for name in report.loaded if not parameters[name].any() and not name.endswith("bias")]
    return [name for name in zero if (g := parameters[name].grad) is not None and not g.any()]  # None: unused


def attempt(kind, **changes):
    """Return the outcome for a family and what there is to say about it."""
    try:
        model = toy(kind, **changes)
    except Exception as error:  # whatever the code of a family raises
        return "not built", f"{type(error).__name__}: {' '.join(str(error).split())}"
    before = {name: value.clone() for name, value in model.state_dict().items()}
    try:
        report = load_into(model, FACTORS, heads=0)
    except InputError as error:
        changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
        return ("CHANGED" if changed else "refused"), str(error)
    dead = without_gradient(model, report)
    found = gap(model)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        again = gap(AutoModelForCausalLM.from_pretrained(folder).eval())
    wrong = [f"differs by {nats:.2g} nats" for nats in (found, again) if nats > 1e-3]
    wrong += [f"no gradient: {name}" for name in dead]
    notes = [note for note in report.notes if any(word in note for word in ("multiplies", "tied", "capped"))]
    return ("WRONG" if wrong else "right"), "; ".join(wrong or notes)


def main(kinds):
    """Print the table; return whether a family is wrong."""
    counts = {}
    for kind in kinds:
        try:
            outcome, text = attempt(kind)
        except Exception as error:  # as above
            outcome, text = "WRONG", f"{type(error).__name__}: {' '.join(str(error).split())}"
        counts[outcome] = counts.get(outcome, 0) + 1
        print(f"| {kind} | {outcome} | {text[:300]} |", flush=True)
    print(", ".join(f"{count} {outcome}" for outcome, count in counts.items()))
    return bool(counts.keys() & {"WRONG", "CHANGED"})


if __name__ == "__main__":
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    sys.exit(main(sys.argv[1:] or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)))
