"""load_into: the logits of the loaded model against the formula in numpy, also after saving; refused models."""

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.utils import logging

from warmstart import load_into
from warmstart.adapters import Parts
from warmstart.corpus import Corpus
from warmstart.counts import count_pairs
from warmstart.errors import InputError
from warmstart.ngrams import count_ngrams
from warmstart.spectral import factorise

logging.set_verbosity_error()
V, D = 60, 64
TOKENS = (np.random.default_rng(0).zipf(1.4, 200_000).cumsum() % V).astype(np.int64)
STATISTICS = count_pairs(TOKENS, V)
COMMON = {"vocab_size": V, "tie_word_embeddings": False, "bos_token_id": None, "eos_token_id": None}
SHAPE = COMMON | {"hidden_size": D, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 32}


def gpt2(**changes):
    config = COMMON | {"n_embd": D, "n_layer": 2, "n_head": 2, "n_positions": 32} | changes
    return GPT2LMHeadModel(GPT2Config(**config)).eval()


def llama(**changes):
    config = SHAPE | {"intermediate_size": 96, "num_key_value_heads": 2} | changes
    return LlamaForCausalLM(LlamaConfig(**config)).eval()


def neox(**changes):
    return GPTNeoXForCausalLM(GPTNeoXConfig(**(SHAPE | {"intermediate_size": 96} | changes))).eval()


def qwen2(**changes):
    config = SHAPE | {"intermediate_size": 96, "num_key_value_heads": 4} | changes
    return Qwen2ForCausalLM(Qwen2Config(**config)).eval()


def log_probabilities(model, ids):
    with torch.no_grad():
        out = model(torch.tensor(np.asarray(ids)[None]))
    return getattr(out, "logits", out)[0].log_softmax(-1).double().numpy()


def expected(factors, ids):
    """Return log-probabilities of the bigram model. It is exact for tokens that `unclipped` returns."""
    return log_softmax(factors.A[ids].astype(float) @ factors.B.T + factors.log_prior, axis=1)


def unclipped(factors):
    norms = np.linalg.norm(factors.A, axis=1)
    return np.flatnonzero(norms <= np.quantile(norms, 0.99))[:30]


@pytest.mark.parametrize(("make", "rank"), [(gpt2, 24), (llama, 50), (neox, 50), (qwen2, 50)])
def test_step_0_is_the_bigram_model(make, rank):
    torch.manual_seed(0)
    model, factors = make(), factorise(STATISTICS, rank)
    report = load_into(model, factors)
    ids = unclipped(factors)
    np.testing.assert_allclose(log_probabilities(model, ids), expected(factors, ids), atol=2e-4)
    assert {name for name, _ in model.named_parameters()} == set(report.loaded) | set(report.missing)
    assert not set(report.loaded) & set(report.missing)


@pytest.mark.parametrize("make", [gpt2, llama, neox])
def test_it_survives_saving_and_another_initialisation(make, tmp_path):
    model = make(tie_word_embeddings=True)
    report = load_into(model, STATISTICS, heads=0)
    assert report.untied == ("lm_head.weight",)
    assert any("tie_word_embeddings=False" in note for note in report.notes)
    before = log_probabilities(model, TOKENS[:20])
    model.post_init()
    np.testing.assert_array_equal(log_probabilities(model, TOKENS[:20]), before)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert again.lm_head.weight is not again.get_input_embeddings().weight
    np.testing.assert_array_equal(log_probabilities(again, TOKENS[:20]), before)


def test_statistics_and_factors_give_the_same_model():
    one, two = llama(), llama()
    load_into(one, STATISTICS)
    load_into(two, factorise(STATISTICS, V - 1))
    torch.testing.assert_close(one.lm_head.weight, two.lm_head.weight, rtol=0, atol=0)


def test_padded_rows_are_very_unlikely():
    model = gpt2(vocab_size=64)
    report = load_into(model, STATISTICS)
    z = log_probabilities(model, TOKENS[:20])
    assert (z[:, V:] < z[:, :V].min(axis=1, keepdims=True) - 10).all()
    assert any("4 padded rows" in note for note in report.notes)


@pytest.mark.parametrize(("make", "heads"), [(gpt2, 2), (llama, 4), (qwen2, 2)])
def test_heads_attend_to_the_previous_token(make, heads):
    model = make()
    load_into(model, STATISTICS)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        attention = model(torch.tensor(TOKENS[None, :32]), output_attentions=True).attentions[0][0]
    to_previous = attention[:, torch.arange(1, 32), torch.arange(31)].mean(dim=1)
    assert (to_previous[: heads // 2] > 0.9).all()
    assert to_previous[heads // 2 :].min() < 0.5


class Plain(nn.Module):
    """A model with a residual stream and other names."""

    def __init__(self, bias=False, norm=nn.RMSNorm):
        super().__init__()
        self.table, self.inner = nn.Embedding(V, D), nn.Linear(D, D)
        self.last, self.out = norm(D), nn.Linear(D, V, bias=bias)

    def forward(self, ids):
        x = self.table(ids)
        return self.out(self.last(x + self.inner(x)))


PARTS = Parts("table", "last", "out", ("inner",))


@pytest.mark.parametrize("norm", [nn.RMSNorm, nn.LayerNorm])
def test_any_module_by_the_names_of_its_parts(norm):
    model, factors = Plain(norm=norm), factorise(STATISTICS, 50)
    load_into(model, factors, parts=PARTS)
    ids = unclipped(factors)
    np.testing.assert_allclose(log_probabilities(model, ids), expected(factors, ids), atol=2e-4)


class Retied(Plain):
    """A model that ties its head again, whatever its configuration says."""

    def __init__(self):
        super().__init__()
        self.config = type("Config", (), {"tie_word_embeddings": True})()
        self.tie_weights()

    def tie_weights(self):
        self.out.weight = self.table.weight


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (Plain(), {}, "expected a decoder of transformers, got Plain; give its parts"),
        (Plain(), {"parts": PARTS, "heads": 1}, "none for a model given by its parts"),
        (Plain(norm=nn.BatchNorm1d), {"parts": PARTS}, "a LayerNorm or an RMSNorm"),
        (Plain(), {"parts": Parts("table", "last", "head", ())}, "expected a module head"),
        (Plain(), {"parts": Parts("table", "last", "inner.weight", ())}, "expected a module inner.weight"),
        (Plain(), {"parts": Parts("table", "last", "out", ("x*",))}, "expected output projections named"),
        (Retied(), {"parts": PARTS}, "ties it again"),
        (gpt2(vocab_size=V - 1), {}, f"a head of {V} rows"),
        (gpt2(vocab_size=V + 2000), {}, f"a head of {V} rows"),
        (gpt2(n_embd=16), {}, "rank: expected 8 to"),
        (gpt2(), {"heads": 3}, "expected 0 to 2, got 3"),
        (neox(), {"heads": 1}, "expected 0 for a model of type gpt_neox"),
        (gpt2(), {"scale": 0.0}, "scale: expected a finite number above 0"),
    ],
)
def test_what_cannot_be_loaded_is_refused_and_nothing_changed(model, options, message):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(InputError, match=message):
        load_into(model, STATISTICS, **options)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_statistics_of_another_tokenizer_are_refused(tmp_path):
    corpus = Corpus.build(["a b a c b d"] * 30_000, tokenizer="words", cache_dir=tmp_path)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=corpus.tokenizer)
    text = corpus.tokens, corpus.documents, corpus.vocab_size
    matching = count_ngrams(*text, vocabulary=corpus.tokenizer.get_vocab())
    other = count_pairs(corpus.tokens, corpus.vocab_size, {"x": 0})
    model = gpt2(vocab_size=corpus.vocab_size)
    with pytest.raises(InputError, match="those of another vocabulary"):
        load_into(model, other, tokenizer=tokenizer)
    with pytest.raises(InputError, match="below the vocabulary of"):  # a later check
        load_into(model, matching, tokenizer=tokenizer)
