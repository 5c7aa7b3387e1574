"""load_into: the logits of the loaded model against the formula in numpy, also after saving; refused models."""

import re
from functools import partial

import families
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
from warmstart.adapters import Parts, replace_attention, replace_embeddings, warm_start
from warmstart.adapters.parts import find_parts
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


@pytest.mark.parametrize(
    ("kind", "note"),
    [
        ("gemma2", "logits were capped softly at 30"),  # 1 + weight, a soft cap, a scaled embedding
        ("granite", "the embedding by 12 and the logits by 0.125"),
        ("cohere", "the logits by 0.0625"),  # a LayerNorm of its own class
        ("phi", ""),  # a bias in head and norm, blocks in parallel
        ("olmo", ""),  # a norm without weights
        ("bloom", "multiplies the embedding by 4.999 and the logits by 1"),  # a norm after the embedding
        ("mixtral", ""),  # experts that share tensors
    ],
)
def test_families_of_transformers(kind, note):
    outcome, text = families.attempt(kind)
    assert outcome == "right", text
    assert note in text


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        ("recurrent_gemma", "in which logits are those of lm_head times a constant, got .*: a soft cap"),
        ("inkling2_text", "got final_logit_softcapping=30.0, which stays on"),
        ("ctrl", "in which transformer.layernorm gets the embedding times a constant, got .*: what positions"),
        ("bert", "in which cls.predictions.transform.LayerNorm gets the embedding times a constant"),
        ("rembert", "an embedding and a head of one width, got 256 and 1664"),
        ("xlnet", "expected a norm before the head of XLNetLMHeadModel"),
    ],
)
def test_families_that_are_something_else_are_refused_and_not_changed(kind, what):
    outcome, text = families.attempt(kind)
    assert outcome == "refused", text
    assert re.search(what, text), text


def test_a_refused_model_keeps_its_soft_cap():
    model = families.toy("gemma2")
    model.lm_head.forward = lambda x: x @ model.lm_head.weight.T + x.sum(-1, keepdim=True) * torch.arange(V)
    with pytest.raises(InputError, match="expected a Gemma2ForCausalLM in which logits are those of lm_head"):
        load_into(model, STATISTICS)
    assert model.config.final_logit_softcapping == 30.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("make", [gpt2, llama, neox, partial(families.toy, "gemma2")])
def test_other_types_of_weights(make, dtype):
    model, factors = make().to(dtype), factorise(STATISTICS, 24)
    load_into(model, factors)
    ids = unclipped(factors)
    gap = log_probabilities(model, ids) - expected(factors, ids)
    assert np.sqrt((gap**2).mean()) < 4 * torch.finfo(dtype).eps + 1e-4
    assert {p.dtype for p in model.parameters()} == {dtype}


def test_a_compiled_model_is_loaded_inside():
    model, factors = gpt2(tie_word_embeddings=True), factorise(STATISTICS, 24)
    compiled = torch.compile(model, backend="eager")
    ids = torch.from_numpy(unclipped(factors)[None])
    with torch.no_grad():
        compiled(ids)  # compiled before the weights and the tied head change
        assert load_into(compiled, factors).untied == ("lm_head.weight",)
        found = compiled(ids).logits[0].log_softmax(-1).double().numpy()
    np.testing.assert_allclose(found, expected(factors, ids[0].numpy()), atol=2e-4)
    blocks = llama()
    for layer in blocks.model.layers:
        layer.compile(backend=lambda *_: pytest.fail("the start was verified with a compiled block"))
    load_into(blocks, factors)
    load_into(nn.DataParallel(llama()), factors)


class LoraLayer(nn.Linear):
    """Stands for a layer of PEFT, which is known by its package."""


LoraLayer.__module__ = "peft.tuners.lora.layer"


def wrapped(name):
    """Return a module whose base class has a name."""
    return type("Child", (type(name, (nn.Sequential,), {}),), {})(gpt2())


def with_adapters():
    model = llama()
    model.model.layers[0].mlp.up_proj = LoraLayer(D, 96)
    return model


def quantised():
    model = llama()
    model.lm_head.weight = nn.Parameter(torch.zeros(V, D, dtype=torch.int8), requires_grad=False)
    return model


def sharded(attribute):
    model = gpt2()
    setattr(model.transformer.wte.weight, attribute, 0)
    return model


def on_meta():
    with torch.device("meta"):
        return gpt2()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            partial(wrapped, "DistributedDataParallel"),
            "got one wrapped by DistributedDataParallel; give the model itself",
        ),
        (partial(wrapped, "FullyShardedDataParallel"), "got one wrapped by FullyShardedDataParallel"),
        (partial(wrapped, "FSDPModule"), "got one wrapped by fully_shard"),
        (partial(wrapped, "DeepSpeedEngine"), "got one wrapped by DeepSpeed"),
        (partial(wrapped, "PeftModel"), "got one wrapped by PEFT"),
        (with_adapters, "model.layers.0.mlp.up_proj: expected a model without adapters, got a LoraLayer of PEFT"),
        (on_meta, "transformer.wte.weight: expected weights in memory, got the meta device"),
        (partial(sharded, "full_tensor"), "transformer.wte.weight: expected whole weights, got a part of sharded ones"),
        (partial(sharded, "ds_id"), "transformer.wte.weight: expected whole weights, got a part of sharded ones"),
    ],
)
def test_wrapped_sharded_and_empty_models_are_refused_by_name(make, message):
    for load in (load_into, lambda model, _: replace_attention(model, nn.Linear)):
        with pytest.raises(InputError, match=message):
            load(make(), STATISTICS)
    with pytest.raises(InputError, match=message):
        replace_embeddings(make(), None, [])
    with pytest.raises(InputError, match=message):
        warm_start(make(), [])


def test_quantised_weights_are_refused():
    with pytest.raises(InputError, match=r"lm_head.weight: expected torch.float64, .* got torch.int8; load before"):
        load_into(quantised(), STATISTICS, parts=find_parts(llama()))


@pytest.mark.parametrize("make", [gpt2, llama])
def test_little_text_starts_the_model_and_the_report_says_so(make):
    model, little = make(), count_pairs(TOKENS[:60_000], V)
    report = load_into(model, little)
    assert "rank" in report.notes[0]
    assert "exponents 0.35 and 0.35 and no refits: defaults, because a text below 131,072 tokens" in report.notes[0]
    ids = torch.from_numpy(TOKENS[60_000:92_000].reshape(-1, 32))
    with torch.no_grad():
        assert model(ids, labels=ids).loss < 0.9 * np.log(V)


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


def test_a_bias_of_the_head_starts_at_zero():
    model, factors = Plain(bias=True), factorise(STATISTICS, 50)
    report = load_into(model, factors, parts=PARTS)
    assert "out.bias" in report.loaded
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
        (Plain(), {"parts": Parts("table", "last", "out", ())}, "gets the embedding times a constant, got"),
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
