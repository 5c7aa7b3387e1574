"""FastWeightAttention against its formula: states, masks, token shift, autocast, learning, bad input."""

import copy
from functools import partial

import pytest
import torch

from warmstart.errors import InputError
from warmstart.memory import FAVOR, TTTMLP, FastWeightAttention, TTTLinear, delta_step, dpfp, elu_plus_one, sum_step
from warmstart.memory.layers import RULES

DIM, HEADS = 12, 3
MAPS = [dpfp, partial(dpfp, nu=3), elu_plus_one, FAVOR(DIM // HEADS, 5)]


def layer(rule="delta", feature_map=dpfp, seed=0, token_shift=False):
    torch.manual_seed(seed)
    return FastWeightAttention(DIM, HEADS, feature_map, rule, token_shift).double()


def vectors(length, seed=1):
    return torch.randn(2, length, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("feature_map", MAPS, ids=["dpfp-1", "dpfp-3", "elu", "favor"])
@pytest.mark.parametrize("rule", ["delta", "sum"])
def test_outputs_follow_the_formula(rule, feature_map):
    attention, x = layer(rule, feature_map), vectors(9)
    d = DIM // HEADS
    heads = []
    for h in range(HEADS):
        rows = slice(h * d, (h + 1) * d)
        q, k = (attention.feature_map(x @ m.weight[rows].T) for m in (attention.query, attention.key))
        v = x @ attention.value.weight[rows].T
        state, reads = None, []
        for t in range(x.shape[1]):
            if rule == "sum":
                read, state = sum_step(q[:, None, t], k[:, None, t], v[:, None, t], state)
            else:
                beta = torch.sigmoid(x[:, t] @ attention.strength.weight[h] + attention.strength.bias[h])
                q_t, k_t = (f[:, None, t] / f[:, None, t].sum(-1, keepdim=True) for f in (q, k))
                read, state = delta_step(q_t, k_t, v[:, None, t], beta[:, None], state)
            reads.append(read[:, 0])
        heads.append(torch.stack(reads, 1))
    expected = torch.cat(heads, -1) @ attention.output.weight.T
    torch.testing.assert_close(attention(x), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("rule", ["delta", "sum"])
@pytest.mark.parametrize("token_shift", [False, True])
def test_parts_and_single_tokens_give_the_outputs_of_the_whole(rule, token_shift):
    attention, x = layer(rule, token_shift=token_shift), vectors(70)
    outputs, state = [], None
    for part in x.split([66, 1, 1, 2], dim=1):
        output, state = attention.advance(part, state)
        outputs.append(output)
    torch.testing.assert_close(torch.cat(outputs, 1), attention(x), rtol=0, atol=1e-10)


@pytest.mark.parametrize("rule", ["delta", "sum"])
def test_shifted_keys_see_the_token_before(rule):
    attention, x = layer(rule, token_shift=True), vectors(6)
    plain = layer(rule)
    plain.load_state_dict({name: value for name, value in attention.state_dict().items() if name != "mix"})
    with torch.no_grad():
        attention.mix.fill_(0)
        torch.testing.assert_close(attention(x), plain(x), rtol=0, atol=1e-12)
        attention.mix.copy_(torch.linspace(0, 1, DIM))
        before = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1)
        mixed = x + (before - x) * attention.mix
        key = plain.key
        plain.key = torch.nn.Identity()
        plain.key.forward = lambda _: key(mixed)
        torch.testing.assert_close(attention(x), plain(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("rule", ["delta", "sum"])
def test_masked_tokens_are_not_read(rule):
    attention, x = layer(rule), vectors(20)
    mask = torch.arange(20) % 3 > 0
    found = attention(x, mask.expand(2, 20))[:, mask]
    torch.testing.assert_close(found, attention(x[:, mask]), rtol=0, atol=1e-10)


@pytest.mark.parametrize("rule", ["delta", "sum"])
def test_outer_gradients_are_those_of_finite_differences(rule):
    attention, x = layer(rule), vectors(5)[:1].requires_grad_()
    names = [name for name, _ in attention.named_parameters()]

    def forward(x, *weights):
        return torch.func.functional_call(attention, dict(zip(names, weights, strict=True)), (x,))

    assert torch.autograd.gradcheck(forward, (x, *attention.parameters()), fast_mode=True)


def test_autocast_gives_nearly_the_same():
    attention, x = layer(feature_map=elu_plus_one).float(), vectors(30).float()
    with torch.autocast("cpu", torch.bfloat16):
        found = attention(x)
    torch.testing.assert_close(found.float(), attention(x), rtol=0, atol=0.03)


LAYERS = {
    **{f"{rule} {i}": partial(FastWeightAttention, rule=rule, feature_map=MAPS[i]) for rule in RULES for i in range(4)},
    "ttt": partial(TTTLinear, mini_batch=4),
    "ttt plain": partial(TTTLinear, norm=False),
    "ttt mlp": TTTMLP,
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("token_shift", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_weights_in_half_precision(name, token_shift, dtype):
    """Against the same rounded weights and inputs in float64: the memory itself is not rounded."""
    torch.manual_seed(0)
    layer = copy.deepcopy(LAYERS[name])(DIM, HEADS, token_shift=token_shift).to(dtype)
    x = vectors(70).to(dtype)
    expected = copy.deepcopy(layer).double()(x.double())
    whole, outputs, state = layer(x), [], None
    for part in x.split([66, 1, 1, 2], dim=1):
        output, state = layer.advance(part, state)
        outputs.append(output)
    for found in (whole, torch.cat(outputs, 1)):
        assert found.dtype == dtype
        error = (found.double() - expected).square().mean().sqrt() / expected.square().mean().sqrt()
        assert error < 4 * torch.finfo(dtype).eps
    whole.float().square().sum().backward()
    assert all(p.grad.dtype == dtype and p.grad.isfinite().all() and p.grad.any() for p in layer.parameters())


@pytest.mark.parametrize("name", LAYERS)
def test_autocast_of_bfloat16_inputs_and_of_single_tokens(name):
    torch.manual_seed(0)
    layer, x, state, outputs = copy.deepcopy(LAYERS[name])(DIM, HEADS), vectors(20).bfloat16(), None, []
    expected = layer(x.float())
    with torch.autocast("cpu", torch.bfloat16):
        outputs.append(layer(x))
        for part in x.split(1, dim=1):
            output, state = layer.advance(part, state)
            outputs.append(output)
    for found in (outputs[0], torch.cat(outputs[1:], 1)):
        error = (found.float() - expected).square().mean().sqrt() / expected.square().mean().sqrt()
        assert error < 4 * torch.finfo(torch.bfloat16).eps


def test_the_layer_learns_to_recall():
    """The text is pairs of keys and values; its last token is one of the keys without a value."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    attention = FastWeightAttention(32, 1, partial(dpfp, nu=2))
    keys, values = torch.randn(2, 6, 16, generator=generator)
    optimizer = torch.optim.Adam(attention.parameters(), lr=0.01)
    losses = []
    for _ in range(150):
        order, drawn = (torch.rand(32, 6, generator=generator).argsort(-1) for _ in range(2))
        text = torch.cat([keys[order], values[drawn]], -1)
        asked = torch.randint(6, (32, 1), generator=generator)
        query = torch.cat([keys[order.gather(1, asked)], torch.zeros(32, 1, 16)], -1)
        expected = values[drawn.gather(1, asked)][:, 0]
        recalled = attention(torch.cat([text, query], 1))[:, -1, 16:]
        loss = (recalled - expected).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) / 10 < 0.2 * losses[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"heads": 5}, "heads: expected a divisor of dim, 12, got 5"),
        ({"heads": 0}, "heads: expected a divisor of dim, 12, got 0"),
        ({"rule": "hebb"}, "rule: expected one of delta, sum, got 'hebb'"),
        ({"feature_map": partial(dpfp, nu=8)}, "nu: expected 1 to 7"),
        ({"feature_map": FAVOR(5, 3)}, "expected keys of dimension 5, got 4"),
    ],
    ids=str,
)
def test_wrong_settings_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        FastWeightAttention(**{"dim": DIM, "heads": HEADS} | arguments)


def test_wrong_inputs_and_foreign_states_are_refused():
    delta, sums = layer("delta"), layer("sum")
    for x in (vectors(0), vectors(3)[0]):
        with pytest.raises(InputError, match=r"expected vectors \(batch, length, dim\)"):
            delta(x)
    with pytest.raises(InputError, match="k: expected finite numbers"):
        delta(vectors(3) * torch.nan)
    with pytest.raises(InputError, match="expected a SumState, as the sum rule returns it"):
        sums.advance(vectors(3), delta.advance(vectors(3))[1])
    with pytest.raises(InputError, match="expected a tensor, as the delta rule returns it"):
        delta.advance(vectors(3), sums.advance(vectors(3))[1])
    shifting = layer("delta", token_shift=True)
    with pytest.raises(InputError, match="mask: expected none for a layer with token shift"):
        shifting(vectors(3), torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(InputError, match="with token shift, got Tensor"):
        shifting.advance(vectors(3), delta.advance(vectors(3))[1])
    with pytest.raises(InputError, match=r"expected a last input \(1, 12\)"):
        shifting.advance(vectors(3)[:1], shifting.advance(vectors(3))[1])
    for length in (1, 3):
        with pytest.raises(InputError, match="state: expected S of shape"):
            delta.advance(vectors(length), layer("delta", elu_plus_one).advance(vectors(3))[1])
