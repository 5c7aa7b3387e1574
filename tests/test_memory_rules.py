"""Update rules: chunks and single steps agree with the plain recurrence; states, masks, gradients, bad input."""

import numpy as np
import pytest
import reference
import torch

from warmstart.errors import InputError
from warmstart.memory import SumState, delta_rule, delta_step, sum_normalise, sum_rule, sum_step

BATCH, HEADS, D_PHI, D_V = 2, 3, 6, 5
LENGTHS = (1, 63, 64, 65, 257)
CLOSE = {"rtol": 0, "atol": 1e-10}


def inputs(length, seed=0, dtype=torch.float64):
    """Return q, k, v, beta and a state that is not empty."""
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(BATCH, HEADS, *shape, generator=rng, dtype=dtype)

    q, k = (sum_normalise(normal(length, D_PHI).exp()) for _ in range(2))
    return q, k, normal(length, D_V), normal(length).sigmoid(), SumState(normal(D_V, D_PHI), normal(D_PHI).exp())


def by_head(twin, *arrays):
    """Run a twin on every head and stack its results."""
    runs = [twin(*(a[i, j].numpy() for a in arrays)) for i in range(BATCH) for j in range(HEADS)]
    return [torch.from_numpy(np.array(results)).unflatten(0, (BATCH, HEADS)) for results in zip(*runs, strict=True)]


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("length", LENGTHS)
def test_sum_rule_recurrence_chunks_and_steps_agree(length, normalise):
    q, k, v, _, before = inputs(length)
    expected = by_head(lambda *a: reference.sum_rule(*a, normalise), q, k, v, *before)
    output, state = sum_rule(q, k, v, normalise=normalise, state=before)
    for result, right in zip((output, *state), expected, strict=True):
        torch.testing.assert_close(result, right, **CLOSE)
    state, steps = before, []
    for t in range(length):
        step, state = sum_step(q[:, :, t], k[:, :, t], v[:, :, t], state, normalise=normalise)
        steps.append(step)
    for result, right in zip((torch.stack(steps, 2), *state), expected, strict=True):
        torch.testing.assert_close(result, right, **CLOSE)


@pytest.mark.parametrize("length", LENGTHS)
def test_delta_rule_recurrence_chunks_and_steps_agree(length):
    q, k, v, beta, (S, _) = inputs(length)
    expected = by_head(reference.delta_rule, q, k, v, beta, S)
    for result, right in zip(delta_rule(q, k, v, beta, state=S), expected, strict=True):
        torch.testing.assert_close(result, right, **CLOSE)
    steps = []
    for t in range(length):
        step, S = delta_step(q[:, :, t], k[:, :, t], v[:, :, t], beta[:, :, t], S)
        steps.append(step)
    for result, right in zip((torch.stack(steps, 2), S), expected, strict=True):
        torch.testing.assert_close(result, right, **CLOSE)


@pytest.mark.parametrize("length", [64, 257])
def test_delta_rule_agrees_for_signed_unit_keys_and_full_strength(length):
    q, k, v, _, (S, _) = inputs(length)
    k = torch.nn.functional.normalize(k - k.mean(), dim=-1)
    beta = torch.full(k.shape[:3], 2.0, dtype=k.dtype)  # the most that is stable
    expected = by_head(reference.delta_rule, q, k, v, beta, S)
    for result, right in zip(delta_rule(q, k, v, beta, state=S), expected, strict=True):
        torch.testing.assert_close(result, right, **CLOSE)


@pytest.mark.parametrize("chunk_size", [1, 7, 32, 1000])
def test_chunk_size_changes_rounding_only(chunk_size):
    q, k, v, beta, before = inputs(70)
    pairs = [
        (sum_rule(q, k, v, state=before, chunk_size=chunk_size), sum_rule(q, k, v, state=before)),
        (delta_rule(q, k, v, beta, chunk_size=chunk_size), delta_rule(q, k, v, beta)),
    ]
    for result, right in pairs:
        torch.testing.assert_close(result, right, **CLOSE)


def rules(q, k, v, beta):
    """Return both rules as functions of a slice of the text."""

    def run_sum(rows, **options):
        return sum_rule(q[:, :, rows], k[:, :, rows], v[:, :, rows], **options)

    def run_delta(rows, **options):
        return delta_rule(q[:, :, rows], k[:, :, rows], v[:, :, rows], beta[:, :, rows], **options)

    return [run_sum, run_delta]


def test_two_parts_of_a_text_give_the_outputs_of_the_whole():
    for rule in rules(*inputs(100)[:4]):
        whole, end = rule(slice(None))
        first, state = rule(slice(0, 37))
        second, last = rule(slice(37, None), state=state)
        torch.testing.assert_close(torch.cat([first, second], 2), whole, **CLOSE)
        torch.testing.assert_close(last, end, **CLOSE)


def test_masked_positions_write_nothing():
    tensors = inputs(90)[:4]
    mask = torch.rand(BATCH, 90, generator=torch.Generator().manual_seed(1)) < 0.6
    tensors[1][~mask[:, None].expand(tensors[1].shape[:3])] = torch.nan  # a NaN has no effect either
    for i, row in enumerate(mask):
        unmasked = [x[i : i + 1][:, :, row] for x in tensors]
        for rule, short in zip(rules(*tensors), rules(*unmasked), strict=True):
            found, state = rule(slice(None), mask=mask)
            expected, end = short(slice(None))
            torch.testing.assert_close(found[i : i + 1][:, :, row], expected, **CLOSE)
            for a, b in zip(flat(state), flat(end), strict=True):
                torch.testing.assert_close(a[i : i + 1], b, **CLOSE)


def flat(state):
    return list(state) if isinstance(state, SumState) else [state]


def test_a_query_without_a_matching_key_reads_zero():
    k = torch.tensor([1.0, 0.0]).expand(1, 1, 3, 2)
    q = torch.tensor([0.0, 1.0]).expand(1, 1, 3, 2).clone().requires_grad_()
    output, _ = sum_rule(q, k, torch.ones(1, 1, 3, 1))
    assert output.flatten().tolist() == [0, 0, 0]
    output.sum().backward()
    assert q.grad.isfinite().all()


def test_the_delta_rule_moves_a_key_by_its_share_by_hand():
    k = torch.tensor([[[[0.5, 0.5]]]]).expand(1, 1, 2, 2)  # |k|^2 = 1/2
    v, beta = torch.tensor([[[[8.0], [4.0]]]]), torch.tensor([[[1.0, 0.5]]])
    output, S = delta_rule(k, k, v, beta)
    assert output.flatten().tolist() == [4, 4]  # 0 + 1/2 (8 - 0); 4 + 1/4 (4 - 4)
    assert S.flatten().tolist() == [4, 4]


def test_linear_attention_is_one_gradient_step_on_a_linear_model_from_zero():
    q, k, v, _, _ = inputs(20)
    W = torch.zeros(BATCH, HEADS, D_V, D_PHI, dtype=torch.float64, requires_grad=True)
    loss = (v - k @ W.mT).square().sum() / 2
    (step,) = torch.autograd.grad(loss, W)
    output, (S, _) = sum_rule(q, k, v, normalise=False)
    torch.testing.assert_close(S, -step, **CLOSE)
    torch.testing.assert_close(output[:, :, -1], (q @ -step.mT)[:, :, -1], **CLOSE)


def test_gradients_are_those_of_finite_differences():
    tensors = [x[:1, :2].clone().requires_grad_() for x in inputs(7)[:4]]
    S, z = (x[:1, :2].clone().requires_grad_() for x in inputs(7)[4])
    first = [x[:, :, 0].detach().requires_grad_() for x in tensors]

    def chunked(q, k, v, S, z):
        output, state = sum_rule(q, k, v, state=SumState(S, z), chunk_size=3)
        return output, *state

    def step(q, k, v, S, z):
        output, state = sum_step(q, k, v, SumState(S, z))
        return output, *state

    assert torch.autograd.gradcheck(chunked, (*tensors[:3], S, z))
    assert torch.autograd.gradcheck(step, (*first[:3], S, z))
    assert torch.autograd.gradcheck(lambda *a: delta_rule(*a[:4], state=a[4], chunk_size=3), (*tensors, S))
    assert torch.autograd.gradcheck(delta_step, (*first, S))


def test_float32_keeps_its_digits_over_a_long_text():
    q, k, v, beta, _ = inputs(4096)
    for double, single in zip(rules(q, k, v, beta), rules(*(x.float() for x in (q, k, v, beta))), strict=True):
        error = (single(slice(None))[0] - double(slice(None))[0]).abs().max()
        assert error < 1e-5


def test_memory_does_not_depend_on_autocast():
    tensors = [x.float() for x in inputs(20)[:4]]
    for rule in rules(*tensors):
        expected, _ = rule(slice(None))
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(rule(slice(None))[0], expected)


def wrong(name, value):
    """Return the arguments of both rules with one of them replaced."""
    arguments = dict(zip(("q", "k", "v", "beta"), (x.float() for x in inputs(4)[:4]), strict=True))
    return arguments | {name: value(arguments[name])}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("k", lambda k: k[:, :, :0], r"k: expected \(batch, heads, length, d_phi\), none of them 0"),
        ("k", lambda k: k[0], "k: expected"),
        ("k", lambda k: k.half(), "k: expected float32 or float64, got torch.float16"),
        ("k", lambda k: k.masked_fill(k == k[0, 0, 0, 0], torch.nan), "k: expected finite numbers, got NaN"),
        ("v", lambda v: v / 0, "v: expected finite numbers"),
        ("q", lambda q: q.double(), "q: expected torch.float32 as k, got torch.float64"),
        ("q", lambda q: q[..., 1:], r"q: expected the shape \(2, 3, 4, 6\) after k, got \(2, 3, 4, 5\)"),
        ("v", lambda v: v[:, :, 1:], r"v: expected the shape \(2, 3, 4, 5\) after k"),
        ("v", lambda v: v[..., :0], "v: expected"),
        ("v", lambda v: v.double(), "v: expected torch.float32"),
    ],
    ids=str,
)
def test_bad_tensors_are_refused(name, value, message):
    given = wrong(name, value)
    sums = {key: given[key] for key in ("q", "k", "v")}
    for call in (lambda: sum_rule(**sums), lambda: delta_rule(**given)):
        with pytest.raises(InputError, match=message):
            call()
    if given["k"].shape == (BATCH, HEADS, 4, D_PHI) and given["v"].shape[2:3] == (4,):
        first = {key: x[:, :, 0] for key, x in given.items()}
        for call in (lambda: sum_step(first["q"], first["k"], first["v"]), lambda: delta_step(**first)):
            with pytest.raises(InputError, match=message.split(":")[0]):
                call()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("others", [0.0, 1.0])
@pytest.mark.parametrize("position", [0, 63, 64, 128])
@pytest.mark.parametrize("name", ["q", "k", "v", "beta"])
def test_one_bad_number_is_found_wherever_it_is(name, position, others, bad):
    tensors = [x[:1] * others for x in inputs(129)[:4]]
    tensors[["q", "k", "v", "beta"].index(name)].view(HEADS, 129, -1)[1, position, -1] = bad
    for rule in rules(*tensors)[name == "beta" :]:
        with pytest.raises(InputError, match=f"{name}: expected finite numbers"):
            rule(slice(None))


def test_large_finite_numbers_are_accepted():
    q, k, v, beta = (x.float() for x in inputs(70)[:4])
    for rule in rules(q, k, torch.full_like(v, 3e36), beta):
        output, _ = rule(slice(None))
        assert output.isfinite().all()
        assert output.sum().isinf()


@pytest.mark.parametrize("value", [lambda b: b[..., None], lambda b: b.double(), lambda b: b * torch.nan])
def test_bad_strengths_are_refused(value):
    with pytest.raises(InputError, match="beta: expected"):
        delta_rule(**wrong("beta", value))


def test_states_masks_and_chunks_of_another_shape_are_refused():
    q, k, v, beta, (S, z) = inputs(4)
    for bad in (S[:1], S[..., 1:], S.float()):
        with pytest.raises(InputError, match="state: expected S of shape"):
            delta_rule(q, k, v, beta, state=bad)
        with pytest.raises(InputError, match="state: expected S of shape"):
            delta_step(q[:, :, 0], k[:, :, 0], v[:, :, 0], beta[:, :, 0], bad)
        with pytest.raises(InputError, match="state: expected S of shape"):
            sum_rule(q, k, v, state=SumState(bad, z))
    for bad in (z[:1], z.float()):
        with pytest.raises(InputError, match="state: expected z of shape"):
            sum_rule(q, k, v, state=SumState(S, bad))
        with pytest.raises(InputError, match="state: expected z of shape"):
            sum_step(q[:, :, 0], k[:, :, 0], v[:, :, 0], SumState(S, bad))
    for bad in (torch.ones(BATCH, 4), torch.ones(BATCH, 5, dtype=torch.bool)):
        with pytest.raises(InputError, match="mask: expected bool"):
            sum_rule(q, k, v, mask=bad)
    with pytest.raises(InputError, match="chunk_size: expected at least 1, got 0"):
        delta_rule(q, k, v, beta, chunk_size=0)
