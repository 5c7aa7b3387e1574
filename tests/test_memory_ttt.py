"""Test-time training: inner gradients against autograd, the delta rule as a special case, states, bad input."""

import pytest
import torch
from torch.nn import functional

from warmstart.errors import InputError
from warmstart.memory import TTTMLP, TTTLinear, delta_rule, ttt_rule

BATCH, HEADS, D = 2, 3, 4
CLOSE = {"rtol": 0, "atol": 1e-10}


def inputs(length, hidden=None, seed=0):
    """Return q, k, v, eta, the weights of the inner model and its norm."""
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    q, k, v = (normal(BATCH, HEADS, length, D) for _ in range(3))
    eta = normal(BATCH, HEADS, length).sigmoid() / 10
    shapes = [(D, hidden), (hidden, D)] if hidden else [(D, D)]
    weights = [normal(HEADS, *shape) / 2 for shape in shapes]
    return q, k, v, eta, weights, (normal(HEADS, 1, D), normal(HEADS, 1, D))


def inner(x, weights, norm):
    """Return the output of the inner model for one head, with PyTorch's own layers: x (d,)."""
    for W in weights[:-1]:
        x = functional.gelu(x @ W, approximate="tanh")
    z = x @ weights[-1]
    return z if norm is None else functional.layer_norm(z, (D,), norm[0], norm[1], eps=1e-6)


def by_autograd(q, k, v, eta, weights, norm, mini_batch):
    """Twin of `ttt_rule` for one head, a token at a time: q, k, v (length, d), eta (length,)."""
    weights, reads = list(weights), []
    for t in range(len(k)):
        if t % mini_batch == 0:
            start = [W.detach().requires_grad_() for W in weights]
        residual = 0 if norm is None else 1
        loss = (inner(k[t], start, norm) + residual * k[t] - v[t]).square().sum() / 2
        steps = torch.autograd.grad(loss, start)
        weights = [W.detach() - eta[t] * step for W, step in zip(weights, steps, strict=True)]
        reads.append(inner(q[t], weights, norm) + residual * q[t])
    return torch.stack(reads), weights


@pytest.mark.parametrize("normed", [True, False])
@pytest.mark.parametrize("hidden", [None, 7])
@pytest.mark.parametrize(("length", "mini_batch"), [(1, 16), (15, 16), (16, 16), (65, 16), (9, 1), (10, 100)])
def test_inner_gradients_are_those_of_autograd(length, mini_batch, hidden, normed):
    q, k, v, eta, weights, norm = inputs(length, hidden)
    output, after = ttt_rule(q, k, v, eta, weights, norm if normed else None, mini_batch)
    for i in range(BATCH):
        for h in range(HEADS):
            head_norm = (norm[0][h, 0], norm[1][h, 0]) if normed else None
            one = (x[i, h] for x in (q, k, v, eta))
            reads, expected = by_autograd(*one, [W[h] for W in weights], head_norm, mini_batch)
            torch.testing.assert_close(output[i, h], reads, **CLOSE)
            for found, W in zip(after, expected, strict=True):
                torch.testing.assert_close(found[i, h], W, **CLOSE)


def test_without_norm_and_mini_batch_1_it_is_the_delta_rule():
    q, k, v, eta, (W,), _ = inputs(40)
    output, (after,) = ttt_rule(q, k, v, eta, [W], mini_batch=1)
    expected, S = delta_rule(q, k, v, eta, state=W.mT.expand(BATCH, HEADS, D, D))
    torch.testing.assert_close(output, expected, **CLOSE)
    torch.testing.assert_close(after, S.mT, **CLOSE)


def test_the_layer_without_norm_is_the_delta_rule():
    torch.manual_seed(0)
    layer = TTTLinear(12, HEADS, mini_batch=1, norm=False, token_shift=False).double()
    x = torch.randn(BATCH, 30, 12, dtype=torch.float64)
    q, k, v = (
        (x @ m.weight.T).view(BATCH, 30, HEADS, D).transpose(1, 2) for m in (layer.query, layer.key, layer.value)
    )
    beta = torch.sigmoid(layer.gate(x)).transpose(1, 2) / D
    read, _ = delta_rule(q, k, v, beta, state=layer.weights[0].mT.expand(BATCH, HEADS, D, D))
    torch.testing.assert_close(layer(x), layer.output(read.transpose(1, 2).flatten(2)), **CLOSE)


@pytest.mark.parametrize("kind", [TTTLinear, TTTMLP])
def test_outer_gradients_reach_every_map_and_are_those_of_finite_differences(kind):
    torch.manual_seed(0)
    layer = kind(6, 2, mini_batch=3).double()
    x = torch.randn(1, 7, 6, dtype=torch.float64, requires_grad=True)
    layer(x).square().sum().backward()
    for name, weight in layer.named_parameters():
        assert weight.grad.abs().max() > 1e-6, name
    names = [name for name, _ in layer.named_parameters()]

    def forward(x, *weights):
        return torch.func.functional_call(layer, dict(zip(names, weights, strict=True)), (x,))

    assert torch.autograd.gradcheck(forward, (x, *layer.parameters()), fast_mode=True)


@pytest.mark.parametrize("token_shift", [False, True])
@pytest.mark.parametrize("kind", [TTTLinear, TTTMLP])
@pytest.mark.parametrize("sizes", [[1] * 16, [1] * 40, [7, 1, 24, 3, 16, 2], [40, 1, 9]])
def test_parts_and_single_tokens_give_the_outputs_of_the_whole(sizes, kind, token_shift):
    torch.manual_seed(0)
    layer = kind(12, HEADS, token_shift=token_shift).double()
    x = torch.randn(BATCH, sum(sizes), 12, dtype=torch.float64)
    outputs, state = [], None
    for part in x.split(sizes, dim=1):
        output, state = layer.advance(part, state)
        outputs.append(output)
    torch.testing.assert_close(torch.cat(outputs, 1), layer(x), **CLOSE)


def test_shifted_keys_see_the_token_before():
    torch.manual_seed(0)
    layer, plain = (TTTLinear(12, HEADS, token_shift=shifted).double() for shifted in (True, False))
    plain.load_state_dict({name: value for name, value in layer.state_dict().items() if name != "mix"})
    x = torch.randn(1, 20, 12, dtype=torch.float64)
    with torch.no_grad():
        layer.mix.fill_(0)
        torch.testing.assert_close(layer(x), plain(x), **CLOSE)
        layer.mix.fill_(1)
        layer.key.weight.copy_(2 * torch.eye(12))
        plain.query.weight.copy_(layer.query.weight)
    before = torch.cat([torch.zeros(1, 1, 12), x[:, :-1]], 1)
    q, k, v = (
        y.view(1, 20, HEADS, D).transpose(1, 2)
        for y in (x @ layer.query.weight.T, 2 * before, x @ layer.value.weight.T)
    )
    eta = torch.sigmoid(layer.gate(x)).transpose(1, 2) / D
    read, _ = ttt_rule(q, k, v, eta, list(layer.weights), (layer.scale, layer.shift))
    torch.testing.assert_close(layer(x), layer.output(read.transpose(1, 2).flatten(2)), **CLOSE)


def test_foreign_states_are_refused():
    x = torch.randn(1, 3, 12)
    plain, other = TTTLinear(12, 3, token_shift=False), TTTLinear(12, 2, token_shift=False)
    shifting = TTTLinear(12, 3)
    state = plain.advance(x)[1]
    for layer, vectors, given, message in (
        (other, x, state, "state: expected weights"),
        (plain, x.expand(2, 3, 12), state, "state: expected weights .* for a batch of 2"),
        (TTTLinear(12, 3, mini_batch=2, token_shift=False), x, state, "within a mini-batch of 2"),
        (plain, x, torch.zeros(1), "state: expected a TTTState"),
        (shifting, x, state, "with token shift, got TTTState"),
        (plain, x, shifting.advance(x)[1], "without token shift, got ShiftState"),
    ):
        with pytest.raises(InputError, match=message):
            layer.advance(vectors, given)


def test_inner_steps_work_in_inference_mode():
    layer = TTTLinear(8, 2)
    x = torch.randn(1, 20, 8)
    with torch.inference_mode():
        found = layer(x)
    assert torch.equal(found, layer(x))


def test_the_inner_loss_falls_as_the_text_repeats():
    _, k, v, _, weights, _ = inputs(2)
    k, v = (x.repeat(1, 1, 400, 1) for x in (functional.normalize(k, dim=-1), v))
    output, _ = ttt_rule(k, k, v, torch.full(k.shape[:3], 0.3, dtype=k.dtype), weights, mini_batch=2)
    errors = (output - v).square().sum(-1)
    assert errors[:, :, -2:].mean() < 0.05 * errors[:, :, :2].mean()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("k", lambda k: k[:, :, :0], "k: expected"),
        ("k", lambda k: k[0], "k: expected"),
        ("k", lambda k: k * torch.nan, "k: expected finite numbers"),
        ("q", lambda q: q.float(), "q: expected"),
        ("v", lambda v: v[..., 1:], "v: expected"),
        ("eta", lambda eta: eta[..., None], "eta: expected the shape"),
        ("eta", lambda eta: eta * torch.inf, "eta: expected finite numbers"),
        ("weights", lambda weights: weights * 3, "weights: expected one"),
        ("weights", lambda weights: [W[..., 1:] for W in weights], "weights: expected one"),
        ("weights", lambda weights: [W.float() for W in weights], "weights: expected one"),
        ("mini_batch", lambda _: 0, "mini_batch: expected at least 1, got 0"),
    ],
    ids=str,
)
def test_bad_tensors_are_refused(name, value, message):
    given = dict(zip(("q", "k", "v", "eta", "weights"), inputs(5)[:5], strict=True)) | {"mini_batch": 2}
    with pytest.raises(InputError, match=message):
        ttt_rule(**given | {name: value(given[name])})


def test_wrong_settings_and_inputs_of_the_layer_are_refused():
    for arguments in ({"heads": 3}, {"heads": 0}, {"mini_batch": 0}, {"rate": 0.0}, {"rate": float("nan")}):
        with pytest.raises(InputError, match="expected a"):
            TTTLinear(**{"dim": 8, "heads": 2} | arguments)
    for x in (torch.zeros(1, 0, 8), torch.zeros(4, 8)):
        with pytest.raises(InputError, match=r"expected vectors \(batch, length, dim\)"):
            TTTLinear(8, 2)(x)
    with pytest.raises(InputError, match="mask: expected none for test-time training"):
        TTTLinear(8, 2, token_shift=False)(torch.zeros(1, 4, 8), torch.ones(1, 4, dtype=torch.bool))


def test_the_default_rates_are_those_of_the_authors():
    assert [kind(8, 2).rate * 4 for kind in (TTTLinear, TTTMLP)] == [1.0, pytest.approx(0.1)]
