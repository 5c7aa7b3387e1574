"""The starts of GPT-2 and Llama that the benches of transformers compare, their shape and their recipes."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.decoders import Recipe, Start
from warmstart import accumulators, baselines, solution
from warmstart.adapters import load_into
from warmstart.adapters.decoders import SCALE
from warmstart.counts import PairStatistics
from warmstart.finetune import decoder_schedule
from warmstart.finetune.phases import DECODER_RATE
from warmstart.near_shallow import cipher_vectors

SHAPE = {"vocab_size": 8192, "width": 128, "layers": 3, "heads": 4, "context": 64, "windows": 48, "scored": 480}
STEPS, LONG_STEPS = 600, 2400
HIGH_RATE = 7e-3
BLIND = ("default, tied", "default, untied", "log-unigram bias", "mimetic + log-unigram bias")
KNOWING = ("PPMI-SVD embedding + bias", "cipher + explicit solution + bias")
TABLE = "count-bigram table"
OURS = ("spectral", "spectral + heads")
ARMS = (*BLIND, *KNOWING, TABLE, *OURS)


KEPT = decoder_schedule().phases[0]
USUAL = Recipe(0.05, 0.95, 1.0)
KEEPING = Recipe(KEPT.warmup, 0.99, KEPT.rates["blocks"] / KEPT.rates["tables"])
RECIPES = {"usual": USUAL, "keeping": KEEPING, "short": Recipe(USUAL.warmup, KEEPING.beta2, KEEPING.blocks)}
WITHOUT = {  # what the keeping recipe consists of: parts left out, with the rate
    "nothing": (KEEPING, DECODER_RATE),
    "the lower rate": (KEEPING, HIGH_RATE),
    "rate and long warm-up (0.05 of the run)": (replace(KEEPING, warmup=USUAL.warmup), HIGH_RATE),
    "rate and second moment of Adam (0.95)": (replace(KEEPING, beta2=USUAL.beta2), HIGH_RATE),
    "rate and slower blocks": (replace(KEEPING, blocks=1.0), HIGH_RATE),
    "rate and larger embedding rows (0.1)": (replace(KEEPING, scale=0.1), HIGH_RATE),
    "all but the rate": (replace(USUAL, scale=0.1), DECODER_RATE),
}


def build(arch: str, arm: str, seed: int, pairs: PairStatistics, scale: float = SCALE) -> Start:
    """Return the start of an arm; its random weights are drawn with the seed."""
    # at windows this short the fused kernel of attention is slower on a CPU
    start = Start.random(
        arch, seed, pairs.vocab_size, SHAPE, tie_word_embeddings=arm == BLIND[0], attn_implementation="eager"
    )
    if arm.endswith("bias"):
        start.bias = nn.Parameter(torch.from_numpy(baselines.log_unigram(pairs.pairs.sum(axis=0))))
    with torch.no_grad():
        if arm.startswith("mimetic"):
            _mimetic(start.model, arch, seed)
        elif arm.startswith("PPMI"):
            weight = start.model.get_input_embeddings().weight
            rows = baselines.ppmi_svd(pairs.pairs, SHAPE["width"])
            weight.copy_(torch.from_numpy(rows * (float(weight.std()) / rows.std())))  # norm-matched
        elif arm.startswith("cipher"):
            _cipher(start.model, pairs, centred=arch == "gpt2")
        elif arm == TABLE:
            table = torch.from_numpy(baselines.count_bigram(pairs.pairs))
            start.table = nn.Embedding(len(table), len(table), sparse=True, _weight=table)
            start.model.lm_head.weight.zero_()  # so that the table alone predicts at first
    if arm in OURS:
        load_into(start.model, pairs, scale=scale, heads=0 if arm == "spectral" else None)
    return start


def _mimetic(model: Any, arch: str, seed: int) -> None:
    width, n_heads = model.config.hidden_size, model.config.num_attention_heads
    for i, layer in enumerate(model.base_model.h if arch == "gpt2" else model.base_model.layers):
        q, k, v, o = baselines.mimetic(width, n_heads, seed=1000 * seed + i)
        if arch == "gpt2":
            layer.attn.c_attn.weight.copy_(torch.cat([q, k, v], dim=1))
            layer.attn.c_proj.weight.copy_(o)
            continue
        attention = layer.self_attn  # heads that share keys and values get those of the first of them
        size, shared = attention.head_dim, attention.num_key_value_groups
        first = torch.arange(width).view(n_heads // shared, shared, size)[:, 0].flatten()
        for name, matrix in (("q_proj", q), ("k_proj", k[:, first]), ("v_proj", v[:, first]), ("o_proj", o)):
            getattr(attention, name).weight.copy_(matrix.T)


def _cipher(model: Any, pairs: PairStatistics, centred: bool) -> None:
    """Write bit-cipher vectors, and the explicit solution for what the final norm makes of them, tempered."""
    width = model.config.hidden_size
    vectors = cipher_vectors(pairs.vocab_size, width)
    E = vectors.toarray().astype(np.float64)
    E -= E.mean(axis=1, keepdims=True) if centred else 0.0
    E /= np.sqrt((E**2).mean(axis=1, keepdims=True))
    counts = accumulators.empty(width, pairs.vocab_size)
    counts.sums += (vectors.astype(np.float64).T @ pairs.pairs).toarray().T
    counts.n_examples = int(pairs.pairs.sum())
    prior = solution.class_prior(pairs.pairs.sum(axis=0))
    U = solution.log_likelihood(counts, prior, smoothing=100.0)
    held_out, log_prior = pairs.held_out.tocoo(), np.log(prior)
    best = (np.inf, 1.0)
    for temperature in (0.03, 0.06, 0.1, 0.15, 0.2):
        z = temperature * E @ U + log_prior
        x, y = held_out.coords
        loss = held_out.data @ (np.log(np.exp(z).sum(axis=1))[x] - z[x, y])
        best = min(best, (float(loss), temperature))
    model.get_input_embeddings().weight.copy_(torch.from_numpy(0.1 * E))
    model.lm_head.weight.copy_(torch.from_numpy(best[1] * U.T))
