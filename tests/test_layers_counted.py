"""The loss against counted rows: its definition, its gradient, ignored targets, types, other devices, hidden states."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from warmstart.errors import InputError
from warmstart.layers import counted
from warmstart.layers.counted import counted_cross_entropy, fused_counted_cross_entropy
from warmstart.left_out import SparseRows


def sparse(n, size, seed=0, parts=3):
    """Random rows with 0 to ``size`` entries."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, size + 1, n)
    counts[:1] = 0
    tokens = [np.sort(rng.permutation(size)[:count]) for count in counts]
    rest = rng.random(n) * (counts > 0) + (counts == 0)
    shares = [rng.dirichlet(np.ones(count)) if count else np.zeros(0) for count in counts]
    probs = [share * (1 - left) for share, left in zip(shares, rest, strict=True)]
    base = rng.dirichlet(np.ones(size), parts)
    return SparseRows(
        np.concatenate([[], *tokens]).astype(np.int32), np.concatenate([[], *probs]).astype(np.float32),
        np.append(0, np.cumsum(counts)), rest.astype(np.float32), rng.integers(0, parts, n), base.astype(np.float32),
    )  # fmt: skip


def expected(logits, targets, rows, weight):
    """The definition, on targets that are not ignored."""
    log_q = logits.log_softmax(-1)
    P = torch.from_numpy(rows.dense()).to(logits)
    return -(1 - weight) * log_q.gather(1, targets[:, None])[:, 0] - weight * (P * log_q).sum(1)


def drawn(n, size, dtype=torch.float64, ignored=False):
    generator = torch.Generator().manual_seed(n)
    logits = (3 * torch.randn(n, size, generator=generator, dtype=torch.float64)).to(dtype).requires_grad_()
    targets = torch.randint(size, (n,), generator=generator)
    if ignored:
        targets[torch.rand(n, generator=generator) < 0.4] = -100
    return logits, targets, sparse(int((targets >= 0).sum()), size)


@pytest.fixture(params=["cpu", "as on another device"])
def device(request, monkeypatch):
    if request.param != "cpu":
        monkeypatch.setattr(counted._Wanted, "on_cpu", False)
        monkeypatch.setattr(counted, "BLOCK_ROWS", 100)


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("ignored", [False, True], ids=["all", "some ignored"])
@pytest.mark.parametrize(("n", "size"), [(0, 5), (1, 1), (7, 11), (64, 9), (130, 33)])
def test_loss_and_gradient_are_those_of_the_definition(n, size, ignored, weight):
    logits, targets, rows = drawn(n, size, ignored=ignored)
    here, scale = targets >= 0, torch.arange(n) + 1.0
    found = counted_cross_entropy(logits, targets, rows, weight)
    assert found.shape == (n,)
    assert (found[~here] == 0).all()
    truth = expected(logits[here], targets[here], rows, weight)
    torch.testing.assert_close(found[here], truth, rtol=1e-6, atol=1e-6)
    (a,) = torch.autograd.grad((found * scale).sum(), logits)
    (b,) = torch.autograd.grad((truth * scale[here]).sum(), logits)
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6 * n)


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_types(dtype):
    logits, targets, rows = drawn(100, 40, dtype)
    found = counted_cross_entropy(logits, targets, rows, 0.5)
    found.sum().backward()
    assert (found.dtype, logits.grad.dtype) == (torch.float32, dtype)
    exact = logits.detach().double().requires_grad_()
    truth = expected(exact, targets, rows, 0.5)
    truth.sum().backward()
    torch.testing.assert_close(found.double(), truth, rtol=1e-5, atol=1e-5)
    rtol, atol = (1e-2, 1e-3) if dtype == torch.bfloat16 else (1e-4, 1e-6)
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=rtol, atol=atol)


def test_weight_0_is_the_plain_cross_entropy_and_large_logits_are_no_problem():
    logits, targets, rows = drawn(20, 30, torch.float32)
    with torch.no_grad():
        logits *= 1e4
    found = counted_cross_entropy(logits, targets, rows, 0.0)
    torch.testing.assert_close(found, functional.cross_entropy(logits, targets, reduction="none"))
    assert counted_cross_entropy(logits, targets, rows, 1.0).isfinite().all()


def test_without_a_gradient():
    logits, targets, rows = drawn(20, 30)
    with torch.no_grad():
        found = counted_cross_entropy(logits, targets, rows, 0.5)
    torch.testing.assert_close(found, expected(logits, targets, rows, 0.5), rtol=1e-6, atol=1e-6)
    assert not found.requires_grad


@pytest.mark.usefixtures("device")
def test_logits_above_the_counted_tokens_are_padding():
    logits, targets, rows = drawn(20, 30)
    wide = torch.randn(20, 33, dtype=logits.dtype)
    wide[:, :30] = logits.detach()
    wide.requires_grad_()
    P = torch.zeros(20, 33, dtype=logits.dtype)
    P[:, :30] = torch.from_numpy(rows.dense())
    log_q = wide.log_softmax(-1)
    truth = -0.4 * log_q.gather(1, targets[:, None])[:, 0] - 0.6 * (P * log_q).sum(1)
    found = counted_cross_entropy(wide, targets, rows, 0.6)
    torch.testing.assert_close(found, truth, rtol=1e-6, atol=1e-6)
    for a, b in zip(torch.autograd.grad(found.sum(), wide), torch.autograd.grad(truth.sum(), wide), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    with pytest.raises(InputError, match="expected targets from 0 to 29 or -100, got 0 to 30"):
        counted_cross_entropy(wide, torch.arange(20).clamp(max=1) * 30, rows, 0.6)


def test_a_gradient_can_be_asked_for_twice():
    logits, targets, rows = drawn(20, 30)
    loss = counted_cross_entropy(logits, targets, rows, 0.5).sum()
    once = torch.autograd.grad(2 * loss, logits, retain_graph=True)[0]
    torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], once / 2)


@pytest.mark.parametrize("chunk", [1, 7, 512])
@pytest.mark.parametrize("ignored", [False, True], ids=["all", "some ignored"])
def test_hidden_states_give_the_same(chunk, ignored, monkeypatch):
    monkeypatch.setattr(counted, "TARGETS_PER_CHUNK", chunk)
    _, targets, rows = drawn(30, 12, ignored=ignored)
    x = torch.randn(30, 5, dtype=torch.float64, requires_grad=True)
    head = torch.randn(12, 5, dtype=torch.float64, requires_grad=True)
    fused = fused_counted_cross_entropy(x, head, targets, rows, 0.7)
    whole = counted_cross_entropy(x @ head.T, targets, rows, 0.7)
    torch.testing.assert_close(fused, whole)
    scale = torch.rand(30, dtype=torch.float64)
    for a, b in zip(*(torch.autograd.grad((each * scale).sum(), (x, head)) for each in (fused, whole)), strict=True):
        torch.testing.assert_close(a, b)


def test_hidden_states_never_have_all_logits(monkeypatch):
    monkeypatch.setattr(counted, "TARGETS_PER_CHUNK", 10)
    seen, forward = [], counted._CountedCrossEntropy.forward
    watched = lambda ctx, logits, *rest: (seen.append(len(logits)), forward(ctx, logits, *rest))[1]  # noqa: E731
    monkeypatch.setattr(counted._CountedCrossEntropy, "forward", staticmethod(watched))
    _, targets, rows = drawn(35, 12)
    x, head = torch.randn(35, 5, requires_grad=True), torch.randn(12, 5, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        loss = fused_counted_cross_entropy(x, head, targets, rows, 0.7).sum()
    loss.backward()
    assert seen == [10, 10, 10, 5, 5, 10, 10, 10]  # forward, and again backward
    assert max(kept) < 35 * 12


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": torch.tensor([0, 1, 4])}, "expected targets from 0 to 3 or -100, got 0 to 4"),
        ({"targets": torch.tensor([0, 1, -1])}, "expected targets from 0 to 3 or -100, got -1 to 1"),
        ({"targets": torch.tensor([0, 1, -100])}, "a row of 4 probabilities for each of 2 targets, got 3 rows of 4"),
        ({"rows": sparse(3, 5)}, "a row of 4 probabilities for each of 3 targets, got 3 rows of 5"),
        ({"weight": 1.5}, "weight: expected a share from 0 to 1, got 1.5"),
        ({"weight": float("nan")}, "weight: expected a share from 0 to 1, got nan"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    given = {"targets": torch.tensor([0, 1, 2]), "rows": sparse(3, 4), "weight": 0.5} | change
    with pytest.raises(InputError, match=message):
        counted_cross_entropy(torch.zeros(3, 4), **given)
    with pytest.raises(InputError, match=message):
        fused_counted_cross_entropy(torch.zeros(3, 2), torch.zeros(4, 2), **given)
