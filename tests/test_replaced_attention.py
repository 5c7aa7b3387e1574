"""Memories in place of the attention of GPT-2: outputs of the blocks, refused input, the warm start."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from test_decoders import STATISTICS, TOKENS, V, expected, gpt2, log_probabilities, unclipped
from torch import nn

from warmstart import load_into
from warmstart.adapters import replace_attention
from warmstart.adapters.memories import value_map
from warmstart.errors import InputError
from warmstart.memory import TTTMLP, FastWeightAttention, TTTLinear, elu_plus_one
from warmstart.spectral import factorise, frame, residual

D, HEADS = 64, 2
MEMORIES = {
    "delta": FastWeightAttention,
    "linear": partial(FastWeightAttention, feature_map=elu_plus_one, rule="sum", token_shift=False),
    "ttt": TTTLinear,
    "ttt mlp": partial(TTTMLP, token_shift=False),
}


def replaced(make, **changes):
    torch.manual_seed(0)
    model = gpt2(resid_pdrop=0.0, embd_pdrop=0.0, **changes)
    replace_attention(model, make)
    return model.eval()


def blocks_by_hand(model, ids):
    """Return the logits of the model with its blocks written out."""
    decoder = model.transformer
    x = decoder.wte(ids) + decoder.wpe.weight[: ids.shape[1]]
    for block in decoder.h:
        x = x + block.attn.memory(block.ln_1(x))
        x = x + block.mlp(block.ln_2(x))
    return model.lm_head(decoder.ln_f(x))


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", MEMORIES)
def test_a_block_adds_what_the_layer_returns(name, implementation):
    model = replaced(MEMORIES[name], attn_implementation=implementation)
    ids = torch.from_numpy(TOKENS[:64].reshape(2, 32))
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, blocks_by_hand(model, ids))


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", MEMORIES)
def test_padding_changes_nothing_wherever_it_is(name, implementation):
    model = replaced(MEMORIES[name], attn_implementation=implementation)
    ids = torch.from_numpy(TOKENS[:60].reshape(2, 30))
    for gap in (slice(20, 30), slice(0, 3), slice(7, 12)):
        mask = torch.ones_like(ids)
        mask[1, gap] = 0
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        tokens = mask[1].bool()
        with torch.no_grad():
            found = model(ids, attention_mask=mask, position_ids=positions).logits
            torch.testing.assert_close(found[0], model(ids[:1]).logits[0])
            torch.testing.assert_close(found[1, tokens], model(ids[1:, tokens]).logits[0])


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", MEMORIES)
def test_a_padded_batch_generates_what_each_text_generates_alone(name, implementation):
    model = replaced(MEMORIES[name], attn_implementation=implementation)
    load_into(model, STATISTICS)
    for block in model.transformer.h:  # the memories speak
        torch.nn.init.normal_(block.attn.memory.output.weight, std=0.2)
    texts = [torch.from_numpy(TOKENS[at : at + length]) for at, length in ((0, 12), (20, 1), (40, 7))]
    ids = torch.stack([torch.cat([torch.full((12 - len(text),), 59), text]) for text in texts])
    mask = torch.stack([(torch.arange(12) >= 12 - len(text)).long() for text in texts])
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 59}
    together = model.generate(ids, attention_mask=mask, **options)[:, 12:]
    alone = [model.generate(text[None], attention_mask=torch.ones(1, len(text)), **options) for text in texts]
    for found, text, whole in zip(together, texts, alone, strict=True):
        assert torch.equal(found, whole[0, len(text) :])


def test_packed_texts_are_refused():
    model = replaced(FastWeightAttention)
    packed = torch.block_diag(torch.ones(4, 4), torch.ones(4, 4)).tril().bool()[None, None]
    with pytest.raises(InputError, match="attention_mask: expected causal attention with padding"):
        model(torch.from_numpy(TOKENS[None, :8]), attention_mask=packed)
    with pytest.raises(InputError, match="attention_mask: expected causal attention with padding"):
        model(torch.from_numpy(TOKENS[None, :8]), position_ids=torch.arange(8)[None] % 4)


def test_there_is_no_cache():
    model = replaced(FastWeightAttention)
    ids = torch.from_numpy(TOKENS[None, :5])
    with pytest.raises(InputError, match="past_key_values: expected none"):
        model(ids, use_cache=True)
    generated = model.generate(ids, max_new_tokens=3, do_sample=False, pad_token_id=0)
    for _ in range(3):
        ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(generated, ids)


def test_dropout_of_the_model_is_kept():
    torch.manual_seed(0)
    model = gpt2(resid_pdrop=0.5)
    replace_attention(model, FastWeightAttention)
    attention, x = model.transformer.h[0].attn.train(), torch.randn(1, 30, D)
    assert 0.3 < float((attention(x)[0] == 0).float().mean()) < 0.7
    assert not (attention.eval()(x)[0] == 0).any()


def test_another_initialisation_and_a_state_dict_keep_the_layers():
    model, other = replaced(TTTLinear), replaced(TTTLinear)
    before = copy.deepcopy(model.transformer.h[0].attn.state_dict())
    model.post_init()
    for name, value in model.transformer.h[0].attn.state_dict().items():
        assert torch.equal(value, before[name]), name
    for parameter in other.parameters():
        parameter.data.zero_()
    other.load_state_dict(model.state_dict())
    np.testing.assert_array_equal(log_probabilities(model, TOKENS[:20]), log_probabilities(other, TOKENS[:20]))


@pytest.mark.parametrize("name", MEMORIES)
def test_step_0_is_the_bigram_model_and_keys_are_factors(name):
    model, factors = replaced(MEMORIES[name]), factorise(STATISTICS, 50)
    report = load_into(model, factors)
    assert float(model.transformer.wpe.weight.detach().std()) == pytest.approx(0.02, rel=1e-3)
    model.transformer.wpe.weight.data.zero_()
    ids = unclipped(factors)
    np.testing.assert_allclose(log_probabilities(model, ids), expected(factors, ids), atol=2e-4)
    assert {parameter for parameter, _ in model.named_parameters()} == set(report.loaded) | set(report.missing)
    memory = model.transformer.h[0].attn.memory
    assert any("2 heads of the first memory" in note for note in report.notes)
    assert ("transformer.h.0.attn.memory.mix" in report.loaded) == (memory.mix is not None)
    with torch.no_grad():
        x = model.transformer.h[0].ln_1(model.transformer.wte.weight[: len(factors.A)])
        keys = (x @ memory.key.weight.T).double().numpy()[np.arange(len(factors.A))]
    norms = np.linalg.norm(factors.A, axis=1, keepdims=True)
    clipped = factors.A * np.minimum(1, np.quantile(norms, 0.999) / norms)
    for rows in (slice(0, 32), slice(32, 50)):  # the first head, and the second up to the last of the 50 factors
        products, expected_products = (a[:, rows] @ a[:, rows].T for a in (keys, clipped))
        assert np.corrcoef(products.ravel(), expected_products.ravel())[0, 1] > 0.9999
    assert torch.equal(memory.query.weight, memory.key.weight)


def test_values_make_the_head_predict_their_token():
    factors = factorise(STATISTICS, 50)
    placed = residual(factors, D, scale=0.1, centred=True, eps=0.0)
    x = placed.E / placed.E.std(axis=1, keepdims=True)
    back = placed.axes.T @ frame(D, centred=False)[:, : len(placed.axes)].T
    z = x @ (back @ value_map(placed)).T @ placed.W.T  # what the value of each token (row) adds to the logits
    p = np.exp(factors.log_prior.astype(float))
    assert (z.diagonal() > z @ (p / p.sum()) + z.std(axis=1)).mean() > 0.95
    assert (z.argmax(axis=1) == np.arange(V)).mean() > 0.5


def test_some_heads_or_none():
    for heads in (0, 1):
        model, untouched = replaced(MEMORIES["delta"]), replaced(MEMORIES["delta"])
        load_into(model, STATISTICS, heads=heads)
        keys, before = (m.transformer.h[0].attn.memory.key.weight for m in (model, untouched))
        assert (keys == before).all(1).sum() == D - heads * D // HEADS
        assert not model.transformer.h[1].attn.memory.output.weight.any()


def test_it_learns_from_the_warm_start():
    model = replaced(MEMORIES["delta"])
    load_into(model, STATISTICS)
    optimizer, ids = torch.optim.Adam(model.parameters(), 1e-3), torch.from_numpy(TOKENS[:320].reshape(10, 32))
    losses = []
    for _ in range(5):
        losses.append(model(ids, labels=ids).loss)
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0]
    assert model.transformer.h[0].attn.memory.output.weight.any()


def test_other_models_layers_and_heads_are_refused():
    with pytest.raises(InputError, match="expected a GPT-2 of transformers, got Linear"):
        replace_attention(nn.Linear(2, 2), FastWeightAttention)
    with pytest.raises(InputError, match="make: expected to get a module, got int"):
        replace_attention(gpt2(), lambda width, heads: width * heads)
    with pytest.raises(InputError, match="heads: expected a divisor"):
        replace_attention(gpt2(), lambda width, heads: FastWeightAttention(width, heads + 1))
    model = replaced(lambda width, heads: nn.Linear(width, width))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InputError, match="expected FastWeightAttention or TTTLinear in place of attention, got Linear"):
        load_into(model, STATISTICS)
    with pytest.raises(InputError, match="heads: expected 0 to 2, got 3"):
        load_into(replaced(FastWeightAttention), STATISTICS, heads=3)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
